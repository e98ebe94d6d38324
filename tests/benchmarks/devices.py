"""What is known of the work on GPUs, with one and without.

``python -m tests.benchmarks.devices`` prints JSON:

- ``fake``: the flows of `tests.worlds.fake_flows` on a GPU that is not there, and how many pass;
- ``triton``: kernels, cases, and the largest relative error in Triton's interpreter;
- ``commands_without_device``: commands that compute but take no ``--device``;
- ``gpu``: null without a GPU; with one, the figures below.

====================  ==========================================================================
name                  of the GPU
tests                 the last line of the tests of ``tests/gpu``
training_vs_dense     time of a dense step over that of ours, at D = 1,024 and F = 16 D
training_vs_sparsify  time of a step of sparsify over that of ours; null without the extra ``bench``
harvest_ratio         pictures a second of a harvest over those of the bare forward pass
encode_ratio          time of a picture through gRPC over that in process, in batches of 32
index_ratio           queries a second of the patch index over those of FAISS called directly; null
                      without faiss-gpu
roofline              the GPU's rate of matrix products and of copies, and the share of the least
                      time, by these rates, in the time of our step
====================  ==========================================================================

``gpu`` is not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks._device import report
from tests.worlds import fake_flows
from vision_sae import devices


def fake() -> dict[str, Any]:
    """The flows on a GPU that is not there; what fails is told in a line each."""
    passed = 0
    for name in fake_flows.FLOWS:
        try:
            fake_flows.run(name)
            passed += 1
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    return {"flows": len(fake_flows.FLOWS), "passed": passed}


def triton() -> dict[str, float]:
    """The kernels in Triton's interpreter."""
    from tests.worlds import triton_cases  # slow to import

    measured: dict[str, float] = triton_cases.summary(triton_cases.interpreted())
    return measured


def commands_without_device() -> list[str]:
    """The commands that compute and take no device."""
    from tests.contract.test_devices import WITHOUT_DEVICE, options
    from tests.fault.commands import named
    from vision_sae.cli import app

    missing = {name for name in named(app) if not {"--device", "--dtype"} <= options(name)}
    return sorted(missing - WITHOUT_DEVICE.keys())


def gpu() -> dict[str, Any] | None:
    """The figures of the GPU of the setting; None where the setting is no GPU."""
    device = devices.chosen()
    if not device.startswith("cuda"):
        return None
    from tests.benchmarks import _gpu, _roofline  # slow to import

    return {
        "name": devices.device_name(device),
        "tests": tests_of_gpu(),
        **_gpu.figures(device, _roofline.roofline(device)),
    }


def tests_of_gpu() -> str:
    """The last line that pytest prints for ``tests/gpu``."""
    folder = Path(__file__).resolve().parents[1] / "gpu"
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=no", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return (tests.stdout.splitlines() or [""])[-1]


def measure(_: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    return {
        "fake": fake(),
        "triton": triton(),
        "commands_without_device": commands_without_device(),
        "gpu": gpu(),
    }


def main() -> None:
    """Print the figures."""
    report(argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]), measure)


if __name__ == "__main__":
    main()
