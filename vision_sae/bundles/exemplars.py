"""Exemplars: for each feature the images that fire it most, and others across its quantiles.

A top-k alone shows only the extreme of a feature; the quantile exemplars show its everyday.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_sae.bundles.codes import SparseRows


class Exemplars(NamedTuple):
    """Exemplars of all features; empty slots hold patch -1."""

    patch: NDArray[np.int64]
    """The strongest patch of each exemplar image (F, E)."""
    activation: NDArray[np.float32]
    """The activation there (F, E)."""
    mask: NDArray[np.uint8]
    """Which patches of the image fire above the feature's mask threshold (F, E, bytes): bits
    packed by ``numpy.packbits``."""


def _choose(sources: NDArray[np.integer], top: int, across: int) -> NDArray[np.int64]:
    """Positions in a feature's postings (strongest first): the strongest patches of ``top``
    sources, then of ``across`` further ones evenly spaced over what remains."""
    _, strongest = np.unique(sources, return_index=True)
    strongest.sort()  # postings descend, so the position orders sources by their maximum
    rest = strongest[top:]
    if len(rest) > across:
        rest = rest[np.linspace(0, len(rest) - 1, across).round().astype(np.int64)]
    return np.concatenate([strongest[:top], rest])


def exemplars(
    postings: SparseRows,
    patches: int,
    thresholds: NDArray[np.float32],
    top: int,
    across: int,
    *,
    sources: NDArray[np.integer] | None = None,
) -> Exemplars:
    """Choose exemplars for every feature, of each source at most one image.

    ``patches`` is the number of patches per image, ``thresholds`` (F) the activation above which
    a patch belongs to a mask, ``top`` and ``across`` the numbers of slots of the two kinds, and
    ``sources`` the number of each image's source; absent, each image is its own.
    """
    width, slots = len(postings.indptr) - 1, top + across
    patch = np.full((width, slots), -1, dtype=np.int64)
    activation = np.zeros((width, slots), dtype=np.float32)
    mask = np.zeros((width, slots, -(-patches // 8)), dtype=np.uint8)
    for feature in range(width):
        rows, values = postings.row(feature)
        if len(rows) == 0:
            continue
        images = rows // patches
        chosen = _choose(images if sources is None else sources[images], top, across)
        patch[feature, : len(chosen)] = rows[chosen]
        activation[feature, : len(chosen)] = values[chosen]
        # Each posting above the threshold is drawn into the slot of its image, if it has one.
        slot_of = np.full(images.max() + 1, -1)
        slot_of[images[chosen]] = np.arange(len(chosen))
        drawn = (slot_of[images] >= 0) & (values.astype(np.float32) >= thresholds[feature])
        bits = np.zeros((slots, patches), dtype=np.bool_)
        bits[slot_of[images[drawn]], rows[drawn] % patches] = True
        bits[np.arange(len(chosen)), rows[chosen] % patches] = True
        mask[feature] = np.packbits(bits, axis=1)
    return Exemplars(patch, activation, mask)
