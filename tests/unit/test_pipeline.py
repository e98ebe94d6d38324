from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.worlds import SITE, write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.config import TrainConfig
from vision_sae.dictionaries import pipeline
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.dictionaries.pipeline import train_dictionary

CONFIG = TrainConfig(expansion=2, k=2, steps=4, batch_size=32, checkpoint_steps=2)


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    vectors = np.random.default_rng(0).normal(size=(30, 4, 6))
    return write_store(tmp_path / "store", [vectors])


def test_dictionary_is_published_with_what_it_belongs_to(
    store: ActivationStore, tmp_path: Path
) -> None:
    train_dictionary(store, tmp_path / "d", CONFIG, {}, progress=False)
    _, manifest = load_dictionary(tmp_path / "d")
    assert manifest["site"] == SITE
    assert manifest["model"] == store.manifest["model"]
    assert manifest["data_sha256"] == store.manifest["data_sha256"]
    assert manifest["training"] == CONFIG.model_dump(mode="json")


def test_metrics_are_those_of_the_published_weights(store: ActivationStore, tmp_path: Path) -> None:
    metrics = train_dictionary(store, tmp_path / "d", CONFIG, {"all": store}, progress=False)
    dictionary, _ = load_dictionary(tmp_path / "d")
    assert metrics["all"] == pytest.approx(evaluate(dictionary, store.batches(SITE, 7))._asdict())


def test_no_checkpoint_stays_behind(store: ActivationStore, tmp_path: Path) -> None:
    train_dictionary(store, tmp_path / "out" / "d", CONFIG, {}, progress=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["d"]


def test_finished_training_is_kept(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train_dictionary(store, tmp_path / "d", CONFIG, {"all": store}, progress=False)
    monkeypatch.delattr(pipeline, "make_dictionary")
    again = train_dictionary(store, tmp_path / "d", CONFIG, {"all": store}, progress=False)
    assert again == first


def test_other_configuration_trains_again(store: ActivationStore, tmp_path: Path) -> None:
    train_dictionary(store, tmp_path / "d", CONFIG, {}, progress=False)
    changed = CONFIG.model_copy(update={"seed": 1})
    train_dictionary(store, tmp_path / "d", changed, {}, progress=False)
    assert load_dictionary(tmp_path / "d")[1]["training"]["seed"] == 1
