"""Builds targets, the scalars of a model's output that attributions explain."""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from vision_sae.errors import InvalidInputError
from vision_sae.tensors import to_proto
from vision_sae.v1.target_pb2 import (
    POOLING_MEAN,
    ClassTarget,
    ContrastTarget,
    FeatureTarget,
    ImageTarget,
    MeanEmbeddingTarget,
    Pooling,
    ProbeTarget,
    RegionTarget,
    Target,
    TextTarget,
)
from vision_sae_client.images import BoxLike, ImageSource, parse_box, region_message
from vision_sae_client.images import image as image_message
from vision_sae_client.values import sendable

_MOST_CLASSES = 2**31 - 1
"""The largest class index of the contract (int32)."""


def mean_embedding() -> Target:
    """Similarity to the mean embedding of the pictures that the dictionary was measured on."""
    return Target(mean_embedding=MeanEmbeddingTarget())


@sendable
def image(source: ImageSource) -> Target:
    """Similarity to another picture."""
    return Target(image=ImageTarget(image=image_message(source)))


@sendable
def class_logit(which: SupportsIndex | str) -> Target:
    """The logit of a class, by index or by exact name."""
    if isinstance(which, str):
        return Target(class_logit=ClassTarget(label=which))
    index = operator.index(which)  # accepts NumPy's integers
    if not 0 <= index <= _MOST_CLASSES:
        raise InvalidInputError(
            f"a class is numbered from 0 to {_MOST_CLASSES}, not {index}; give the number or the "
            "name of one that the model has",
            field="target",
        )
    return Target(class_logit=ClassTarget(index=index))


@sendable
def region_class(box: BoxLike, which: SupportsIndex | str) -> Target:
    """The logit of a class for a part (x0, y0, x1, y1) of the picture, in its pixels."""
    logit = class_logit(which).class_logit
    return Target(region=RegionTarget(region=region_message(box), class_logit=logit))


@sendable
def text(words: str) -> Target:
    """Similarity to a text, for contrastive models."""
    return Target(text=TextTarget(text=words))


@sendable
def contrast(positive: Target, negative: Target) -> Target:
    """The difference of two targets: why this rather than that."""
    return Target(contrast=ContrastTarget(positive=positive, negative=negative))


@sendable
def feature(name: str, pooling: Pooling.ValueType = POOLING_MEAN) -> Target:
    """The activation of a feature of a later site, ``dictionaries/{dictionary}/features/{index}``,
    pooled over its patches."""
    return Target(feature=FeatureTarget(feature=name, pooling=pooling))


@sendable
def probe(weight: NDArray[np.floating[Any]], bias: float = 0.0) -> Target:
    """A linear head on the image embedding, with a ``weight`` (E) and a ``bias``."""
    return Target(probe=ProbeTarget(weight=to_proto(weight), bias=bias))


def parse(words: str) -> Target:
    """Parse a target of the command line: ``mean``, ``image:FILE``, ``class:281``,
    ``class:281@0,0,96,64`` (of that box alone), ``text:a cat``,
    ``feature:dictionaries/late/features/7``, or two of these with `` vs `` between them."""
    one, versus, other = words.partition(" vs ")
    if versus:
        if " vs " in other:
            raise InvalidInputError(
                f"{words[:80]!r} compares more than two targets; give 'A vs B'", field="target"
            )
        return contrast(parse(one), parse(other))
    kind, _, value = words.partition(":")
    if words == "mean":
        return mean_embedding()
    if value and kind == "image":
        return image(value)
    if value and kind == "class":
        name, _, box = value.rpartition("@") if "@" in value else (value, "", "")
        which = int(name[:20]) if name.isdecimal() else name
        return region_class(parse_box(box), which) if box else class_logit(which)
    if value and kind == "text":
        return text(value)
    if value and kind == "feature":
        return feature(value)
    raise InvalidInputError(
        f"{words[:80]!r} is no target; give mean, image:FILE, class:INDEX, class:NAME, "
        "class:INDEX@X0,Y0,X1,Y1, text:WORDS, feature:NAME, or 'A vs B'",
        field="target",
    )
