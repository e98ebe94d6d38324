"""A GPU that is not there: models and dictionaries whose tensors say that they are on one.

Under torch's `FakeTensorMode` a tensor has a shape, a type and a device, but no numbers, so any
machine can run the code that a GPU will. An operation on tensors of two devices raises, and so does
code that reads a number (`.item()`, `if tensor`, a mask as an index): on a GPU it would wait there.
`Transfers` counts the copies between host and device, which the mode allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.models.sdxl import SdxlModel
from vision_sae.models.vit import VitModel

DEVICE = torch.device("cuda", 0)


@dataclass
class Counts:
    """Copies between host memory and the device so far."""

    to_device: int = 0
    to_host: int = 0
    waits: int = 0
    """Copies to host memory that the host waits for; one wait may end many copies."""

    def since(self, before: Counts) -> Counts:
        """The copies after ``before``."""
        return Counts(
            self.to_device - before.to_device,
            self.to_host - before.to_host,
            self.waits - before.waits,
        )


class Transfers(TorchDispatchMode):
    """Counts every operation that takes or gives tensors of both sides.

    A scalar in host memory is an argument of a kernel and needs no copy.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.counts = Counts()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        taken, made = _sides((args, kwargs), scalars=copies), _sides(result, scalars=copies)
        if "cuda" in made and "cpu" in taken:
            self.counts.to_device += 1
        elif "cpu" in made and "cuda" in taken:
            self.counts.to_host += 1
            self.counts.waits += not kwargs.get("non_blocking", False)
        return result


def _sides(values: Any, *, scalars: bool) -> set[str]:
    """The types of the devices of the tensors within ``values``."""
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return {tensor.device.type for tensor in tensors if scalars or tensor.ndim}


_MODE = FakeTensorMode(allow_non_fake_inputs=False)
"""One mode, because a model of one mode cannot meet tensors of another."""


@contextmanager
def fake_cuda() -> Iterator[Counts]:
    """Tensors that the body makes are fake; yields the counts of their transfers."""
    with mock.patch.object(torch.autograd, "grad", _gradients), _MODE, Transfers() as transfers:
        yield transfers.counts


def _gradients(outputs: Tensor, inputs: Tensor) -> tuple[Tensor]:
    """Stands for the backward pass, which asks the driver for the streams of a GPU's tensors, and
    so cannot run without one."""
    assert outputs.requires_grad, "the target does not depend on the vectors"
    return (torch.zeros_like(inputs),)


def fake(tensor: Tensor, device: torch.device = DEVICE) -> Tensor:
    """A fake tensor of the shape and type of a real one; inside `fake_cuda`."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def move_module(module: nn.Module) -> None:
    """Replace the weights of a real module by fake ones on the device; inside `fake_cuda`."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and not isinstance(weight, FakeTensor):
                part._parameters[name] = nn.Parameter(fake(weight), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, FakeTensor):
                part._buffers[name] = fake(buffer)


def put_on_gpu(model: VitModel | SdxlModel) -> None:
    """Put a model on the device that is not there, for good; inside `fake_cuda`."""
    modules = [model.backbone.module] if isinstance(model, VitModel) else _parts(model)
    for module in modules:
        move_module(module)
    model.device = DEVICE


def _parts(model: SdxlModel) -> list[nn.Module]:
    parts = model.pipeline.components.values()
    return [part for part in parts if isinstance(part, nn.Module)]


def fake_sae(dim: int, width: int = 48, k: int = 6, device: torch.device | str = DEVICE) -> TopKSae:
    """A k-sparse autoencoder without numbers; inside `fake_cuda`."""
    return TopKSae(
        k=k,
        w_enc=torch.randn(width, dim, device=device),
        b_enc=torch.randn(width, device=device),
        w_dec=torch.randn(width, dim, device=device),
        b_dec=torch.randn(dim, device=device),
    )
