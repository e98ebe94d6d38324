"""Non-negative matrix factorisation: parts that add and never cancel (Lee & Seung 1999)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture, Fitting
from vision_sae.dictionaries.nnls import NonNegativeAtoms
from vision_sae.dictionaries.sample import SAMPLE_ROWS, sample
from vision_sae.errors import InvalidInputError


def _non_negative(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches themselves; raises `InvalidInputError` at the first negative value."""
    for batch in batches:
        if (batch < 0).any():
            least = float(batch.min())
            raise InvalidInputError(
                f"the site vectors hold negative values ({least:.4g}), which NMF cannot factorise; "
                "choose semi_nmf, or a site behind a ReLU",
                field="architecture",
            )
        yield batch


class Nmf(NonNegativeAtoms):
    """``x ~ f W`` with non-negative f and W; the bias is zero."""

    architecture = "nmf"

    @classmethod
    def fit(
        cls,
        batches: Iterable[Tensor],
        *,
        width: int,
        k: int | None = None,
        rows: int = SAMPLE_ROWS,
        seed: int = 0,
    ) -> Self:
        """Fit scikit-learn's MiniBatchNMF to a sample of ``rows`` rows of batches (N, D), in one
        pass over them.

        ``k`` is the largest number of features that fire in a row. If all vectors are zero, the
        features never fire. Raises `InvalidInputError` if any value of any batch is negative.
        """
        from sklearn.decomposition import (  # type: ignore[import-untyped]  # slow to import
            MiniBatchNMF,
        )
        from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]

        if width < 1:
            raise InvalidInputError(f"the width is {width}; give at least 1 feature", field="width")
        vectors = sample(_non_negative(batches), rows, seed=seed)
        if not vectors.any():  # scikit-learn would divide zero by zero in every iteration
            zeros = torch.zeros(width, vectors.shape[1])
            return cls(w_dec=zeros, b_dec=zeros.sum(0), k=k)
        model = MiniBatchNMF(width, max_iter=1000, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the factors so far are usable
            model.fit(vectors.numpy())
        parts = torch.from_numpy(model.components_).float()
        return cls(w_dec=F.normalize(parts), b_dec=torch.zeros(parts.shape[1]), k=k)


def _fit(batches: Iterable[Tensor], wanted: Fitting) -> Nmf:
    width, rows = wanted.features, wanted.rows
    return Nmf.fit(batches, width=width, k=wanted.k, rows=rows, seed=wanted.seed)


ARCHITECTURES.register(Architecture(Nmf, fit=_fit))
