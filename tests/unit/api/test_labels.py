"""Labels and scores without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vision_sae as vs
from tests.unit.api.conftest import World
from tests.worlds import serving
from vision_sae.api import feature_search
from vision_sae.descriptions.protocol import Score
from vision_sae.errors import FeatureNotFoundError, InvalidInputError


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> vs.Bundle:
    return serving.zoo(tmp_path_factory.mktemp("zoo"), described=False)


def test_a_bundle_is_described_as_the_command_does_it(zoo: vs.Bundle, tmp_path: Path) -> None:
    assert len(vs.Labels.of(zoo)) == 0
    labels = vs.describe(
        zoo.path, describer="caption-pmi", metrics=(), progress=False, caption_pmi={"words": 1}
    )
    expected = serving.zoo(tmp_path)  # described with the default of 3 words
    assert labels.texts == {0: "cat", 1: "dog"} == vs.Labels.of(expected).texts
    assert labels.bundle is not None
    assert labels.bundle.manifest["describe"]["caption_pmi"]["words"] == 1
    assert labels[0].describer == "caption-pmi"
    assert labels.numpy().tolist() == [0, 1]
    with pytest.raises(FeatureNotFoundError):
        labels[99]
    with pytest.raises(InvalidInputError, match="describer"):
        vs.describe(zoo.path, describer="oracle")


def test_labels_show_themselves(tmp_path: Path) -> None:
    labels = vs.Labels.of(serving.zoo(tmp_path))
    assert str(labels).splitlines()[0] == (
        "zoo: 2 of 32 features labelled, 0 labels confirmed by a judge"
    )
    assert labels.to_pandas()["label"].tolist() == ["cat (guess)", "dog (guess)"]
    assert "<td>cat (guess)</td>" in labels._repr_html_()
    assert labels.to_pil(0, 2).size == (12, 4)
    with pytest.raises(InvalidInputError, match="never fires"):
        labels.to_pil(5)


def test_labels_of_a_dictionary_alone(world: World) -> None:
    assert len(vs.Labels.of(world.dictionary)) == 0
    with pytest.raises(InvalidInputError, match="no pictures"):
        vs.Labels.of(world.dictionary).to_pil(0)
    released = vs.Labels.of("demo:dinov2-s/blocks.10.update")
    assert released.name == "demo:dinov2-s/blocks.10.update"
    assert len(released.texts) > 50


def test_a_text_is_scored_against_labels_of_other_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, asked = serving.zoo(tmp_path), dict[str, Any]()

    class Scorer:
        def score(self, evidence: Any, unit: int, text: str, metrics: Any, **rest: Any) -> Any:
            asked.update(rest, unit=unit, text=text, metrics=metrics, name=evidence.name)
            return [Score("detection_auc", 0.9, 12, 0.8, 1.0, 0.5, "random")]

    class Tools:
        def scorer(self, evidence: Any) -> Scorer:
            return Scorer()

    monkeypatch.setattr("vision_sae.api.labels.toolbox", lambda *_: Tools())
    found = vs.score(bundle, 0, "a cat", sample=7, seed=3)
    assert asked == {
        "name": "dictionaries/zoo",
        "unit": 0,
        "text": "a cat",
        "metrics": ("detection_auc",),
        "negatives": ("random", "hard"),
        "sample": 7,
        "seed": 3,
        "control_texts": ["dog"],
    }
    assert found.numpy().tolist() == [0.9]
    assert "detection_auc" in str(found)
    assert found.to_pandas()["control"][0] == 0.5
    assert "<td>0.9</td>" in found._repr_html_()
    with pytest.raises(FeatureNotFoundError):
        vs.score(bundle, 99, "a cat")


def test_the_contrastive_model_is_the_one_that_is_named(
    zoo: vs.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_search, "loaded", lambda name: f"model {name}")
    tools = feature_search.toolbox(zoo, None, "open_clip:X")
    assert tools.config.clip == "open_clip:X"
    assert tools.directory == zoo.path.parent / "probes"
    assert feature_search.toolbox(zoo, None, None).config.clip == "demo:clip"
    np.testing.assert_equal(tools._loaded, {"open_clip:X": "model open_clip:X"})
