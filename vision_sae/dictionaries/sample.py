"""A uniform sample of a stream of site vectors, in one pass and bounded memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from vision_sae.errors import InvalidInputError

SAMPLE_ROWS = 65_536
"""Rows a factorisation is fitted to, unless told otherwise: 100 MB of 384 dimensions."""


def sample(batches: Iterable[Tensor], rows: int, *, seed: int) -> Tensor:
    """``rows`` rows drawn without replacement from batches (N, D), or all when there are fewer.

    The result (<= rows, D) keeps the order of the stream, and depends on ``seed`` but not on how
    the stream is cut into batches: every row draws a number, and the smallest numbers win. Memory:
    three times the sample and a batch. Raises `InvalidInputError` when the stream is empty.
    """
    random = np.random.default_rng(seed)
    parts: list[Tensor] = []
    numbers: list[Tensor] = []
    bound = 1.0

    def held() -> tuple[Tensor, Tensor]:
        """The winners so far and their numbers."""
        drawn = torch.cat(numbers)
        winners = drawn.argsort()[:rows].sort().values
        return torch.cat(parts)[winners], drawn[winners]

    for batch in batches:
        drawn = torch.from_numpy(random.random(len(batch)))
        hopeful = drawn <= bound
        parts.append(batch[hopeful])
        numbers.append(drawn[hopeful])
        if sum(map(len, numbers)) > 2 * rows:
            vectors, drawn = held()
            parts, numbers, bound = [vectors], [drawn], float(drawn.max())
    if not sum(map(len, numbers)):
        raise InvalidInputError(
            "there are no site vectors to fit; harvest some pictures", field="store"
        )
    return held()[0]
