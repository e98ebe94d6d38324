"""What an architecture registers, and how its own settings are given and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.worlds.tiny import identity_sae, write_dictionary, write_store
from vision_sae.config import TrainConfig, load_config, with_values
from vision_sae.dictionaries.architectures import (
    ARCHITECTURES,
    checked,
    described,
    settings_of,
)
from vision_sae.dictionaries.artifact import load_dictionary, provenance
from vision_sae.dictionaries.kinds.matryoshka import MatryoshkaConfig
from vision_sae.errors import InvalidInputError
from vision_sae.sections import parse_settings

MATRYOSHKA = TrainConfig(architecture="matryoshka")


def test_every_architecture_is_trained_by_steps_or_fitted() -> None:
    trained = {a.name for a in ARCHITECTURES if a.learner}
    fitted = {a.name for a in ARCHITECTURES if a.fit}
    assert trained >= {
        *("topk", "batch_topk", "matryoshka", "archetypal", "relu", "jumprelu", "gated")
    }
    assert fitted >= {"neurons", "pca", "nmf", "semi_nmf", "kmeans"}
    assert not trained & fitted


def test_described_names_every_setting_with_type_default_and_sentence() -> None:
    table = {row["name"]: row for row in described()}
    assert table["topk"]["settings"] == []
    assert table["topk"]["summary"].startswith("TopK sparse autoencoder (Gao et al. 2024")
    assert table["archetypal"]["version"] == 1
    assert table["archetypal"]["settings"] == [
        {
            "name": "archetypes",
            "type": "int",
            "default": 4096,
            "doc": "Data points of which decoder rows are convex combinations.",
        }
    ]
    assert all(row["summary"].endswith((".", ")")) for row in table.values())


def test_unknown_architecture_is_refused_by_its_dotted_name() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'topk'") as caught:
        load_config(train={"architecture": "topkk"})
    assert caught.value.field == "train.architecture"


def test_file_variable_and_flag_give_settings_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("train: {architecture: matryoshka, matryoshka: {prefixes: [0.1, 1]}}")

    def prefixes(*flags: str) -> tuple[float, ...]:
        train = load_config(file).train.with_settings("matryoshka", parse_settings(flags), "train")
        return settings_of(checked(train), MatryoshkaConfig).prefixes

    assert prefixes() == (0.1, 1)
    monkeypatch.setenv("VISION_SAE_TRAIN__MATRYOSHKA__PREFIXES", "[0.2, 1]")
    assert prefixes() == (0.2, 1)
    assert prefixes("prefixes=[0.3, 1]") == (0.3, 1)


def test_section_of_the_file_serves_an_architecture_that_a_flag_chooses(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("train: {archetypal: {archetypes: 7}}")
    train = load_config(file, train={"architecture": "archetypal"}).train
    assert checked(train).model_dump()["archetypal"] == {"archetypes": 7}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"matryoshka": {"prefixes": [1]}}, "train.matryoshka"),
        ({"topk": {"prefixes": [1]}}, "train.topk.prefixes"),
        ({"architecture": "matryoshka", "matryoshka": {"pre": 1}}, "train.matryoshka.pre"),
        ({"architecture": "matryoshka", "matryoshka": 5}, "train.matryoshka"),
        (
            {"architecture": "archetypal", "archetypal": {"archetypes": 1}},
            "train.archetypal.archetypes",
        ),
    ],
)
def test_wrong_settings_are_refused_by_their_dotted_name(
    config: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInputError, match=field) as caught:
        checked(load_config(train=config).train)
    assert caught.value.field == field


def test_sections_of_a_sweep_stand_side_by_side() -> None:
    both = with_values(MATRYOSHKA, "train", {"matryoshka": {}, "archetypal": {"archetypes": 9}})
    assert checked(both, beside=["archetypal"]).kinds_with_section == ("matryoshka",)


def test_manifest_holds_the_whole_section_and_a_dump_reads_back(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [np.ones((1, 4, 2))])
    training = provenance(store, store.site(None), MATRYOSHKA)["training"]
    assert training["matryoshka"] == {"prefixes": [1 / 32, 1 / 8, 1 / 2, 1]}
    assert TrainConfig(**json.loads(json.dumps(training))) == checked(MATRYOSHKA)


def test_dictionary_with_the_flat_settings_of_an_older_version_loads(tmp_path: Path) -> None:
    flat = {"architecture": "topk", "k": 2, "prefixes": [0.03125, 1], "archetypes": 4096}
    store = write_store(tmp_path / "store", [np.ones((1, 4, 3))])
    path = write_dictionary(tmp_path / "d", identity_sae(3, 2), store, training=flat)
    dictionary, manifest = load_dictionary(path)
    assert (dictionary.width, manifest["training"]) == (3, flat)
