"""Metrics of a dictionary on a set of site vectors, accumulated in one float64 pass.

Names follow SAEBench where it has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, Dictionary

DENSE_RATE = 0.1
"""A feature that fires on more than this share of patches is dense."""


def explained_variance(vectors: Tensor, reconstructions: Tensor, mean: Tensor) -> float:
    """``1 - sum |x - x_hat|^2 / sum |x - mean|^2`` for (N, D) rows and a given mean (D)."""
    error = (vectors - reconstructions).double().square().sum()
    return float(1 - error / (vectors - mean).double().square().sum().clamp_min(1e-12))


class Metrics(NamedTuple):
    """How well a dictionary reconstructs, and how sparsely."""

    explained_variance: float
    """EV = 1 - sum |x - x_hat|^2 / sum |x - mean|^2 over all rows and dimensions, with the mean
    per dimension over the evaluation set. Predicting the mean gives exactly 0."""
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
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._square = torch.zeros((), dtype=torch.float64)
        self._cosine = torch.zeros((), dtype=torch.float64)
        self._active = 0
        self._activation = torch.zeros((), dtype=torch.float64)
        self._fired = torch.zeros(width, dtype=torch.int64)

    def add(self, vectors: Tensor, reconstructions: Tensor, codes: Codes) -> None:
        """Add a batch: ``vectors`` and ``reconstructions`` (N, D), and their codes."""
        x, x_hat = vectors.double(), reconstructions.double()
        self._rows += len(x)
        self._error += (x - x_hat).square().sum()
        self._sum += x.sum(0)
        self._square += x.square().sum()
        self._cosine += torch.cosine_similarity(x, x_hat, dim=1).sum()
        active = codes.values > 0
        self._active += int(active.sum())
        self._activation += codes.values.double().sum()
        self._fired += torch.bincount(codes.indices[active], minlength=len(self._fired))

    def result(self) -> Metrics:
        """The metrics of everything added."""
        rows, dim = self._rows, len(self._sum)
        variance = self._square - self._sum.square().sum() / rows
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
