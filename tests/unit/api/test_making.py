"""harvest, train, build and load are the commands' own functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import vision_sae as vs
from tests.unit.api.conftest import LATER, SITE, World
from tests.worlds import tiny as worlds
from vision_sae.api import subjects
from vision_sae.config import HarvestConfig
from vision_sae.devices import device_name
from vision_sae.dictionaries.interop.conversion import export_sae
from vision_sae.dictionaries.training.choice import choosing_dtype
from vision_sae.errors import (
    AlreadyExistsError,
    InvalidInputError,
    MismatchError,
    NotFoundError,
)
from vision_sae.files import MANIFEST
from vision_sae.models.vit import VitModel


def test_a_folder_is_harvested_with_its_captions(world: World) -> None:
    assert list(world.store.sites) == [SITE, LATER]
    assert world.store.rows == 12 * 16
    assert [image.caption for image in world.store.images[:2]] == ["a dog", "a cat"]


def test_what_is_there_is_returned_as_it_is(world: World) -> None:
    manifest = world.root / "store" / MANIFEST
    written = manifest.stat().st_mtime_ns
    config = HarvestConfig(model="tiny", sites=(SITE, LATER), batch_size=4)
    again = vs.harvest(
        world.pictures, world.root / "store", model=world.model, config=config, progress=False
    )
    assert again.manifest == world.store.manifest
    assert manifest.stat().st_mtime_ns == written
    built = vs.build(world.store, world.root / "dictionary", world.bundle.path, recall_floor=0)
    assert built.manifest_sha256 == world.bundle.manifest_sha256


def test_another_store_is_replaced_only_when_asked(world: World, tmp_path: Path) -> None:
    vs.harvest([world.picture], tmp_path / "s", model=world.model, site=SITE, progress=False)
    with pytest.raises(AlreadyExistsError):
        vs.harvest([world.picture], tmp_path / "s", model=world.model, site=LATER, progress=False)


def test_pictures_in_memory_are_harvested_like_files(world: World, tmp_path: Path) -> None:
    path = world.pictures / "000.png"
    pixels = np.asarray(worlds.noise_image(40, 34, seed=0))
    made = vs.harvest(
        [path, pixels], tmp_path / "s", model=world.model, site=SITE, captions=["a", "b"],
        progress=False,
    )  # fmt: skip
    file, array = next(made.arrays(SITE))
    assert torch.equal(file, array)
    assert torch.equal(file, next(world.store.arrays(SITE))[0])
    assert [(i.id, i.caption) for i in made.images] == [("000000-000.png", "a"), ("picture 1", "b")]


def test_a_named_model_is_loaded_on_every_device_of_the_setting(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[str, VitModel] = {}

    def load(name: str, *, device: str, dtype: str) -> VitModel:
        return loaded.setdefault(device, worlds.tiny_model())

    monkeypatch.setattr("vision_sae.devices.several", lambda: ("cpu", "cuda:0"))
    monkeypatch.setattr("vision_sae.devices.chosen", lambda device: device)
    monkeypatch.setattr("vision_sae.api.subjects.load_model", load)
    subjects._cached.cache_clear()
    config = HarvestConfig(model="tiny", sites=(SITE, LATER), batch_size=4)
    made = vs.harvest(world.pictures, tmp_path / "s", config=config, progress=False)
    subjects._cached.cache_clear()
    assert list(loaded) == ["cpu", "cuda:0"]
    assert made.manifest["files"] == world.store.manifest["files"]


def test_files_that_are_skipped_are_told(world: World, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    given = [world.picture, broken]
    with pytest.warns(UserWarning, match=r"skipped 000001-broken\.png"):
        made = vs.harvest(given, tmp_path / "s", model=world.model, site=SITE, progress=False)
    assert made.manifest["images"] == 1
    with pytest.raises(InvalidInputError, match="1 skipped"):
        vs.harvest(given, tmp_path / "t", model=world.model, site=SITE, strict=True)


def test_what_lies_on_disk_tells_in_a_line_what_it_is(world: World) -> None:
    assert repr(world.store) == (
        "<ActivationStore store: 12 images, blocks.1.update (32), blocks.2.update (32)>"
    )
    assert repr(world.dictionary) == "<LoadedDictionary: 64 features (topk) of blocks.1.update>"
    assert repr(world.bundle) == (
        "<Bundle bundle: 64 features of blocks.1.update of tiny over 12 images>"
    )


def test_views_are_of_files(world: World, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="save the pictures"):
        vs.harvest(
            [worlds.noise_image(9, 9)], tmp_path / "s", model=world.model, site=SITE, views=2
        )


def test_the_environment_is_read_as_commands_read_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_SAE_HARVEST__DTYPE", "float32")
    given = {"model": world.model, "site": SITE, "progress": False}
    assert vs.harvest([world.picture], tmp_path / "a", **given).dtype == "float32"
    config = vs.HarvestConfig(dtype="bfloat16")
    assert vs.harvest([world.picture], tmp_path / "b", config=config, **given).dtype == "bfloat16"


def test_a_field_that_there_is_not_is_named(world: World, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"train\.stepps") as refused:
        vs.train(world.store, tmp_path / "d", stepps=3)
    assert refused.value.field == "train.stepps"
    with pytest.raises(InvalidInputError, match="config is a TrainConfig here"):
        vs.train(world.store, tmp_path / "d", config=vs.BuildConfig())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="blocks.1.updates"):
        vs.harvest([world.picture], tmp_path / "s", model=world.model, site="blocks.1.updates")


def test_a_dictionary_is_trained_and_measured(world: World) -> None:
    trained = world.dictionary
    assert (trained.dictionary.width, trained.dictionary.dim) == (64, 32)
    assert trained.manifest["training"]["steps"] == 10
    assert set(trained.manifest["metrics"]) == {"heldout"}
    again = vs.load_dictionary(world.root / "dictionary")
    assert torch.equal(again.dictionary.decoder, trained.dictionary.decoder)


def test_bundles_and_stores_are_opened_by_path(world: World) -> None:
    assert vs.load_bundle(str(world.root / "bundle")).manifest == world.bundle.manifest
    assert vs.load_store(world.root / "store").manifest == world.store.manifest
    with pytest.raises(NotFoundError):
        vs.load_bundle(world.root / "no-bundle")


def test_released_dictionaries_are_loaded_by_name() -> None:
    found = vs.load_dictionary("demo:dinov2-s/blocks.10.update")
    assert found.manifest["site"] == "blocks.10.update"
    assert found.descriptions


def test_a_checkpoint_of_another_library_is_bound_to_a_model(world: World, tmp_path: Path) -> None:
    export_sae(world.dictionary.dictionary, tmp_path / "saelens")
    (tmp_path / "saelens" / MANIFEST).unlink()
    alone = vs.load_dictionary(tmp_path / "saelens")
    with pytest.raises(InvalidInputError, match="model=..., site="):
        vs.encode(world.picture, alone, model=world.model)
    bound = vs.load_dictionary(tmp_path / "saelens", model=world.model, site=SITE)
    ours = vs.encode(world.picture, world.dictionary, model=world.model)
    theirs = vs.encode(world.picture, bound, model=world.model)
    np.testing.assert_allclose(theirs.numpy(), ours.numpy(), atol=1e-6)
    with pytest.raises(InvalidInputError, match="give both"):
        vs.load_dictionary(tmp_path / "saelens", site=SITE)
    with pytest.raises(NotFoundError, match=r"no site 'blocks\.9\.update'"):
        vs.load_dictionary(tmp_path / "saelens", model=world.model, site="blocks.9.update")
    with pytest.raises(MismatchError, match="128"):
        vs.load_dictionary(tmp_path / "saelens", model=world.model, site="blocks.1.mlp")


def test_a_path_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        vs.load_dictionary(tmp_path / "nothing")
    with pytest.raises(InvalidInputError, match="no known format"):
        vs.load_dictionary(tmp_path)


def test_stores_dictionaries_and_bundles_record_what_computed_them(world: World) -> None:
    here = device_name("cpu")
    dtype = str(world.model.dtype).removeprefix("torch.")
    for manifest, precision in (
        (world.store.manifest, dtype),
        (world.dictionary.manifest, str(choosing_dtype() or "float32").removeprefix("torch.")),
        (world.bundle.manifest, "float32"),
    ):
        expected = {"device": "cpu", "device_name": here, "dtype": precision}
        assert manifest["computed"] == expected
    assert world.bundle.manifest["describe"]["computed"]["device"] == "cpu"


def test_a_store_of_another_device_is_the_same_work(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vision_sae.activations.store_writer.recorded", lambda *_: {"device": "x"})
    again = vs.harvest(
        world.pictures,
        world.root / "store",
        model=world.model,
        site=[SITE, LATER],
        batch_size=4,
        progress=False,
    )
    assert again.manifest == world.store.manifest


def test_training_in_float16_is_refused(world: World, tmp_path: Path) -> None:
    with (
        vs.using("cpu", "float16"),
        pytest.raises(vs.VisionSaeError, match="lose small gradients") as caught,
    ):
        vs.train(world.store, tmp_path / "d", site=SITE, k=4, steps=1, progress=False)
    assert caught.value.field == "dtype"
    assert not (tmp_path / "d").exists()
