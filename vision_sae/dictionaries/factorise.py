"""ActivationStore -> a dictionary that is fitted, without a training loop."""

from __future__ import annotations

from torch import Tensor
from tqdm import tqdm

from vision_sae.activations.store import ActivationStore
from vision_sae.dictionaries.architectures import ARCHITECTURES, Fitting
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.sample import SAMPLE_ROWS
from vision_sae.errors import InvalidInputError, quoted
from vision_sae.memory import check_available
from vision_sae.sections import Section

_BATCH = 4096


def factorise(
    store: ActivationStore,
    architecture: str,
    *,
    site: str | None = None,
    width: int | None = None,
    k: int | None = None,
    rows: int = SAMPLE_ROWS,
    seed: int = 0,
    settings: Section | None = None,
    progress: bool = True,
) -> Dictionary:
    """Fit a dictionary of an architecture that is fitted to the vectors of ``site``.

    ``site`` may be None for a store with one site. ``width`` is the number of features, by default
    D, and 2 D (all components) for ``pca``. ``neurons`` have D features, or 2 D with both signs.
    ``k`` is the largest number of features that fire in a row, by default all; in ``kmeans`` at
    most one fires. ``pca`` is fitted to all rows of the store; ``nmf``, ``semi_nmf`` and
    ``kmeans`` are fitted to a random sample of ``rows``, which bounds the memory. ``settings`` are
    those of the architecture's section, by default its default values.

    If all vectors are equal, the bias of ``pca``, ``semi_nmf`` and ``kmeans`` is their mean.
    Raises `InvalidInputError` for an architecture that is not fitted, and for data or a width that
    cannot be fitted.
    """
    fit = ARCHITECTURES[architecture].fit if architecture in ARCHITECTURES else None
    if fit is None:
        raise InvalidInputError(
            f"{quoted(architecture)} is not a factorisation; choose one of "
            f"{', '.join(each.name for each in ARCHITECTURES if each.fit)}",
            field="architecture",
        )
    site = store.site(site)
    settings = settings or ARCHITECTURES[architecture].settings()
    wanted = Fitting(store.sites[site], width, k, rows, seed, settings)
    check_available(
        wanted.features * wanted.dim * 4,
        f"a dictionary of {wanted.features} features",
        field="width",
    )
    with tqdm(total=store.rows, desc=architecture, unit="patch", disable=not progress) as bar:

        def count(vectors: Tensor) -> Tensor:
            bar.update(len(vectors))
            return vectors

        return fit(map(count, store.batches(site, _BATCH)), wanted)
