"""The report on attributions: what it measures, and that it leaves the model as it was."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from torch import Tensor

from tests.worlds import noise_image, random_sae, tiny_model
from vision_sae.attribution import targets
from vision_sae.attribution.faithfulness import faithfulness, orders_of
from vision_sae.attribution.ledger import Scene, ledger
from vision_sae.dictionaries.protocol import SiteDictionary, to_dense
from vision_sae.evaluation import attribution
from vision_sae.evaluation.attribution import (
    Heads,
    estimate,
    evaluate_attribution,
    heads,
    mean_of,
    pointing_game,
    targets_of,
)
from vision_sae.evaluation.planted_scenes import Scene as Drawn
from vision_sae.evaluation.planted_scenes import scenes
from vision_sae.evaluation.tasks import embeddings
from vision_sae.models.protocol import ModelOutput
from vision_sae.models.vit import VitModel

SITE, DIM, WIDTH = "blocks.1.update", 32, 48


@pytest.fixture(scope="module")
def model() -> VitModel:
    return tiny_model()


@pytest.fixture(scope="module")
def found() -> SiteDictionary:
    return SiteDictionary(random_sae(DIM, WIDTH, 6), SITE)


@pytest.fixture(scope="module")
def images(model: VitModel) -> list[Tensor]:
    return [model.preprocess(noise_image(32, 32, seed)) for seed in range(4)]


def test_the_report_on_a_tiny_model(
    model: VitModel, found: SiteDictionary, images: list[Tensor]
) -> None:
    before = [weight.clone() for weight in model.backbone.module.parameters()]
    report = evaluate_attribution(
        model, found, images, targets_of(model, [""] * 4), tested=2, progress=False
    )
    assert report.pictures == 4
    assert report.gap_p95 < 1e-4
    assert report.gap_act_x_grad_median > report.gap_median
    assert 0 < report.error_share < 1
    assert set(report.areas) == {
        *("code deletion", "code insertion", "pixel deletion", "pixel insertion")
    }
    assert set(report.areas["code deletion"]) == {"attribution", "random", "activation"}
    assert report.under_noise.mean > report.under_shuffled_weights.mean
    assert json.loads(json.dumps(report.to_json()))["under_noise"]["mean"] == pytest.approx(
        report.under_noise.mean
    )
    assert len(report.lines()) == 9
    # Shuffling was for a moment only.
    after = model.backbone.module.parameters()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_an_estimate_has_its_interval() -> None:
    found = estimate([0.0, 1.0] * 50)
    assert found.mean == 0.5
    assert 0.38 < found.lower < 0.45 < 0.55 < found.upper < 0.62
    assert estimate([2.0]) == (2.0, 2.0, 2.0)


class LinearVit(VitModel):
    """The target depends on the site alone, and linearly: deletion has a known answer."""

    def forward(self, images: Tensor) -> ModelOutput:
        with self.capture([SITE]) as captured:
            super().forward(images)
        return ModelOutput(captured[SITE][:, 1:].sum(1).float(), None)


def test_curves_of_a_linear_target_are_those_of_sorted_contributions(
    found: SiteDictionary, images: list[Tensor]
) -> None:
    made = tiny_model()
    made.__class__ = LinearVit
    weight = torch.linspace(-1, 1, DIM)
    scene = Scene(made, images[0], targets.probe(weight), [SITE])
    books = ledger(scene, found, nodes=2)
    per_feature = books.per_feature.float()
    tests = faithfulness(scene, found, per_feature, books.per_patch.float(), images[0])
    deletion, insertion = (t for t in tests if t.space == "code")
    active = torch.unique(books.codes.indices[books.codes.values > 0])
    ordered = per_feature[orders_of(per_feature, active)].double()
    gone = np.concatenate([[0], ordered.cumsum(0).numpy()])
    shares = np.linspace(0, 1, len(gone))
    for test, sign in ((deletion, -1), (insertion, 1)):
        expected = sign * np.interp(test.curve[:, 0], shares, gone)
        slope, offset = np.polyfit(expected, test.curve[:, 1], 1)
        assert slope > 0
        np.testing.assert_allclose(test.curve[:, 1], offset + slope * expected, atol=1e-3)
        assert test.area == pytest.approx(
            np.trapezoid(test.curve[:, 1], test.curve[:, 0]), abs=1e-5
        )
    # What speaks for the target goes first: no order leaves less of it, or puts back more.
    assert deletion.curve[:, 1].min() == 0
    assert insertion.curve[:, 1].max() == 1
    assert deletion.area < deletion.area_random < insertion.area


def test_orders_are_stable() -> None:
    importance = torch.tensor([0.0, 2.0, 2.0, 5.0])
    assert orders_of(importance, torch.arange(4)).tolist() == [3, 1, 2, 0]


def test_the_mean_of_pictures_is_that_of_all_their_patches(
    model: VitModel, found: SiteDictionary, images: list[Tensor]
) -> None:
    made = mean_of(model, found, torch.stack(images))
    with torch.inference_mode(), model.capture([SITE]) as captured:
        model.forward(torch.stack(images))
    vectors = captured[SITE][:, model.grid.special :].flatten(0, 1)
    torch.testing.assert_close(made.update, vectors.mean(0), rtol=1e-4, atol=1e-6)
    codes = to_dense(found.dictionary.encode(vectors), WIDTH)
    assert made.mean_code is not None
    torch.testing.assert_close(made.mean_code, codes.mean(0), rtol=1e-4, atol=1e-6)


def embedded(model: VitModel, drawn: Sequence[Drawn]) -> NDArray[np.float32]:
    made = attribution.inputs(model, [scene.image for scene in drawn])
    return np.asarray(embeddings(model, made).numpy())


def test_heads_tell_backgrounds_and_point(model: VitModel, found: SiteDictionary) -> None:
    drawn = list(scenes(60, 3, side=32))
    asked = heads(embedded(model, drawn), drawn, "background")
    assert asked.accuracy > 0.9
    assert isinstance(asked, Heads)
    hits = pointing_game(model, found, drawn[:5], asked, "background")
    assert len(hits) == 5


@pytest.mark.parametrize("tolerance", [0, 3])
def test_a_hit_is_a_patch_on_the_object_or_close_to_it(
    tolerance: int, model: VitModel, found: SiteDictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scene,) = scenes(1, 8, side=32)
    monkeypatch.setattr(attribution, "_TOLERANCE", tolerance)
    near = binary_dilation(scene.parts["object"], np.ones((2 * tolerance + 1,) * 2))
    drawn = list(scenes(20, 3, side=32))
    asked = heads(embedded(model, drawn), drawn, "background")
    boxes = model.grid.boxes(model.preprocessing.geometry(32, 32)).astype(int)
    covered = [bool(near[y0:y1, x0:x1].any()) for x0, y0, x1, y1 in boxes]

    class Books:
        def __init__(self, patch: int) -> None:
            self.per_patch = torch.zeros(model.grid.patches)
            self.per_patch[patch] = 1

    for patch, expected in enumerate(covered):
        monkeypatch.setattr(attribution, "ledger", lambda *_, patch=patch, **__: Books(patch))
        assert pointing_game(model, found, [scene], asked, "background") == [expected]
    assert set(covered) == {True, False}
