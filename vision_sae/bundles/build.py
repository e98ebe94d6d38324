"""ActivationStore + Dictionary -> Bundle, in one encode pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor
from tqdm import tqdm

import vision_sae
from vision_sae.activations.store import (
    ALIGNED,
    ActivationStore,
    ImageRecord,
    sources_of,
    write_images,
)
from vision_sae.activations.thumbnails import write_thumbnails
from vision_sae.bundles import bundle as layout
from vision_sae.bundles import codes as codes_module
from vision_sae.bundles.bundle import Bundle
from vision_sae.bundles.codes import CodesBuilder, SparseRows, by_feature
from vision_sae.bundles.exemplars import exemplars
from vision_sae.bundles.patch_index import PatchIndexBuilder
from vision_sae.bundles.relations import nearest_floor, relations
from vision_sae.bundles.statistics import statistics
from vision_sae.config import BuildConfig
from vision_sae.dictionaries.artifact import read_dictionary_manifest
from vision_sae.dictionaries.metrics import MetricsAccumulator
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.released.labels import LABELS, labelled
from vision_sae.dictionaries.released.registry import (
    LoadedDictionary,
    load_dictionary,
    locate,
    released_as,
)
from vision_sae.dictionaries.weights import WEIGHTS
from vision_sae.errors import MismatchError, VisionSaeError
from vision_sae.files import publishing
from vision_sae.models.grid import PatchGrid
from vision_sae.places import check_output, check_replaceable
from vision_sae.vectors import normalised

_BATCH = 1024
"""Patches encoded at a time: few enough that the allocator keeps their pre-activations."""
_UNUSUAL = 0.01
"""Pictures explained worse than this share of the data set are called unusual."""


def check_match(store: ActivationStore, dictionary: dict[str, Any]) -> None:
    """Refuse, by name, a dictionary that was not trained on this model, site and preprocessing."""
    ours, theirs = store.manifest["model"], dictionary["model"]
    for key in ("weights_sha256", "preprocessing", "grid"):
        if ours[key] != theirs[key]:
            raise MismatchError(
                f"the store's model has {key} {ours[key]}, the dictionary was trained on a model "
                f"with {theirs[key]}; use a store and a dictionary of the same model",
                field=key,
            )
    if dictionary["site"] not in store.sites:
        raise MismatchError(
            f"the dictionary belongs to site {dictionary['site']}, the store holds "
            f"{', '.join(store.sites)}; harvest that site",
            field="site",
        )


def _encode(
    store: ActivationStore,
    site: str,
    dictionary: Dictionary,
    mean: Tensor,
    index: PatchIndexBuilder,
    *,
    progress: bool,
) -> tuple[SparseRows, MetricsAccumulator, NDArray[np.float64]]:
    """The one pass: codes of every patch, the metrics, and the explained variance of each image
    that has any.

    Every patch is added to ``index`` too.
    """
    # Of each patch: |x - x_hat|^2 and |x - mean|^2.
    squares = torch.empty(2, store.rows, dtype=torch.float64)
    builder, done = CodesBuilder(), 0
    metrics = MetricsAccumulator(dictionary.dim, dictionary.width)
    with (
        torch.inference_mode(),
        tqdm(total=store.rows, desc="encode", unit="patch", disable=not progress) as bar,
    ):
        for vectors in store.batches(site, _BATCH):
            codes = dictionary.encode(vectors)
            x_hat = dictionary.decode(codes)
            metrics.add(vectors, x_hat, codes)
            here = slice(done, done := done + len(vectors))
            squares[0, here] = (vectors - x_hat).double().square().sum(1)
            squares[1, here] = (vectors - mean).double().square().sum(1)
            builder.add(codes)
            index.add(normalised(vectors.numpy(), mean.numpy()))
            bar.update(len(vectors))
    error, variance = squares.reshape(2, -1, store.grid.patches).sum(2)
    varies = variance > 0  # of a picture all patches of which are the mean, nothing is explained
    explained = 1 - error[varies] / variance[varies]
    return builder.by_patch(), metrics, explained.numpy()


def _text_aligned(store: ActivationStore, folder: Path, config: BuildConfig) -> dict[str, Any]:
    """Index the patches in the space of texts; what the manifest says of it."""
    if not store.text_aligned:
        return {}
    name = ALIGNED
    builder = PatchIndexBuilder(
        folder,
        store.dim(name),
        store.rows,
        lambda rows: normalised(store.take(name, rows).numpy()),
        sources_of(store.images),
        shard_rows=config.index_shard_rows,
    )
    for vectors in store.batches(name, _BATCH):
        builder.add(normalised(vectors.numpy()))
    return {"text_aligned_index": builder.finish(config.recall_floor)._asdict()}


def write_measured(
    staging: Path,
    codes: SparseRows,
    dictionary: Dictionary,
    images: Sequence[ImageRecord],
    grid: PatchGrid,
    config: BuildConfig,
) -> None:
    """Write the codes of every patch, and all that follows from them alone."""
    postings = by_feature(codes, dictionary.width)
    codes_module.save(codes, staging / layout.CODES, layout.CODES_COLUMN)
    codes_module.save(postings, staging / layout.POSTINGS, layout.POSTINGS_COLUMN)
    save_file(statistics(postings)._asdict(), staging / layout.STATISTICS)
    thresholds = np.array(
        [
            np.quantile(values, config.mask_quantile) if len(values) else 0.0
            for _, values in map(postings.row, range(dictionary.width))
        ],
        dtype=np.float32,
    )
    chosen = exemplars(
        postings,
        grid.patches,
        thresholds,
        config.exemplars,
        config.quantile_exemplars,
        sources=sources_of(images),
    )
    save_file(chosen._asdict(), staging / layout.EXEMPLARS)
    related = relations(codes, dictionary.decoder)
    save_file(related._asdict(), staging / layout.RELATIONS)


def _write_pictures(store: ActivationStore, staging: Path) -> None:
    write_images(staging / layout.IMAGES, store.images)
    write_thumbnails(staging, store.thumbnails())
    np.save(staging / layout.EMBEDDINGS, store.embeddings, allow_pickle=False)


def _carried(source: LoadedDictionary, staging: Path) -> dict[str, Any]:
    """Write the descriptions of a released dictionary; what the manifest says of its release."""
    if source.released is None:
        return {}
    said: dict[str, Any] = {"released": source.released}
    if rows := source.descriptions:
        (staging / layout.DESCRIPTIONS).write_bytes(layout.descriptions_file(rows.values()))
        said["describe"] = {
            "released": source.released["name"],
            "identity": source.manifest["files"][LABELS]["sha256"],
            "labelled": labelled(rows),
            "abstained": len(rows) - labelled(rows),
        }
    return said


def _is_made_of(manifest: dict[str, Any], dictionary: Path) -> bool:
    """Whether a bundle's manifest names the dictionary at this place.

    The weights of a released dictionary are rounded, so its file is another than the bundle's: the
    hash of its manifest tells.
    """
    if (released := released_as(dictionary)) or "released" in manifest:
        return bool(manifest.get("released") == released)
    trained = read_dictionary_manifest(dictionary)["files"]
    return bool(manifest["files"][f"{layout.DICTIONARY}/{WEIGHTS}"] == trained[WEIGHTS])


def is_current(
    path: Path, store: ActivationStore, dictionary: Path | str, config: BuildConfig
) -> bool:
    """Whether the bundle at ``path`` was made from just these, by this version."""
    try:
        manifest = Bundle(path).manifest
    except VisionSaeError:
        return False
    return bool(
        manifest["data_sha256"] == store.manifest["data_sha256"]
        and _is_made_of(manifest, locate(dictionary))
        and manifest["build"] == config.model_dump(mode="json")
        and manifest["code_version"] == vision_sae.__version__
    )


def build(
    store: ActivationStore,
    source: Path | str,
    directory: Path,
    config: BuildConfig,
    *,
    progress: bool = True,
    overwrite: bool = False,
) -> Bundle:
    """Encode every patch of ``store`` once and publish a `Bundle` at ``directory``.

    ``source`` is a dictionary's directory, or the name of a released one, whose descriptions the
    bundle then carries. A bundle that was made from just these is returned as it is; another one
    is replaced only with ``overwrite``.

    Raises `MismatchError` when store and dictionary do not belong together and
    `RecallTooLowError` when the patch index misses its floor; nothing is published then.
    """
    there = check_output(
        directory, layout.FORMAT, inputs=[store.path, locate(source)], field="bundle"
    )
    if not overwrite and is_current(directory, store, source, config):
        return Bundle(directory)
    check_replaceable(directory, there, overwrite=overwrite, field="bundle")
    found = load_dictionary(source)
    dictionary, trained = found.dictionary, found.manifest
    check_match(store, trained)
    site = trained["site"]
    store.check_varies(site)
    with publishing(directory) as (staging, manifest):
        (staging / layout.DICTIONARY).mkdir()
        described = dictionary.save(staging / layout.DICTIONARY)
        _write_pictures(store, staging)

        mean = store.mean(site)
        np.save(staging / layout.SITE_MEAN, mean.numpy(), allow_pickle=False)
        index_builder = PatchIndexBuilder(
            staging / layout.PATCH_INDEX,
            dictionary.dim,
            store.rows,
            lambda rows: normalised(store.take(site, rows).numpy(), mean.numpy()),
            sources_of(store.images),
            shard_rows=config.index_shard_rows,
        )
        codes, metrics, explained = _encode(
            store, site, dictionary, mean, index_builder, progress=progress
        )
        report = index_builder.finish(config.recall_floor)
        aligned = _text_aligned(store, staging / layout.TEXT_ALIGNED_INDEX, config)
        write_measured(staging, codes, dictionary, store.images, store.grid, config)

        manifest |= {
            "format": layout.FORMAT,
            "version": layout.VERSION,
            "code_version": vision_sae.__version__,
            "model": store.manifest["model"],
            "site": site,
            "dictionary": described,
            "training": trained["training"],
            "data_sha256": store.manifest["data_sha256"],
            "images": len(store.images),
            "metrics": trained["metrics"] | {"build": metrics.result()._asdict()},
            "usual_explained_variance": float(np.quantile(explained, _UNUSUAL)),
            "patch_index": report._asdict(),
            **aligned,
            "nearest_floor": nearest_floor(dictionary.width, dictionary.dim),
            "build": config.model_dump(mode="json"),
            **_carried(found, staging),
        }
    return Bundle(directory)
