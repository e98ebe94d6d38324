"""Search for patches of a bundle: by feature, text, picture or code."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64
from PIL import Image, ImageDraw

from vision_sae.api.choices import check_choice, check_top
from vision_sae.api.encoding import Box, inside, placed, vectors_of
from vision_sae.api.pictures import PictureLike, named
from vision_sae.api.showing import Row, Table, cell, html_table, paragraph
from vision_sae.api.subjects import AnyDictionary, AnyModel, as_subject, opened_bundle
from vision_sae.bundles.patch_queries import (
    DEEPEST,
    Query,
    Space,
    mean_code,
    mean_direction,
    nearest,
    region_vector,
    text_aligned_model,
    text_vector,
)
from vision_sae.bundles.patch_search import FiringPatches, PatchHit, collapsed
from vision_sae.bundles.read import Bundle
from vision_sae.errors import InvalidInputError
from vision_sae.pictures.sheet import contact_sheet

_SHOWN = 8
"""Number of hits whose picture a notebook shows."""


@dataclass(frozen=True, eq=False)
class FoundPatch:
    """A patch of a bundle's data."""

    image: str
    """Identifier of the picture."""
    patch: int
    """Row of the patch in the whole data set."""
    row: int
    col: int
    score: float
    """Cosine similarity, or the activation in a search by feature."""
    duplicates: int
    """Number of near-duplicate patches of the same picture that this patch represents."""
    caption: str
    box: Box
    """(x0, y0, x1, y1) in pixels of the original picture."""
    thumbnail: bytes = field(repr=False)
    """A JPEG of the picture."""
    size: tuple[int, int] = field(repr=False)
    """(width, height) of the original picture, in pixels."""

    def to_pil(self) -> Image.Image:
        """The thumbnail of the picture with a frame around the patch."""
        shown = Image.open(io.BytesIO(self.thumbnail)).convert("RGB")
        x, y = shown.width / self.size[0], shown.height / self.size[1]
        x0, y0, x1, y1 = self.box
        if x1 > x0 and y1 > y0:
            left, top = x0 * x, y0 * y
            frame = (left, top, max(left, x1 * x - 1), max(top, y1 * y - 1))
            ImageDraw.Draw(shown).rectangle(frame, outline=(255, 64, 0), width=2)
        return shown


@dataclass(frozen=True, eq=False, repr=False)
class Hits(Table):
    """The patches of a bundle that match a query, best first."""

    query: str
    bundle: str
    patches: tuple[FoundPatch, ...]
    recall_at_10: float
    """Recall of the patch index against exact search; 1 for an exact search."""

    def __iter__(self) -> Iterator[FoundPatch]:
        return iter(self.patches)

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, place: int) -> FoundPatch:
        return self.patches[place]

    def rows(self) -> list[Row]:
        """The patches as rows of a table."""
        return [
            {
                "score": p.score,
                "image": p.image,
                "row": p.row,
                "col": p.col,
                "duplicates": p.duplicates,
                "caption": p.caption,
            }
            for p in self.patches
        ]

    def to_pil(self, count: int = _SHOWN) -> Image.Image:
        """The pictures of the first ``count`` patches side by side.

        Raises `InvalidInputError` for an empty result.
        """
        if not self.patches:
            raise InvalidInputError("nothing was found, so there is no picture", field="query")
        return contact_sheet([[patch.to_pil() for patch in self.patches[:count]]])

    def numpy(self) -> Int64[np.ndarray, " N"]:
        """The rows of the patches in the whole data set (N), int64."""
        return np.array([patch.patch for patch in self.patches], dtype=np.int64)

    def _heading(self) -> str:
        return (
            f"{len(self)} patches of {self.bundle} by {self.query}, recall@10 "
            f"{cell(self.recall_at_10)}"
        )

    def _repr_html_(self) -> str:
        rows: list[Row] = [
            {"picture": patch.to_pil() if place < _SHOWN else None, **row}
            for place, (row, patch) in enumerate(zip(self.rows(), self.patches, strict=True))
        ]
        return paragraph(self._heading()) + html_table(rows)


def search(
    bundle: AnyDictionary,
    *,
    feature: int | None = None,
    text: str | None = None,
    picture: PictureLike | None = None,
    box: Box | None = None,
    code: Mapping[int, float] | None = None,
    space: Space = "vector",
    top: int = 20,
    unique: bool = True,
    model: AnyModel | None = None,
) -> Hits:
    """Find patches of a bundle's data by one query.

    The query is a ``feature`` that fires on the patches, a ``text``, a ``picture`` or its part
    within ``box`` (x0, y0, x1, y1), or a ``code`` {feature: activation}. ``space`` is the space in
    which a picture is compared: ``vector`` (site vectors, D numbers), ``code``, or ``text``. The
    space ``text`` exists in bundles whose store was harvested with ``text_aligned``; a text is
    always compared in that space. `search_features` finds features by text in any bundle. With
    ``unique`` near-duplicate patches of one picture count once. A model is loaded only for a text
    or a picture.

    Raises `InvalidInputError` for no query, for several queries, and for a space that the bundle
    lacks.
    """
    queries = {"feature": feature, "text": text, "picture": picture, "code": code}
    queries_set = [name for name, value in queries.items() if value is not None]
    if len(queries_set) != 1:
        raise InvalidInputError(
            f"a search has one query, not {len(queries_set)}; give feature, text, picture or code",
            field=queries_set[1] if queries_set else "feature",
        )
    check_top(top)
    check_choice(space, Space, "space")
    if picture is None and (box is not None or space != "vector"):
        raise InvalidInputError(
            "box and space need a search by picture; leave both out",
            field="space" if box is None else "box",
        )
    opened = opened_bundle(bundle)
    if feature is not None:
        opened.check_feature(feature)
        return _hits(opened, f"feature {feature}", FiringPatches(opened, feature), 1.0, top, unique)
    name, query = _query(opened, text, picture, box, code, space, model)
    hits, recall = nearest(opened, query)
    return _hits(opened, name, hits, recall, top, unique)


def _query(
    bundle: Bundle,
    text: str | None,
    picture: PictureLike | None,
    box: Box | None,
    code: Mapping[int, float] | None,
    space: Space,
    model: AnyModel | None,
) -> tuple[str, Query]:
    """(name of the query, the vector or the code that patches are compared with)"""
    if code is not None:
        for each in code:
            bundle.check_feature(each)
        return "a code", Query(code=code)
    subject = as_subject(bundle, model)
    if text is not None:
        contrastive = text_aligned_model(bundle, subject.model)
        return f"text {text!r}", Query(aligned=text_vector(contrastive, text))
    assert picture is not None
    (one,) = named([picture])
    where = placed(subject, one)
    mask = inside(where, box)
    if space == "text":
        contrastive = text_aligned_model(bundle, subject.model)
        pixels = contrastive.preprocess(one.image)
        return one.name, Query(aligned=region_vector(contrastive, pixels, mask))
    vectors = vectors_of(subject, where).cpu().numpy()[mask]
    if space == "code":
        return f"the code of {one.name}", Query(code=mean_code(bundle.dictionary, vectors))
    return one.name, Query(vector=mean_direction(bundle, vectors))


def _hits(
    bundle: Bundle, query: str, hits: Sequence[PatchHit], recall: float, top: int, unique: bool
) -> Hits:
    kept = collapsed(bundle, hits[:DEEPEST]) if unique else hits
    return Hits(query, bundle.name, tuple(_patch(bundle, hit) for hit in kept[:top]), recall)


def _patch(bundle: Bundle, hit: PatchHit) -> FoundPatch:
    number, position = divmod(hit.patch, bundle.grid.patches)
    row, col = divmod(position, bundle.grid.cols)
    record = bundle.images[number]
    return FoundPatch(
        image=record.id,
        patch=hit.patch,
        row=row,
        col=col,
        score=hit.score,
        duplicates=hit.collapsed,
        caption=record.caption,
        box=bundle.box(hit.patch),
        thumbnail=bundle.thumbnails[number],
        size=(record.width, record.height),
    )
