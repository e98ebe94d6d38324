"""Metrics of a dictionary on a set of site vectors, accumulated in one float64 pass.

Names are those of SAEBench, for the metrics that SAEBench has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.errors import InvalidInputError
from vision_sae.transfers import finest_float

DENSE_RATE = 0.1
"""A feature that fires on more than this share of patches is dense."""


def explained_variance(
    vectors: Float[Tensor, "N D"], reconstructions: Float[Tensor, "N D"], mean: Float[Tensor, " D"]
) -> float:
    """`explained_share` as a number."""
    return float(explained_share(vectors, reconstructions, mean))


def explained_share(
    vectors: Float[Tensor, "N D"], reconstructions: Float[Tensor, "N D"], mean: Float[Tensor, " D"]
) -> Float[Tensor, ""]:
    """``1 - sum |x - x_hat|^2 / sum |x - mean|^2``, on the vectors' device.

    Rows that all equal ``mean`` have no variance: an exact reconstruction of such rows gives 1, any
    other reconstruction a large negative number.
    """
    wide = finest_float(vectors.device)
    error = (vectors - reconstructions).to(wide).square().sum()
    return 1 - error / (vectors - mean).to(wide).square().sum().clamp_min(1e-12)


class Metrics(NamedTuple):
    """Quality and sparsity of a dictionary's reconstructions."""

    explained_variance: float
    """EV = 1 - sum |x - x_hat|^2 / sum |x - mean|^2 over all rows and dimensions, with the mean
    per dimension over the evaluation set. Predicting the mean gives exactly 0. The value is
    undefined for a set of equal rows, which is refused."""
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
    """Accumulates `Metrics` over batches; the result does not depend on how rows are batched.

    Sums stay on ``device``, where the batches are, until a figure is read.
    """

    def __init__(self, dim: int, width: int, device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        self._wide = wide = finest_float(device)
        self._rows = 0
        self._error = torch.zeros((), dtype=wide, device=device)
        # The first row is subtracted from all rows, so that a large mean costs no digits and equal
        # rows have a variance of exactly 0.
        self._origin: Tensor | None = None
        self._sum = torch.zeros(dim, dtype=wide, device=device)
        self._square = torch.zeros((), dtype=wide, device=device)
        self._cosine = torch.zeros((), dtype=wide, device=device)
        self._active = torch.zeros((), dtype=torch.int64, device=device)
        self._activation = torch.zeros((), dtype=wide, device=device)
        self._fired = torch.zeros(width, dtype=torch.int64, device=device)

    def add(
        self, vectors: Float[Tensor, "N D"], reconstructions: Float[Tensor, "N D"], codes: Codes
    ) -> None:
        """Add a batch of site vectors, with reconstructions and codes."""
        if len(vectors) == 0:
            return
        x, x_hat = vectors.to(self._wide), reconstructions.to(self._wide)
        if self._origin is None:
            self._origin = x[0].clone()
        moved = x - self._origin
        self._rows += len(x)
        self._error += (x - x_hat).square().sum()
        self._sum += moved.sum(0)
        self._square += moved.square().sum()
        self._cosine += torch.cosine_similarity(x, x_hat, dim=1).sum()
        active = codes.values > 0
        self._active += active.sum()
        self._activation += codes.values.to(self._wide).sum()
        # A count of the active slots alone (`bincount`) would make a GPU wait for their number.
        self._fired.scatter_add_(0, codes.indices.flatten(), active.flatten().to(torch.int64))

    @property
    def rows(self) -> int:
        """Rows added."""
        return self._rows

    @property
    def mean(self) -> Float64[Tensor, " D"]:
        """Mean per dimension of all rows, in host memory; raises `InvalidInputError` without
        rows."""
        if self._origin is None:
            raise InvalidInputError("there are no rows to measure on; give some", field="store")
        return (self._origin + self._sum / self._rows).cpu()

    @property
    def fired(self) -> Int64[Tensor, " F"]:
        """Number of rows on which each feature fired, in host memory."""
        return self._fired.to("cpu", copy=True)

    def result(self) -> Metrics:
        """The metrics of all rows.

        Raises `InvalidInputError` if the metrics are undefined: without rows, for equal rows, and
        for values that are not finite.
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
            l0=int(self._active) / rows,
            l1=float(self._activation / rows),
            frac_alive=float((self._fired > 0).double().mean()),
            freq_over_10_percent=float((self._fired > DENSE_RATE * rows).double().mean()),
            rows=rows,
        )


def evaluate(dictionary: Dictionary, batches: Iterable[Tensor]) -> Metrics:
    """Encode and decode batches (N, D) of site vectors. Returns the `Metrics` of all rows.

    All is computed on the dictionary's device.
    """
    device = dictionary.bias.device
    metrics = MetricsAccumulator(dictionary.dim, dictionary.width, device)
    with torch.inference_mode():
        for batch in batches:
            vectors = batch.to(device)
            codes = dictionary.encode(vectors)
            metrics.add(vectors, dictionary.decode(codes), codes)
    return metrics.result()
