"""Non-negative matrix factorisation: parts that only add up (Lee & Seung 1999)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.dictionaries.nnls import NonNegativeAtoms
from vision_sae.dictionaries.sample import SAMPLE_ROWS, sample
from vision_sae.errors import InvalidInputError


def _non_negative(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, as long as nothing in them is negative."""
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
    """``x ~ f W``, nothing negative on either side; the bias is zero."""

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
        """scikit-learn's MiniBatchNMF of a sample of ``rows`` rows of batches (N, D), read in one
        pass. ``k`` limits the features of a row. Of vectors that are all zero it has features that
        never fire.

        Raises `InvalidInputError` when any value of any batch is negative.
        """
        from sklearn.decomposition import (  # type: ignore[import-untyped]  # slow to import
            MiniBatchNMF,
        )
        from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]

        if width < 1:
            raise InvalidInputError(f"{width} features asked for; at least 1", field="width")
        vectors = sample(_non_negative(batches), rows, seed=seed)
        if not vectors.any():  # scikit-learn would divide zero by zero until its iterations end
            nothing = torch.zeros(width, vectors.shape[1])
            return cls(w_dec=nothing, b_dec=nothing.sum(0), k=k)
        model = MiniBatchNMF(width, max_iter=1000, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what is there is good to use
            model.fit(vectors.numpy())
        parts = torch.from_numpy(model.components_).float()
        return cls(w_dec=F.normalize(parts), b_dec=torch.zeros(parts.shape[1]), k=k)
