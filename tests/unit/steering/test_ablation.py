"""Units are switched off, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from tests.worlds.tiny import identity_sae, tiny_model
from vision_sae.models.vit import VitModel
from vision_sae.steering.ablation import edited, without_features, without_neurons


@pytest.fixture
def model() -> VitModel:
    return tiny_model()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_neurons_are_zero_in_every_token() -> None:
    vectors = torch.arange(12.0).reshape(1, 3, 4) + 1
    changed = without_neurons([1, 3])(vectors)
    assert changed[..., [1, 3]].abs().sum() == 0
    assert torch.equal(changed[..., [0, 2]], vectors[..., [0, 2]])


def test_features_are_taken_out_of_the_patches_alone() -> None:
    # The feature i of this dictionary fires with the positive value of dimension i; two may fire.
    dictionary = identity_sae(3, 2)
    cls, patch, untouched = [5.0, 5.0, 5.0], [3.0, 2.0, 1.0], [0.0, 4.0, 1.0]
    changed = without_features(dictionary, [0], special=1)(torch.tensor([[cls, patch, untouched]]))
    # Dimension 2 of the patch is not explained (only two fire) and stays.
    assert changed.tolist() == [[cls, [0, 2, 1], untouched]]


def test_model_without_a_layers_neurons_has_the_output_of_its_bias(
    model: VitModel, images: torch.Tensor
) -> None:
    width = model.sites["blocks.2.mlp"].dim
    with edited(model, {"blocks.2.mlp": without_neurons(range(width))}):
        without = model.forward(images).embedding
    mlp = model.backbone.blocks()[2][0].mlp  # type: ignore[union-attr]
    with torch.no_grad():
        mlp.fc2.weight.zero_()  # type: ignore[union-attr]
    assert torch.allclose(without, model.forward(images).embedding, atol=1e-6)


def test_edits_at_several_sites_end_with_the_body(model: VitModel, images: torch.Tensor) -> None:
    before = model.forward(images).embedding
    edits = {f"blocks.{i}.mlp": without_neurons([0, 1, 2]) for i in range(3)}
    with edited(model, edits):
        within = model.forward(images).embedding
    assert not torch.allclose(before, within)
    assert torch.equal(before, model.forward(images).embedding)


def test_no_units_change_no_bit(model: VitModel, images: torch.Tensor) -> None:
    before = model.forward(images).embedding
    with edited(model, {"blocks.1.update": without_features(identity_sae(32, 4), [], 1)}):
        assert torch.equal(model.forward(images).embedding, before)
    with edited(model, {"blocks.1.mlp": without_neurons([])}):
        assert torch.equal(model.forward(images).embedding, before)
