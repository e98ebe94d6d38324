"""How a picture differs from its twin: everywhere, inside a region, and outside the region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vision_sae.models.generator import Generator

_EPSILON = 1e-10


class MeanChange(NamedTuple):
    """Means of a map of change."""

    everywhere: float
    inside: float | None
    """Inside the region; None without a region, or for an empty region."""
    outside: float | None


def _pixels(image: Image.Image) -> NDArray[np.float32]:
    return np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)


def difference(picture: Image.Image, twin: Image.Image) -> Float32[np.ndarray, "H W"]:
    """Absolute difference of two pictures of one size, mean over colours, from 0 to 1."""
    return np.asarray(np.abs(_pixels(picture) - _pixels(twin)).mean(2))


def perceptual_difference(
    model: Generator, picture: Image.Image, twin: Image.Image
) -> Float32[np.ndarray, "H W"]:
    """The perceptual difference of two pictures at each pixel, >= 0.

    LPIPS' distance (Zhang et al. 2018, arXiv:1801.03924, eq. 1) with all weights one, on the
    generator's own encoding blocks: vectors of unit length at each position, the squared distance
    of the two, mean over the blocks.
    """
    pair = torch.from_numpy(np.stack([_pixels(picture), _pixels(twin)])).permute(0, 3, 1, 2)
    maps = [
        _distance(F.normalize(layer.float(), dim=1, eps=_EPSILON), picture.height, picture.width)
        for layer in model.perceive(pair)
    ]
    return np.asarray(torch.stack(maps).mean(0).cpu().numpy())


def _distance(layer: Tensor, height: int, width: int) -> Tensor:
    """Squared distance of the two of a layer (2, C, h, w), enlarged to (height, width)."""
    distance = (layer[0] - layer[1]).square().sum(0)
    return F.interpolate(distance[None, None], (height, width), mode="bilinear")[0, 0]


def change(map_: Float[np.ndarray, "H W"], region: Bool[np.ndarray, "H W"] | None) -> MeanChange:
    """The means of a map of change, with the region that was meant to change."""

    def mean(where: NDArray[np.bool_]) -> float | None:
        return float(map_[where].mean()) if where.any() else None

    if region is None:
        return MeanChange(float(map_.mean()), None, None)
    return MeanChange(float(map_.mean()), mean(region), mean(~region))


class Effect(NamedTuple):
    """The change of a picture against its twin."""

    pixel: MeanChange
    """Of `difference`."""
    perceptual: MeanChange
    """Of `perceptual_difference`."""
    difference: Float32[np.ndarray, "H W"]
    """See `difference`."""


def effect(
    model: Generator,
    picture: Image.Image,
    twin: Image.Image,
    region: Bool[np.ndarray, "H W"] | None,
) -> Effect:
    """Measure the change of a picture against its twin, with the region that was meant to
    change."""
    moved = difference(picture, twin)
    perceived = perceptual_difference(model, picture, twin)
    return Effect(change(moved, region), change(perceived, region), moved)


def changed_share(map_: Float[np.ndarray, "H W"]) -> float:
    """The share of pixels that changed at all: of a map of change, the share that is not 0."""
    return float(np.mean(map_ > 0))


def union(
    regions: Sequence[Bool[np.ndarray, "H W"] | None],
) -> Bool[np.ndarray, "H W"] | None:
    """The union of regions; None, which means everywhere, where a region is None or none exists."""
    known = [region for region in regions if region is not None]
    if not known or len(known) < len(regions):
        return None
    return np.asarray(np.logical_or.reduce(known))


def pixels_of(patches: Bool[np.ndarray, "R C"], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """A mask of patches of a grid over a whole picture, as a mask of the picture's pixels."""
    rows = np.arange(height) * patches.shape[0] // height
    cols = np.arange(width) * patches.shape[1] // width
    return np.asarray(patches[np.ix_(rows, cols)])
