"""What an attribution explains: a scalar of the model's output."""

from __future__ import annotations

from typing import Any

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
    Target,
    TextTarget,
)
from vision_sae_client.images import ImageSource
from vision_sae_client.images import image as image_message


def mean_embedding() -> Target:
    """Similarity to the mean embedding of the pictures the dictionary was measured on."""
    return Target(mean_embedding=MeanEmbeddingTarget())


def image(source: ImageSource) -> Target:
    """Similarity to another picture."""
    return Target(image=ImageTarget(image=image_message(source)))


def class_logit(which: int | str) -> Target:
    """The logit of a class, by index or by exact name."""
    if isinstance(which, int):
        return Target(class_logit=ClassTarget(index=which))
    return Target(class_logit=ClassTarget(label=which))


def text(words: str) -> Target:
    """Similarity to a text; needs a model with text."""
    return Target(text=TextTarget(text=words))


def contrast(positive: Target, negative: Target) -> Target:
    """One target minus another: why this rather than that."""
    return Target(contrast=ContrastTarget(positive=positive, negative=negative))


def feature(name: str, pooling: Pooling.ValueType = POOLING_MEAN) -> Target:
    """The activation of a feature of a later site, ``dictionaries/{dictionary}/features/{index}``,
    pooled over its patches."""
    return Target(feature=FeatureTarget(feature=name, pooling=pooling))


def probe(weight: NDArray[np.floating[Any]], bias: float = 0.0) -> Target:
    """A linear head of yours on the image embedding (E)."""
    return Target(probe=ProbeTarget(weight=to_proto(weight), bias=bias))


def parse(words: str) -> Target:
    """A target as people write it: ``mean``, ``image:FILE``, ``class:281``, ``text:a cat``,
    ``feature:dictionaries/late/features/7``, or two of these with `` vs `` between them."""
    one, versus, other = words.partition(" vs ")
    if versus:
        return contrast(parse(one), parse(other))
    kind, _, value = words.partition(":")
    if words == "mean":
        return mean_embedding()
    if value and kind == "image":
        return image(value)
    if value and kind == "class":
        return class_logit(int(value) if value.isdecimal() else value)
    if value and kind == "text":
        return text(value)
    if value and kind == "feature":
        return feature(value)
    raise InvalidInputError(
        f"{words!r} is no target; give mean, image:FILE, class:INDEX, class:NAME, text:WORDS, "
        "feature:NAME, or 'A vs B'",
        field="target",
    )
