"""What must be set before anything is imported: the threads of this process, and checked shapes."""

import os

# Processes of pytest-xdist share the cores: more threads than cores would wait for each other.
# What these processes start inherits the count.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // workers, 1)))

from tests.shapes import check_shapes

check_shapes()
