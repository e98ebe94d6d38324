"""Encoding of pictures: the features that fire, and the patches they fire on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from jaxtyping import Bool, Float32, Num
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vision_sae.api.choices import check_choice, check_top
from vision_sae.api.pictures import Named, PictureLike, Pictures, is_one, named
from vision_sae.api.showing import Row, Table, cell, html_table, overlay, paragraph
from vision_sae.api.subjects import AnyDictionary, AnyModel, Subject, as_subject
from vision_sae.attribution.firing import Order, firing, maps_of, ranking
from vision_sae.dictionaries.protocol import Codes, to_dense
from vision_sae.dictionaries.resident import resident
from vision_sae.errors import FeatureNotFoundError
from vision_sae.models.grid import Geometry, PatchGrid
from vision_sae.models.vectors import site_vectors
from vision_sae.transfers import to_host

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels of the picture, half open."""


@dataclass(frozen=True, eq=False)
class PlacedPicture:
    """A picture with the positions of a model's patches."""

    name: str
    picture: Image.Image = field(repr=False)
    """The caller's picture, in RGB."""
    grid: PatchGrid
    geometry: Geometry = field(repr=False)
    """How the picture was resized and cropped for the model."""

    def boxes(self) -> Float32[np.ndarray, "P 4"]:
        """Boxes of the patches in pixels of the picture: x0, y0, x1, y1."""
        return self.grid.boxes(self.geometry)

    def overlay(self, values: Num[np.ndarray, "*any"]) -> Image.Image:
        """The picture with a map (rows, cols) or (P) painted over it."""
        on_grid = np.asarray(values).reshape(self.grid.rows, self.grid.cols)
        return overlay(self.picture, on_grid, self.grid, self.geometry)


def placed(subject: Subject, picture: Named) -> PlacedPicture:
    """A picture with the patches of the subject's model."""
    geometry = subject.model.preprocessing.geometry(*picture.image.size)
    return PlacedPicture(picture.name, picture.image, subject.model.grid, geometry)


def inside(picture: PlacedPicture, box: Box | None) -> Bool[np.ndarray, " P"]:
    """The patches (P) within a box, or all patches without a box.

    Raises `InvalidInputError` for a box without any patch.
    """
    if box is None:
        return np.ones(picture.grid.patches, dtype=np.bool_)
    mask = picture.grid.inside(box, picture.geometry)
    picture.grid.check_selects(mask, picture.geometry, "box")
    return mask


@dataclass(frozen=True, eq=False)
class ActiveFeature:
    """A feature that fires in a picture."""

    feature: int
    activation: float
    """Largest activation over the patches."""
    total: float
    """Sum of the activations over the patches."""
    patches: int
    """Number of patches on which the feature fires."""
    label: str | None
    """None for a feature without a label."""
    confirmed: bool
    """Whether a judge has confirmed the label; an unconfirmed label is a guess."""
    map: Float32[np.ndarray, "R C"] = field(repr=False)
    """Activation of each patch (rows, cols)."""


@dataclass(frozen=True, eq=False, repr=False)
class Encoding(Table):
    """The features that fire in one picture, in the order that the caller chose.

    A terminal shows a table; a notebook also shows the maps of the first features.
    """

    placed: PlacedPicture
    """The picture with the positions of its patches."""
    dictionary: str
    codes: Codes
    """Codes of the patches (P, K), as feature numbers and activations."""
    width: int
    """Number F of features of the dictionary."""
    features: tuple[ActiveFeature, ...]
    """The features shown, at most ``top``."""
    active: int
    """Number of features that fire, shown or not."""
    explained_variance: float | None
    """Explained variance of the site vectors, around the mean of the data; None for a dictionary
    without a bundle."""
    l0: float
    """Mean number of features that fire on a patch."""
    unusual: bool | None
    """Whether the dictionary explains this picture worse than 99 % of its data; None without a
    bundle."""

    def __iter__(self) -> Iterator[ActiveFeature]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, feature: int) -> ActiveFeature:
        """The feature with this number. Raises `FeatureNotFoundError` for a feature not shown."""
        for each in self.features:
            if each.feature == feature:
                return each
        raise FeatureNotFoundError(
            f"feature {feature} is not among the {len(self)} shown; it is silent here, or a larger "
            "top shows it",
            field="feature",
        )

    def rows(self) -> list[Row]:
        """The features as rows of a table."""
        return [
            {
                "feature": f.feature,
                "activation": f.activation,
                "total": f.total,
                "patches": f.patches,
                "label": label_of(f.label, f.confirmed),
            }
            for f in self.features
        ]

    def to_pil(self, feature: int | None = None) -> Image.Image:
        """The picture with the map of a feature painted over it.

        ``feature`` is the first feature shown by default. The picture is plain if nothing fires.
        """
        if feature is None and not self.features:
            return self.placed.picture.copy()
        shown = self.features[0] if feature is None else self[feature]
        return self.placed.overlay(shown.map)

    def numpy(self) -> Float32[np.ndarray, "P F"]:
        """The activations of all features on all patches (P, F), float32."""
        return np.asarray(to_dense(self.codes, self.width).numpy())

    def _heading(self) -> str:
        share = self.explained_variance
        told = "" if share is None else f", {share:.1%} explained"
        unusual = ", unusual for its data" if self.unusual else ""
        return (
            f"{self.placed.name}: {self.active} features of {self.dictionary} fire, "
            f"{cell(self.l0)} on a patch{told}{unusual}"
        )

    def _repr_html_(self) -> str:
        maps = [self.placed.overlay(each.map) for each in self.features[:_PAINTED]]
        painted = [*maps, *[None] * (len(self) - len(maps))]
        rows = [{**row, "where": m} for row, m in zip(self.rows(), painted, strict=True)]
        return paragraph(self._heading()) + html_table(rows)


_PAINTED = 4
"""Number of features whose map a notebook shows."""


def label_of(text: str | None, confirmed: bool) -> str:
    """A label as tables show it; a guess is marked."""
    if text is None:
        return ""
    return text if confirmed else f"{text} (guess)"


@overload
def encode(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
    pictures: PictureLike,
    dictionary: AnyDictionary,
    *,
    model: AnyModel | None = None,
    top: int = 20,
    order: Order = "strongest",
    min_activation: float = 0.0,
    box: Box | None = None,
) -> Encoding: ...
@overload
def encode(
    pictures: Pictures,
    dictionary: AnyDictionary,
    *,
    model: AnyModel | None = None,
    top: int = 20,
    order: Order = "strongest",
    min_activation: float = 0.0,
    box: Box | None = None,
) -> list[Encoding]: ...
def encode(
    pictures: PictureLike | Pictures,
    dictionary: AnyDictionary,
    *,
    model: AnyModel | None = None,
    top: int = 20,
    order: Order = "strongest",
    min_activation: float = 0.0,
    box: Box | None = None,
) -> Encoding | list[Encoding]:
    """Find the features of a dictionary that fire in one picture, or in each of several.

    ``pictures`` are files, pictures of Pillow, arrays (H, W, 3) or tensors (3, H, W).
    ``dictionary`` is a bundle, a dictionary, the path of either, or the name of a released one;
    without ``model``, the model that the dictionary names is loaded. The result shows at most
    ``top`` features with an activation of ``min_activation`` or more within ``box``
    (x0, y0, x1, y1). ``order`` is ``strongest``, ``total``, ``relative`` to the feature's largest
    activation over the data, or ``informative``; the last two need a bundle. The result of a
    picture does not depend on the other pictures.

    Raises `InvalidImageError` for an unreadable picture, `MismatchError` for a model of other
    weights, and `InvalidInputError` for a box that selects no patch.
    """
    subject = as_subject(dictionary, model)
    check_choice(order, Order, "order")
    check_top(top)
    if order in ("relative", "informative"):
        subject.needs_bundle(f"order={order!r}", "order")
    results = [
        _encoded(subject, placed(subject, item), top, order, min_activation, box)
        for item in named(pictures)
    ]
    return results[0] if is_one(pictures) else results


def vectors_of(subject: Subject, picture: PlacedPicture) -> Float32[Tensor, "P D"]:
    """The site vectors of a picture's patches (P, D), float32, on the model's device."""
    return site_vectors(subject.model, subject.site, subject.model.preprocess(picture.picture))


def _encoded(
    subject: Subject, picture: PlacedPicture, top: int, order: Order, least: float, box: Box | None
) -> Encoding:
    mask, vectors = inside(picture, box), vectors_of(subject, picture)
    dictionary = resident(subject.dictionary, vectors.device)
    codes = dictionary.encode(vectors)
    share = unusual = None
    if subject.bundle is not None:
        share = subject.bundle.explained_variance(vectors, dictionary.decode(codes))
        unusual = subject.bundle.is_unusual(share)
    codes = Codes(*to_host(*codes))
    fires = firing(codes, mask, least)
    places = ranking(fires, order, subject.bundle, subject.confirmed)
    shown = fires.features[places[:top]]
    return Encoding(
        placed=picture,
        dictionary=subject.name,
        codes=codes,
        width=subject.dictionary.width,
        features=tuple(_features(subject, picture, shown, maps_of(codes, shown) * mask)),
        active=len(fires.features),
        explained_variance=share,
        l0=float((codes.values > 0).sum() / picture.grid.patches),
        unusual=unusual,
    )


def _features(
    subject: Subject, picture: PlacedPicture, features: NDArray[np.int64], maps: NDArray[np.float64]
) -> Iterator[ActiveFeature]:
    confirmed = subject.confirmed
    for feature, map_ in zip(features.tolist(), maps, strict=True):
        yield ActiveFeature(
            feature=feature,
            activation=float(map_.max()),
            total=float(map_.sum()),
            patches=int((map_ > 0).sum()),
            label=subject.label(feature),
            confirmed=feature in confirmed,
            map=map_.reshape(picture.grid.rows, picture.grid.cols).astype(np.float32),
        )
