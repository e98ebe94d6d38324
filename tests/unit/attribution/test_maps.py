"""Maps without features: their numbers, worked out by hand on small pictures."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.worlds.tiny import noise_image, tiny_model
from vision_sae.attribution import targets
from vision_sae.attribution.methods.deep_feature_factorisation import (
    component_effects,
    deep_feature_factorisation,
)
from vision_sae.attribution.methods.eigen_cam import eigen_cam
from vision_sae.attribution.methods.grad_cam import grad_cam
from vision_sae.attribution.methods.gradient_x_input import gradient_x_input
from vision_sae.attribution.observation import Observation

SITE = "blocks.1.update"


class ByHand:
    """A picture of which site vectors and gradient are given, and a target that is linear."""

    def __init__(self, vectors: Tensor, gradient: Tensor | None = None) -> None:
        self.updates = {SITE: vectors}
        self._gradient = torch.zeros_like(vectors) if gradient is None else gradient
        self.value = self.value_at(SITE, vectors)

    def gradient(self, _site: str) -> Tensor:
        return self._gradient

    def value_at(self, _site: str, update: Tensor) -> float:
        return float((self._gradient * update).sum())


def scene(*given: Tensor) -> Observation:
    return cast(Observation, ByHand(*given))


VECTORS = torch.tensor([[1.0, 2.0], [3.0, -1.0], [-4.0, 1.0]])
GRADIENT = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 1.0]])


def test_gradient_times_input() -> None:
    found = gradient_x_input(scene(VECTORS, GRADIENT), SITE)
    assert found.tolist() == [1.0, 1.0, -3.0]


def test_grad_cam_weighs_dimensions_by_their_mean_gradient() -> None:
    # The mean gradient is (1, 1); what sums below zero is cut off.
    assert grad_cam(scene(VECTORS, GRADIENT), SITE).tolist() == [3.0, 2.0, 0.0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_eigen_cam_grows_with_what_happens_at_a_patch(sign: float) -> None:
    strengths = torch.tensor([0.5, 3.0, 1.0, 0.0])
    vectors = strengths[:, None] * (sign * torch.tensor([3.0, -4.0]))  # of length 5
    found = eigen_cam(scene(vectors), SITE)
    torch.testing.assert_close(found, 5 * strengths)


def test_eigen_cam_of_patches_alike_sums_above_zero() -> None:
    vectors = torch.tensor([[-3.0, 4.0]]).expand(3, 2)
    torch.testing.assert_close(eigen_cam(scene(vectors), SITE), torch.full((3,), 5.0))


def test_factors_are_found_again_and_taken_out_of_the_target() -> None:
    # Two parts that share no patch and no dimension; the second weighs more.
    first, second = torch.tensor([1.0, 2.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 3.0, 1.0])
    along = torch.eye(3)
    vectors = torch.outer(first, along[0]) + torch.outer(second, along[1] + along[2])
    gradient = torch.ones(4, 3)
    given = scene(vectors, gradient)
    found = deep_feature_factorisation(vectors[None], 2)
    rebuilt = [torch.outer(part.maps[0], part.direction) for part in found]
    torch.testing.assert_close(
        rebuilt[0], torch.outer(second, along[1] + along[2]), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(rebuilt[1], torch.outer(first, along[0]), atol=1e-3, rtol=0)
    # By how much the target, the sum of everything, falls without each.
    assert component_effects(given, SITE, found) == pytest.approx([8.0, 3.0], abs=1e-2)


@pytest.mark.parametrize(
    "variant",
    [
        {"reg_tokens": 4},
        {"class_token": False, "global_pool": "avg"},
        {"img_size": (32, 64)},
        {"global_pool": "map"},
    ],
    ids=["registers", "no class token", "not square", "attention pooling"],
)
def test_every_vit_has_maps_of_its_patches(variant: dict[str, Any]) -> None:
    model = tiny_model(**variant)
    image = model.preprocess(noise_image(70, 40))
    seen = Observation(model, image, targets.class_logit(3), [SITE])
    for method in (gradient_x_input, grad_cam, eigen_cam):
        found = method(seen, SITE)
        assert found.shape == (model.grid.patches,)
        assert found.any()
