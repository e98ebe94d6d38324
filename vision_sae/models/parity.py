"""A check of every model that is loaded: it must compute what its own library computes.

Too many options of timm, torchvision and open_clip change what a model computes, where its patches
lie and how it preprocesses a picture for a list of the supported ones. So each model is run on one
picture when it is loaded, by its library and here. The check costs two forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vision_sae.errors import InvalidInputError
from vision_sae.models.hooks import Tap, capturing
from vision_sae.models.protocol import ModelOutput
from vision_sae.models.sources import said

if TYPE_CHECKING:
    from vision_sae.models.clip import ClipModel
    from vision_sae.models.vit import VitModel

Transform = Callable[[Image.Image], Tensor]
_WAY_OUT = "choose a plain ViT, DeiT, BEiT or EVA of timm, a ViT of torchvision, or a CLIP of these"
_LIT = 3.0
"""What is added to one patch of an input of unit variance."""
_TEXT, _ROUNDING = "a photo of a dog", 1e-3
_GREY_LEVEL = 1 / 255
_COMPANION = (61, 83)
"""Width and height of the picture that is preprocessed: odd, and no multiple of each other."""


def check_parity(
    model: VitModel, library: Callable[[Tensor], Tensor], transform: Transform | None = None
) -> None:
    """Raise `InvalidInputError`, with the reason, unless a model that was just loaded agrees with
    its library.

    ``library(images)`` is the library's own forward pass, whose result is the logits, or the
    embedding of a model without a classifier; ``transform`` its own preprocessing, where it says
    one. Leaves the model, its hooks and all random numbers as they were.
    """
    shape = (1, 3, model.preprocessing.height, model.preprocessing.width)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    ends = [site for site in model.sites if site.startswith(("blocks.0.", _last_block(model)))]
    with _undisturbed(model), _refusing(model):
        with model.capture(ends) as captured, capturing(_first(model)) as first:
            ours = model.forward(images)
        with model.autocast():
            theirs = library(images)
    _check_shapes(model, ours, captured)
    _check_output(model, ours, theirs)
    _check_places(model, images, first["tokens"])
    if transform is not None:
        _check_preprocessing(model, transform)


def check_architecture(model: VitModel) -> None:
    """The part of `check_parity` that needs no weights: ``model`` is on the device ``meta``."""
    images = torch.empty(1, 3, model.preprocessing.height, model.preprocessing.width, device="meta")
    with torch.inference_mode(), _refusing(model), model.capture(list(model.sites)) as captured:
        output = model.backbone.forward(images)
    _check_shapes(model, output, captured)


def check_texts(model: ClipModel, library: Callable[[list[str]], Tensor]) -> None:
    """`check_parity` for the texts of a contrastive model; ``library(texts)`` gives embeddings of
    any length."""
    with _undisturbed(model):
        theirs = torch.nn.functional.normalize(library([_TEXT]).float(), dim=-1)
    ours = model.embed_texts([_TEXT])
    if not torch.isfinite(ours).all():
        raise refuse(model, "its embedding of a text is not finite; look for NaN in its weights")
    if not torch.allclose(ours, theirs, atol=_ROUNDING):
        raise refuse(model, "its library makes another embedding of a text than the one here")


def refuse(model: Any, reason: str) -> InvalidInputError:
    """The error for a model that differs from its library."""
    return InvalidInputError(f"{model.name} is not supported: {reason}; {_WAY_OUT}", field="model")


def _last_block(model: VitModel) -> str:
    return list(model.sites)[-1].rpartition(".")[0] + "."


@contextmanager
def _undisturbed(model: VitModel) -> Iterator[None]:
    """No gradients in the body; the random state is restored, since a model may draw numbers."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _refusing(model: VitModel) -> Iterator[None]:
    """A forward pass in the body that fails is a reason to refuse."""
    height, width = model.preprocessing.height, model.preprocessing.width
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise refuse(
            model, f"it takes no picture of 3 x {height} x {width} values ({said(error)})"
        ) from error


def _check_shapes(model: VitModel, output: ModelOutput, captured: dict[str, Tensor]) -> None:
    grid = model.grid
    tokens = grid.special + grid.patches
    for name in captured:
        expected, actual = (1, tokens, model.sites[name].dim), tuple(captured[name].shape)
        if actual != expected:
            raise refuse(
                model,
                f"its {name} is {_by(actual)} where a grid of {grid.rows} x {grid.cols} patches "
                f"behind {grid.special} special tokens is {_by(expected)}",
            )
    covered = (grid.rows * grid.patch_height, grid.cols * grid.patch_width)
    size = (model.preprocessing.height, model.preprocessing.width)
    if covered[0] > size[0] or covered[1] > size[1]:
        raise refuse(model, f"its patches cover {_by(covered)} of {_by(size)} pixels: it pads")
    for name, tensor in output._asdict().items():
        if tensor is not None and tensor.ndim != 2:
            raise refuse(
                model,
                f"its {name} of one picture is {_by(tuple(tensor.shape))}, no vector; does it pool "
                "(global_pool)?",
            )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _check_output(model: VitModel, ours: ModelOutput, theirs: Tensor) -> None:
    actual = ours.embedding if ours.logits is None else ours.logits
    if not torch.isfinite(actual).all():
        raise refuse(model, "its output is not finite; look for NaN in its weights")
    if not torch.equal(actual, theirs.float()):
        raise refuse(model, "its library's own forward pass has another result than the one here")


def _first(model: VitModel) -> dict[str, Tap]:
    """The input of the first block, where no attention has mixed the patches yet."""
    return {"tokens": Tap(model.backbone.blocks()[0][0], "input")}


def _check_places(model: VitModel, images: Tensor, tokens: Tensor) -> None:
    """Raise unless a change of one patch of the picture changes most the token that the grid
    assigns to this patch."""
    grid = model.grid
    row, col = grid.rows // 4, 2 * grid.cols // 3  # not its own mirror image on grids of any size
    lit = images.clone()
    top, left = row * grid.patch_height, col * grid.patch_width
    lit[..., top : top + grid.patch_height, left : left + grid.patch_width] += _LIT
    with _undisturbed(model), capturing(_first(model), stop=True) as captured:
        model.forward(lit)
    change = (captured["tokens"].float() - tokens.float()).abs().sum(-1)[0]
    moved = int(change.argmax()) - grid.special
    if moved != row * grid.cols + col:
        raise refuse(
            model,
            f"the patch in row {row} and column {col} of the picture is its token {moved} behind "
            f"{grid.special} special ones, not {row * grid.cols + col}",
        )


def _check_preprocessing(model: VitModel, transform: Transform) -> None:
    random = np.random.default_rng(0)
    for width, height in (_COMPANION, _COMPANION[::-1]):
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        with _refusing(model):
            theirs = transform(picture)
        ours = model.preprocess(picture)
        allowed = _GREY_LEVEL / min(model.preprocessing.std)
        if ours.shape != theirs.shape or not (ours - theirs).abs().max() <= allowed:
            raise refuse(
                model, "its library makes another input of a picture than the preprocessing here"
            )
