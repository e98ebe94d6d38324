from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.worlds.tiny import noise_image, picture_folder, tiny_model, tiny_vit
from vision_sae.activations.harvest import choose, harvest
from vision_sae.activations.store import ActivationStore
from vision_sae.config import HarvestConfig
from vision_sae.errors import ImageTooLargeError, InvalidInputError, NotFoundError
from vision_sae.models.vit import VitModel
from vision_sae.pictures.folder import image_folder
from vision_sae.pictures.reading import Reading

SITES = ("blocks.1.update", "blocks.0.mlp")
CONFIG = HarvestConfig(sites=SITES, batch_size=2, shard_images=3, thumbnail=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "pictures", 7)


def run(
    folder: Path,
    store: Path,
    model: VitModel | None = None,
    *,
    overwrite: bool = False,
    **options: Any,
) -> ActivationStore:
    return harvest(
        model or tiny_model(),
        image_folder(folder),
        store,
        CONFIG.model_copy(update=options),
        progress=False,
        overwrite=overwrite,
    )


@contextmanager
def counting(model: VitModel) -> Iterator[list[int]]:
    """The sizes of the batches that the model sees."""
    batches: list[int] = []
    hook = model.backbone.module.register_forward_pre_hook(lambda _m, a: batches.append(len(a[0])))
    patch = model.backbone.module.patch_embed.register_forward_pre_hook(
        lambda _m, a: batches.append(len(a[0]))
    )
    with hook, patch:
        yield batches


def test_store_holds_what_an_independent_pass_computes(folder: Path, tmp_path: Path) -> None:
    store = run(folder, tmp_path / "store")
    module, preprocess = tiny_vit(), tiny_model().preprocess
    for index, path in enumerate(sorted(folder.glob("*.png"))):
        pixels = preprocess(Image.open(path).convert("RGB"))[None]
        with torch.inference_mode():
            tokens = module.blocks[0](module._pos_embed(module.patch_embed(pixels)))
            update = (module.blocks[1](tokens) - tokens)[0, 1:]  # without the CLS token
        stored = torch.cat(list(store.arrays("blocks.1.update")))[index]
        torch.testing.assert_close(stored, update.half(), rtol=2e-3, atol=1e-4)


def test_replicas_make_the_bytes_of_one_model(folder: Path, tmp_path: Path) -> None:
    one = run(folder, tmp_path / "one")
    models = tiny_model(), tiny_model(), tiny_model()
    with counting(models[1]) as batches:
        several = harvest(
            models[0],
            image_folder(folder),
            tmp_path / "several",
            CONFIG,
            progress=False,
            replicas=models[1:],
        )
    assert batches
    for path in sorted(one.path.rglob("*.npy")):
        other = several.path / path.relative_to(one.path)
        assert other.read_bytes() == path.read_bytes()
    assert one.images == several.images


@pytest.mark.parametrize(
    ("options", "special"),
    [({}, 1), ({"reg_tokens": 3}, 4), ({"class_token": False, "global_pool": "avg"}, 0)],
)
def test_special_tokens_are_not_stored(
    folder: Path, tmp_path: Path, options: dict[str, Any], special: int
) -> None:
    model = tiny_model(**options)
    store = run(folder, tmp_path / "store", model)
    pixels = model.preprocess(image_folder(folder)[0].load())[None]
    with torch.inference_mode(), model.capture(["blocks.1.update"]) as captured:
        model.forward(pixels)
    stored = next(store.arrays("blocks.1.update"))[0].float()
    torch.testing.assert_close(
        stored, captured["blocks.1.update"][0, special:], rtol=2e-3, atol=1e-4
    )


def test_embeddings_are_the_pooled_output(folder: Path, tmp_path: Path) -> None:
    store, model = run(folder, tmp_path / "store"), tiny_model()
    images = torch.stack([model.preprocess(p.load()) for p in image_folder(folder)])
    with torch.inference_mode():
        expected = model.forward(images).embedding.numpy()
    np.testing.assert_allclose(store.embeddings, expected, rtol=1e-5, atol=1e-5)


def test_several_sites_are_captured_in_one_pass(folder: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with counting(model) as batches:
        store = run(folder, tmp_path / "store", model)
    assert sum(batches) == 7
    assert store.sites == {"blocks.1.update": 32, "blocks.0.mlp": 128}


def test_batches_never_cross_shards(folder: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with counting(model) as batches:
        run(folder, tmp_path / "store", model)
    assert batches == [2, 1, 2, 1, 1]  # shards of 3, 3 and 1 pictures in batches of 2


def test_records_follow_the_sorted_files(folder: Path, tmp_path: Path) -> None:
    store = run(folder, tmp_path / "store")
    assert [r.id for r in store.images] == [f"{i:03}.png" for i in range(7)]
    assert (store.images[1].width, store.images[1].height) == (41, 35)


def test_counts(folder: Path, tmp_path: Path) -> None:
    store = run(folder, tmp_path / "store")
    assert (store.manifest["images"], store.manifest["skipped"], store.rows) == (7, 0, 7 * 16)


def test_thumbnails_fit_their_side_and_keep_the_order(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        Image.new("RGB", (40 + i, 34), (50 * i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
    store = run(tmp_path / "pictures", tmp_path / "store")
    thumbnails = [Image.open(io.BytesIO(data)) for data in store.thumbnails()]
    assert {max(thumbnail.size) for thumbnail in thumbnails} == {16}
    reds = [thumbnail.getpixel((8, 8))[0] for thumbnail in thumbnails]  # type: ignore[index]
    assert reds == pytest.approx([0, 50, 100, 150, 200], abs=3)  # JPEG loses a little


def test_record_says_what_a_picture_was_cut_from(folder: Path, tmp_path: Path) -> None:
    (folder / "captions.jsonl").write_text(
        '{"file": "001.png", "caption": "left half", "tags": ["half"], "source": "photo.jpg"}'
    )
    images = run(folder, tmp_path / "store").images
    assert images[1] == ("001.png", 41, 35, "left half", ("half",), "photo.jpg")
    assert images[2].source == ""


def test_finished_store_verifies(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "store").verify()


def test_nothing_is_left_beside_the_store(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out" / "store")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["store"]


def test_bfloat16_store_reads_back_as_bfloat16(folder: Path, tmp_path: Path) -> None:
    half = run(folder, tmp_path / "half", dtype="float16")
    brain = run(folder, tmp_path / "brain", dtype="bfloat16")
    (first, *_), (other, *_) = half.arrays(SITES[0]), brain.arrays(SITES[0])
    assert other.dtype == torch.bfloat16
    torch.testing.assert_close(other.float(), first.float(), rtol=2**-7, atol=1e-4)


def large_model() -> VitModel:
    """A model whose MLP neurons lie beyond the range of float16."""
    model = tiny_model()
    model.backbone.module.blocks[0].mlp.fc1.bias.fill_(1e6)
    return model


def test_values_beyond_float16_are_refused_and_told_the_way_out(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=r"blocks\.0\.mlp.*--store-dtype bfloat16"):
        run(folder, tmp_path / "store", large_model())
    assert not (tmp_path / "store").exists()


def test_bfloat16_holds_what_float16_cannot(folder: Path, tmp_path: Path) -> None:
    store = run(folder, tmp_path / "store", large_model(), dtype="bfloat16")
    assert next(store.arrays("blocks.0.mlp")).max() > 65504


def spoil(folder: Path) -> None:
    (folder / "001.png").write_bytes(b"not a picture")
    (folder / "003.png").write_bytes(b"")
    (folder / "004.png").write_bytes((folder / "005.png").read_bytes()[:200])
    (folder / "005.png").write_bytes(b"nor this")  # all of the second shard


def test_bad_files_are_counted_and_never_fatal(folder: Path, tmp_path: Path) -> None:
    spoil(folder)
    store = run(folder, tmp_path / "store")
    assert (store.manifest["images"], store.manifest["skipped"]) == (3, 4)
    assert [r.id for r in store.images] == ["000.png", "002.png", "006.png"]


def test_bad_files_are_listed_with_the_reason(folder: Path, tmp_path: Path) -> None:
    spoil(folder)
    skipped = run(folder, tmp_path / "store").skipped
    assert [one.id for one in skipped] == ["001.png", "003.png", "004.png", "005.png"]
    assert "empty" in skipped[1].error


def test_views_of_a_picture_count_once(folder: Path, tmp_path: Path) -> None:
    spoil(folder)
    reading, config = Reading(), HarvestConfig(sites=SITES, batch_size=2, shard_images=3, views=2)
    store = harvest(
        tiny_model(),
        image_folder(folder),
        tmp_path / "store",
        config,
        reading=reading,
        progress=False,
    )
    assert (store.manifest["images"], len(store.skipped)) == (6, 8)
    assert reading.summary() == "3 pictures read, 4 skipped: 4 broken"


def test_shard_without_a_good_file_holds_no_vectors(folder: Path, tmp_path: Path) -> None:
    spoil(folder)
    store = run(folder, tmp_path / "store")
    assert [shard.name for shard in store.shards] == ["00000", "00002"]
    arrays = (store.path / "shards" / "00001").glob("*.npy")
    assert [path.name for path in arrays] == ["thumbnail_offsets.npy"]


def test_bad_files_do_not_move_the_rows_of_good_ones(folder: Path, tmp_path: Path) -> None:
    whole = torch.cat(list(run(folder, tmp_path / "whole").arrays(SITES[0])))
    spoil(folder)
    rest = torch.cat(list(run(folder, tmp_path / "rest").arrays(SITES[0])))
    torch.testing.assert_close(rest, whole[[0, 2, 6]], rtol=2e-3, atol=1e-4)


def test_picture_that_the_model_refuses_is_skipped_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    preprocess = model.preprocess

    def refuse(image: Image.Image) -> torch.Tensor:
        if image.size == (41, 35):
            raise ImageTooLargeError("a sliver")
        return preprocess(image)

    monkeypatch.setattr(model, "preprocess", refuse)
    skipped = run(folder, tmp_path / "store", model).skipped
    assert [(one.error, one.reason) for one in skipped] == [("a sliver", "too large")]


def test_all_files_bad_is_an_error_that_quotes_the_first(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="none of the 1 pictures.*empty"):
        run(tmp_path / "pictures", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_no_pictures_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no pictures"):
        harvest(tiny_model(), [], tmp_path / "store", CONFIG, progress=False)


def test_unknown_site_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with counting(model) as batches, pytest.raises(NotFoundError, match=r"blocks\.9\.update"):
        run(folder, tmp_path / "store", model, sites=("blocks.9.update",))
    assert batches == []


def test_finished_harvest_is_not_computed_again(folder: Path, tmp_path: Path) -> None:
    first = run(folder, tmp_path / "store")
    model = tiny_model()
    with counting(model) as batches:
        second = run(folder, tmp_path / "store", model)
    assert batches == []
    assert second.manifest == first.manifest


def test_interrupted_harvest_computes_only_missing_shards(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    forward = model.forward

    def stop_at_the_third_shard(images: torch.Tensor) -> Any:
        if len(images) == 1 and (images == last).all():
            raise KeyboardInterrupt
        return forward(images)

    last = model.preprocess(image_folder(folder)[6].load())[None]
    monkeypatch.setattr(model, "forward", stop_at_the_third_shard)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "store", model)
    monkeypatch.undo()
    with counting(model) as batches:
        store = run(folder, tmp_path / "store", model)
    assert sum(batches) == 1
    undisturbed = run(folder, tmp_path / "undisturbed")
    assert store.manifest["files"] == undisturbed.manifest["files"]


def test_changed_picture_starts_afresh(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "store")
    noise_image(40, 34, seed=99).save(folder / "000.png")
    model = tiny_model()
    with counting(model) as batches:
        run(folder, tmp_path / "store", model, overwrite=True)
    assert sum(batches) == 7


def test_changed_caption_starts_afresh(folder: Path, tmp_path: Path) -> None:
    for caption in ("a cat", "a dog"):
        (folder / "captions.jsonl").write_text(f'{{"file": "003.png", "caption": "{caption}"}}')
        store = run(folder, tmp_path / "store", overwrite=True)
    assert store.images[3].caption == "a dog"


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"thumbnail": 20}, {"sites": SITES[:1]}])
def test_changed_configuration_starts_afresh(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    run(folder, tmp_path / "store")
    model = tiny_model()
    with counting(model) as batches:
        run(folder, tmp_path / "store", model, overwrite=True, **change)
    assert sum(batches) == 7


def test_changed_weights_start_afresh(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "store")
    model = tiny_model()
    model.backbone.module.norm.bias[0] += 1
    with counting(model) as batches:
        run(folder, tmp_path / "store", model, overwrite=True)
    assert sum(batches) == 7


def test_limit_takes_evenly_spaced_pictures(folder: Path) -> None:
    pictures = image_folder(folder)
    assert [p.id for p in choose(pictures, 3)] == ["000.png", "002.png", "004.png"]
    assert choose(pictures, 100) == pictures
