"""Features carried over from the picture of one prompt into that of another.

Both pictures are made side by side in one batch. At each step the codes of chosen features at the
source's patches take the place of those at the target's: ``x' = x + s sum_f (f_source - f_x) d_f``
(the edit of RIEBench; Surkov et al. 2024, arXiv:2410.22366). What the dictionary does not explain
stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import GenerationSettings
from vision_sae.steering.edits import ALWAYS, When, activations


@dataclass(frozen=True, eq=False)
class Transport:
    """What is carried, from where to where."""

    dictionary: str
    """Key of the dictionary in what goes with the transports."""
    source: GenerationSettings
    """The picture that features are taken from."""
    features: tuple[int, ...] = ()
    """Which; empty: at each step the ``top_k`` whose mean activation in the source's region exceeds
    that in the target's most."""
    top_k: int = 20
    source_patches: Tensor | None = None
    """Patches (P) of the source's region, bool; all when None."""
    target_patches: Tensor | None = None
    """Patches (P) that change; all when None. Regions of one size are carried patch by patch, else
    each target patch gets the mean over the source's region."""
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


def carried(
    vectors: Tensor, source: Tensor, transport: Transport, dictionary: Dictionary, step: int
) -> Tensor:
    """Site vectors (P, D) with what ``transport`` carries over from those of the source (P, D)."""
    factor = transport.when.factor(step)
    if factor is None:
        return vectors
    here, there = (
        torch.arange(len(vectors)) if patches is None else patches.nonzero()[:, 0]
        for patches in (transport.target_patches, transport.source_patches)
    )
    ours = dictionary.encode(vectors[here].float())
    theirs = dictionary.encode(source[there].float())
    chosen = list(transport.features) or _exceeding(theirs, ours, dictionary, transport.top_k)
    if not chosen:
        return vectors
    given, had = activations(theirs, chosen), activations(ours, chosen)
    if len(given) != len(had):
        given = given.mean(0, keepdim=True)
    moved = vectors.clone()
    moved[here] += factor * transport.strength * (given - had) @ dictionary.decoder[chosen]
    return moved


def _exceeding(theirs: Codes, ours: Codes, dictionary: Dictionary, count: int) -> list[int]:
    """The features that fire more in ``theirs`` than in ``ours``, by how much."""
    means = [
        torch.zeros(dictionary.width).index_add(0, c.indices.flatten(), c.values.flatten())
        / len(c.indices)
        for c in (theirs, ours)
    ]
    excess, features = (means[0] - means[1]).topk(min(count, dictionary.width))
    return [int(f) for f in features[excess > 0]]
