"""How often features fire, as a histogram."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from vision_sae.errors import InvalidInputError

_STEP = 0.25
"""Width of a bin in powers of ten. A power of two, so that edges are exact."""


class DensityHistogram(NamedTuple):
    """Features by ``log10`` of their firing rate; dead features are counted separately."""

    dead: int
    """Features that never fire."""
    edges: Float64[np.ndarray, " bins+1"]
    """Edges of the bins, log10 of rows that fire over all rows, from the rate of a single
    row up to 0. Bin b holds ``edges[b] <= log10(rate) < edges[b + 1]``, the last also its end."""
    counts: Int64[np.ndarray, " bins"]  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    """Features in each bin."""


def density_histogram(fired: NDArray[np.integer], rows: int) -> DensityHistogram:
    """The histogram of features that fired on ``fired`` (F) of ``rows`` rows each.

    Edges are multiples of a quarter of a power of ten, whatever ``rows``: histograms of different
    dictionaries line up.
    """
    if rows < 1 or (len(fired) and not 0 <= fired.min() <= fired.max() <= rows):
        raise InvalidInputError(
            f"features can fire on 0 to {rows} of {rows} rows, and there must be a row",
            field="rows",
        )
    lowest = min(-_STEP, np.floor(np.log10(1 / rows) / _STEP) * _STEP)
    edges = np.arange(lowest, _STEP / 2, _STEP)
    alive = fired[fired > 0]
    counts, _ = np.histogram(np.log10(alive / rows), edges)
    return DensityHistogram(len(fired) - len(alive), edges, counts)
