from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.worlds.tiny import SITE, write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.config import TrainConfig
from vision_sae.dictionaries import pipeline
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.dictionaries.ensemble import Boosting
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.errors import InvalidInputError

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
    train_dictionary(store, tmp_path / "d", changed, {}, progress=False, overwrite=True)
    assert load_dictionary(tmp_path / "d")[1]["training"]["seed"] == 1


def test_other_heldout_data_is_measured_without_training_again(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_dictionary(store, tmp_path / "d", CONFIG, {}, progress=False)
    weights = load_dictionary(tmp_path / "d")[1]["files"]
    monkeypatch.delattr(pipeline, "make_dictionary")
    metrics = train_dictionary(store, tmp_path / "d", CONFIG, {"all": store}, progress=False)
    assert metrics["all"]["rows"] == store.rows
    assert load_dictionary(tmp_path / "d")[1]["files"] == weights


@pytest.mark.parametrize(
    ("changes", "width"),
    [
        ({"ensemble": "bagging", "members": 3}, 3 * 12),
        ({"ensemble": "boosting", "members": 2}, 2 * 12),
        ({"architecture": "pca"}, 12),
        ({"architecture": "neurons"}, 6),
    ],
)
def test_ensembles_and_factorisations_are_published_alike(
    store: ActivationStore, tmp_path: Path, changes: dict[str, object], width: int
) -> None:
    config = TrainConfig(**(CONFIG.model_dump() | changes))
    train_dictionary(store, tmp_path / "d", config, {}, progress=False)
    dictionary, manifest = load_dictionary(tmp_path / "d")
    assert dictionary.width == width
    assert manifest["dictionary"]["architecture"] == changes.get("ensemble", config.architecture)


def test_every_stage_of_boosting_explains_more(store: ActivationStore, tmp_path: Path) -> None:
    changes = {"ensemble": "boosting", "members": 3, "steps": 60}
    config = TrainConfig(**(CONFIG.model_dump() | changes))
    train_dictionary(store, tmp_path / "d", config, {}, progress=False)
    boosting, _ = load_dictionary(tmp_path / "d")
    assert isinstance(boosting, Boosting)
    explained = [
        evaluate(Boosting(boosting.members[:n]), store.batches(SITE, 50)).explained_variance
        for n in (1, 2, 3)
    ]
    assert explained == sorted(explained)
    assert explained[2] > explained[0] + 0.05


def test_members_without_an_ensemble_are_refused() -> None:
    with pytest.raises(ValueError, match="several members need"):
        TrainConfig(members=2)


def test_end_to_end_without_pictures_is_refused(store: ActivationStore, tmp_path: Path) -> None:
    config = TrainConfig(**(CONFIG.model_dump() | {"end_to_end": {"steps": 1}}))
    with pytest.raises(InvalidInputError, match="--images"):
        train_dictionary(store, tmp_path / "d", config, {}, progress=False)


def test_sweep_publishes_every_dictionary_and_keeps_those_that_are_there(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = {f"k{k}": CONFIG.model_copy(update={"k": k}) for k in (1, 2)}
    first = pipeline.sweep(store, tmp_path / "out", configs, {"all": store}, progress=False)
    assert [first[name]["all"]["l0"] for name in ("k1", "k2")] == pytest.approx([1, 2], rel=0.2)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["k1", "k2"]
    monkeypatch.delattr(pipeline, "train_together")
    again = pipeline.sweep(store, tmp_path / "out", configs, {"all": store}, progress=False)
    assert again == first
