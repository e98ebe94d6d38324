"""What becomes of memory that a process has freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import random, resource, threading
import torch
from vision_sae.memory import keep_freed_memory

if {keep}:
    assert keep_freed_memory()

def passes():
    choose = random.Random(0)
    for _ in range(100):
        held = [torch.ones(choose.randint(10_000, 7_000_000)) for _ in range(3)]
        del held

def measured():
    passes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    passes()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

torch.set_num_threads(1)
thread = threading.Thread(target=measured)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_a_thread_frees_is_not_asked_for_again() -> None:
    def faults(*, keep: bool) -> int:
        program = _PROGRAM.format(keep=keep)
        run = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        return int(run.stdout)

    kept, given_back = faults(keep=True), faults(keep=False)
    assert kept < given_back / 10, (kept, given_back)
