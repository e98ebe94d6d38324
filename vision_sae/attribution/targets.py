"""Targets: scalars of what a model computes, taken before any softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import InvalidInputError, NotServedError
from vision_sae.models.protocol import Model, ModelOutput
from vision_sae.models.vit import VitModel

Pooling = Literal["mean", "max", "sum"]


class Seen(NamedTuple):
    """What targets look at, of a batch of B images."""

    output: ModelOutput
    sites: Mapping[str, Tensor]
    """{site: vectors (B, T, D)} of the sites that targets name."""


@dataclass(frozen=True)
class Target:
    """A scalar: ``measure`` maps what a forward pass shows to one value per image (B)."""

    measure: Callable[[Seen], Tensor]
    sites: tuple[str, ...] = ()
    """The sites that must be captured for it."""


def measured(model: Model, images: Tensor, targets: Sequence[Target]) -> tuple[Seen, Tensor]:
    """One forward pass of images (B, 3, H, W): what it showed, and the targets (B, K)."""
    sites = list(dict.fromkeys(site for target in targets for site in target.sites))
    with model.capture(sites) if sites else nullcontext({}) as captured:
        output = model.forward(images)
    seen = Seen(output, captured)
    values = [target.measure(seen) for target in targets]
    return seen, torch.stack(values, dim=1) if values else output.embedding.new_zeros(
        len(images), 0
    )


def class_logit(index: int) -> Target:
    """The logit of one class; raises `InvalidInputError` for a model without that class."""

    def measure(seen: Seen) -> Tensor:
        logits = seen.output.logits
        classes = 0 if logits is None else logits.shape[1]
        if logits is None or not 0 <= index < classes:
            raise InvalidInputError(
                f"the model has {classes} classes, not a class {index}; choose another target",
                field="target.class_logit.index",
            )
        return logits[:, index]

    return Target(measure)


def similarity(embedding: Tensor) -> Target:
    """Cosine similarity of the image embedding to ``embedding`` (E), of a text or a picture."""
    return Target(
        lambda seen: torch.cosine_similarity(seen.output.embedding, embedding[None], dim=1)
    )


def _some(patches: Tensor) -> None:
    """Raise `InvalidInputError` for a mask of patches (P) without any: nothing can be pooled."""
    if not patches.any():
        raise InvalidInputError(
            "the target's region selects no patch; choose a larger one, or none for the whole "
            "picture",
            field="target.region",
        )


def region_class(model: VitModel, patches: Tensor, index: int) -> Target:
    """The logit of a class if the classifier saw the mean of some patches (mask (P)) behind the
    last block; raises `InvalidInputError` for a model without that class."""
    _some(patches)
    last = [site for site in model.sites if site.endswith(".resid")][-1]
    special = model.grid.special

    def measure(seen: Seen) -> Tensor:
        logits = model.classify(seen.sites[last][:, special:][:, patches])
        return class_logit(index).measure(Seen(ModelOutput(seen.output.embedding, logits), {}))

    return Target(measure, (last,))


def probe(weight: Tensor, bias: float = 0.0) -> Target:
    """A linear head on the image embedding, ``weight . embedding + bias``.

    Raises `InvalidInputError` for a weight (E) of another length than the embedding.
    """

    def measure(seen: Seen) -> Tensor:
        embedding = seen.output.embedding
        if weight.shape != embedding.shape[1:]:
            raise InvalidInputError(
                f"a probe of this model weighs {embedding.shape[1]} numbers, this one has the "
                f"shape {tuple(weight.shape)}",
                field="target.probe.weight",
            )
        return embedding @ weight.to(embedding) + bias

    return Target(measure)


def contrast(positive: Target, negative: Target) -> Target:
    """The difference of two targets."""
    return Target(
        lambda seen: positive.measure(seen) - negative.measure(seen),
        (*positive.sites, *negative.sites),
    )


def feature(
    dictionary: Dictionary,
    site: str,
    index: int,
    *,
    special: int = 0,
    pooling: Pooling = "mean",
    patches: Tensor | None = None,
) -> Target:
    """The activation of a feature at the patches of a site, pooled.

    ``special`` leading tokens do not count, and of the patches only those of the mask ``patches``
    (P), when there is one. The value is exact; its slope is the encoder's where the feature fires,
    and zero elsewhere: which features fire is held fixed. Raises `NotServedError` for a dictionary
    without an encoder direction.
    """
    if patches is not None:
        _some(patches)
    slope = dictionary.slope(index)
    if slope is None:
        raise NotServedError(
            f"features of a {dictionary.architecture} dictionary have no slope; choose a feature "
            "of an autoencoder, of raw neurons or of PCA",
            field="target.feature",
        )

    def measure(seen: Seen) -> Tensor:
        vectors = seen.sites[site][:, special:].float()
        if patches is not None:
            vectors = vectors[:, patches]
        codes = dictionary.encode(vectors.detach().flatten(0, 1).cpu())
        exact = (codes.values * (codes.indices == index)).sum(1).view(vectors.shape[:2])
        exact = exact.to(vectors)
        along = vectors @ slope.to(vectors)
        activations = exact + (exact > 0) * (along - along.detach())
        match pooling:
            case "mean":
                return activations.mean(1)
            case "sum":
                return activations.sum(1)
            case _:
                return activations.amax(1)

    return Target(measure, (site,))
