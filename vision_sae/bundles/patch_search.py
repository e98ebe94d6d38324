"""Search over the patches of a bundle, or over allowed ones, by site vector, text or code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from jaxtyping import Bool, Float, Float32
from numpy.typing import NDArray

from vision_sae.bundles.patch_index import PatchIndex
from vision_sae.bundles.read import Bundle
from vision_sae.errors import InvalidInputError
from vision_sae.vectors import normalised

_EXACT_UP_TO = 50_000
"""The most allowed patches for exact search. An approximate index visits only some of its lists,
and would miss too many of so few patches."""
_ALIKE = 0.95
"""The least cosine between near-duplicate patches of one picture."""

PatchMask = Bool[np.ndarray, " N"]
"""Whether a search may return each patch."""


class PatchHit(NamedTuple):
    """A search result: one patch."""

    patch: int
    score: float
    """Cosine similarity, or the activation in a search by feature."""
    collapsed: int = 0
    """Number of near-duplicates in the same picture that this hit stands for."""


class FiringPatches(Sequence[PatchHit]):
    """The allowed patches on which a feature fires, strongest first; an exact search.

    Hits are created on access, because a feature may fire on most patches.
    """

    def __init__(self, bundle: Bundle, feature: int, allowed: PatchMask | None = None) -> None:
        rows, values = bundle.postings.row(feature)
        kept = slice(None) if allowed is None else allowed[rows]
        self._rows, self._values = rows[kept], values[kept]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> PatchHit: ...
    @overload
    def __getitem__(self, at: slice) -> list[PatchHit]: ...
    def __getitem__(self, at: int | slice) -> PatchHit | list[PatchHit]:
        if isinstance(at, int):
            return PatchHit(int(self._rows[at]), float(self._values[at]))
        pairs = zip(self._rows[at].tolist(), self._values[at].tolist(), strict=True)
        return [PatchHit(*pair) for pair in pairs]


def by_vector(
    bundle: Bundle, query: Float[np.ndarray, " D"], depth: int, allowed: PatchMask | None = None
) -> list[PatchHit]:
    """The patches whose centred site vectors are nearest to the centred vector ``query``.

    Filtering by ``allowed`` costs no recall: few allowed patches are compared exactly, and many
    are searched with the recall of the index.
    """
    return _nearest(bundle.patch_index, query, depth, _searchable(bundle, allowed))


def by_text_aligned(
    bundle: Bundle, query: Float[np.ndarray, " E"], depth: int, allowed: PatchMask | None = None
) -> list[PatchHit]:
    """The patches that are nearest to ``query``, the vector of a text or a picture, in the text
    embedding space.

    Raises `InvalidInputError` for a bundle without a text-aligned index.
    """
    return _nearest(text_aligned_index(bundle), query, depth, _searchable(bundle, allowed))


def text_aligned_index(bundle: Bundle) -> PatchIndex:
    """The index in the text embedding space; raises `InvalidInputError` when there is none."""
    if bundle.text_aligned_index is None:
        raise InvalidInputError(
            f"the patches of {bundle.name} are not kept in the space of texts; harvest a "
            "contrastive model with --text-aligned and build anew, or find features by text with "
            "SearchFeatures and then their patches",
            field="space",
        )
    return bundle.text_aligned_index


def _searchable(bundle: Bundle, allowed: PatchMask | None) -> PatchMask | None:
    """The allowed patches without those of deleted pictures."""
    if allowed is None or bundle.searchable is None:
        return bundle.searchable if allowed is None else allowed
    return np.asarray(bundle.searchable & allowed)


def _nearest(
    index: PatchIndex, query: NDArray[np.float32], depth: int, allowed: PatchMask | None
) -> list[PatchHit]:
    unit = normalised(query[None])
    if allowed is not None and int(allowed.sum()) <= _EXACT_UP_TO:
        rows = np.flatnonzero(allowed)
        cosines = index.vectors(rows) @ unit[0]
        return _best(rows, cosines, depth)
    cosines, rows = index.search(unit, min(depth, len(index)), allowed)
    return [PatchHit(int(r), float(c)) for r, c in zip(rows[0], cosines[0], strict=True) if r >= 0]


def by_code(
    bundle: Bundle, query: Mapping[int, float], depth: int, allowed: PatchMask | None = None
) -> list[PatchHit]:
    """The patches whose codes have the largest cosine to ``query`` {feature: activation}; exact.

    The postings are an inverted index, so only patches that fire one of the features are visited.
    """
    dots = np.zeros(len(bundle.codes.indptr) - 1)
    for feature, activation in query.items():
        rows, values = bundle.postings.row(feature)
        dots[rows] += activation * values.astype(np.float64)
    length = float(np.linalg.norm(list(query.values())))
    touched = np.flatnonzero(dots if allowed is None else dots * allowed)
    cosines = dots[touched] / np.maximum(bundle.code_norms[touched] * length, 1e-12)
    return _best(touched, cosines, depth)


def collapsed(bundle: Bundle, hits: Sequence[PatchHit]) -> list[PatchHit]:
    """``hits`` with near-duplicate patches of one picture merged into the best of them, which
    counts the others."""
    if not hits:
        return []
    vectors = bundle.patch_index.vectors(np.array([hit.patch for hit in hits]))
    kept = list[int]()
    stands_for = np.zeros(len(hits), dtype=int)
    of_image = dict[int, list[int]]()
    for number, hit in enumerate(hits):
        others = of_image.setdefault(hit.patch // bundle.grid.patches, [])
        alike = [o for o in others if float(vectors[o] @ vectors[number]) >= _ALIKE]
        if alike:
            stands_for[alike[0]] += 1
        else:
            others.append(number)
            kept.append(number)
    return [hits[number]._replace(collapsed=int(stands_for[number])) for number in kept]


def vector_of(bundle: Bundle, patch: int) -> Float32[np.ndarray, " D"]:
    """The centred, unit-norm site vector of a patch, as stored in the index."""
    (vector,) = bundle.patch_index.vectors(np.array([patch]))
    return np.asarray(vector)


def _best(
    rows: NDArray[np.integer[Any]], cosines: NDArray[np.floating[Any]], depth: int
) -> list[PatchHit]:
    order = np.argsort(-cosines, kind="stable")[:depth]
    return [PatchHit(int(rows[i]), float(cosines[i])) for i in order]
