"""What an attribution explains: a scalar of the model's output."""

from __future__ import annotations

from vision_sae.errors import InvalidInputError
from vision_sae.v1.target_pb2 import (
    ClassTarget,
    ContrastTarget,
    ImageTarget,
    MeanEmbeddingTarget,
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


def parse(words: str) -> Target:
    """A target as people write it: ``mean``, ``image:FILE``, ``class:281``, ``text:a cat``."""
    kind, _, value = words.partition(":")
    if words == "mean":
        return mean_embedding()
    if value and kind == "image":
        return image(value)
    if value and kind == "class":
        return class_logit(int(value) if value.isdecimal() else value)
    if value and kind == "text":
        return text(value)
    raise InvalidInputError(
        f"{words!r} is no target; give mean, image:FILE, class:INDEX, class:NAME or text:WORDS",
        field="target",
    )
