"""The counterparts of a bundle's features in another: another dictionary, layer or model.

Two bundles of the same pictures whose models divide them into the same patches are compared by what
their features do: the correlation of activations over all patches. Two of one site of one model
that hold different pictures are compared by what their features are: the cosine of decoder
directions. Either is given one to many (each feature its nearest) and, where that is not too much
work, one to one (the assignment of largest total; Kuhn 1955). A mean says nothing without its
floor: what the same method reaches by chance, with the pictures of one side in another order, or
with random directions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vision_sae.bundles.bundle import MATCHES, Bundle, republish
from vision_sae.bundles.co_activation import Activations
from vision_sae.bundles.relations import Matches
from vision_sae.errors import InvalidInputError, MismatchError

ASSIGNED_UP_TO = 4096
"""Features of the wider dictionary beyond which a one-to-one assignment takes too long."""
_BLOCK = 512
_SEED = 7

Similarities = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Features (n) of one bundle -> their similarities to all of the other's (n, F')."""


def match_bundles(path: Path, against: Path) -> Bundle:
    """Publish the bundle at ``path`` anew with its features' counterparts in ``against``.

    Raises `MismatchError` for bundles that share neither pictures nor a site.
    """
    bundle, other = Bundle(path), Bundle(against)
    if bundle.name == other.name:
        raise InvalidInputError(
            f"both bundles are called {bundle.name}; rename one of them", field="against"
        )
    measure, similarities, by_chance = _compared(bundle, other)
    one_to_one = max(bundle.dictionary.width, other.dictionary.width) <= ASSIGNED_UP_TO
    width = bundle.dictionary.width
    found = _matches(width, similarities, one_to_one=one_to_one)
    chance = _matches(width, by_chance, one_to_one=one_to_one)
    entry = {
        "dictionary_sha256": other.dictionary_sha256,
        "measure": measure,
        **_means(found),
        **{f"{name}_floor": value for name, value in _means(chance).items()},
    }

    def write(staging: Path) -> None:
        (staging / MATCHES).mkdir(exist_ok=True)
        save_file(found._asdict(), staging / MATCHES / f"{other.name}.safetensors")

    known = bundle.manifest.get("matches", {})
    return republish(bundle, path, {"matches": known | {other.name: entry}}, write=write)


def _means(found: Matches) -> dict[str, float]:
    pairs = {
        "nearest": found.similarities[found.nearest >= 0],
        "partner": found.partner_similarities[found.partner >= 0],
    }
    return {name: float(values.mean()) for name, values in pairs.items() if len(values)}


def _compared(bundle: Bundle, other: Bundle) -> tuple[str, Similarities, Similarities]:
    """(what is compared, the similarities, those by chance)"""
    same_pictures = bundle.manifest["data_sha256"] == other.manifest["data_sha256"]
    if same_pictures and (bundle.grid.rows, bundle.grid.cols) == (other.grid.rows, other.grid.cols):
        ours = Activations(bundle.codes, bundle.dictionary.width)
        theirs = Activations(other.codes, other.dictionary.width)
        pictures = np.random.default_rng(_SEED).permutation(len(bundle.images))
        patches = bundle.grid.patches
        rows = (pictures[:, None] * patches + np.arange(patches)).ravel()
        mixed = theirs.permuted(rows)
        return (
            "activations",
            lambda features: ours.correlations(features, theirs),
            lambda features: ours.correlations(features, mixed),
        )
    same_model = all(
        bundle.manifest["model"][key] == other.manifest["model"][key]
        for key in ("weights_sha256", "preprocessing")
    )
    if same_model and bundle.site == other.site:
        random = torch.Generator().manual_seed(_SEED)
        decoders = [each.dictionary.decoder for each in (bundle, other)]
        chance = [torch.randn(decoder.shape, generator=random) for decoder in decoders]
        return "directions", _cosines(*decoders), _cosines(*chance)
    raise MismatchError(
        f"{bundle.name} and {other.name} have neither the same pictures on the same grid, so that "
        "their activations could be compared, nor the same site, so that their directions could; "
        "build one of them on the other's pictures",
        field="against",
    )


def _cosines(ours: Tensor, theirs: Tensor) -> Similarities:
    unit_ours, unit_theirs = F.normalize(ours.float(), dim=1), F.normalize(theirs.float(), dim=1)

    def similarities(features: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray((unit_ours[features] @ unit_theirs.T).numpy(), dtype=np.float64)

    return similarities


def _matches(width: int, similarities: Similarities, *, one_to_one: bool) -> Matches:
    made = Matches(
        np.full(width, -1, np.int32),
        np.zeros(width, np.float32),
        np.full(width, -1, np.int32),
        np.zeros(width, np.float32),
    )
    blocks = []
    for start in range(0, width, _BLOCK):
        features = np.arange(start, min(start + _BLOCK, width))
        found = similarities(features)
        best = found.argmax(axis=1)
        strength = found[np.arange(len(features)), best]
        there = np.isfinite(strength)
        made.nearest[features] = np.where(there, best, -1)
        made.similarities[features] = np.where(there, strength, 0)
        if one_to_one:
            blocks.append(found.astype(np.float32))
    if one_to_one:
        whole = np.concatenate(blocks)
        possible = np.where(np.isfinite(whole), whole, -1)  # the least that a correlation can be
        rows, columns = linear_sum_assignment(possible, maximize=True)
        kept = np.isfinite(whole[rows, columns])
        made.partner[rows[kept]] = columns[kept]
        made.partner_similarities[rows[kept]] = whole[rows, columns][kept]
    return made
