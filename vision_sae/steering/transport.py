"""Features carried over from the picture of one prompt into that of another.

Both pictures are made side by side in one batch. At each step the codes of chosen features at the
source's patches take the place of those at the target's: ``x' = x + s sum_f (f_source - f_x) d_f``
(the edit of RIEBench; Surkov et al. 2024, arXiv:2410.22366). The reconstruction error
stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vision_sae.dictionaries.kernels import add_rows_
from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import GenerationSettings
from vision_sae.steering.edits import ALWAYS, When, activations, directions_of
from vision_sae.transfers import Placed


@dataclass(frozen=True, eq=False)
class Transport:
    """Which features are carried, from where to where."""

    dictionary: str
    """Key of the dictionary in the mapping that comes with the transports."""
    source: GenerationSettings
    """The picture that features are taken from."""
    features: tuple[int, ...] = ()
    """The features to carry. Where empty: at each step the ``top_k`` features whose mean activation
    in the source's region exceeds that in the target's region most."""
    top_k: int = 20
    source_patches: Bool[Tensor, " P"] | None = None
    """Mask of the source's region; None means all patches."""
    target_patches: Bool[Tensor, " P"] | None = None
    """Mask of the patches that change; None means all. Regions of one size are carried patch by
    patch; otherwise each target patch gets the mean over the source's region."""
    strength: float = 1.0
    """How far codes move from the target's (0) to the source's (1)."""
    when: When = ALWAYS

    def __post_init__(self) -> None:
        """Raises `InvalidInputError` for a region without a patch: it has no mean to carry."""
        for name in ("source", "target"):
            patches = getattr(self, f"{name}_patches")
            if patches is not None and not patches.any():
                raise InvalidInputError(
                    f"the {name} region selects no patch; choose a larger one, or none for the "
                    "whole picture",
                    field=f"{name}_region",
                )

    @cached_property
    def places(self) -> tuple[Placed | None, Placed | None]:
        """The numbers of the target's and of the source's patches, copied to a device once; None
        means all patches."""
        target, source = (
            None if patches is None else Placed(patches.nonzero()[:, 0])
            for patches in (self.target_patches, self.source_patches)
        )
        return target, source


def apply_transport(
    vectors: Float[Tensor, "P D"],
    source: Float[Tensor, "P D"],
    transport: Transport,
    dictionary: Dictionary,
    step: int,
) -> Float[Tensor, "P D"]:
    """Site vectors with the features that ``transport`` carries over from the source's vectors."""
    factor = transport.when.factor(step)
    if factor is None:
        return vectors
    here, there = (
        slice(None) if places is None else places.at(vectors.device) for places in transport.places
    )
    ours = dictionary.encode(vectors[here].float())
    theirs = dictionary.encode(source[there].float())
    chosen: Sequence[int] | Tensor = transport.features
    exceeds: Tensor | None = None
    if transport.features:
        directions = directions_of(dictionary, transport.features)
    else:
        chosen, exceeds = _exceeding(theirs, ours, dictionary, transport.top_k)
        directions = dictionary.decoder[chosen]
    if not len(chosen):
        return vectors
    source_activity, target_activity = activations(theirs, chosen), activations(ours, chosen)
    if len(source_activity) != len(target_activity):
        source_activity = source_activity.mean(0, keepdim=True)
    difference = source_activity - target_activity
    if exceeds is not None:
        difference = difference * exceeds
    moved = vectors.clone()
    moved[here] += factor * transport.strength * difference @ directions
    return moved


def _exceeding(
    theirs: Codes, ours: Codes, dictionary: Dictionary, count: int
) -> tuple[Tensor, Tensor]:
    """At most ``count`` features by how much more they fire in ``theirs`` than in ``ours``, and
    whether they fire more at all.

    In host memory, only features that do are returned; choosing them would wait for a GPU.
    """
    means = [torch.zeros(dictionary.width, device=ours.values.device) for _ in range(2)]
    for mean, codes in zip(means, (theirs, ours), strict=True):
        add_rows_(mean, codes.indices.flatten(), codes.values.flatten())
        mean /= len(codes.indices)
    excess, features = (means[0] - means[1]).topk(min(count, dictionary.width))
    exceeds = excess > 0
    if exceeds.device.type == "cpu":
        return features[exceeds], exceeds[exceeds]
    return features, exceeds
