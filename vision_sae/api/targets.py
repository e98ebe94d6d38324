"""Targets of attributions and interventions: scalars of a model's output for a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.api.choices import check_choice
from vision_sae.api.pictures import PictureLike, to_pil
from vision_sae.api.subjects import AnyDictionary, Subject, as_subject
from vision_sae.attribution import targets
from vision_sae.attribution.targets import Pooling, Target
from vision_sae.models.classes import class_index


@dataclass(frozen=True)
class ClassTarget:
    """The logit of a class, by its number or its label."""

    of: int | str

    def __str__(self) -> str:
        return f"class {self.of}"


@dataclass(frozen=True)
class TextTarget:
    """Cosine similarity of the picture's embedding to a text's; for contrastive models."""

    text: str

    def __str__(self) -> str:
        return f"text {self.text!r}"


@dataclass(frozen=True, eq=False)
class PictureTarget:
    """Cosine similarity of the picture's embedding to another picture's."""

    picture: PictureLike = field(repr=False)

    def __str__(self) -> str:
        return "similarity to a picture"


@dataclass(frozen=True)
class MeanTarget:
    """Cosine similarity of the picture's embedding to the mean over a bundle's data."""

    def __str__(self) -> str:
        return "similarity to the mean of the data"


@dataclass(frozen=True, eq=False)
class FeatureTarget:
    """The activation of a feature at a later site, pooled over the patches."""

    dictionary: AnyDictionary
    feature: int
    pooling: Pooling = "mean"

    def __str__(self) -> str:
        return f"{self.pooling} of feature {self.feature}"


@dataclass(frozen=True, eq=False)
class ProbeTarget:
    """A linear head on the picture's embedding, ``weight . embedding + bias``."""

    weight: NDArray[np.floating] | Tensor = field(repr=False)
    """(E)"""
    bias: float = 0.0

    def __str__(self) -> str:
        return "probe"


@dataclass(frozen=True, eq=False)
class ContrastTarget:
    """The difference of two targets: why this rather than that?"""

    positive: AnyTarget
    negative: AnyTarget

    def __str__(self) -> str:
        return f"{named_target(self.positive)} - {named_target(self.negative)}"


AnyTarget: TypeAlias = (
    int
    | str
    | ClassTarget
    | TextTarget
    | PictureTarget
    | MeanTarget
    | FeatureTarget
    | ProbeTarget
    | ContrastTarget
)
"""A target. A bare integer means the class with that index; a bare string means a text."""
Targets: TypeAlias = Mapping[str, AnyTarget] | Sequence[AnyTarget]
"""Several targets; the keys of a mapping name them."""


def named_target(target: AnyTarget) -> str:
    """Name of a target in tables."""
    if isinstance(target, int):
        return str(ClassTarget(target))
    return str(TextTarget(target)) if isinstance(target, str) else str(target)


def resolved(target: AnyTarget, subject: Subject, *, after: Sequence[str] = ()) -> Target:
    """Translate a target for `vision_sae.attribution`.

    The site of a `FeatureTarget` must be computed after the sites ``after``.
    """
    match target:
        case int() | ClassTarget():
            return targets.class_logit(_class(target, subject))
        case str() | TextTarget():
            text = target if isinstance(target, str) else target.text
            model = targets.contrastive_model(subject.model, subject.model.name, "target")
            return targets.similarity(model.embed_texts([text])[0])
        case PictureTarget():
            pixels = subject.model.preprocess(to_pil(target.picture))
            return targets.similarity(targets.embedding_of(subject.model, pixels))
        case MeanTarget():
            bundle = subject.needs_bundle("the mean of the data", "target")
            return targets.similarity_to_data(bundle)
        case FeatureTarget():
            return _feature(target, subject, after)
        case ProbeTarget():
            return targets.probe(torch.as_tensor(target.weight), target.bias)
        case ContrastTarget():
            positive, negative = target.positive, target.negative
            return targets.contrast(
                resolved(positive, subject, after=after), resolved(negative, subject, after=after)
            )


def _class(target: int | ClassTarget, subject: Subject) -> int:
    of = target if isinstance(target, int) else target.of
    if isinstance(of, int):
        return of
    return class_index(subject.model.class_names, of, model=subject.model.name, field="target")


def _feature(target: FeatureTarget, subject: Subject, after: Sequence[str]) -> Target:
    other = as_subject(target.dictionary, subject.model)
    other.check_feature(target.feature)
    check_choice(target.pooling, Pooling, "pooling")
    targets.check_later(subject.model, other.site, after, "target")
    return targets.feature(
        other.dictionary,
        other.site,
        target.feature,
        special=subject.model.grid.special,
        pooling=target.pooling,
    )
