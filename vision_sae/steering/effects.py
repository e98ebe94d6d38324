"""How a picture differs from its twin, in all, inside of a region, and outside of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vision_sae.models.generator import Generator

_EPSILON = 1e-10


class Change(NamedTuple):
    """Means of a map of change."""

    everywhere: float
    inside: float | None
    """Inside of the region; None without one, or when it is empty."""
    outside: float | None


def _pixels(image: Image.Image) -> NDArray[np.float32]:
    return np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)


def difference(picture: Image.Image, twin: Image.Image) -> NDArray[np.float32]:
    """Absolute difference of two pictures of one size (H, W), mean over colours, from 0 to 1."""
    return np.asarray(np.abs(_pixels(picture) - _pixels(twin)).mean(2))


def perceptual_difference(
    model: Generator, picture: Image.Image, twin: Image.Image
) -> NDArray[np.float32]:
    """How differently two pictures look at each pixel (H, W), >= 0.

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


def change(map_: NDArray[np.float32], region: NDArray[np.bool_] | None) -> Change:
    """The means of a map (H, W) of change, with the region (H, W) that was meant to change."""

    def mean(where: NDArray[np.bool_]) -> float | None:
        return float(map_[where].mean()) if where.any() else None

    if region is None:
        return Change(float(map_.mean()), None, None)
    return Change(float(map_.mean()), mean(region), mean(~region))


def changed_share(map_: NDArray[np.float32]) -> float:
    """The share of a map (H, W) of change that is not 0: of the pixels that changed at all."""
    return float(np.mean(map_ > 0))


def union(regions: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
    """Where any of the regions is; None when one of them is everywhere, or there is none."""
    known = [region for region in regions if region is not None]
    if not known or len(known) < len(regions):
        return None
    return np.asarray(np.logical_or.reduce(known))


def pixels_of(patches: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Patches (rows, cols) of a grid over all of a picture as its pixels (height, width)."""
    rows = np.arange(height) * patches.shape[0] // height
    cols = np.arange(width) * patches.shape[1] // width
    return np.asarray(patches[np.ix_(rows, cols)])
