"""How much memory there is, and what becomes of what a process has freed."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from vision_sae import memory
from vision_sae.errors import InvalidInputError

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


def test_a_container_has_what_its_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path)
    free = memory.available()
    if free is None:
        pytest.skip("this system does not say how much memory is free")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert memory.available() == pytest.approx(free, rel=0.2)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("active_file 1\ninactive_file 50\n")
    assert memory.available() == 350  # 1000 - 700, and 50 of the 700 are a cache
    with pytest.raises(InvalidInputError, match="a tower takes at least") as caught:
        memory.check_available(351, "a tower", field="model")
    assert caught.value.field == "model"
    memory.check_available(350, "a tower", field="model")
