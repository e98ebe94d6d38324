from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from vision_sae.config import Config, TrainConfig, load_config
from vision_sae.errors import InvalidInputError


def yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_defaults_stand_without_any_source() -> None:
    assert load_config() == Config()


def test_file_goes_before_defaults(tmp_path: Path) -> None:
    assert load_config(yaml(tmp_path, "train: {k: 7}")).train.k == 7


def test_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_SAE_TRAIN__K", "8")
    assert load_config(yaml(tmp_path, "train: {k: 7}")).train.k == 8


def test_flags_go_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_SAE_TRAIN__K", "8")
    assert load_config(yaml(tmp_path, "train: {k: 7}"), train={"k": 9}).train.k == 9


def test_environment_changes_one_key_of_a_section_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_SAE_TRAIN__STEPS", "12")
    train = load_config(yaml(tmp_path, "train: {k: 7, seed: 3}")).train
    assert (train.k, train.seed, train.steps) == (7, 3, 12)


def test_flags_change_one_key_of_a_section_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VISION_SAE_TRAIN__STEPS", "12")
    train = load_config(train={"k": 9}).train
    assert (train.k, train.steps) == (9, 12)


def test_flag_that_is_none_was_not_given(tmp_path: Path) -> None:
    assert load_config(yaml(tmp_path, "train: {k: 7}"), train={"k": None}).train.k == 7


def test_list_from_the_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_SAE_HARVEST__SITES", '["blocks.1.mlp", "blocks.2.mlp"]')
    assert load_config().harvest.sites == ("blocks.1.mlp", "blocks.2.mlp")


def test_environment_that_does_not_parse_is_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VISION_SAE_HARVEST__SITES", "blocks.1.mlp")
    with pytest.raises(InvalidInputError, match="harvest"):
        load_config()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("trian: {k: 7}", "trian"),
        ("train: {kk: 7}", "train.kk"),
        ("train: {k: many}", "train.k"),
        ("train: {k: 0}", "train.k"),
        ("harvest: {dtype: int8}", "harvest.dtype"),
        ("device: gpu", "device"),
        ("dtype: int8", "dtype"),
        ("serve: {devices: {demo:clip: gpu}}", "serve.devices"),
        ("harvest: {sites: []}", "harvest.sites"),
        ("build: {recall_floor: 1.5}", "build.recall_floor"),
    ],
)
def test_bad_file_names_the_field(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(InvalidInputError, match=field) as caught:
        load_config(yaml(tmp_path, text))
    assert caught.value.field == field


def test_unknown_key_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_SAE_TRAIN__STPES", "5")
    with pytest.raises(InvalidInputError, match=r"train\.stpes"):
        load_config()


@pytest.mark.parametrize(
    "variable",
    ["VISION_SAE_TRIAN__STEPS", "vision_sae_trian__steps", "VISION_SAE_TRAIN_STEPS"],
)
def test_misspelt_section_of_the_environment_is_refused_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "5")
    with pytest.raises(InvalidInputError, match=rf"{variable}.*VISION_SAE_TRAIN__KEY"):
        load_config()


def test_section_of_the_environment_may_be_written_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("vision_sae_train__steps", "12")
    assert load_config().train.steps == 12


def test_whole_section_of_the_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_SAE_TRAIN", '{"steps": 12}')
    assert load_config().train.steps == 12


@pytest.mark.parametrize("variable", ["VISION_SAE_ADDRESS", "VISION_SAE_TOKEN"])
def test_variables_of_the_client_are_none_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "here:1")
    assert load_config() == Config()


def test_the_device_comes_from_the_file_or_before_it_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = yaml(tmp_path, "{device: cuda:1, dtype: float32}")
    assert (load_config(path).device, load_config(path).dtype) == ("cuda:1", "float32")
    monkeypatch.setenv("VISION_SAE_DEVICE", "cpu")
    assert (load_config(path).device, load_config(path).dtype) == ("cpu", "float32")


def test_models_of_a_server_have_devices_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = yaml(tmp_path, "serve: {devices: {'demo:clip': 'cuda:1'}}")
    assert load_config(path).serve.devices == {"demo:clip": "cuda:1"}
    monkeypatch.setenv("VISION_SAE_SERVE__DEVICES", '{"demo:clip": "cpu"}')
    assert load_config(path).serve.devices == {"demo:clip": "cpu"}


def test_bad_flag_names_section_and_field() -> None:
    with pytest.raises(InvalidInputError, match=r"train\.k"):
        load_config(train={"k": 0})


@pytest.mark.parametrize("text", ["train: [", "- a list", "just words"])
def test_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"config\.yaml"):
        load_config(yaml(tmp_path, text))


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nowhere"):
        load_config(tmp_path / "nowhere.yaml")


def test_empty_file_means_defaults(tmp_path: Path) -> None:
    assert load_config(yaml(tmp_path, "")) == Config()


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        TrainConfig().k = 5  # type: ignore[misc]
