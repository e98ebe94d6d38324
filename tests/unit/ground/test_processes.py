"""A worker learns that whoever started it is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vision_sae.processes import orphaned

_PARENT = """
import multiprocessing, sys
from pathlib import Path
from tests.unit.ground.test_processes import worker
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=worker, args=(Path(sys.argv[1]),))
    child.start()
    child.join()
"""


def worker(note: Path) -> None:
    """Writes that it works, and then whether it learns that its parent is gone."""
    gone = orphaned()
    note.write_text("at work")
    note.write_text("stopped" if gone.wait(60) else "still at work")


def eventually(holds: Callable[[], bool], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.05)
    return holds()


def test_a_worker_learns_that_the_process_that_started_it_was_killed(tmp_path: Path) -> None:
    script, note = tmp_path / "parent.py", tmp_path / "note"
    script.write_text(_PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, str(script), str(note)], env=environment) as parent:
        assert eventually(lambda: note.is_file() and note.read_text() == "at work")
        time.sleep(0.2)
        assert note.read_text() == "at work"
        parent.kill()
    assert eventually(lambda: note.read_text() == "stopped")


def test_a_process_of_its_own_is_never_orphaned() -> None:
    assert not orphaned().wait(0.1)
