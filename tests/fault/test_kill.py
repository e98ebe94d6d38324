"""SIGKILL in the middle of each stage: nothing half done is ever seen."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.fault import killed
from tests.worlds.tiny import picture_folder
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.read import read_bundle
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.errors import NotFoundError

pytestmark = pytest.mark.slow
STAGES = {
    "harvest": killed.harvest,
    "train": killed.train,
    "build": killed.build,
    "describe": killed.describe,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything, made in one go."""
    root = tmp_path_factory.mktemp("undisturbed")
    picture_folder(root / "pictures", 11)
    for stage in STAGES.values():
        stage(root)
    return root


def up_to(root: Path, *stages: str) -> Path:
    """A directory in which these stages are done."""
    picture_folder(root / "pictures", 11)
    for stage in stages:
        STAGES[stage](root)
    return root


def kill(stage: str, root: Path, at: int) -> None:
    assert killed.start(stage, root, at) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("stage", "at"),
    # Four shards. Before the third is written; between two of its files; before it is renamed into
    # its place; and before the whole store is.
    [("harvest-write", 3), ("harvest-fsync", 18), ("harvest-rename", 3), ("harvest-rename", 5)],
)
def test_killed_harvest_publishes_nothing_and_resumes_to_the_same_bytes(
    undisturbed: Path, tmp_path: Path, stage: str, at: int
) -> None:
    up_to(tmp_path)
    kill(stage, tmp_path, at)
    with pytest.raises(NotFoundError):
        ActivationStore(tmp_path / "store")
    killed.harvest(tmp_path)
    expected = ActivationStore(undisturbed / "store").manifest
    assert ActivationStore(tmp_path / "store").manifest == expected
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "store"}


@pytest.mark.parametrize(
    ("stage", "at"),
    # Checkpoints after steps 5, 10, 15, 20. In the middle; while the second checkpoint is put in
    # its place; while the dictionary's manifest is.
    [("train-step", 13), ("train-replace", 2), ("train-replace", 5)],
)
def test_killed_training_resumes_to_the_same_bits(
    undisturbed: Path, tmp_path: Path, stage: str, at: int
) -> None:
    up_to(tmp_path, "harvest")
    kill(stage, tmp_path, at)
    with pytest.raises(NotFoundError):
        load_dictionary(tmp_path / "d")
    assert list(tmp_path.glob(".d.*.checkpoints/training.safetensors"))
    killed.train(tmp_path)
    _, expected = load_dictionary(undisturbed / "d")
    assert load_dictionary(tmp_path / "d")[1] == expected
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "store", "d"}


@pytest.mark.parametrize(
    ("stage", "at"),
    # While the postings are saved; before the index is; before the manifest is put in its place;
    # before the old bundle is moved aside; and between that and the second rename.
    [
        ("build-save", 2),
        ("build-index", 1),
        ("build-replace", 1),
        ("build-rename", 1),
        ("build-rename", 2),
    ],
)
def test_killed_build_leaves_the_published_bundle_readable(
    undisturbed: Path, tmp_path: Path, stage: str, at: int
) -> None:
    up_to(tmp_path, "harvest", "train", "build")
    before = read_bundle(tmp_path / "bundle").manifest
    kill(stage, tmp_path, at)
    assert read_bundle(tmp_path / "bundle").manifest == before
    killed.build(tmp_path)
    assert read_bundle(tmp_path / "bundle").manifest == before
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "store", "d", "bundle"}


def test_killed_first_build_publishes_nothing_and_a_later_one_succeeds(
    undisturbed: Path, tmp_path: Path
) -> None:
    up_to(tmp_path, "harvest", "train")
    kill("build-index", tmp_path, 1)
    with pytest.raises(NotFoundError):
        read_bundle(tmp_path / "bundle")
    killed.build(tmp_path)
    up_to(tmp_path, "describe")
    expected = read_bundle(undisturbed / "bundle").manifest
    assert read_bundle(tmp_path / "bundle").manifest == expected


@pytest.mark.parametrize(
    ("stage", "at", "kept"),
    # Before the label of the 21st of 64 features is written; and with all of them written, between
    # the two renames of the bundle with its labels.
    [("describe-write", 21, 20), ("describe-rename", 2, 64)],
)
def test_killed_describe_goes_on_with_the_other_features(
    undisturbed: Path, tmp_path: Path, stage: str, at: int, kept: int
) -> None:
    up_to(tmp_path, "harvest", "train", "build")
    kill(stage, tmp_path, at)
    assert read_bundle(tmp_path / "bundle").descriptions == {}
    (journal,) = tmp_path.glob(".bundle.*.descriptions.jsonl")
    assert len(journal.read_text().splitlines()) == kept
    killed.describe(tmp_path)
    expected = read_bundle(undisturbed / "bundle").manifest
    assert read_bundle(tmp_path / "bundle").manifest == expected
    names = {"pictures", "store", "d", "bundle", "probes"}
    assert {path.name for path in tmp_path.iterdir()} - names == set()
