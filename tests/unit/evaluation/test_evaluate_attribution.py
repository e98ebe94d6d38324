"""The report on attributions: what it measures, and that it leaves the model as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.worlds.tiny import noise_image, random_sae, tiny_model
from vision_sae.attribution import targets
from vision_sae.attribution.faithfulness import faithfulness, orders_of
from vision_sae.attribution.ledger import ledger
from vision_sae.attribution.observation import Observation
from vision_sae.cli import app as main
from vision_sae.demo import CORPUS
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.evaluation.attribution import (
    evaluate_attribution,
    mean_with_interval,
    sites_of,
    targets_of,
)
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
    found = mean_with_interval([0.0, 1.0] * 50)
    assert found.mean == 0.5
    assert 0.38 < found.lower < 0.45 < 0.55 < found.upper < 0.62
    assert mean_with_interval([2.0]) == (2.0, 2.0, 2.0)


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
    scene = Observation(made, images[0], targets.probe(weight), [SITE])
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


def test_the_command_writes_the_report(tiny_bundle: Path, tmp_path: Path) -> None:
    asked = ["evaluate", "attribution", str(tiny_bundle), "--images", str(CORPUS / "heldout")]
    out = tmp_path / "report.json"
    done = CliRunner().invoke(main, [*asked, "--limit", "3", "--tested", "2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    written = json.loads(out.read_text())
    assert (written["pictures"], written["pointing"]) == (3, {})
    assert written["gap_p95"] < 1e-3
    assert f"{written['rank_correlation']['mean']:.3f}" in done.output


def test_pointing_is_at_the_residual_stream_and_at_the_site() -> None:
    assert sites_of(SiteDictionary(random_sae(DIM, WIDTH, 6), "blocks.1.update")) == [
        "blocks.1.resid",
        "blocks.1.update",
    ]
