"""From a configuration to labels: the describer it names, with what that needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.worlds.contrastive import PlantedClip, evidence_of, random_cells
from tests.worlds.tiny import tiny_model
from vision_sae.config import DescribeConfig
from vision_sae.descriptions import toolbox as module
from vision_sae.descriptions.describers.contrastive import ContrastiveConfig
from vision_sae.descriptions.describers.milan import MilanConfig
from vision_sae.descriptions.toolbox import Toolbox
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.arrays import ArrayEvidence

THINGS = ("apple", "tree", "boat", "stone", "cloud")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of models that were loaded."""
    names: list[str] = []

    def load(name: str, **_: str) -> object:
        names.append(name)
        return PlantedClip(THINGS) if name == "planted" else tiny_model()

    monkeypatch.setattr(module, "load_model", load)
    return names


def evidence(seed: int = 0) -> ArrayEvidence:
    """Each unit fires on one thing; a picture shows a few things."""
    cells = random_cells(60, len(THINGS), cells=2, seed=seed)
    return evidence_of(cells, [[i] for i in range(len(THINGS))], things=THINGS)


def test_contrastive_labels_are_scored_and_stand(loaded: list[str], tmp_path: Path) -> None:
    world, config = evidence(), DescribeConfig(describer="contrastive", clip="planted")
    labels = Toolbox(config, tmp_path, progress=False).labeller(world).label(world, range(5))
    made = list(labels)
    assert [d.text for d in made] == list(THINGS)
    assert {d.describer for d in made} == {"contrastive"}
    for description in made:
        (auc,) = (
            s for s in description.scores if s.metric == "detection_auc" and s.negatives == "random"
        )
        assert auc.value > 0.95


def test_captions_without_scores_need_no_model(loaded: list[str], tmp_path: Path) -> None:
    world = evidence()
    config = DescribeConfig(describer="caption-pmi", metrics=())
    list(Toolbox(config, tmp_path, progress=False).labeller(world).label(world, [0]))
    assert loaded == []


def test_everything_is_made_once(loaded: list[str], tmp_path: Path) -> None:
    toolbox, world = (
        Toolbox(DescribeConfig(describer="contrastive", clip="planted"), tmp_path, progress=False),
        evidence(),
    )
    assert toolbox.labeller(world) is toolbox.labeller(world)
    assert toolbox.scorer(world) is toolbox.scorer(world)
    assert toolbox.probe(world) is toolbox.probe(world)
    assert loaded == ["planted"]


def test_a_model_that_is_there_already_is_not_loaded_again(
    loaded: list[str], tmp_path: Path
) -> None:
    there = PlantedClip(THINGS)
    config = DescribeConfig(describer="contrastive", clip="planted")
    toolbox = Toolbox(config, tmp_path, loaded={"planted": there}, progress=False)
    toolbox.probe(evidence())
    assert toolbox.clip is there
    assert loaded == []


def test_other_pictures_get_a_probe_of_their_own(loaded: list[str], tmp_path: Path) -> None:
    toolbox = Toolbox(
        DescribeConfig(describer="contrastive", clip="planted"), tmp_path, progress=False
    )
    one, other = toolbox.probe(evidence()), toolbox.probe(evidence(seed=1))
    assert not np.array_equal(one.embeddings, other.embeddings)


def test_vocabulary_of_a_file_is_what_labels_are_made_of(loaded: list[str], tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("boat\nunknown\n")
    settings = ContrastiveConfig(vocabulary=tmp_path / "words.txt", beam=0)
    config = DescribeConfig(
        describer="contrastive", clip="planted", contrastive=settings, metrics=()
    )
    world = evidence()
    (made,) = Toolbox(config, tmp_path, progress=False).labeller(world).label(world, [2])
    assert made.text == "boat"
    assert "tree" not in [text for text, _ in made.candidates]


def test_contents_change_with_what_a_name_stands_for(loaded: list[str], tmp_path: Path) -> None:
    words, speaker = tmp_path / "words.txt", tmp_path / "speaker"
    words.write_text("boat\n")
    speaker.mkdir()
    (speaker / "config.json").write_text("{}")
    config = DescribeConfig(
        describer="milan",
        clip="planted",
        contrastive=ContrastiveConfig(vocabulary=words),
        milan=MilanConfig(captioner=str(speaker), language_model="a-hub/name"),
    )

    def contents() -> dict[str, str]:
        return Toolbox(config, tmp_path, progress=False).contents()

    before = contents()
    assert before["clip"] == PlantedClip(THINGS).identity()["weights_sha256"]
    assert before["language_model"] == ""  # nothing but its name is known
    assert contents() == before
    words.write_text("tree\n")
    (speaker / "config.json").write_text('{"model_type": "blip"}')
    after = contents()
    assert {name for name in before if before[name] != after[name]} == {"vocabulary", "captioner"}


def test_contents_are_those_of_the_describer_that_is_asked_for(
    loaded: list[str], tmp_path: Path
) -> None:
    toolbox = Toolbox(
        DescribeConfig(describer="contrastive", clip="planted"), tmp_path, progress=False
    )
    assert toolbox.contents().keys() == {"clip"}
    assert toolbox.contents("milan").keys() == {"clip", "captioner", "language_model"}
    assert toolbox.identity("milan") != toolbox.identity() == toolbox.identity("contrastive")


def test_contents_are_only_of_what_labels_are_made_of(loaded: list[str], tmp_path: Path) -> None:
    config = DescribeConfig(describer="caption-pmi", metrics=())
    assert Toolbox(config, tmp_path, progress=False).contents() == {}
    assert loaded == []


def test_model_without_texts_is_refused(loaded: list[str], tmp_path: Path) -> None:
    toolbox = Toolbox(
        DescribeConfig(describer="contrastive", clip="a-vit"), tmp_path, progress=False
    )
    with pytest.raises(InvalidInputError, match="no texts"):
        toolbox.scorer(evidence())
