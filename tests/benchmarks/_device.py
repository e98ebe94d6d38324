"""The device that a benchmark computes on: its flag, its name, the memory it took, the wait for it.

Not yet run on a GPU; ``VISION_SAE_DEVICE=cuda make bench`` runs every benchmark on one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from vision_sae import devices
from vision_sae.errors import InvalidInputError

_HELP = "auto, cpu, cuda, cuda:1 or mps; default: VISION_SAE_DEVICE, or else auto"


def report(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    *,
    indent: int | None = None,
) -> None:
    """Print the figures of ``measure`` as JSON, computed on the device of the flag ``--device``.

    ``measure`` gets the arguments of the command line. It and the processes that it starts compute
    on the chosen device, whose name is told on stderr first. The JSON also has the name of the
    device as ``device`` and the figures of `peak`.
    """
    parser.add_argument("--device", help=_HELP)
    arguments = parser.parse_args()
    with ExitStack() as setting:
        try:
            setting.enter_context(devices.using(arguments.device))
            device = devices.chosen()
        except InvalidInputError as error:
            parser.error(str(error))
        setting.enter_context(devices.using(device))  # "auto" might choose again in a process
        print(f"computing on {devices.shown(device)}", file=sys.stderr, flush=True)
        figures = {"device": devices.device_name(device), **measure(arguments), **peak(device)}
    print(json.dumps(figures, indent=indent))


def peak(device: str) -> dict[str, int]:
    """``{"peak_gpu_mb": megabytes}``: the most memory that this process's tensors had on a GPU.

    Empty on other devices, and where tensors of other processes alone were on the GPU.
    """
    if not device.startswith("cuda"):
        return {}
    megabytes = torch.cuda.max_memory_allocated(device) // 2**20
    return {"peak_gpu_mb": megabytes} if megabytes else {}


def wait(device: str | torch.device) -> None:
    """Wait until the device has done all of its work; a CPU has done it already."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
