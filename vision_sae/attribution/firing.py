"""The features that fire in a part of a picture: which, where, and in what order to show them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray

from vision_sae.bundles.read import Bundle
from vision_sae.dictionaries.protocol import Codes

Order = Literal["strongest", "total", "relative", "informative"]
"""What comes first: the largest activation, the largest sum of activations, the largest activation
as a share of the feature's largest over the data, or what says most about the picture."""
_DENSE = 1 / 5
"""A feature that fires in a larger share of the pictures says little about any of them."""
_LEAST = 1e-12


class FiringFeatures(NamedTuple):
    """The features that fire in a part of a picture."""

    features: Int64[np.ndarray, " n"]
    """Feature numbers, ascending."""
    strongest: Float64[np.ndarray, " n"]
    """Largest activation of each."""
    total: Float64[np.ndarray, " n"]
    """Sum of the activations of each."""


def firing(codes: Codes, mask: Bool[np.ndarray, " P"], least: float = 0.0) -> FiringFeatures:
    """The features of the codes of P patches within ``mask`` whose largest activation is ``least``
    or more."""
    inside = (codes.values.numpy() > 0) & mask[:, None]
    features, place = np.unique(codes.indices.numpy()[inside], return_inverse=True)
    activations = codes.values.numpy()[inside].astype(np.float64)
    strongest, total = np.zeros((2, len(features)))
    np.maximum.at(strongest, place, activations)
    np.add.at(total, place, activations)
    kept = strongest >= max(least, _LEAST)
    return FiringFeatures(features[kept].astype(np.int64), strongest[kept], total[kept])


def maps_of(codes: Codes, features: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, "n P"]:
    """The values of some features in the codes of P patches, as maps."""
    row_of = np.full(max(int(codes.indices.max()), int(features.max(initial=0))) + 1, -1)
    row_of[features] = np.arange(len(features))
    rows = row_of[codes.indices.numpy()]
    patch, slot = np.nonzero(rows >= 0)
    maps = np.zeros((len(features), len(rows)))
    np.add.at(maps, (rows[patch, slot], patch), codes.values.numpy()[patch, slot])
    return maps


def information(
    image_counts: NDArray[Any], pictures: int, relative: NDArray[Any]
) -> NDArray[np.float64]:
    """How much features (n) say about a picture in which they fire, in nats.

    The surprise of a feature's firing, -ln of the share of the data's ``pictures`` in which the
    feature fires, times its relative activation: the activation over the feature's largest in the
    data, at most 1. One picture with and one without the feature are added to the counts, so that
    the surprise is finite. A feature that never fired in the data has relative activation 0.
    """
    surprise = -np.log((image_counts + 1) / (pictures + 2))
    return np.asarray(surprise * np.minimum(relative, 1))


def ranking(
    firing_features: FiringFeatures,
    order: Order,
    bundle: Bundle | None,
    confirmed: Collection[int] = (),
) -> NDArray[np.int64]:
    """The positions of the features in an order; equal features stay in the order of numbers.

    The orders ``relative`` and ``informative`` compare with the data of ``bundle``.
    ``confirmed`` are the features whose label a judge has confirmed. In the order ``informative``
    they come before all others, and features that fire in few pictures come before dense ones.
    """
    worth = firing_features.total if order == "total" else firing_features.strongest
    if order in ("relative", "informative"):
        assert bundle is not None
        if order == "informative":
            return _informative(firing_features, bundle, confirmed)
        worth = worth / np.maximum(bundle.statistics.max[firing_features.features], _LEAST)
    return np.argsort(-worth, kind="stable")


def _informative(
    firing_features: FiringFeatures, bundle: Bundle, confirmed: Collection[int]
) -> NDArray[np.int64]:
    features = firing_features.features
    largest, counts = bundle.statistics.max[features], bundle.image_counts[features]
    kept = len(bundle.images) - (0 if bundle.deleted is None else int(bundle.deleted.sum()))
    relative = np.where(largest > 0, firing_features.strongest / np.maximum(largest, _LEAST), 0)
    guessed = np.array([feature not in confirmed for feature in features.tolist()], dtype=np.bool_)
    return np.lexsort((-information(counts, kept, relative), counts > _DENSE * kept, guessed))
