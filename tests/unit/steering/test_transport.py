"""Codes carried from one picture to another, by hand on a dictionary of three features."""

from __future__ import annotations

from typing import Any

import torch

from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.models.generator import GenerationSettings
from vision_sae.steering.edits import When
from vision_sae.steering.transport import Transport, apply_transport

D = torch.eye(4)[:3]
SAE = TopKSae(k=3, w_enc=D.clone(), b_enc=torch.zeros(3), w_dec=D.clone(), b_dec=torch.zeros(4))
# Four patches. The last dimension is what the dictionary does not explain.
HERE = torch.tensor([[1.0, 0, 0, 9], [1, 0, 0, 9], [0, 2, 0, 9], [0, 2, 0, 9]])
THERE = torch.tensor([[0.0, 0, 3, 5], [0, 0, 5, 5], [1, 1, 0, 5], [1, 1, 0, 5]])


def moved(**options: Any) -> Any:
    transport = Transport("sae", GenerationSettings(), **options)
    return apply_transport(HERE, THERE, transport, SAE, 0).tolist()


def test_named_features_take_the_sources_place_patch_by_patch() -> None:
    # Feature 1: 0, 0, 1, 1 instead of 0, 0, 2, 2. All else stays, the error too.
    assert moved(features=(1,)) == [[1, 0, 0, 9], [1, 0, 0, 9], [0, 1, 0, 9], [0, 1, 0, 9]]


def test_half_the_strength_goes_half_the_way() -> None:
    assert moved(features=(1,), strength=0.5)[2] == [0, 1.5, 0, 9]


def test_without_names_those_that_exceed_most_are_carried() -> None:
    # Means over the patches: source (.5, .5, 2), target (.5, 1, 0): feature 2 alone exceeds.
    assert moved(top_k=1) == [[1, 0, 3, 9], [1, 0, 5, 9], [0, 2, 0, 9], [0, 2, 0, 9]]
    assert moved(top_k=3) == moved(top_k=1)


def test_regions_of_one_size_are_carried_in_order_and_others_by_their_mean() -> None:
    first, last = torch.tensor([1, 1, 0, 0]) > 0, torch.tensor([0, 0, 1, 1]) > 0
    assert moved(features=(2,), source_patches=first, target_patches=last) == [
        [1, 0, 0, 9],
        [1, 0, 0, 9],
        [0, 2, 3, 9],
        [0, 2, 5, 9],
    ]
    one = torch.tensor([0, 0, 0, 1]) > 0
    assert moved(features=(2,), source_patches=first, target_patches=one)[3] == [0, 2, 4, 9]


def test_nothing_to_carry_gives_back_the_same_vectors() -> None:
    still = Transport("sae", GenerationSettings(), when=When(1))
    assert apply_transport(HERE, THERE, still, SAE, 0) is HERE
    same = Transport("sae", GenerationSettings())
    assert apply_transport(HERE, HERE, same, SAE, 0) is HERE
