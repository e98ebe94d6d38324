"""Tensors on their way between a device and host memory: few copies, and one wait for all.

On a GPU each copy to host memory that is waited for stops the queue of kernels, so a call computes
on the device from its first step to its last and then copies its results once. On the CPU nothing
here copies anything. This module imports torch.

The streams and the pinned memory are not yet run on a GPU; `make test-gpu` runs them.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


class Leaving:
    """Tensors on their way to host memory, while the device computes what comes after them."""

    def __init__(self, *tensors: Tensor) -> None:
        """Begin to copy tensors of one device, into pinned memory where it is a GPU.

        A tensor that is in host memory is not copied.
        """
        self._arrived: torch.cuda.Event | None = None
        away = next((t.device for t in tensors if t.device.type == "cuda"), None)
        if away is None or not torch.cuda.is_available():
            self._tensors = to_host(*tensors)
            return
        computing, leaving = torch.cuda.current_stream(away), _stream("leaving", away)
        leaving.wait_stream(computing)
        with torch.cuda.stream(leaving):
            # torch copies into pinned memory what it need not wait for.
            self._tensors = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)
            self._arrived = leaving.record_event()
        for tensor in tensors:
            if tensor.is_cuda:  # its memory is not free before it has been copied
                tensor.record_stream(leaving)

    def arrive(self) -> tuple[Tensor, ...]:
        """The tensors in host memory; waits for their copies, not for later work."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in host memory; those of one device are copied with one wait for all of them.

    A tensor that is in host memory is returned itself.
    """
    away = [place for place, tensor in enumerate(tensors) if tensor.device.type != "cpu"]
    # The copies of a stream arrive in their order, so the host waits for the last one alone.
    return tuple(
        tensor.to("cpu", non_blocking=place != away[-1]) if place in away else tensor
        for place, tensor in enumerate(tensors)
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of host memory on ``device``; on a GPU the copy runs beside earlier kernels."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return tensor.to(device)
    computing, entering = torch.cuda.current_stream(device), _stream("entering", device)
    with torch.cuda.stream(entering):
        there = tensor.pin_memory().to(device, non_blocking=True)
    computing.wait_stream(entering)
    there.record_stream(computing)
    return there


@cache
def _stream(_way: str, device: torch.device) -> torch.cuda.Stream:
    """The stream of a GPU for copies in one direction: a GPU copies each way beside its kernels."""
    return torch.cuda.Stream(device)


def is_at(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor is on ``device``; a device without a number is any of its type."""
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def finest_float(device: torch.device) -> torch.dtype:
    """float64, in which sums of many terms keep their digits; float32 on MPS, which lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Placed:
    """A tensor that is copied to each device once, however often it is needed there."""

    def __init__(self, tensor: Tensor) -> None:
        self._copies = {tensor.device: tensor}

    def at(self, device: torch.device) -> Tensor:
        """The tensor on ``device``."""
        if device not in self._copies:
            with torch.inference_mode(False):  # a later call may need gradients
                self._copies[device] = next(iter(self._copies.values())).to(device)
        return self._copies[device]
