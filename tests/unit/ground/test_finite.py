"""Numbers that are no numbers are refused, by name, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tests.worlds.tiny import (
    SITE,
    identity_sae,
    picture_folder,
    small_section,
    tiny_model,
    write_dictionary,
    write_store,
)
from vision_sae.activations.harvest import harvest
from vision_sae.activations.peaks import PeakCollector
from vision_sae.activations.shards import rounded
from vision_sae.activations.store import ALIGNED, EMBEDDING, ActivationStore
from vision_sae.bundles.build import build
from vision_sae.config import BuildConfig, HarvestConfig, TrainConfig, load_config
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.dictionaries.factorise import factorise
from vision_sae.dictionaries.interop.exchange import export_dictionary, import_dictionary
from vision_sae.dictionaries.kinds.topk import TopKLearner
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.stream import ShuffledRows
from vision_sae.dictionaries.training.checkpoint import restore_checkpoint, save_checkpoint
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.loop import new_learner, train
from vision_sae.dictionaries.weights import WEIGHTS, round_to_half
from vision_sae.errors import CorruptArtifactError, InvalidInputError
from vision_sae.evaluation.report import evaluate
from vision_sae.files import file_table, read_json, write_json
from vision_sae.pictures.folder import image_folder
from vision_sae.tensors import from_proto, read_floats, to_proto

NORMAL = np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32)
SHORT: dict[str, Any] = {"expansion": 2, "k": 2, "batch_size": 4, "steps": 4}


def broken(value: float) -> Any:
    """Vectors of which image 2 holds ``value`` at patch 1, column 0; row 9 of the store."""
    vectors = NORMAL.copy()
    vectors[2, 1, 0] = vectors[3, 0, 2] = value
    return vectors


@pytest.fixture(params=[np.nan, np.inf, -np.inf], ids=str)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ActivationStore:
    vectors = broken(request.param)
    return write_store(tmp_path / "store", [vectors[:1], vectors[1:]])


def _train(architecture: str) -> Callable[[ActivationStore, Path], Any]:
    config = TrainConfig(architecture=architecture, **SHORT, **small_section(architecture))
    return lambda store, out: train_dictionary(store, out, config, {}, progress=False)


def _factorise(kind: str) -> Callable[[ActivationStore, Path], Any]:
    return lambda store, _: factorise(store, kind, progress=False)


def _dictionary(store: ActivationStore, folder: Path) -> Path:
    return write_dictionary(folder, identity_sae(3, 2), store)


def _import(store: ActivationStore, out: Path) -> Any:
    export_dictionary(_dictionary(store, out / "d"), out / "exported", "saelens")
    return import_dictionary(out / "exported", out / "imported", store)


READERS: dict[str, Callable[[ActivationStore, Path], Any]] = {
    **{
        name: _train(name)
        for name in ("topk", "batch_topk", "matryoshka", "archetypal", "relu", "jumprelu", "gated")
    },
    **{name: _factorise(name) for name in ("pca", "semi_nmf", "kmeans")},
    "build": lambda s, out: build(
        s, _dictionary(s, out / "d"), out / "b", BuildConfig(), progress=False
    ),
    "evaluate": lambda s, out: evaluate(_dictionary(s, out / "d"), s, progress=False),
    "import": _import,
    "mean": lambda s, _: s.mean(SITE),
    "take": lambda s, _: s.take(SITE, np.array([12, 0, 9])),
    "stream": lambda s, _: next(ShuffledRows(s, SITE, 16, shuffle_mb=1, seed=0).batches()),
}


@pytest.mark.parametrize("reader", READERS)
def test_whatever_reads_a_store_names_the_first_row_and_column(
    reader: str, store: ActivationStore, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(
        InvalidInputError,
        match=rf"{SITE} holds (nan|-?inf) in row 9, column 0 \(picture 2.png, patch 1\)",
    ) as caught:
        READERS[reader](store, out / "made" if reader in SHORT else out)
    assert caught.value.field == "store"


def test_nmf_names_what_is_no_number_too(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [np.abs(broken(np.nan))])
    with pytest.raises(InvalidInputError, match="row 9, column 0"):
        factorise(store, "nmf", progress=False)


def test_a_number_that_training_would_meet_late_is_met_before_a_checkpoint(tmp_path: Path) -> None:
    # The scaling is estimated from every second row of so large a store; the stream reads all.
    vectors = np.random.default_rng(0).normal(size=(2**17 + 1, 4, 1)).astype(np.float32)
    vectors[5, 3, 0] = np.nan  # row 23 is odd
    store = write_store(tmp_path / "store", [vectors])
    with pytest.raises(InvalidInputError, match="row 23, column 0"):
        train(store, TrainConfig(expansion=4, k=1, steps=2, batch_size=500_000), progress=False)


def test_embeddings_are_numbers(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [NORMAL])
    np.save(
        store.shards[0] / EMBEDDING, np.array([[0, 1], [0, np.nan], [1, 1], [1, 1]], np.float32)
    )
    with pytest.raises(InvalidInputError, match=r"picture 1.png \(row 1\) holds nan in column 1"):
        _ = store.embeddings


def test_patches_in_the_space_of_texts_are_numbers(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [NORMAL])
    np.save(store.shards[0] / f"{ALIGNED}.npy", broken(np.inf).astype(np.float16))
    with pytest.raises(InvalidInputError, match=f"{ALIGNED} holds inf in row 9, column 0"):
        list(store.batches(ALIGNED, 5))


# Harvesting


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_what_a_type_holds_is_stored(dtype: str, scale: float) -> None:
    values = torch.from_numpy(NORMAL) * scale
    assert rounded("s", values, dtype).shape == NORMAL.shape
    assert not rounded("s", torch.zeros(2, 3), dtype).any()  # zeros lose nothing


@pytest.mark.parametrize(
    ("scale", "dtype", "held_by"),
    [(1e-6, "float16", "bfloat16"), (1e-20, "float16", "bfloat16"), (1e6, "float16", "float32")],
)
def test_what_a_type_does_not_hold_is_refused_with_the_way_out(
    scale: float, dtype: str, held_by: str
) -> None:
    values = torch.from_numpy(NORMAL) * scale
    with pytest.raises(
        InvalidInputError, match=r"site s .* --store-dtype bfloat16 or float32"
    ) as caught:
        rounded("s", values, dtype)
    assert caught.value.field == "dtype"
    assert rounded("s", values, held_by).any()


HARVEST = HarvestConfig(sites=(SITE,), batch_size=2, shard_images=2, thumbnail=16)


@pytest.mark.parametrize("scale", [1e-6, 1e-7])
def test_layer_scale_that_float16_loses_is_refused_or_kept_in_float32(
    scale: float, tmp_path: Path
) -> None:
    model = tiny_model()
    with torch.no_grad():  # what block 1 adds, through its two branches
        module: Any = model.backbone.module
        block = module.blocks[1]
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.mul_(scale)
            layer.bias.mul_(scale)
    pictures = image_folder(picture_folder(tmp_path / "pictures", 3))
    with pytest.raises(InvalidInputError, match=f"{SITE} has values too small for float16"):
        harvest(model, pictures, tmp_path / "half", HARVEST, progress=False)
    assert not (tmp_path / "half").exists()
    config = HARVEST.model_copy(update={"dtype": "float32"})
    store = harvest(model, pictures, tmp_path / "store", config, progress=False)
    pixels = torch.stack([model.preprocess(picture.load()) for picture in pictures])
    with torch.inference_mode(), model.capture([SITE]) as captured:
        model.forward(pixels)
    stored = torch.cat(list(store.arrays(SITE)))
    assert stored.dtype == torch.float32
    expected = captured[SITE][:, 1:]
    assert float((stored - expected).norm() / expected.norm()) < 1e-3
    train_dictionary(store, tmp_path / "d", TrainConfig(**SHORT), {}, progress=False)


def test_a_model_that_gives_no_numbers_is_refused_with_the_picture(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        module: Any = model.backbone.module
        module.blocks[1].mlp.fc2.bias[3] = torch.nan
    pictures = image_folder(picture_folder(tmp_path / "pictures", 3))
    with pytest.raises(
        InvalidInputError, match=rf"{SITE} of picture 000.png the value nan at \[0, 3\]"
    ):
        harvest(model, pictures, tmp_path / "store", HARVEST, progress=False)


def test_peaks_that_float16_loses_are_refused() -> None:
    collector = PeakCollector(3, 4, keep=1, pictures=4)
    with pytest.raises(InvalidInputError, match="peaks are kept in float16"):
        collector.add(SITE, torch.from_numpy(NORMAL) * 1e-7)


# Training


@pytest.fixture
def finite(tmp_path: Path) -> ActivationStore:
    vectors = np.random.default_rng(1).normal(size=(8, 4, 3))
    return write_store(tmp_path / "finite", [vectors])


@pytest.mark.parametrize(
    "architecture", ["topk", "batch_topk", "matryoshka", "archetypal", "relu", "jumprelu", "gated"]
)
def test_training_that_diverges_names_the_step_and_publishes_nothing(
    architecture: Any, finite: ActivationStore, tmp_path: Path
) -> None:
    config = TrainConfig(
        architecture=architecture,
        learning_rate=1e19,
        warmup=0,
        **SHORT | {"steps": 30} | small_section(architecture),
    )
    with pytest.raises(
        InvalidInputError, match=r"diverged by step \d+: .* learning rate"
    ) as caught:
        train_dictionary(finite, tmp_path / "out", config, {}, progress=False)
    assert caught.value.field == "learning_rate"
    assert not (tmp_path / "out").exists()


def learner() -> TopKLearner:
    return TopKLearner(3, TrainConfig(**SHORT))


def test_a_checkpoint_that_is_good_outlives_a_state_that_is_not(tmp_path: Path) -> None:
    path, training = tmp_path / "c.safetensors", learner()
    save_checkpoint(path, [training], 7)
    training.weights.b_enc[2] = torch.nan
    with pytest.raises(InvalidInputError, match=r"step 14: b_enc holds nan at \[2\]"):
        save_checkpoint(path, [training], 14)
    assert restore_checkpoint(path, [training]) == 7
    assert training.weights.b_enc.isfinite().all()


def test_a_checkpoint_that_is_not_good_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, [learner()], 7)
    state = load_file(path)
    state["0.w_dec"][1, 2] = torch.inf
    save_file(state, path)
    with pytest.raises(CorruptArtifactError, match=r"c.safetensors: 0.w_dec holds inf at \[1, 2\]"):
        restore_checkpoint(path, [learner()])


def test_a_dictionary_that_holds_no_numbers_is_neither_saved_nor_loaded(
    finite: ActivationStore, tmp_path: Path
) -> None:
    sae: Sae = identity_sae(3, 2)
    path = write_dictionary(tmp_path / "d", sae, finite)
    sae.b_dec[1] = torch.nan
    with pytest.raises(InvalidInputError, match=r"b_dec holds nan at \[1\]"):
        write_dictionary(tmp_path / "broken", sae, finite)
    assert not (tmp_path / "broken").exists()
    stored = load_file(path / WEIGHTS)
    stored["W_enc"][0, 2] = torch.nan
    save_file(stored, path / WEIGHTS)
    write_json(
        path / "manifest.json", read_json(path / "manifest.json") | {"files": file_table(path)}
    )
    with pytest.raises(CorruptArtifactError, match=r"W_enc holds nan at \[0, 2\]"):
        load_dictionary(path)


def test_weights_that_half_precision_loses_are_refused(
    finite: ActivationStore, tmp_path: Path
) -> None:
    sae = identity_sae(3, 2)
    sae.b_dec.fill_(1e-7)
    path = write_dictionary(tmp_path / "d", sae, finite)
    with pytest.raises(InvalidInputError, match="b_dec holds values too small for float16"):
        round_to_half(path)


def test_tied_weights_of_one_feature_are_saved(finite: ActivationStore, tmp_path: Path) -> None:
    rows = torch.eye(3)[:1]  # its transpose is the same memory
    sae = Sae(w_enc=rows, b_enc=torch.zeros(1), w_dec=rows, b_dec=torch.zeros(3))
    sae.architecture = "relu"
    found, _ = load_dictionary(write_dictionary(tmp_path / "d", sae, finite))
    assert torch.equal(found.decoder, rows)


# What callers give


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("train", "learning_rate", float("nan")),
        ("train", "learning_rate", float("inf")),
        ("train", "learning_rate", 0.0),
        ("train", "learning_rate", 1e300),
        ("train", "steps", -1),
        ("train", "steps", 10**30),
        ("train", "batch_size", 0),
        ("train", "k", 0),
        ("train", "k", 10**30),
        ("train", "expansion", 0),
        ("train", "expansion", 10**9),
        ("train", "warmup", float("nan")),
        ("train", "sparsity", float("inf")),
        ("train", "agreement", -1.0),
        ("train", "seed", -1),
        ("train", "seed", 2**32),
        ("train", "shuffle_seed", -1),
        ("train", "dead_after", 2**63),
        ("train", "end_to_end.error_weight", float("nan")),
        ("harvest", "batch_size", 0),
        ("harvest", "limit", 0),
        ("build", "mask_quantile", float("nan")),
        ("build", "recall_floor", 1.5),
        ("neurons", "mask_quantile", float("-inf")),
        ("describe", "milan.weight", float("inf")),
        ("describe", "vlm.timeout_seconds", float("nan")),
        ("describe", "effects.amount", float("inf")),
        ("describe", "caption_pmi.significance", float("nan")),
        ("serve", "drain_seconds", float("inf")),
        ("serve", "max_message_bytes", 2**31),
    ],
)
def test_settings_out_of_range_are_refused_by_name(section: str, field: str, value: Any) -> None:
    key, _, inner = field.partition(".")
    if inner == "1":
        given: Any = (0.5, value)
    else:
        given = {inner: value} if inner else value
    with pytest.raises(InvalidInputError, match=rf"{section}\.{field}: ") as caught:
        load_config(None, **{section: {key: given}})
    assert caught.value.field == f"{section}.{field}"


def test_settings_of_an_architecture_are_refused_by_name() -> None:
    section = {"prefixes": (0.5, float("nan"))}
    with pytest.raises(InvalidInputError, match=r"train\.matryoshka\.prefixes\.1") as caught:
        load_config(train={"architecture": "matryoshka", "matryoshka": section})
    assert caught.value.field == "train.matryoshka.prefixes.1"


def test_configurations_made_in_code_are_checked_too() -> None:
    with pytest.raises(ValidationError, match="finite"):
        TrainConfig(learning_rate=float("nan"))


def test_what_no_memory_holds_is_refused_before_it_is_asked_for(finite: ActivationStore) -> None:
    with pytest.raises(InvalidInputError, match="1073741824 features takes .* of memory"):
        config = TrainConfig(expansion=1024)
        new_learner(2**20, config, lambda count: torch.zeros(count, 1), group=Group())
    with pytest.raises(InvalidInputError, match="1000000000000 features takes .* of memory"):
        factorise(finite, "nmf", width=10**12, progress=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_tensors_of_callers_are_numbers(value: float, dtype: str) -> None:
    array = np.zeros((2, 3), dtype=dtype)
    array[1, 2] = value
    with pytest.raises(
        InvalidInputError, match=r"a Tensor holds (nan|-?inf) at \[1, 2\]"
    ) as caught:
        from_proto(to_proto(array))
    assert caught.value.field == "tensor"


def test_tensors_of_callers_fit_float32_where_that_is_computed_with() -> None:
    large = to_proto(np.array([1.0, 1e300]))
    assert from_proto(large).tolist() == [1.0, 1e300]
    with pytest.raises(InvalidInputError, match=r"inf at \[1\]"):
        read_floats(large, field="weights")
    with pytest.raises(InvalidInputError, match=r"at \[0\]"):
        from_proto(to_proto(np.array([1], dtype=np.uint8), scale=float("nan")))
