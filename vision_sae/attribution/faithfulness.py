"""Whether an order of importance agrees with what the model does.

Parts of a picture are deleted, or inserted into the empty picture, the most important first, and
the target is measured after each step (Petsiuk et al. 2018, arXiv:1806.07421). Parts are features
of the code at a site (the empty picture has no features, but keeps bias and error), or patches of
the picture itself (the empty picture is a blurred one). A curve is scaled so that the smallest
value of the target, over all orders, is 0 and the largest is 1: some features lower the target, so
the whole code may change it less than a part, or not at all. The area under the curve is small for
a good order of deletion and large for a good order of insertion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.attribution.observation import Observation
from vision_sae.dictionaries.protocol import Codes, SiteDictionary
from vision_sae.dictionaries.resident import resident_at
from vision_sae.models.grid import PatchGrid
from vision_sae.transfers import to_host

Space = Literal["code", "pixel"]
Test = Literal["deletion", "insertion"]
_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
_RANDOM_ORDERS = 3
_BLUR = 1 / 8
"""Standard deviation of the blur, in sides of the model's input."""
_FLAT = 1e-9


@dataclass(frozen=True)
class Faithfulness:
    """Areas under the curves of one test."""

    space: Space
    test: Test
    area: float
    """The area of the order by contribution."""
    area_random: float
    """The mean area over random orders."""
    area_activation: float
    """The area of the order by activation; a patch counts with the sum of its features."""
    curve: Float32[np.ndarray, "points 2"]
    """The share taken away or put back, and the target, from 0 to 1."""


def orders_of(importance: Float[Tensor, " F"], parts: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """The numbers of ``parts`` with the most important first; ties stay in their order."""
    return parts[torch.argsort(-importance[parts], stable=True)]


def faithfulness(
    observation: Observation,
    site_dictionary: SiteDictionary,
    per_feature: Float[Tensor, " F"] | None,
    per_patch: Float[Tensor, " P"],
    image: Float[Tensor, "C H W"],
    *,
    seed: int = 0,
) -> list[Faithfulness]:
    """All four tests of one attribution of a picture, by the contributions of features and of
    patches.

    The tests in code space are left out without ``per_feature``. Costs some 60 forward passes.
    """
    update = observation.updates[site_dictionary.site]
    beside = resident_at(site_dictionary, update.device)
    on_device = beside.dictionary.encode(update)
    codes = Codes(*to_host(*on_device))  # orders are chosen in host memory
    active = torch.unique(codes.indices[codes.values > 0])
    activation = torch.zeros(site_dictionary.dictionary.width).index_add_(
        0, codes.indices.reshape(-1), codes.values.reshape(-1)
    )
    patches = torch.arange(len(per_patch))
    at_patches = codes.values[observation.special :].sum(1)
    random = torch.Generator().manual_seed(seed)
    with_code = _code_space(observation, beside, on_device)
    with_pixels = _pixel_space(observation, image)
    results = []
    for test in ("deletion", "insertion"):
        if per_feature is not None:
            orders = orders_of(per_feature, active), orders_of(activation, active)
            results.append(_tested("code", test, with_code, *orders, random))
        orders = orders_of(per_patch, patches), orders_of(at_patches, patches)
        results.append(_tested("pixel", test, with_pixels, *orders, random))
    return results


Measure = Callable[[Sequence[Tensor]], NDArray[np.float64]]
"""Maps sets of remaining parts to the target with each set."""


def _code_space(observation: Observation, site_dictionary: SiteDictionary, codes: Codes) -> Measure:
    """The target when only some features of the code remain."""
    update = observation.updates[site_dictionary.site]
    rest = update - site_dictionary.dictionary.decode(codes)  # the error: what no feature explains

    def measure(sets: Sequence[Tensor]) -> NDArray[np.float64]:
        updates = []
        for left in sets:
            kept = codes.values * torch.isin(codes.indices, left.to(codes.indices.device))
            updates.append(rest + site_dictionary.dictionary.decode(Codes(codes.indices, kept)))
        return np.asarray(observation.values_at(site_dictionary.site, torch.stack(updates)))

    return measure


def _pixel_space(observation: Observation, image: Tensor) -> Measure:
    """The target when only some patches of the picture remain sharp."""
    grid, image = observation.model.grid, image.to(observation.model.device)
    sigma = _BLUR * max(image.shape[1:])
    from torchvision.transforms.v2 import functional as tvf  # whose import takes seconds

    blurred = tvf.gaussian_blur(image, [2 * round(1.5 * sigma) + 1] * 2, [sigma] * 2)

    def measure(sets: Sequence[Tensor]) -> NDArray[np.float64]:
        masks = torch.stack([_pixels(left, grid) for left in sets])[:, None].to(image.device)
        return np.asarray(observation.values_of(torch.where(masks, image, blurred)))

    return measure


def _pixels(patches: Tensor, grid: PatchGrid) -> Tensor:
    """Patches as a mask of the model's input (H, W)."""
    mask = torch.zeros(grid.patches, dtype=torch.bool)
    mask[patches] = True
    shaped = mask.view(grid.rows, grid.cols)
    return shaped.repeat_interleave(grid.patch_height, 0).repeat_interleave(grid.patch_width, 1)


def _tested(
    space: Space,
    test: Test,
    measure: Measure,
    order: Tensor,
    by_activation: Tensor,
    random: torch.Generator,
) -> Faithfulness:
    shuffled = [order[torch.randperm(len(order), generator=random)] for _ in range(_RANDOM_ORDERS)]
    orders = [order, *shuffled, by_activation]
    counts = sorted({max(1, round(share * len(order))) for share in _SHARES} - {len(order)})

    def left(some: Tensor, count: int) -> Tensor:
        return some[count:] if test == "deletion" else some[:count]

    sets = [order, order[:0], *(left(some, count) for some in orders for count in counts)]
    values = measure(sets)
    widest = float(np.ptp(values))
    values = (values - values.min()) / (widest if widest > _FLAT else np.inf)
    first, last = values[:2] if test == "deletion" else values[1::-1]
    shares = np.array([0, *counts, len(order)]) / max(len(order), 1)
    curves = [
        np.array([first, *inner, last]) for inner in values[2:].reshape(len(orders), len(counts))
    ]
    areas = [float(np.trapezoid(curve, shares)) for curve in curves]
    return Faithfulness(
        space,
        test,
        areas[0],
        float(np.mean(areas[1 : 1 + _RANDOM_ORDERS])),
        areas[-1],
        np.stack([shares, curves[0]], axis=1).astype(np.float32),
    )
