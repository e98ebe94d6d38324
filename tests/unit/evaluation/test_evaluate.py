"""Dictionary or bundle + store -> figures. Features are dimensions, so they can be recomputed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf
from typer.testing import CliRunner, Result

from tests.worlds.tiny import SITE, identity_sae, picture_folder, write_dictionary, write_store
from vision_sae.activations.harvest import harvest
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.build import build
from vision_sae.bundles.publish import add_descriptions, republish
from vision_sae.bundles.read import read_bundle
from vision_sae.cli import app
from vision_sae.config import BuildConfig, HarvestConfig
from vision_sae.dictionaries import metrics as metrics_module
from vision_sae.dictionaries.downstream import downstream
from vision_sae.errors import InvalidInputError, MismatchError, NotFoundError
from vision_sae.evaluation import report
from vision_sae.evaluation.coherence import average_max_decoder_cosine_sim
from vision_sae.evaluation.monosemanticity import monosemanticity
from vision_sae.evaluation.report import evaluate, open_dictionary
from vision_sae.models.bound import load_bound_model
from vision_sae.models.loading import load_model
from vision_sae.pictures.folder import image_folder
from vision_sae.pictures.reading import Reading

DIM, K = 6, 3
BUILD = BuildConfig(exemplars=3, quantile_exemplars=2)


def site_vectors(images: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(images, 4, DIM)).astype(np.float16)
    vectors[:, :, 5] = -1  # feature 5 never fires
    return vectors.astype(np.float32)


HELD = site_vectors(9, 1)


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return write_store(tmp_path / "store", [site_vectors(12, 0)])


@pytest.fixture
def held(tmp_path: Path) -> ActivationStore:
    made = write_store(tmp_path / "held", [HELD[:5], HELD[5:]])
    manifest = made.path / "manifest.json"
    manifest.write_text(json.dumps(made.manifest | {"data_sha256": "e" * 64}))
    return ActivationStore(made.path)


@pytest.fixture
def dictionary(tmp_path: Path, store: ActivationStore) -> Path:
    return write_dictionary(tmp_path / "d", identity_sae(DIM, K), store)


@pytest.fixture
def bundle(tmp_path: Path, store: ActivationStore, dictionary: Path) -> Path:
    build(store, dictionary, tmp_path / "bundle", BUILD, progress=False)
    return tmp_path / "bundle"


def pooled_by_definition() -> torch.Tensor:
    """Of each image the largest of each dimension that is positive and among the K largest."""
    kept = np.argsort(-HELD, axis=2)[:, :, :K]
    codes = np.zeros_like(HELD)
    np.put_along_axis(codes, kept, np.take_along_axis(HELD, kept, axis=2).clip(0), axis=2)
    return torch.from_numpy(codes.max(axis=1))


def test_metrics_are_those_of_the_dictionary(dictionary: Path, held: ActivationStore) -> None:
    found = evaluate(dictionary, held, progress=False)
    expected = metrics_module.evaluate(identity_sae(DIM, K), held.batches(SITE, 5))
    assert found.metrics == pytest.approx(expected)
    assert found.average_max_decoder_cosine_sim == average_max_decoder_cosine_sim(torch.eye(DIM))


def test_monosemanticity_is_of_pooled_codes_and_the_stores_embeddings(
    dictionary: Path, held: ActivationStore
) -> None:
    found = evaluate(dictionary, held, progress=False).monosemanticity
    embeddings = torch.from_numpy(held.embeddings)
    expected = monosemanticity(pooled_by_definition(), embeddings)
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found.isnan().tolist() == [False] * 5 + [True]


def test_histogram_counts_the_dead_feature(dictionary: Path, held: ActivationStore) -> None:
    density = evaluate(dictionary, held, progress=False).density
    assert (density.dead, density.counts.sum()) == (1, DIM - 1)


def test_published_figures_are_those_returned(bundle: Path, held: ActivationStore) -> None:
    found = evaluate(bundle, held, progress=False)
    manifest = read_bundle(bundle).manifest
    assert manifest["metrics"]["heldout"] == found.values()
    described = manifest["evaluations"]["heldout"]
    assert described["data_sha256"] == "e" * 64
    assert described["heldout"]
    assert described["images"] == 9
    assert described["density"]["dead"] == 1
    assert described["density"]["counts"] == found.density.counts.tolist()
    assert described["monosemanticity_features"] == 5
    assert described["downstream_images"] == 0


def test_published_metrics_are_numbers_with_their_rows(bundle: Path, held: ActivationStore) -> None:
    evaluate(bundle, held, progress=False)
    published = read_bundle(bundle).manifest["metrics"]["heldout"]
    assert published["rows"] == 36
    assert all(isinstance(value, int | float) for value in published.values())
    assert {"explained_variance", "monosemanticity", "average_max_decoder_cosine_sim"} <= set(
        published
    )


def test_undefined_figures_are_left_out(bundle: Path, tmp_path: Path) -> None:
    one = write_store(tmp_path / "one", [HELD[:1]])
    evaluate(bundle, one, progress=False)
    published = read_bundle(bundle).manifest["metrics"]["heldout"]
    assert "monosemanticity" not in published
    assert "monosemanticity_floor" not in published
    assert "explained_variance" in published


def test_other_metrics_and_parts_of_the_bundle_stay(bundle: Path, held: ActivationStore) -> None:
    rows = [{"feature": 0, "text": "a"}]
    add_descriptions(read_bundle(bundle), bundle, rows, {"describe": {"labelled": 1}})
    before = read_bundle(bundle).manifest
    evaluate(bundle, held, name="first", progress=False)
    evaluate(bundle, held, name="second", progress=False)
    after = read_bundle(bundle).manifest
    assert set(after["metrics"]) == {"build", "first", "second"}
    assert set(after["evaluations"]) == {"first", "second"}
    assert after["metrics"]["build"] == before["metrics"]["build"]
    assert after["files"] == before["files"]
    assert read_bundle(bundle).descriptions[0]["text"] == "a"


def test_dictionary_that_is_no_bundle_is_left_as_it_is(
    dictionary: Path, held: ActivationStore
) -> None:
    before = (dictionary / "manifest.json").read_bytes()
    evaluate(dictionary, held, progress=False)
    assert (dictionary / "manifest.json").read_bytes() == before


def test_data_that_the_dictionary_was_made_from_is_not_held_out(
    bundle: Path, store: ActivationStore
) -> None:
    assert not evaluate(bundle, store, progress=False).heldout
    assert not read_bundle(bundle).manifest["evaluations"]["heldout"]["heldout"]


def test_name_of_what_build_measured_is_refused(bundle: Path, held: ActivationStore) -> None:
    with pytest.raises(InvalidInputError, match="`build`"):
        evaluate(bundle, held, name="build", progress=False)


def test_store_of_another_model_is_refused_and_nothing_published(
    bundle: Path, tmp_path: Path
) -> None:
    before = read_bundle(bundle).manifest_sha256
    other = write_store(tmp_path / "other", [HELD], weights_sha256="x" * 64)
    with pytest.raises(MismatchError, match="weights_sha256"):
        evaluate(bundle, other, progress=False)
    assert read_bundle(bundle).manifest_sha256 == before


def test_nothing_is_found_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_dictionary(tmp_path / "nowhere")


def test_bundle_that_was_published_anew_meanwhile_is_not_overwritten(bundle: Path) -> None:
    opened = read_bundle(bundle)
    republish(read_bundle(bundle), bundle, {"describe": {"labelled": 7}})
    with pytest.raises(MismatchError, match="run it again"):
        republish(opened, bundle, {"describe": {"labelled": 0}})
    assert read_bundle(bundle).manifest["describe"] == {"labelled": 7}


def test_republished_file_takes_the_place_of_the_old_one(bundle: Path, tmp_path: Path) -> None:
    opened = read_bundle(bundle)
    mean = np.load(bundle / "site_mean.npy")
    again = republish(opened, bundle, {}, {"descriptions.jsonl": b'{"feature": 3}\n'})
    assert list(again.descriptions) == [3]
    assert np.array_equal(again.site_mean, mean)
    os.link(bundle / "descriptions.jsonl", tmp_path / "of_a_reader")
    twice = republish(again, bundle, {}, {"descriptions.jsonl": b'{"feature": 4}\n'})
    assert list(twice.descriptions) == [4]
    assert (tmp_path / "of_a_reader").read_bytes() == b'{"feature": 3}\n'


# The command, with a real model behind the store.

SIZES = {"img_size": 32, "depth": 3, "embed_dim": 32, "num_heads": 2, "num_classes": 3}


def save_model(directory: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    options = SIZES | {"patch_size": 8}
    module = timm.create_model("vit_tiny_patch16_224", **options)
    save_for_hf(module, directory, model_args=options, safe_serialization=True)
    return directory


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``model``, ``pictures``, ``store``, ``d`` and ``bundle``."""
    root = tmp_path_factory.mktemp("world")
    model = load_model(str(save_model(root / "model", 0)), dtype="float32")
    pictures = image_folder(picture_folder(root / "pictures", 6))
    (root / "pictures" / "bad.png").write_bytes(b"not a picture")
    store = harvest(model, pictures, root / "store", HarvestConfig(sites=(SITE,)), progress=False)
    write_dictionary(root / "d", identity_sae(32, 8), store)
    build(store, root / "d", root / "bundle", BUILD, progress=False)
    return root


def test_command_prints_and_publishes_every_figure(world: Path) -> None:
    result = run(
        *("evaluate", "dictionary", world / "bundle", "--store", world / "store", "--name", "all"),
        *("--images", world / "pictures", "--against", world / "d"),
    )
    assert result.exit_code == 0, result.output
    published = read_bundle(world / "bundle").manifest["metrics"]["all"]
    assert "kl_div_score" in published
    for name, value in published.items():
        assert f"{name:<36} {value:.6g}" in result.output
    assert f"{'matching_one_to_one':<36} 1" in result.output
    assert "matching_floor" in result.output
    assert "not held out" in result.output
    assert read_bundle(world / "bundle").manifest["evaluations"]["all"]["downstream_images"] == 6
    assert "6 pictures read, 1 skipped: 1 broken" in result.output
    assert "skipped bad.png: the bytes are not" in result.output


def test_downstream_figures_are_of_all_pictures_and_the_stores_mean(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_MODEL_BATCH", 4)
    store, pictures = ActivationStore(world / "store"), image_folder(world / "pictures")
    reading = Reading()
    found = evaluate(world / "d", store, pictures, reading=reading, progress=False).downstream
    assert found is not None
    assert reading.summary() == "6 pictures read, 1 skipped: 1 broken"
    dictionary, manifest, _ = open_dictionary(world / "d")
    model = load_bound_model(manifest["model"])
    pixels = [model.preprocess(p.load())[None] for p in pictures if p.id != "bad.png"]
    mean = torch.cat(list(store.batches(SITE, 50))).mean(0)
    expected = downstream(model, SITE, dictionary, pixels, mean=mean)
    assert found.images == 6
    assert found.metrics() == pytest.approx(expected.metrics(), rel=0.02)


def test_broken_pictures_are_refused_by_name_when_nobody_is_to_be_told(world: Path) -> None:
    store, pictures = ActivationStore(world / "store"), image_folder(world / "pictures")
    with pytest.raises(InvalidInputError, match=r"1 broken \(bad\.png: the bytes are not"):
        evaluate(world / "d", store, pictures, progress=False)


def test_command_runs_the_model_only_on_pictures(world: Path) -> None:
    result = run("evaluate", "dictionary", world / "d", "--store", world / "store")
    assert result.exit_code == 0, result.output
    assert "kl_div" not in result.output
    assert "matching" not in result.output


def test_limit_is_the_number_of_pictures(world: Path) -> None:
    result = run(
        *("evaluate", "dictionary", world / "bundle", "--store", world / "store", "--name", "few"),
        *("--images", world / "pictures", "--limit", 2),
    )
    assert result.exit_code == 0, result.output
    assert read_bundle(world / "bundle").manifest["evaluations"]["few"]["downstream_images"] == 2


@pytest.mark.parametrize("what", ["bundle", "nowhere"])
def test_bad_argument_is_one_line_and_status_2(world: Path, tmp_path: Path, what: str) -> None:
    result = run("evaluate", "dictionary", world / what, "--store", tmp_path / "nowhere")
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("vision-sae: ")
    assert "nowhere" in line


def test_model_with_other_weights_is_refused_by_name(world: Path, tmp_path: Path) -> None:
    identity = read_bundle(world / "bundle").manifest["model"]
    other = save_model(tmp_path / "model", 1)
    with pytest.raises(MismatchError, match="weights_sha256") as caught:
        load_bound_model(identity | {"name": str(other)})
    assert caught.value.field == "weights_sha256"


def test_model_of_the_manifest_is_loaded(world: Path) -> None:
    identity = read_bundle(world / "bundle").manifest["model"]
    assert load_bound_model(identity).identity()["weights_sha256"] == identity["weights_sha256"]
