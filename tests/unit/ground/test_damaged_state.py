"""State of ours that was cut short: named with the file and what to do, or made anew."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.worlds.tiny import picture_folder, random_sae, tiny_model, write_dictionary, write_store
from vision_sae.activations import store_writer
from vision_sae.activations.harvest import harvest
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.build import build
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.cli import app
from vision_sae.config import BuildConfig, DescribeConfig, HarvestConfig, NeuronConfig, TrainConfig
from vision_sae.descriptions import describe as describe_module
from vision_sae.descriptions.describe import describe_bundle
from vision_sae.descriptions.describers.caption_pmi import CaptionPmiConfig
from vision_sae.descriptions.labelling import Labeller
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.dictionaries.training import loop
from vision_sae.errors import CorruptArtifactError
from vision_sae.evidence import neuron_pass
from vision_sae.labels.database import Database
from vision_sae.labels.store import LabelStore
from vision_sae.pictures.folder import image_folder

HARVEST = HarvestConfig(sites=("blocks.1.update",), batch_size=2, shard_images=3, thumbnail=16)
TRAIN = TrainConfig(expansion=2, k=2, steps=4, batch_size=16, checkpoint_steps=2)
NEURONS = NeuronConfig(sites=("blocks.1.mlp",), batch_size=2, checkpoint_batches=1)


class Stopped(Exception):
    pass


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    vectors = np.random.default_rng(0).normal(size=(12, 4, 8))
    return write_store(tmp_path / "store", [vectors])


@pytest.fixture
def bundle(store: ActivationStore, tmp_path: Path) -> Path:
    write_dictionary(tmp_path / "d", random_sae(8, 16, 2), store)
    return build(store, tmp_path / "d", tmp_path / "bundle", BuildConfig(), progress=False).path


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_damaged_checkpoint_is_named_with_what_to_do(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    def stop(*_: object) -> None:
        save(*_)
        raise Stopped

    save = loop.save_checkpoint
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop, "save_checkpoint", stop)
        train_dictionary(store, tmp_path / "out", TRAIN, {}, progress=False)
    (checkpoint,) = tmp_path.glob(".out.*/training.safetensors")
    cut(checkpoint, share)
    arguments = ["--steps", 4, "--expansion", 2, "--k", 2, "--batch-size", 16]
    settings = tmp_path / "config.yaml"
    settings.write_text("train: {checkpoint_steps: 2}\n")
    command = ["train", store.path, tmp_path / "out", *arguments, "--config", settings]
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert str(checkpoint) in line
    assert "delete it, and training starts anew" in line
    checkpoint.unlink()
    train_dictionary(store, tmp_path / "out", TRAIN, {}, progress=False)
    assert not list(tmp_path.glob(".out.*"))


def test_checkpoint_of_another_shape_takes_up_nothing(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from vision_sae.dictionaries.kinds.topk import TopKLearner
    from vision_sae.dictionaries.training.checkpoint import restore_checkpoint

    learner = TopKLearner(8, TRAIN)
    before = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    *_, missing = before
    kept = {f"0.{name}": tensor + 1 for name, tensor in before.items() if name != missing}
    save_file(kept | {"step": torch.tensor(2)}, tmp_path / "c")
    with pytest.raises(CorruptArtifactError, match="delete it"):
        restore_checkpoint(tmp_path / "c", [learner])
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.tensors().items())


@pytest.mark.parametrize(
    "name",
    [
        *("images.jsonl", "skipped.jsonl", "blocks.1.update.npy", "embedding.npy"),
        *("thumbnails.bin", "thumbnail_offsets.npy"),
    ],
)
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_damaged_shard_of_a_stopped_harvest_is_made_anew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    share: float,
) -> None:
    pictures = image_folder(picture_folder(tmp_path / "pictures", 7))
    (tmp_path / "pictures" / "000.png").write_bytes(b"not a picture")  # a row of skipped.jsonl

    def run(place: str) -> ActivationStore:
        return harvest(tiny_model(), pictures, tmp_path / place, HARVEST, progress=False)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(store_writer, "publish", lambda *_: (_ for _ in ()).throw(Stopped()))
        run("store")
    shard = tmp_path / ".store.staging" / "shards" / "00000"
    cut(shard / name, share)
    assert run("store").manifest == run("undisturbed").manifest
    assert str(shard) in caplog.text


def test_damaged_store_is_named(store: ActivationStore) -> None:
    path = store.shards[0] / "blocks.1.update.npy"
    cut(path, 0.5)
    with pytest.raises(CorruptArtifactError, match=str(path)):
        list(store.batches("blocks.1.update", 4))


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_damaged_checkpoint_of_neurons_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    pictures = image_folder(picture_folder(tmp_path / "pictures", 6))

    def run() -> None:
        neuron_pass.collect_neurons(tiny_model(), pictures, tmp_path / "n", NEURONS, progress=False)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(neuron_pass, "_publish", lambda *_: (_ for _ in ()).throw(Stopped()))
        run()
    (state,) = tmp_path.glob(".n.*.state.safetensors")
    cut(state, share)
    with pytest.raises(CorruptArtifactError, match=f"{state.name}.*delete it"):
        run()
    state.unlink()
    run()


@pytest.mark.parametrize("share", [0.001, 0.02, 0.1, 0.3, 0.5, 0.7])
def test_damaged_database_of_labels_is_named(bundle: Path, tmp_path: Path, share: float) -> None:
    describe_bundle(bundle, DescribeConfig(describer="caption-pmi", metrics=()), progress=False)
    path = tmp_path / "labels.sqlite"
    labels = LabelStore(Database(path))
    labels.import_bundle(read_bundle(bundle))
    labels.close()
    cut(path, share)
    command = ["export-labels", str(path), str(tmp_path / "labels.csv")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert str(path) in line


def describe(bundle: Path) -> Bundle:
    return describe_bundle(
        bundle, DescribeConfig(describer="caption-pmi", metrics=()), progress=False
    )


@pytest.mark.parametrize(("tail", "again"), [(b"", 5), (b'{"feature": 5, "te', 5), (b"\xff\n", 5)])
def test_stopped_describe_goes_on_and_ends_in_the_same_labels(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: bytes, again: int
) -> None:
    shutil.copytree(bundle, tmp_path / "other" / "bundle")
    expected = describe(tmp_path / "other" / "bundle").manifest
    label = Labeller.label

    def five(self: Labeller, evidence: object, units: range) -> Iterator[object]:
        yield from label(self, evidence, units[:5])  # type: ignore[arg-type]
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Labeller, "label", five)
        describe(bundle)
    assert read_bundle(bundle).descriptions == {}
    (journal,) = bundle.parent.glob(".bundle.*.descriptions.jsonl")
    with journal.open("ab") as file:
        file.write(tail)
    asked: list[range] = []

    def noted(self: Labeller, evidence: object, units: range) -> Iterator[object]:
        asked.append(units)
        yield from label(self, evidence, units)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "label", noted)
        found = describe(bundle).manifest
    assert asked == [range(again, 16)]
    assert found == expected
    assert not journal.exists()


def test_labels_of_another_describer_are_not_gone_on_from(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(
            describe_module, "add_descriptions", lambda *_: (_ for _ in ()).throw(Stopped())
        )
        describe(bundle)
    one_word = CaptionPmiConfig(words=1)
    changed = DescribeConfig(describer="caption-pmi", metrics=(), caption_pmi=one_word)
    made = describe_bundle(bundle, changed, progress=False)
    assert made.manifest["describe"]["caption_pmi"]["words"] == 1
    assert len(list(bundle.parent.glob(".bundle.*.descriptions.jsonl"))) == 1  # that of the first
