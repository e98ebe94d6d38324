"""Search over the patches of a bundle: by site vector or by code, all or those a filter allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from vision_sae.bundles.bundle import Bundle
from vision_sae.bundles.patch_index import PatchIndex
from vision_sae.errors import InvalidInputError
from vision_sae.vectors import normalised

_EXACT_UP_TO = 50_000
"""Allowed patches up to which they are compared one by one: an approximate index that visits some
of its lists would miss too many of so few."""
_ALIKE = 0.95
"""Cosine of site vectors from which patches of one picture are near-duplicates."""

Mask = NDArray[np.bool_]


class Hit(NamedTuple):
    """A patch that was found."""

    patch: int
    score: float
    """Cosine similarity; the activation, where a feature was searched for."""
    collapsed: int = 0
    """Near-duplicates of the same picture that it stands for."""


class Firing(Sequence[Hit]):
    """The patches on which a feature fires, strongest first, among those allowed; exact.

    Hits are made as they are looked at: a feature may fire on most patches.
    """

    def __init__(self, bundle: Bundle, feature: int, allowed: Mask | None = None) -> None:
        rows, values = bundle.postings.row(feature)
        kept = slice(None) if allowed is None else allowed[rows]
        self._rows, self._values = rows[kept], values[kept]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Hit: ...
    @overload
    def __getitem__(self, at: slice) -> list[Hit]: ...
    def __getitem__(self, at: int | slice) -> Hit | list[Hit]:
        if isinstance(at, int):
            return Hit(int(self._rows[at]), float(self._values[at]))
        pairs = zip(self._rows[at].tolist(), self._values[at].tolist(), strict=True)
        return [Hit(*pair) for pair in pairs]


def by_vector(
    bundle: Bundle, query: NDArray[np.float32], depth: int, allowed: Mask | None = None
) -> list[Hit]:
    """The patches whose centred site vectors are most like ``query`` (D), itself centred.

    ``allowed`` (patches) costs no recall: few allowed patches are compared exactly, among many the
    index searches with its own recall.
    """
    return _nearest(bundle.patch_index, query, depth, _left(bundle, allowed))


def by_text_aligned(
    bundle: Bundle, query: NDArray[np.float32], depth: int, allowed: Mask | None = None
) -> list[Hit]:
    """The patches that are most like ``query`` (E), a text or a picture, in the space of texts.

    Raises `InvalidInputError` for a bundle without such an index.
    """
    return _nearest(text_aligned_index(bundle), query, depth, _left(bundle, allowed))


def text_aligned_index(bundle: Bundle) -> PatchIndex:
    """The index in the space of texts; raises `InvalidInputError` where the bundle has none."""
    if bundle.text_aligned_index is None:
        raise InvalidInputError(
            f"the patches of {bundle.name} are not kept in the space of texts; harvest a "
            "contrastive model with --text-aligned and build anew, or find features by text with "
            "SearchFeatures and then their patches",
            field="space",
        )
    return bundle.text_aligned_index


def _left(bundle: Bundle, allowed: Mask | None) -> Mask | None:
    """Those of the allowed patches that may be found at all."""
    if allowed is None or bundle.findable is None:
        return bundle.findable if allowed is None else allowed
    return bundle.findable & allowed


def _nearest(
    index: PatchIndex, query: NDArray[np.float32], depth: int, allowed: Mask | None
) -> list[Hit]:
    unit = normalised(query[None])
    if allowed is not None and int(allowed.sum()) <= _EXACT_UP_TO:
        rows = np.flatnonzero(allowed)
        cosines = index.vectors(rows) @ unit[0]
        return _best(rows, cosines, depth)
    cosines, found = index.search(unit, min(depth, len(index)), allowed)
    return [Hit(int(r), float(c)) for r, c in zip(found[0], cosines[0], strict=True) if r >= 0]


def by_code(
    bundle: Bundle, query: Mapping[int, float], depth: int, allowed: Mask | None = None
) -> list[Hit]:
    """The patches whose codes are most like ``query`` {feature: activation}, by cosine; exact.

    Only the patches on which one of the features fires are touched: the codes by feature are an
    inverted index.
    """
    dots = np.zeros(len(bundle.codes.indptr) - 1)
    for feature, activation in query.items():
        rows, values = bundle.postings.row(feature)
        dots[rows] += activation * values.astype(np.float64)
    length = float(np.linalg.norm(list(query.values())))
    touched = np.flatnonzero(dots if allowed is None else dots * allowed)
    cosines = dots[touched] / np.maximum(bundle.code_norms[touched] * length, 1e-12)
    return _best(touched, cosines, depth)


def collapsed(bundle: Bundle, hits: Sequence[Hit]) -> list[Hit]:
    """Of near-duplicate patches of one picture only the best, which counts the others."""
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


def vector_of(bundle: Bundle, patch: int) -> NDArray[np.float32]:
    """The centred, unit-norm site vector (D) of a patch, as the index holds it."""
    (vector,) = bundle.patch_index.vectors(np.array([patch]))
    return np.asarray(vector)


def _best(
    rows: NDArray[np.integer[Any]], cosines: NDArray[np.floating[Any]], depth: int
) -> list[Hit]:
    order = np.argsort(-cosines, kind="stable")[:depth]
    return [Hit(int(rows[i]), float(cosines[i])) for i in order]
