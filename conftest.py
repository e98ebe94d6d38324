"""What must be set before anything is imported: threads, a cache, and checked shapes."""

import atexit
import os
import shutil
import tempfile

# Processes of pytest-xdist share the cores: more threads than cores would wait for each other.
# What these processes start inherits the count.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // workers, 1)))

# What is measured on this machine is kept for the run, not in the cache of the user.
if "VISION_SAE_MACHINE" not in os.environ:
    folder = tempfile.mkdtemp(prefix="vision_sae-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["VISION_SAE_MACHINE"] = os.path.join(folder, "machine.json")

from tests.shapes import check_shapes

check_shapes()
