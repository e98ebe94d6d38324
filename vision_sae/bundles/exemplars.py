"""Exemplars: for each feature the pictures that fire it most, and others across its quantiles.

The strongest exemplars alone would show only a feature's extremes; the quantile exemplars show its
typical activations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, Integer, UInt8
from numpy.typing import NDArray

from vision_sae.bundles.codes import SparseRows


class Exemplars(NamedTuple):
    """Exemplars of all features; empty slots hold patch -1."""

    patch: Int64[np.ndarray, "F slots"]
    """The strongest patch of each exemplar picture."""
    activation: Float32[np.ndarray, "F slots"]
    """The activation on this patch."""
    mask: UInt8[np.ndarray, "F slots bytes"]
    """Whether each patch of the picture fires above the feature's mask threshold: bits packed by
    ``numpy.packbits``."""


def _choose(sources: NDArray[np.integer], top: int, across: int) -> NDArray[np.int64]:
    """Positions in a feature's postings (strongest first): the strongest patches of ``top``
    sources, then those of ``across`` evenly spaced sources among the remaining ones."""
    _, strongest = np.unique(sources, return_index=True)
    strongest.sort()  # postings descend, so the position orders sources by their maximum
    rest = strongest[top:]
    if len(rest) > across:
        rest = rest[np.linspace(0, len(rest) - 1, across).round().astype(np.int64)]
    return np.concatenate([strongest[:top], rest])


def exemplars(
    postings: SparseRows,
    patches: int,
    thresholds: Float32[np.ndarray, " F"],
    top: int,
    across: int,
    *,
    sources: Integer[np.ndarray, " N"] | None = None,
) -> Exemplars:
    """Choose exemplars for every feature, at most one picture of each source.

    ``patches`` is the number of patches per picture, ``thresholds`` the least activation of a patch
    in a mask, ``top`` and ``across`` the numbers of slots for strongest and for quantile exemplars,
    and ``sources`` the number of each picture's source. Without ``sources``, each picture has a
    separate source.
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
        # Each posting above the threshold is marked in the slot of its picture, if there is one.
        slot_of = np.full(images.max() + 1, -1)
        slot_of[images[chosen]] = np.arange(len(chosen))
        drawn = (slot_of[images] >= 0) & (values.astype(np.float32) >= thresholds[feature])
        bits = np.zeros((slots, patches), dtype=np.bool_)
        bits[slot_of[images[drawn]], rows[drawn] % patches] = True
        bits[np.arange(len(chosen)), rows[chosen] % patches] = True
        mask[feature] = np.packbits(bits, axis=1)
    return Exemplars(patch, activation, mask)
