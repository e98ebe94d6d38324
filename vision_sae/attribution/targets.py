"""Targets: scalars of a model's output, taken before any softmax."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vision_sae.errors import InvalidInputError
from vision_sae.models.protocol import ModelOutput

Target = Callable[[ModelOutput], Tensor]
"""`ModelOutput` of a batch -> one value per image (B)."""


def class_logit(index: int) -> Target:
    """The logit of one class; raises `InvalidInputError` for a model without that class."""

    def target(output: ModelOutput) -> Tensor:
        classes = 0 if output.logits is None else output.logits.shape[1]
        if output.logits is None or not 0 <= index < classes:
            raise InvalidInputError(
                f"the model has {classes} classes, not a class {index}; choose another target",
                field="target.class_logit.index",
            )
        return output.logits[:, index]

    return target


def similarity(embedding: Tensor) -> Target:
    """Cosine similarity of the image embedding to ``embedding`` (E)."""

    def target(output: ModelOutput) -> Tensor:
        return torch.cosine_similarity(output.embedding, embedding[None], dim=1)

    return target


def contrast(positive: Target, negative: Target) -> Target:
    """The difference of two targets."""
    return lambda output: positive(output) - negative(output)
