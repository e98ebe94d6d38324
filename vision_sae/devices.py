"""The device that computes and the precision it computes in: one setting for a whole process.

The setting is two variables of the environment, ``VISION_SAE_DEVICE`` and ``VISION_SAE_DTYPE``, so
worker processes inherit it. `using` sets them for a body: a command does so with its flags and its
configuration. Functions that take ``device="auto"`` call `chosen` once and pass the result on.

torch is imported by the functions that need it, not by this module.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from vision_sae.errors import InvalidInputError, quoted

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""The precision of matrix products; "auto" is the setting of the process, or else the fastest of
float32 and bfloat16 on the device."""
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
DEVICE_VARIABLE, DTYPE_VARIABLE = "VISION_SAE_DEVICE", "VISION_SAE_DTYPE"
LEAST_ROOM = 2 * 2**30
"""Bytes that must be free on a GPU before "auto" takes it."""
_OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation, which spoils nothing."""
_SPELLING = re.compile(r"auto|cpu|mps|cuda(:\d+)?|cuda:\d+(,cuda:\d+)+")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _State:
    """What this process keeps, beside the environment."""

    automatic: str | None = None
    """The device that "auto" chose; None before the first choice."""
    tell: Callable[[str], object] = _LOG.info
    """Receives the line that tells the choice."""


_state = [_State()]
"""One state; every thread of the process reads it."""


def check_device(device: str, *, field: str = "device") -> str:
    """``device`` itself, if it is spelled like a device; it may be absent from this machine.

    Raises `InvalidInputError` at ``field`` otherwise.
    """
    if not _SPELLING.fullmatch(device):
        raise InvalidInputError(
            f"{quoted(device)} is no device; write auto, cpu, cuda, cuda:0 (the number of a GPU) "
            "or mps; or several GPUs as cuda:0,cuda:1",
            field=field,
        )
    return device


def check_dtype(dtype: str, *, field: str = "dtype") -> Dtype:
    """``dtype`` itself, if it is one of `DTYPES`; raises `InvalidInputError` at ``field``
    otherwise."""
    if dtype not in DTYPES:
        raise InvalidInputError(
            f"{quoted(dtype)} is no precision to compute in; choose from {', '.join(DTYPES)}",
            field=field,
        )
    return dtype


@contextmanager
def using(
    device: str | None = None,
    dtype: str | None = None,
    *,
    tell: Callable[[str], object] | None = None,
) -> Iterator[None]:
    """Compute in the body on ``device`` and in ``dtype``; None leaves that part of the setting.

    ``tell`` receives one line when "auto" has taken a device, if there was a choice. Setting and
    choice hold for the whole process until the body ends. Raises `InvalidInputError` for a device
    that is misspelt or absent, before the body runs.
    """
    variables = {DEVICE_VARIABLE: device, DTYPE_VARIABLE: dtype}
    before = {name: os.environ.get(name) for name in variables}, _state[0]
    _state[0] = _State(tell=tell or _state[0].tell)
    try:
        _set(variables)
        requested_dtype()
        if requested() not in ("auto", "cpu"):  # these two need no look at the machine
            several()
        yield
    finally:
        _state[0] = before[1]
        for name in variables:
            os.environ.pop(name, None)
        _set(before[0])


def _set(variables: dict[str, str | None]) -> None:
    os.environ.update({name: value for name, value in variables.items() if value is not None})


def requested(device: str = "auto") -> str:
    """``device``, or the device of the process's setting in place of "auto"; "auto" without one.

    Raises `InvalidInputError` for a misspelt device.
    """
    if check_device(device) != "auto":
        return device
    return check_device(os.environ.get(DEVICE_VARIABLE, "auto"))


def requested_one(device: str = "auto") -> str:
    """As `requested`, for work that takes one device: raises `InvalidInputError` for several."""
    name = requested(device)
    if "," in name:
        raise InvalidInputError(
            f"this computes on one device, not on {name}; name one of them ({DEVICE_VARIABLE}, "
            "--device). Several are for harvest, and for a model of a server: serve --model-device "
            f"MODEL={name}",
            field="device",
        )
    return name


def requested_dtype(dtype: Dtype = "auto") -> Dtype:
    """``dtype``, or the precision of the process's setting in place of "auto"; "auto" without one.

    Raises `InvalidInputError` for an unknown precision.
    """
    if check_dtype(dtype) != "auto":
        return dtype
    return check_dtype(os.environ.get(DTYPE_VARIABLE, "auto"))


def chosen(device: str = "auto", *, needed: int = 0) -> str:
    """The device to compute on, in torch's spelling: ``cpu``, ``cuda:0``, ``mps``.

    "auto" is the setting of the process. If that is "auto" too, it is the first GPU with ``needed``
    bytes and at least `LEAST_ROOM` free, else Apple's GPU, else the CPU. This choice is made once
    and kept, because what computes together must be on one device. ``cuda`` is the first GPU.

    Raises `InvalidInputError` for an absent device, with a list of those of this machine, and for
    several devices; see `requested_one`.
    """
    name = requested_one(device)
    if name == "auto":
        if _state[0].automatic is None:
            _state[0] = replace(_state[0], automatic=_first_with_room(max(needed, LEAST_ROOM)))
        name = cast(str, _state[0].automatic)
    name = "cuda:0" if name == "cuda" else name
    if name != "cpu" and name not in _accelerators():
        raise InvalidInputError(
            f"this machine has no device {name}; it has {', '.join(available())}. Choose one of "
            f"these, or auto ({DEVICE_VARIABLE}, --device)",
            field="device",
        )
    if name.startswith("cuda"):
        _compute_exactly()
    return name


def several(device: str = "auto") -> tuple[str, ...]:
    """As `chosen`, for work that may be spread over the devices of a list: ``cuda:0,cuda:1``.

    "auto" stays "auto": what is loaded there chooses, because it knows the memory that it needs.
    Raises `InvalidInputError` for GPUs of several products, which round differently: what is
    computed must not depend on the device that takes a piece of the work.
    """
    if requested(device) == "auto":
        return ("auto",)
    names = tuple(dict.fromkeys(chosen(name) for name in requested(device).split(",")))
    if len(names) > 1 and len({device_name(name) for name in names}) > 1:
        raise InvalidInputError(
            f"{' and '.join(map(shown, names))} round differently; name GPUs of one product",
            field="device",
        )
    return names


def _compute_exactly() -> None:
    """Have GPUs compute float32 in float32: torch lets convolutions round it to TF32, which keeps
    10 bits."""
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def _first_with_room(needed: int) -> str:
    """The first accelerator with room, or the CPU; tells which one if there is an accelerator."""
    import torch

    accelerators = _accelerators()
    for name in accelerators:
        # Apple's GPU shares the memory of the machine, whose shortage slows a CPU as well.
        if name == "mps" or torch.cuda.mem_get_info(name)[0] >= needed:
            _state[0].tell(f"computing on {shown(name)}; --device chooses another")
            return name
    if accelerators:
        _state[0].tell(
            f"computing on {shown('cpu')}: no GPU has {needed / 2**30:.0f} GiB of memory free"
        )
    return "cpu"


def _accelerators() -> tuple[str, ...]:
    """The devices other than the CPU that torch can use, in its order."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = ("mps",) if torch.backends.mps.is_available() else ()
    return tuple(f"cuda:{number}" for number in range(count)) + mps


def available() -> tuple[str, ...]:
    """Every device of this machine with its name, as `shown` writes it; the CPU is the first."""
    return tuple(shown(name) for name in ("cpu", *_accelerators()))


def shown(device: str) -> str:
    """A device for people: ``cpu (AMD EPYC 7B13)``, ``cuda:0 (NVIDIA H200, 140 GiB)``."""
    if not device.startswith("cuda"):
        return f"{device} ({device_name(device)})"
    import torch

    gibibytes = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{device} ({device_name(device)}, {gibibytes:.0f} GiB)"


@cache
def device_name(device: str) -> str:
    """The product's name of a device: ``AMD EPYC 7B13``, ``NVIDIA H200``, ``Apple M3``."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_properties(device).name)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def is_lost(error: BaseException) -> bool:
    """Whether an error means that the process can compute on its GPU no more.

    An error of the GPU itself, such as an access to an illegal address, spoils the process's
    context; only a lack of memory does not.
    """
    if "torch" not in sys.modules:
        return False
    import torch

    return isinstance(error, torch.AcceleratorError) and (
        getattr(error, "error_code", None) != _OUT_OF_MEMORY
    )


def recorded(device: str | torch.device, dtype: str | torch.dtype) -> dict[str, str]:
    """What a manifest, a recipe or a report says of the device that computed it.

    ``{"device": "cuda:0", "device_name": "NVIDIA H200", "dtype": "bfloat16"}``
    """
    return {
        "device": str(device),
        "device_name": device_name(str(device)),
        "dtype": str(dtype).removeprefix("torch."),
    }
