"""Targets: scalars of what a model computes, taken before any softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vision_sae.bundles.read import Bundle
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.resident import resident
from vision_sae.errors import InvalidInputError, NotServedError
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import ContrastiveModel, Model, ModelOutput
from vision_sae.models.vit import VitModel
from vision_sae.transfers import Placed

Pooling = Literal["mean", "max", "sum"]


class ForwardPass(NamedTuple):
    """What targets are computed from, for a batch of B pictures."""

    output: ModelOutput
    sites: Mapping[str, Tensor]
    """{site: vectors (B, T, D)} of the sites that targets name."""


@dataclass(frozen=True)
class Target:
    """A scalar: ``measure`` maps a forward pass to one value for each picture."""

    measure: Callable[[ForwardPass], Float[Tensor, " B"]]
    sites: tuple[str, ...] = ()
    """The sites that ``measure`` reads."""


def check_has_targets(model: Model, name: str, field: str) -> None:
    """Raise `NotServedError`, which names ``field``, for a text-to-image model, whose output is a
    picture; ``name`` is the dictionary that the caller named, for the message."""
    if isinstance(model, NoisedPictures):
        raise NotServedError(
            f"{name} is of a text-to-image model, whose output is a picture and has no target; "
            "encode the picture, or steer a generation",
            field=field,
        )


def measure_targets(
    model: Model, images: Float[Tensor, "B C H W"], targets: Sequence[Target]
) -> tuple[ForwardPass, Float[Tensor, "N K"]]:
    """One forward pass: its outputs and sites, and the targets (N, K).

    N is B, unless a hook makes the batch larger.
    """
    sites = list(dict.fromkeys(site for target in targets for site in target.sites))
    with model.capture(sites) if sites else nullcontext({}) as captured:
        output = model.forward(images)
    seen = ForwardPass(output, captured)
    values = [target.measure(seen) for target in targets]
    return seen, torch.stack(values, dim=1) if values else output.embedding.new_zeros(
        len(images), 0
    )


def class_logit(index: int) -> Target:
    """The logit of one class; raises `InvalidInputError` for a model without that class."""

    def measure(seen: ForwardPass) -> Tensor:
        logits = seen.output.logits
        classes = 0 if logits is None else logits.shape[1]
        if logits is None or not 0 <= index < classes:
            raise InvalidInputError(
                f"the model has {classes} classes, not a class {index}; choose another target",
                field="target.class_logit.index",
            )
        return logits[:, index]

    return Target(measure)


def contrastive_model(model: Model, name: str, field: str) -> ContrastiveModel:
    """``model``, whose space of embeddings is shared with texts.

    Raises `InvalidInputError`, which names ``field``, for any other model, called ``name``.
    """
    if not isinstance(model, ContrastiveModel):
        raise InvalidInputError(
            f"{name} has no texts; choose a class, a picture, a probe or a feature", field=field
        )
    return model


def embedding_of(model: Model, pixels: Float[Tensor, "C H W"]) -> Float[Tensor, " E"]:
    """The embedding of a preprocessed picture, for `similarity`."""
    with torch.no_grad():
        return model.forward(pixels[None]).embedding[0]


def similarity_to_data(bundle: Bundle) -> Target:
    """Cosine similarity of the image embedding to the mean over a bundle's pictures."""
    return similarity(torch.from_numpy(bundle.embeddings.mean(axis=0)))


def similarity(embedding: Float[Tensor, " E"]) -> Target:
    """Cosine similarity of the image embedding to ``embedding``, of a text or a picture."""
    placed = Placed(embedding)

    def measure(seen: ForwardPass) -> Tensor:
        ours = seen.output.embedding
        return torch.cosine_similarity(ours, placed.at(ours.device)[None], dim=1)

    return Target(measure)


def _places(patches: Tensor) -> Placed:
    """The numbers of the patches that a mask (P) selects.

    They index without the wait for a GPU that a mask needs. Raises `InvalidInputError` for a mask
    that selects no patch: nothing can be pooled.
    """
    if not patches.any():
        raise InvalidInputError(
            "the target's region selects no patch; choose a larger one, or none for the whole "
            "picture",
            field="target.region",
        )
    return Placed(patches.nonzero()[:, 0])


def region_class(model: VitModel, patches: Bool[Tensor, " P"], index: int) -> Target:
    """The logit of a class if the classifier saw the mean of the patches in a mask behind the
    last block; raises `InvalidInputError` for a model without that class."""
    places = _places(patches)
    last = [site for site in model.sites if site.endswith(".resid")][-1]
    special = model.grid.special

    def measure(seen: ForwardPass) -> Tensor:
        tokens = seen.sites[last][:, special:]
        logits = model.classify(tokens[:, places.at(tokens.device)])
        return class_logit(index).measure(
            ForwardPass(ModelOutput(seen.output.embedding, logits), {})
        )

    return Target(measure, (last,))


def probe(weight: Tensor, bias: float = 0.0) -> Target:
    """A linear head on the image embedding, ``weight . embedding + bias``.

    Raises `InvalidInputError` for a weight (E) of another length than the embedding.
    """
    placed = Placed(weight)

    def measure(seen: ForwardPass) -> Tensor:
        embedding = seen.output.embedding
        if weight.shape != embedding.shape[1:]:
            raise InvalidInputError(
                f"a probe of this model weighs {embedding.shape[1]} numbers, this one has the "
                f"shape {tuple(weight.shape)}",
                field="target.probe.weight",
            )
        return embedding @ placed.at(embedding.device).to(embedding) + bias

    return Target(measure)


def contrast(positive: Target, negative: Target) -> Target:
    """The difference of two targets."""
    return Target(
        lambda seen: positive.measure(seen) - negative.measure(seen),
        (*positive.sites, *negative.sites),
    )


def check_later(model: Model, site: str, before: Sequence[str], field: str) -> None:
    """Raise `InvalidInputError`, which names ``field``, unless ``site`` is computed after each site
    of ``before``: a feature at ``site`` would not depend on them."""
    order = list(model.sites)
    for earlier in before:
        if order.index(site) <= order.index(earlier):
            raise InvalidInputError(
                f"a feature at {site} does not depend on {earlier}, which is computed later or is "
                "the same; choose a feature of a later site",
                field=field,
            )


def feature(
    dictionary: Dictionary,
    site: str,
    index: int,
    *,
    special: int = 0,
    pooling: Pooling = "mean",
    patches: Bool[Tensor, " P"] | None = None,
) -> Target:
    """The activation of a feature at the patches of a site, pooled.

    The ``special`` leading tokens do not count; with a mask ``patches``, only its patches count.
    The value is exact. Its gradient is the encoder's direction where the feature fires and zero
    elsewhere: which features fire is held fixed. Raises `NotServedError` for a dictionary without
    an encoder direction.
    """
    places = None if patches is None else _places(patches)
    gradient = dictionary.gradient(index)
    if gradient is None:
        raise NotServedError(
            f"features of a {dictionary.architecture} dictionary have no gradient; choose a "
            "feature of an autoencoder, of raw neurons or of PCA",
            field="target.feature",
        )
    placed = Placed(gradient)

    def measure(seen: ForwardPass) -> Tensor:
        vectors = seen.sites[site][:, special:].float()
        if places is not None:
            vectors = vectors[:, places.at(vectors.device)]
        beside = resident(dictionary, vectors.device)
        codes = beside.encode(vectors.detach().flatten(0, 1))
        exact = (codes.values * (codes.indices == index)).sum(1).view(vectors.shape[:2])
        exact = exact.to(vectors)
        along = vectors @ placed.at(vectors.device).to(vectors)
        activations = exact + (exact > 0) * (along - along.detach())
        match pooling:
            case "mean":
                return activations.mean(1)
            case "sum":
                return activations.sum(1)
            case _:
                return activations.amax(1)

    return Target(measure, (site,))
