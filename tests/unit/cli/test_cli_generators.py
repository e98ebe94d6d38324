"""From prompts to a bundle and to what its features cause, by the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.worlds import generations
from vision_sae.bundles.publish import add_descriptions
from vision_sae.bundles.read import read_bundle
from vision_sae.cli import app
from vision_sae.errors import NotFoundError
from vision_sae.evaluation.generators import best_labelled
from vision_sae.models.loading import load_generator, load_model
from vision_sae.models.noised import NoisedPictures

SITE = generations.SITES[1]
PROMPTS = "a large red star\na small blue ring\n\na green heart\na pink cross\n"


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def world(tiny_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline, prompts, and a bundle of what it generates."""
    root = tmp_path_factory.mktemp("generators")
    tiny_pipeline.save_pretrained(str(root / "model"))
    (root / "prompts.txt").write_text(PROMPTS)
    model = f"sdxl:{root / 'model'}"
    made = run(
        *("harvest", root / "prompts.txt", root / "store", "--model", model),
        *("--site", SITE, "--seeds", 2, "--batch-size", 3),
    )
    assert "32 images, 2048 patches" in made  # 4 prompts, 2 seeds, 4 steps; 64 positions
    (root / "config.yaml").write_text("train: {expansion: 2, k: 4, steps: 8, batch_size: 256}\n")
    config = ("--config", root / "config.yaml")
    run("train", root / "store", root / "dictionary", *config)
    run("build", root / "store", root / "dictionary", root / "bundle")
    return root


def test_one_door_loads_generators_as_models_too(world: Path) -> None:
    name = f"sdxl:{world / 'model'}"
    model = load_model(name, dtype="float32")
    assert isinstance(model, NoisedPictures)
    assert model.name == name
    weights = load_generator(name, dtype="float32").identity()["weights_sha256"]
    assert model.identity()["weights_sha256"] == weights
    for wrong in ("sdxl:", "demo:painter", "vit_small"):
        with pytest.raises(NotFoundError, match="demo:generator"):
            load_generator(wrong)


def test_pictures_are_harvested_by_a_generator(world: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2):
        Image.new("RGB", (64, 48), (90 * number, 50, 50)).save(pictures / f"{number}.png")
    model = f"sdxl:{world / 'model'}"
    made = run("harvest", pictures, tmp_path / "store", "--model", model, "--site", SITE)
    assert "2 images, 128 patches" in made
    # Their codes can be had from a dictionary of generated pictures.
    run("build", tmp_path / "store", world / "dictionary", tmp_path / "bundle")


def test_the_blocks_of_a_bundle(world: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "blocks", "--features", 2)
    said = run("evaluate", "blocks", world / "bundle", "--prompts", world / "prompts.txt", *out)
    assert SITE in said
    (found,) = json.loads((tmp_path / "blocks" / "blocks.json").read_text())
    assert found["role"] in found["boosted"]
    sheet = Image.open(tmp_path / "blocks" / "blocks.png")
    assert sheet.size == (4 * 66 - 2, 3 * 66 - 2)  # four prompts; plain, off, boosted


class Contrastive:
    """Texts and pictures of known directions."""

    name, embedding_dim = "fake", 2
    device, dtype = torch.device("cpu"), torch.float32

    def identity(self) -> dict[str, str]:
        return {"name": self.name, "weights_sha256": "fake"}

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0] if t == "red" else [0.0, 1.0] for t in texts])


def test_causal_scores_join_those_of_the_labels(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = read_bundle(world / "bundle")
    alive = np.flatnonzero(bundle.statistics.count)[:3].tolist()
    detection = {"metric": "detection_auc", "value": 0.8, "n": 9, "lower": 0.7, "upper": 0.9}
    rows = [
        {
            "feature": feature,
            "text": text,
            "abstained": "",
            "describer": "caption-pmi",
            "describer_version": 1,
            "scores": [detection | {"control": None, "negatives": "random"}],
            "evidence": [],
            "details": {"judged_by": "captions"} if text == "blue" else {},
            "candidates": [],
        }
        for feature, text in zip(alive, ("red", "blue", None), strict=True)
    ]
    add_descriptions(bundle, world / "bundle", rows, {})
    assert best_labelled(rows) == [(alive[1], "blue"), (alive[0], "red")]  # confirmed ones first

    monkeypatch.setattr("vision_sae.evaluation.generators.ContrastiveModel", Contrastive)
    monkeypatch.setattr("vision_sae.models.loading.load_model", _loading(Contrastive()))
    monkeypatch.setattr("vision_sae.steering.movements.embed_pictures", _brightness)
    said = run("evaluate", "causal", world / "bundle", "--prompts", world / "prompts.txt")
    assert "2 labels (1 confirmed by a judge before, the others guesses)" in said
    found = read_bundle(world / "bundle").descriptions
    assert [s["metric"] for s in found[alive[0]]["scores"]] == ["detection_auc", "causal"]
    assert 0 <= found[alive[0]]["scores"][1]["value"] <= 1
    assert [s["metric"] for s in found[alive[2]]["scores"]] == ["detection_auc"]
    # Once more: the score is replaced, not added again.
    run("evaluate", "causal", world / "bundle", "--prompts", world / "prompts.txt")
    scores = read_bundle(world / "bundle").descriptions[alive[0]]["scores"]
    assert [s["metric"] for s in scores] == ["detection_auc", "causal"]


def _loading(contrastive: Any) -> Any:
    return lambda name, **options: contrastive if name == "demo:clip" else load_model(name)


def _brightness(_model: Any, pictures: list[Image.Image]) -> torch.Tensor:
    values = [
        [float(np.asarray(p)[..., 0].mean()), float(np.asarray(p)[..., 2].mean())] for p in pictures
    ]
    return torch.nn.functional.normalize(torch.tensor(values), dim=1)


def test_features_are_described_by_what_they_do(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world / "bundle", tmp_path / "bundle")
    monkeypatch.setattr("vision_sae.descriptions.toolbox.ContrastiveModel", Contrastive)
    monkeypatch.setattr("vision_sae.descriptions.toolbox.load_model", lambda _, **__: Contrastive())
    monkeypatch.setattr("vision_sae.steering.movements.embed_pictures", _brightness)
    said = run("describe", tmp_path / "bundle", "--describer", "effects")
    bundle = read_bundle(tmp_path / "bundle")
    labelled = [row for row in bundle.descriptions.values() if row["text"]]
    assert f"{len(labelled)} labelled" in said
    assert bundle.manifest["describe"]["describer"] == "effects"
    for row in bundle.descriptions.values():
        fires = bool(bundle.statistics.count[row["feature"]] > 0)
        assert bool(row["candidates"]) == fires
        # Chosen by two prompts, judged by the two others.
        assert [(s["metric"], s["n"]) for s in row["scores"]] == [("causal", 2)] * fires
    assert all(row["text"] == row["candidates"][0][0] for row in labelled)


def test_a_bundle_that_does_not_generate_is_refused(world: Path, tmp_path: Path) -> None:
    from tests.worlds import serving

    serving.zoo(tmp_path, described=False)
    result = CliRunner().invoke(
        app, ["evaluate", "blocks", str(tmp_path / "zoo"), "--prompts", str(world / "prompts.txt")]
    )
    assert result.exit_code == 2


def test_edits_of_scenes(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vision_sae.evaluation import edit_cases, scene_attributes

    torch.manual_seed(0)
    classifier, cases = scene_attributes.AttributeClassifier(), edit_cases.read_cases()[:2]
    monkeypatch.setattr(scene_attributes, "train_classifier", lambda: classifier)
    monkeypatch.setattr(edit_cases, "read_cases", lambda: cases)
    said = run("evaluate", "edits", world / "bundle", "--out", tmp_path / "edits.json")
    found = json.loads((tmp_path / "edits.json").read_text())
    assert found.pop("computed")["device"] == "cpu"
    assert set(found) == set(edit_cases.METHODS)
    assert all(method in said for method in found)
