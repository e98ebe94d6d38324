"""Metrics of a dictionary on a set of site vectors, accumulated in one float64 pass.

Names follow SAEBench where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.errors import InvalidInputError

DENSE_RATE = 0.1
"""A feature that fires on more than this share of patches is dense."""


def explained_variance(vectors: Tensor, reconstructions: Tensor, mean: Tensor) -> float:
    """``1 - sum |x - x_hat|^2 / sum |x - mean|^2`` for (N, D) rows and a given mean (D).

    Rows that all equal ``mean`` leave nothing to explain: an exact reconstruction of them gives 1,
    any other a hugely negative number.
    """
    error = (vectors - reconstructions).double().square().sum()
    return float(1 - error / (vectors - mean).double().square().sum().clamp_min(1e-12))


class Metrics(NamedTuple):
    """How well a dictionary reconstructs, and how sparsely."""

    explained_variance: float
    """EV = 1 - sum |x - x_hat|^2 / sum |x - mean|^2 over all rows and dimensions, with the mean
    per dimension over the evaluation set. Predicting the mean gives exactly 0. Undefined for a set
    of equal rows, which is refused."""
    mse: float
    """Mean squared error per row and dimension."""
    cossim: float
    """Mean cosine similarity of x and x_hat."""
    l0: float
    """Mean number of active features per row."""
    l1: float
    """Mean sum of activations per row."""
    frac_alive: float
    """Share of features that fire at least once."""
    freq_over_10_percent: float
    """Share of features that fire on more than 10 % of rows."""
    rows: int
    """Rows evaluated."""


class MetricsAccumulator:
    """Accumulates `Metrics` over batches; the result does not depend on how rows are batched."""

    def __init__(self, dim: int, width: int) -> None:
        self._rows = 0
        self._error = torch.zeros((), dtype=torch.float64)
        # Moments are taken about the first row, so that a large mean costs no digits and equal
        # rows have a variance of exactly 0.
        self._origin: Tensor | None = None
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._square = torch.zeros((), dtype=torch.float64)
        self._cosine = torch.zeros((), dtype=torch.float64)
        self._active = 0
        self._activation = torch.zeros((), dtype=torch.float64)
        self._fired = torch.zeros(width, dtype=torch.int64)

    def add(self, vectors: Tensor, reconstructions: Tensor, codes: Codes) -> None:
        """Add a batch: ``vectors`` and ``reconstructions`` (N, D), and their codes."""
        if len(vectors) == 0:
            return
        x, x_hat = vectors.double(), reconstructions.double()
        if self._origin is None:
            self._origin = x[0].clone()
        moved = x - self._origin
        self._rows += len(x)
        self._error += (x - x_hat).square().sum()
        self._sum += moved.sum(0)
        self._square += moved.square().sum()
        self._cosine += torch.cosine_similarity(x, x_hat, dim=1).sum()
        active = codes.values > 0
        self._active += int(active.sum())
        self._activation += codes.values.double().sum()
        self._fired += torch.bincount(codes.indices[active], minlength=len(self._fired))

    @property
    def rows(self) -> int:
        """Rows added."""
        return self._rows

    @property
    def mean(self) -> Tensor:
        """Mean per dimension of everything added (D), float64."""
        if self._origin is None:
            raise InvalidInputError("there are no rows to measure on; give some", field="store")
        return self._origin + self._sum / self._rows

    @property
    def fired(self) -> Tensor:
        """Rows on which each feature fired (F), int64."""
        return self._fired.clone()

    def result(self) -> Metrics:
        """The metrics of everything added.

        Raises `InvalidInputError` where they are undefined: no rows, rows that are all equal, or
        values that are not finite.
        """
        rows, dim = self._rows, len(self.mean)
        variance = self._square - self._sum.square().sum() / rows
        if not math.isfinite(self._error) or not math.isfinite(variance):
            raise InvalidInputError(
                "the vectors or their reconstructions hold NaN or infinity; look at the store and "
                "at the weights of the dictionary",
                field="store",
            )
        if not variance > 0:
            raise InvalidInputError(
                f"all {rows} vectors to measure on are equal: there is no variance to explain; "
                "give more pictures",
                field="store",
            )
        return Metrics(
            explained_variance=float(1 - self._error / variance),
            mse=float(self._error / (rows * dim)),
            cossim=float(self._cosine / rows),
            l0=self._active / rows,
            l1=float(self._activation / rows),
            frac_alive=float((self._fired > 0).double().mean()),
            freq_over_10_percent=float((self._fired > DENSE_RATE * rows).double().mean()),
            rows=rows,
        )


def evaluate(dictionary: Dictionary, batches: Iterable[Tensor]) -> Metrics:
    """Encode and decode every batch (N, D); returns the `Metrics` of all rows."""
    metrics = MetricsAccumulator(dictionary.dim, dictionary.width)
    with torch.inference_mode():
        for vectors in batches:
            codes = dictionary.encode(vectors)
            metrics.add(vectors, dictionary.decode(codes), codes)
    return metrics.result()
