"""The adapter on the true architecture of SDXL-Turbo, in a process of its own for its memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from vision_sae.models.sdxl import TURBO_BLOCKS


@pytest.mark.slow
@pytest.mark.timeout(600)  # a minute alone, but it fills the memory of a small machine
def test_capture_and_edits_on_the_true_unet() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.sdxl_turbo_architecture"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert 2.5e9 < found["parameters"] < 2.65e9
    assert found["sites"] == {f"{block}.update": [1, 256, 1280] for block in TURBO_BLOCKS}
    assert found["grid"] == [16, 16]
    assert found["same_with_capture"]
    assert found["finite"]
    assert found["changed"]
    assert found["toward"] > 0.98
