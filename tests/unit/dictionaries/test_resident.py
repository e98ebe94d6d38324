"""A dictionary beside the model: equal to the one that it copies, and copied once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.worlds.fake_cuda import DEVICE, fake_cuda, fake_sae
from tests.worlds.tiny import random_sae, small_section, write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.config import TrainConfig, with_values
from vision_sae.dictionaries.architectures import ARCHITECTURES
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.dictionaries.ensemble import Bagging
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.dictionaries.resident import resident, resident_at


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    vectors = np.random.default_rng(0).random((40, 4, 8))
    return write_store(tmp_path_factory.mktemp("resident") / "store", [vectors])


@pytest.mark.parametrize("name", ARCHITECTURES.names)
def test_a_dictionary_of_every_kind_is_the_same_when_it_has_moved(
    name: str, store: ActivationStore, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"architecture": name, "k": 2, "steps": 2, "batch_size": 32}
    config = with_values(TrainConfig(), "train", values | small_section(name))
    train_dictionary(store, tmp_path / "dictionary", config, {}, progress=False)
    dictionary, _ = load_dictionary(tmp_path / "dictionary")
    moved = dictionary.to(torch.device("cpu"))
    rows = torch.rand(6, 8)
    assert type(moved) is type(dictionary)
    assert moved is not dictionary
    one, other = dictionary.encode(rows), moved.encode(rows)
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.values, other.values)
    assert torch.equal(dictionary.decode(one), moved.decode(other))
    assert moved.save(_folder(tmp_path / "a")) == dictionary.save(_folder(tmp_path / "b"))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_an_ensemble_moves_with_its_members() -> None:
    bagging = Bagging([random_sae(4, 6, 2), random_sae(4, 8, 3)])
    rows = torch.randn(5, 4)
    assert torch.equal(
        bagging.decode(bagging.encode(rows)),
        (moved := bagging.to(torch.device("cpu"))).decode(moved.encode(rows)),
    )


def test_where_the_weights_are_there_is_no_copy() -> None:
    sae = random_sae(4, 6, 2)
    assert resident(sae, torch.device("cpu")) is sae
    assert resident_at(SiteDictionary(sae, "s"), torch.device("cpu")).dictionary is sae


def test_a_copy_is_made_once_and_lives_as_long_as_its_dictionary() -> None:
    with fake_cuda():
        sae = fake_sae(4, device="cpu")
        copy = resident(sae, DEVICE)
        assert copy.bias.device == DEVICE
        assert resident(sae, DEVICE) is copy
        assert resident(copy, torch.device("cuda")) is copy  # no number: any of the type
        assert sae.bias.device.type == "cpu"


def test_a_copy_that_a_pass_without_gradients_made_serves_gradients() -> None:
    with fake_cuda():
        sae = fake_sae(4, device="cpu")
        with torch.inference_mode():
            copy = resident(sae, DEVICE)
        assert not copy.decoder.is_inference()
