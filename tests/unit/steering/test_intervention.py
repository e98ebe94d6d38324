"""Interventions: what changes, what does not, and the control of equal norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worlds.tiny import noise_image, tiny_model
from vision_sae.attribution import targets
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import SiteDictionary, to_dense
from vision_sae.errors import FeatureNotFoundError
from vision_sae.models.protocol import ModelOutput
from vision_sae.models.vit import VitModel
from vision_sae.steering.edits import FeatureEdit
from vision_sae.steering.intervention import FeatureIntervention, InterventionResult

SITE, DIM, WIDTH = "blocks.1.update", 32, 48
LOGIT = targets.class_logit(3)


@pytest.fixture(scope="module")
def model() -> VitModel:
    return tiny_model()


@pytest.fixture(scope="module")
def found() -> dict[str, SiteDictionary]:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(WIDTH, DIM, generator=random)  # of several norms
    sae = TopKSae(
        k=6,
        w_enc=torch.nn.functional.normalize(rows, dim=1),
        b_enc=torch.zeros(WIDTH),
        w_dec=rows,
        b_dec=torch.zeros(DIM),
    )
    return {"d": SiteDictionary(sae, SITE), "later": SiteDictionary(sae, "blocks.2.update")}


@pytest.fixture(scope="module")
def image(model: VitModel) -> Tensor:
    return model.preprocess(noise_image(40, 36))


def strongest(model: VitModel, found: SiteDictionary, image: Tensor) -> tuple[int, Tensor, Tensor]:
    """(the feature with the largest activation, its activations at all tokens, the vectors)"""
    with torch.no_grad(), model.capture([found.site]) as captured:
        model.forward(image[None])
    vectors = captured[found.site][0]
    dense = to_dense(found.dictionary.encode(vectors), WIDTH)
    feature = int(dense[1:].amax(0).argmax())
    return feature, dense[:, feature], vectors


def test_ablation_takes_the_feature_out_at_every_token(
    model: VitModel, found: dict[str, SiteDictionary], image: Tensor
) -> None:
    feature, activations, vectors = strongest(model, found["d"], image)
    edited = vectors - activations[:, None] * found["d"].dictionary.decoder[feature]
    with torch.no_grad(), model.replace(SITE, lambda _: edited[None]):
        expected = model.forward(image[None]).logits
    assert expected is not None
    outcome = FeatureIntervention(model, [FeatureEdit("d", feature, "ablate")], found)(
        image, [LOGIT]
    )
    assert outcome.values_after[0] == pytest.approx(float(expected[0, 3]), abs=1e-5)
    change = (edited - vectors)[1:].norm() / vectors[1:].norm()
    assert outcome.relative_change == pytest.approx(float(change), rel=1e-5)


def test_nothing_to_change_is_the_plain_model_bit_for_bit(
    model: VitModel, found: dict[str, SiteDictionary], image: Tensor
) -> None:
    with torch.inference_mode():
        plain = model.forward(image[None])
    for edit in (FeatureEdit("d", 0, "scale", 1.0), FeatureEdit("d", 0, "add", 0.0)):
        outcome = FeatureIntervention(model, [edit], found)(image, [LOGIT])
        assert plain.logits is not None
        assert outcome.after.logits is not None
        assert torch.equal(outcome.after.logits, plain.logits)
        assert torch.equal(outcome.after.embedding, plain.embedding)
        assert outcome.relative_change == 0


def test_an_edit_with_a_place_leaves_special_tokens_alone(
    model: VitModel, found: dict[str, SiteDictionary], image: Tensor
) -> None:
    weights = torch.zeros(model.grid.patches)
    weights[5] = 1
    added = torch.zeros(1 + model.grid.patches, DIM)
    added[1 + 5] = 2 * found["d"].dictionary.decoder[3]
    with torch.no_grad(), model.replace(SITE, lambda vectors: vectors + added):
        expected = model.forward(image[None]).logits
    assert expected is not None
    edit = FeatureEdit("d", 3, "add", 2.0, weights=weights)
    outcome = FeatureIntervention(model, [edit], found)(image, [LOGIT])
    assert outcome.values_after[0] == pytest.approx(float(expected[0, 3]), abs=1e-5)
    assert abs(outcome.values_after[0] - outcome.values_before[0]) > 1e-3


def test_edits_at_several_sites_act_together(
    model: VitModel, found: dict[str, SiteDictionary], image: Tensor
) -> None:
    edits = [FeatureEdit("d", 1, "add", 1.0), FeatureEdit("later", 2, "add", 1.0)]
    both = FeatureIntervention(model, edits, found)
    assert both.sites == [SITE, "blocks.2.update"]
    directions = {e.dictionary: found[e.dictionary].dictionary.decoder[e.feature] for e in edits}
    with (
        torch.no_grad(),
        model.replace(SITE, lambda v: v + directions["d"]),
        model.replace("blocks.2.update", lambda v: v + directions["later"]),
    ):
        expected = model.forward(image[None]).logits
    assert expected is not None
    assert both(image, [LOGIT]).values_after[0] == pytest.approx(float(expected[0, 3]), abs=1e-5)


class TestControl:
    def outcome(
        self, model: VitModel, found: dict[str, SiteDictionary], image: Tensor, seed: int = 0
    ) -> InterventionResult:
        edits = [FeatureEdit("d", 1, "add", 3.0)]
        alive = {"d": np.array([1, 7, 9])}
        intervention = FeatureIntervention(model, edits, found, controls=6, alive=alive, seed=seed)
        return intervention(image, [LOGIT])

    def test_it_moves_other_features_by_as_much(
        self, model: VitModel, found: dict[str, SiteDictionary], image: Tensor
    ) -> None:
        rows = found["d"].dictionary.decoder
        expected = set()
        for other in (7, 9):
            direction = 3.0 * rows[other] * rows[1].norm() / rows[other].norm()
            with torch.no_grad(), model.replace(SITE, lambda v: v + direction):  # noqa: B023
                logits = model.forward(image[None]).logits
            assert logits is not None
            expected.add(round(float(logits[0, 3]), 3))
        seen = self.outcome(model, found, image).values_control
        assert seen.shape == (6, 1)
        assert {round(value, 3) for value in seen[:, 0].tolist()} == expected

    def test_its_seed_repeats_it(
        self, model: VitModel, found: dict[str, SiteDictionary], image: Tensor
    ) -> None:
        first, again = (self.outcome(model, found, image, seed=4) for _ in range(2))
        assert np.array_equal(first.values_control, again.values_control)


def test_a_feature_that_there_is_not_is_refused(
    model: VitModel, found: dict[str, SiteDictionary]
) -> None:
    with pytest.raises(FeatureNotFoundError, match="0 to 47, not 48"):
        FeatureIntervention(model, [FeatureEdit("d", 48, "ablate")], found)


def result(before: list[float], after: list[float]) -> InterventionResult:
    outputs = [
        ModelOutput(embedding, torch.tensor([logits]))
        for embedding, logits in (
            (torch.tensor([[3.0, 4.0]]), before),
            (torch.tensor([[4.0, 3.0]]), after),
        )
    ]
    controls = np.array([[1.0, 5.0], [4.0, 5.0]])
    return InterventionResult(*outputs, np.array([2.0, 5.0]), np.zeros(2), controls, 0.0)


def test_the_classes_that_lead_before_or_after() -> None:
    found = result([0.0, math.log(2), math.log(5)], [math.log(6), 0.0, 0.0])
    first, second = found.classes(1)  # probabilities 5/8 and 1/8 before, 1/8 and 6/8 after
    assert (first.index, second.index) == (2, 0)
    assert (first.logit_before, first.logit_after) == pytest.approx((math.log(5), 0))
    assert (first.probability_before, first.probability_after) == pytest.approx((5 / 8, 1 / 8))
    assert (second.probability_before, second.probability_after) == pytest.approx((1 / 8, 6 / 8))
    assert found.classes(0) == []
    assert found.flipped
    assert not result([0.0, 1.0], [0.5, 0.6]).flipped


def test_embeddings_and_controls_are_compared() -> None:
    found = result([0.0], [0.0])
    assert found.embedding_similarity == pytest.approx(24 / 25)
    assert [found.control_change(0), found.control_change(1)] == [1.5, 0]
    alone = found._replace(values_control=np.zeros((0, 2)))
    assert alone.control_change(0) is None
