"""A uniform sample of a stream of site vectors, in one pass and bounded memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import InvalidInputError

SAMPLE_ROWS = 65_536
"""Default number of rows to which a factorisation is fitted: 100 MB for 384 dimensions."""


def sample(batches: Iterable[Tensor], rows: int, *, seed: int) -> Float[Tensor, "N D"]:
    """``rows`` rows drawn without replacement from batches (N, D); all rows if there are fewer.

    The result keeps the order of the stream. Each row draws a random number, and the rows with the
    smallest numbers are kept, so that the result depends on ``seed`` but not on the cuts between
    batches. Memory: three times the sample, and a batch. Raises `InvalidInputError` for an empty
    stream.
    """
    random = np.random.default_rng(seed)
    parts: list[Tensor] = []
    numbers: list[Tensor] = []
    bound = 1.0

    def smallest() -> tuple[Tensor, Tensor]:
        """(rows with the smallest numbers so far, their numbers)."""
        drawn = torch.cat(numbers)
        kept = drawn.argsort()[:rows].sort().values
        return torch.cat(parts)[kept], drawn[kept]

    for batch in batches:
        drawn = torch.from_numpy(random.random(len(batch)))
        below = drawn <= bound
        parts.append(batch[below])
        numbers.append(drawn[below])
        if sum(map(len, numbers)) > 2 * rows:
            vectors, drawn = smallest()
            parts, numbers, bound = [vectors], [drawn], float(drawn.max())
    if not sum(map(len, numbers)):
        raise InvalidInputError(
            "there are no site vectors to fit; harvest some pictures", field="store"
        )
    return smallest()[0]
