"""The tables of describers and scores, which all else reads."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from vision_sae.config import DescribeConfig, load_config
from vision_sae.descriptions.describers.caption_pmi import CaptionPmiConfig
from vision_sae.descriptions.describers.milan import MilanConfig
from vision_sae.descriptions.kinds import (
    describer_kind,
    describers_described,
    score_kinds,
    scores_described,
    text_metrics,
)
from vision_sae.descriptions.protocol import Metric
from vision_sae.descriptions.toolbox import Toolbox
from vision_sae.errors import InvalidInputError, MissingDependencyError
from vision_sae.registries import DESCRIBERS
from vision_sae.sections import NoSettings


def test_every_module_of_describers_is_a_describer() -> None:
    assert DESCRIBERS.names == (
        *("caption-pmi", "contrastive", "effects", "grounded", "milan", "scenes", "vlm"),
    )
    assert [describer_kind(name).name for name in DESCRIBERS.names] == list(DESCRIBERS.names)


def test_every_metric_is_given_by_one_score() -> None:
    given = [metric.name for kind in score_kinds() for metric in kind.metrics]
    assert sorted(given) == sorted(get_args(Metric))
    assert text_metrics() == (
        *("cosy_auc", "cosy_mean_difference", "detection_auc", "detection_balanced_accuracy"),
        *("fuzzing_auc", "intruder_accuracy", "simulation_pearson"),
    )


def test_all_kinds_explain_themselves() -> None:
    described = [*describers_described(), *scores_described()]
    assert [d.name for d in described if not d.summary] == []
    silent = [(d.name, s.name) for d in described for s in d.settings if not s.doc]
    assert silent == []
    (milan,) = (d for d in described if d.name == "milan")
    beam = milan.settings[3]
    assert (beam.name, beam.type, beam.default) == ("beam", "int", 50)
    assert beam.doc.startswith("Width of the beam search")


def test_sections_of_describers_come_from_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text("describe: {milan: {beam: 7, weight: 0.5}}")
    monkeypatch.setenv("VISION_SAE_DESCRIBE__MILAN__BEAM", "20")
    monkeypatch.setenv("VISION_SAE_DESCRIBE__CAPTION_PMI__WORDS", "2")
    describe = load_config(tmp_path / "c.yaml", describe={"clip": "other"}).describe
    assert describe.of("milan") == MilanConfig(beam=20, weight=0.5)
    assert describe.of("caption-pmi") == CaptionPmiConfig(words=2)
    assert describe.clip == "other"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{milan: {beam: 0}}", "describe.milan.beam"),
        ("{milan: {baem: 5}}", "describe.milan.baem"),
        ("{millan: {beam: 5}}", "describe.millan"),
        ("{describer: millan}", "describe.describer"),
        ("{grounded: {beam: 5}}", "describe.grounded.beam"),
        ("{metrics: [pmi]}", "describe.metrics"),
    ],
)
def test_what_a_describer_does_not_know_is_refused(tmp_path: Path, text: str, field: str) -> None:
    (tmp_path / "c.yaml").write_text(f"describe: {text}")
    with pytest.raises(InvalidInputError, match=field) as caught:
        load_config(tmp_path / "c.yaml")
    assert caught.value.field == field


def test_the_names_are_checked_without_importing_a_describer() -> None:
    program = (
        "import sys; from vision_sae.config import DescribeConfig, load_config\n"
        "DescribeConfig(describer='milan'); load_config(describe={'describer': 'vlm'})\n"
        "print(sorted({'torch', 'numpy', 'vision_sae.descriptions'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout.strip() == "[]", ended.stderr


def test_what_registers_something_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DESCRIBERS._registered, "odd", SimpleNamespace(name="odd"))
    with pytest.raises(MissingDependencyError, match="'odd' registers SimpleNamespace"):
        describer_kind("odd")


def test_identities_are_those_of_the_release_before_describers_had_files(tmp_path: Path) -> None:
    # Told by the code in which the configuration listed the sections: labels made then stay good.
    given = {"describer": "milan", "metrics": (), "milan": {"beam": 7, "captioner": "./nowhere"}}
    milan = Toolbox(DescribeConfig.model_validate(given), tmp_path)
    assert milan.identity()[:16] == "0a38ea82ce61b784"
    grounded = Toolbox(DescribeConfig(), tmp_path)
    assert grounded.identity()[:16] == "3b86a93d82820cf5"
    assert list(grounded.settings()) == [
        *("describer", "clip", "metrics", "caption_pmi", "contrastive", "milan", "vlm", "effects")
    ]


def test_a_further_describers_settings_count_for_its_labels_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolbox = Toolbox(DescribeConfig(), tmp_path)
    before = toolbox.identity()

    class Loud(NoSettings):
        level: int = 3

    further = replace(describer_kind("scenes"), settings=Loud)
    monkeypatch.setitem(DESCRIBERS._registered, "loud", further)
    assert toolbox.identity() == before
    assert toolbox.settings("loud")["loud"] == {"level": 3}
