"""ActivationStore -> a dictionary that needs no training loop."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from tqdm import tqdm

from vision_sae.activations.store import ActivationStore
from vision_sae.dictionaries.kmeans import KMeans
from vision_sae.dictionaries.neurons import NeuronBasis
from vision_sae.dictionaries.nmf import Nmf
from vision_sae.dictionaries.pca import Pca
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.sample import SAMPLE_ROWS
from vision_sae.dictionaries.semi_nmf import SemiNmf
from vision_sae.errors import InvalidInputError
from vision_sae.memory import check_available

FACTORISATIONS = ("neurons", "pca", "nmf", "semi_nmf", "kmeans")
_BATCH = 4096


def _neurons(batches: Iterable[Tensor], dim: int, width: int | None, k: int | None) -> NeuronBasis:
    if width not in (None, dim, 2 * dim):
        raise InvalidInputError(
            f"vectors of {dim} dimensions have {dim} neurons, or {2 * dim} with both signs, not "
            f"{width}; give one of these widths or none",
            field="width",
        )
    return NeuronBasis.fit(batches, signed=width == 2 * dim, k=k)


def _pca(batches: Iterable[Tensor], dim: int, width: int | None, k: int | None) -> Pca:
    width = 2 * dim if width is None else width
    if width % 2 or not 2 <= width <= 2 * dim:
        raise InvalidInputError(
            f"PCA has two features a component, so an even width from 2 to {2 * dim} on vectors of "
            f"{dim} dimensions, not {width}; give such a width, or none for all components",
            field="width",
        )
    return Pca.fit(batches, components=width // 2, k=k)


def factorise(
    store: ActivationStore,
    architecture: str,
    *,
    site: str | None = None,
    width: int | None = None,
    k: int | None = None,
    rows: int = SAMPLE_ROWS,
    seed: int = 0,
    progress: bool = True,
) -> Dictionary:
    """Fit one of `FACTORISATIONS` to the vectors of ``site`` (may be None if there is only one).

    ``width`` is the number of features; when not given, D, and 2 D (all components) for ``pca``.
    ``neurons`` have D features, or 2 D with both signs. ``k`` is the most features that fire in a
    row, all when not given; ``kmeans`` never needs more than one. ``pca`` is fitted to all rows of
    the store; ``nmf``, ``semi_nmf`` and ``kmeans`` to a random sample of ``rows``, which bounds
    the memory.

    Of vectors that are all equal, ``pca``, ``semi_nmf`` and ``kmeans`` give their mean as the bias.
    Raises `InvalidInputError` for what cannot be fitted, and says the way out.
    """
    if architecture not in FACTORISATIONS:
        raise InvalidInputError(
            f"{architecture!r} is not a factorisation; choose one of {', '.join(FACTORISATIONS)}",
            field="architecture",
        )
    site = store.site(site)
    dim = store.sites[site]
    features = dim if width is None else width
    check_available(features * dim * 4, f"a dictionary of {features} features", field="width")
    with tqdm(total=store.rows, desc=architecture, unit="patch", disable=not progress) as bar:

        def count(vectors: Tensor) -> Tensor:
            bar.update(len(vectors))
            return vectors

        batches = map(count, store.batches(site, _BATCH))
        match architecture:
            case "neurons":
                return _neurons(batches, dim, width, k)
            case "pca":
                return _pca(batches, dim, width, k)
            case "nmf":
                return Nmf.fit(batches, width=features, k=k, rows=rows, seed=seed)
            case "semi_nmf":
                return SemiNmf.fit(batches, width=features, k=k, rows=rows, seed=seed)
            case _:
                return KMeans.fit(batches, width=features, rows=rows, seed=seed)
