"""A describer of another distribution, used from the command line: no file of ours knows of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.worlds.plugin import vision_sae
from tests.worlds.serving import zoo
from vision_sae.bundles.layout import DESCRIPTIONS
from vision_sae.bundles.read import read_bundle
from vision_sae.files import published


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without labels."""
    return zoo(tmp_path_factory.mktemp("zoo"), described=False).path


def test_the_plug_in_describes_a_bundle_with_settings_of_its_own(
    plugin: Path, bundle: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("describe: {describer: mean-colour, mean_colour: {farthest: 1000}}\n")
    made = vision_sae(plugin, "describe", bundle, "--config", config, "--set", "exemplars=2")
    assert made.returncode == 0, made.stderr
    first = json.loads((published(bundle) / DESCRIPTIONS).read_text().splitlines()[0])
    assert first["describer"] == "mean-colour"
    assert first["text"] in {"black", "grey", "white", "red", "green", "blue"}
    assert len(first["evidence"]) == 2
    kept = read_bundle(bundle).manifest["describe"]
    assert kept["mean_colour"] == {"exemplars": 2, "farthest": 1000.0}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--describer", "mean-color"), "did you mean 'mean-colour'"),
        (("--describer", "mean-colour", "--set", "exemplar=2"), "describe.mean_colour.exemplar:"),
        (("--describer", "mean-colour", "--set", "farthest=red"), "describe.mean_colour.farthest:"),
    ],
)
def test_a_mistake_is_told_by_the_plug_ins_own_settings(
    plugin: Path, bundle: Path, words: tuple[str, ...], told: str
) -> None:
    run = vision_sae(plugin, "describe", bundle, *words)
    assert (run.returncode, "Traceback" in run.stderr) == (2, False)
    assert told in run.stderr


def test_the_list_of_describers_has_the_plug_ins(plugin: Path) -> None:
    listed = vision_sae(plugin, "describe", "--list").stdout
    assert "mean-colour, version 1: Labels by the colour that the regions" in listed
    assert "exemplars: int = 8" in listed
