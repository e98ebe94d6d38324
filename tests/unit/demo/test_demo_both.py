"""One look of both demo models at pictures gives what two harvests give."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from vision_sae.activations import passes
from vision_sae.activations.harvest import choose, harvest
from vision_sae.activations.store import ALIGNED, ActivationStore
from vision_sae.activations.store_writer import plan_of
from vision_sae.config import HarvestConfig
from vision_sae.demo import CORPUS
from vision_sae.demo.both import harvest_both
from vision_sae.files import sha256_json
from vision_sae.models.clip import ClipModel
from vision_sae.models.loading import load_model
from vision_sae.models.vit import VitModel
from vision_sae.pictures.folder import data_sha256, image_folder


@pytest.fixture(scope="module")
def models() -> tuple[VitModel, ClipModel]:
    """In float32 on every machine: the tests' tolerances are those of float32."""
    vit, clip = (load_model(f"demo:{name}", dtype="float32") for name in ("dinov2-s", "clip"))
    assert isinstance(vit, VitModel)
    assert isinstance(clip, ClipModel)
    return vit, clip


@pytest.mark.slow
def test_ctrl_c_ends_both_harvests(
    models: tuple[VitModel, ClipModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(passes, "map_in_threads", interrupted)
    pictures = choose(image_folder(CORPUS / "heldout"), 3)
    config = HarvestConfig(sites=("blocks.10.update",), shard_images=1)
    directories = (tmp_path / "vit", tmp_path / "clip")
    with pytest.raises(KeyboardInterrupt):  # and no thread waits for shards that never come
        harvest_both(*models, pictures, directories, (config, config), progress=False)


@pytest.mark.slow
def test_both_stores_hold_what_each_model_makes_of_the_pictures(
    models: tuple[VitModel, ClipModel], tmp_path: Path
) -> None:
    vit, clip = models
    pictures = choose(image_folder(CORPUS / "heldout"), 5)
    configs = (
        HarvestConfig(model="demo:dinov2-s", sites=("blocks.8.update",), batch_size=2),
        HarvestConfig(
            model="demo:clip", sites=("blocks.10.update",), batch_size=2, text_aligned=True
        ),
    )
    directories = (tmp_path / "vit", tmp_path / "clip")
    together = harvest_both(vit, clip, pictures, directories, configs, progress=False)
    for model, config, found in zip((vit, clip), configs, together, strict=True):
        alone = harvest(model, pictures, tmp_path / f"{config.model}-alone", config, progress=False)
        assert found.images == alone.images
        assert found.manifest["data_sha256"] == alone.manifest["data_sha256"]
        names = [*config.sites, *([ALIGNED] if config.text_aligned else [])]
        for name in names:
            ours, theirs = (next(store.arrays(name)).float() for store in (found, alone))
            assert float((ours - theirs).abs().max()) < 5e-3 * float(theirs.abs().max())
        np.testing.assert_allclose(found.embeddings, alone.embeddings, atol=2e-3)
    again = harvest_both(vit, clip, pictures, directories, configs, progress=False)
    assert [s.manifest["files"] for s in again] == [s.manifest["files"] for s in together]


@pytest.mark.slow
def test_store_that_lacks_a_shard_gets_it_and_the_other_stays(
    models: tuple[VitModel, ClipModel], tmp_path: Path
) -> None:
    pictures = choose(image_folder(CORPUS / "heldout"), 3)
    configs = (
        HarvestConfig(sites=("blocks.8.update",), shard_images=1),
        HarvestConfig(sites=("blocks.10.update",), shard_images=1),
    )

    def run(vit: str, clip: str) -> list[ActivationStore]:
        places = (tmp_path / vit, tmp_path / clip)
        return [*harvest_both(*models, pictures, places, configs, progress=False)]

    first = run("vit", "clip")
    (tmp_path / "clip").rename(tmp_path / ".clip.staging")
    plan = plan_of(models[1], configs[1], data_sha256(pictures))
    (tmp_path / ".clip.staging" / ".unfinished").write_text(sha256_json(plan))
    (tmp_path / ".clip.staging" / "manifest.json").unlink()
    shutil.rmtree(tmp_path / ".clip.staging" / "shards" / "00001")
    again = run("vit", "clip")
    assert [store.manifest for store in again] == [store.manifest for store in first]
