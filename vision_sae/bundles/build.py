"""ActivationStore + Dictionary -> Bundle, in one encode pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor
from tqdm import tqdm

from vision_sae import devices
from vision_sae.activations.store import (
    ALIGNED,
    ActivationStore,
    ImageRecord,
    sources_of,
    write_images,
)
from vision_sae.activations.thumbnails import write_thumbnails
from vision_sae.artifacts import BUNDLE
from vision_sae.bundles import codes as codes_module
from vision_sae.bundles import layout
from vision_sae.bundles.codes import CodesBuilder, SparseRows, by_feature
from vision_sae.bundles.exemplars import exemplars
from vision_sae.bundles.patch_index_builder import IndexConfig, PatchIndexBuilder
from vision_sae.bundles.publish import descriptions_file
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.bundles.relations import nearest_floor, relations
from vision_sae.bundles.statistics import statistics
from vision_sae.config import BuildConfig
from vision_sae.dictionaries.artifact import read_dictionary_manifest
from vision_sae.dictionaries.metrics import MetricsAccumulator
from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.dictionaries.released.labels import LABELS, labelled
from vision_sae.dictionaries.released.lookup import (
    LoadedDictionary,
    load_dictionary,
    locate,
    released_as,
)
from vision_sae.dictionaries.resident import resident
from vision_sae.dictionaries.weights import WEIGHTS
from vision_sae.errors import CorruptArtifactError, MismatchError, VisionSaeError
from vision_sae.files import publishing
from vision_sae.models.grid import PatchGrid
from vision_sae.places import check_output, check_replaceable
from vision_sae.transfers import Leaving, finest_float, to_device
from vision_sae.vectors import normalised
from vision_sae.version import CODE_VERSION

_BATCH = 1024
"""Patches encoded at a time: few enough that the allocator reuses the memory of pre-activations."""
_UNUSUAL = 0.01
"""Quantile of the pictures' explained variance below which a picture is called unusual."""


def check_match(store: ActivationStore, dictionary: dict[str, Any]) -> None:
    """Raise `MismatchError` when the dictionary of this manifest was trained on another model, site
    or preprocessing than the store's."""
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


class Encoder:
    """Encodes and measures the rows of a store, batch by batch, on one device.

    The metrics and the squared errors of the rows stay there until the pass is over.
    """

    def __init__(self, dictionary: Dictionary, mean: Tensor, rows: int, device: str) -> None:
        """``mean`` is the mean of all ``rows`` rows."""
        self._device = torch.device(device)
        self._dictionary = resident(dictionary, self._device)
        self._mean = mean.to(self._device)
        self._wide, self._done = finest_float(self._device), 0
        self.metrics = MetricsAccumulator(dictionary.dim, dictionary.width, self._device)
        self.squares = torch.empty(2, rows, dtype=self._wide, device=self._device)
        """|x - x_hat|^2 and |x - mean|^2 of each row."""

    def encode(self, batch: Float[Tensor, "N D"]) -> Leaving:
        """Encode the next rows; returns the indices and values of their codes, on their way to host
        memory."""
        vectors = to_device(batch, self._device)
        codes = self._dictionary.encode(vectors)
        x_hat = self._dictionary.decode(codes)
        self.metrics.add(vectors, x_hat, codes)
        here = slice(self._done, self._done + len(vectors))
        self._done = here.stop
        self.squares[0, here] = (vectors - x_hat).to(self._wide).square().sum(1)
        self.squares[1, here] = (vectors - self._mean).to(self._wide).square().sum(1)
        return Leaving(*codes)


def _encode(
    store: ActivationStore,
    site: str,
    dictionary: Dictionary,
    mean: Tensor,
    index: PatchIndexBuilder,
    *,
    progress: bool,
    device: str,
) -> tuple[SparseRows, MetricsAccumulator, NDArray[np.float64]]:
    """Encode every patch on ``device`` and add it to ``index``; returns (the codes of all patches,
    the metrics, the explained variance of each picture with any variance).
    """
    encoder, builder = Encoder(dictionary, mean, store.rows, device), CodesBuilder()
    leaving: Leaving | None = None
    with (
        torch.inference_mode(),
        tqdm(total=store.rows, desc="encode", unit="patch", disable=not progress) as bar,
    ):
        for vectors in store.batches(site, _BATCH):
            # Codes arrive one batch late: a GPU has the next to encode while the host adds them.
            before, leaving = leaving, encoder.encode(vectors)
            if before is not None:
                builder.add(Codes(*before.arrive()))
            index.add(normalised(vectors.numpy(), mean.numpy()))
            bar.update(len(vectors))
        if leaving is not None:
            builder.add(Codes(*leaving.arrive()))
    squares = encoder.squares.cpu().double()
    error, variance = squares.reshape(2, -1, store.grid.patches).sum(2)
    varies = variance > 0  # a picture with only mean vectors has no variance to explain
    explained_variance = 1 - error[varies] / variance[varies]
    return builder.by_patch(), encoder.metrics, explained_variance.numpy()


def _text_aligned(
    store: ActivationStore, folder: Path, config: BuildConfig, device: str
) -> dict[str, Any]:
    """Index the patches in the text embedding space; returns the manifest's entry for the index."""
    if not store.text_aligned:
        return {}
    name = ALIGNED
    builder = PatchIndexBuilder(
        folder,
        store.dim(name),
        store.rows,
        lambda rows: normalised(store.take(name, rows).numpy()),
        sources_of(store.images),
        IndexConfig.of(config),
        device=device,
    )
    for vectors in store.batches(name, _BATCH):
        builder.add(normalised(vectors.numpy()))
    return {"text_aligned_index": builder.finish()._asdict()}


def write_measured(
    staging: Path,
    codes: SparseRows,
    dictionary: Dictionary,
    images: Sequence[ImageRecord],
    grid: PatchGrid,
    config: BuildConfig,
) -> None:
    """Write the codes of every patch, and the postings, statistics, exemplars and relations that
    are computed from the codes."""
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
    """Write the descriptions of a released dictionary; returns the manifest's entries about the
    release."""
    if source.released is None:
        return {}
    entries: dict[str, Any] = {"released": source.released}
    if rows := source.descriptions:
        (staging / layout.DESCRIPTIONS).write_bytes(descriptions_file(rows.values()))
        entries["describe"] = {
            "released": source.released["name"],
            "identity": source.manifest["files"][LABELS]["sha256"],
            "labelled": labelled(rows),
            "abstained": len(rows) - labelled(rows),
        }
    return entries


def _is_made_of(manifest: dict[str, Any], dictionary: Path) -> bool:
    """Whether a bundle's manifest names the dictionary at this path.

    The weights of a released dictionary are rounded, so its file differs from the bundle's file;
    released dictionaries are compared by the hash of their manifest.
    """
    if (released := released_as(dictionary)) or "released" in manifest:
        return bool(manifest.get("released") == released)
    trained = read_dictionary_manifest(dictionary)["files"]
    return bool(manifest["files"][f"{layout.DICTIONARY}/{WEIGHTS}"] == trained[WEIGHTS])


def current_bundle(
    path: Path, store: ActivationStore, dictionary: Path | str, config: BuildConfig
) -> Bundle | None:
    """The bundle at ``path``, if this version built it from the same store, dictionary and
    configuration; None otherwise, or when the bundle is damaged."""
    try:
        manifest = BUNDLE.manifest(path)
    except VisionSaeError:
        return None
    is_current = (
        manifest["data_sha256"] == store.manifest["data_sha256"]
        and _is_made_of(manifest, locate(dictionary))
        and manifest["build"] == config.model_dump(mode="json")
        and manifest["code_version"] == CODE_VERSION
    )
    if not is_current:
        return None
    try:
        return read_bundle(path)
    except CorruptArtifactError:
        return None


def build(
    store: ActivationStore,
    source: Path | str,
    directory: Path,
    config: BuildConfig,
    *,
    progress: bool = True,
    overwrite: bool = False,
    device: str = "auto",
) -> Bundle:
    """Encode every patch of ``store`` once and publish a `Bundle` at ``directory``.

    ``source`` is a dictionary's directory or the name of a released dictionary. The bundle then
    includes the released descriptions. A finished bundle with the same inputs is returned as it
    is; another one is replaced only with ``overwrite``. ``device`` is read by `devices.chosen`; the
    manifest records it.

    Raises `MismatchError` when store and dictionary do not belong together, and
    `RecallTooLowError` when the patch index misses its recall floor; nothing is published then.
    """
    existing = check_output(
        directory, layout.FORMAT, inputs=[store.path, locate(source)], field="bundle"
    )
    if not overwrite and (current := current_bundle(directory, store, source, config)):
        return current
    check_replaceable(directory, existing, overwrite=overwrite, field="bundle")
    loaded = load_dictionary(source)
    dictionary, trained = loaded.dictionary, loaded.manifest
    check_match(store, trained)
    site = trained["site"]
    store.check_varies(site)
    device = devices.chosen(device)
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
            IndexConfig.of(config),
            device=device,
        )
        codes, metrics, explained_variance = _encode(
            store, site, dictionary, mean, index_builder, progress=progress, device=device
        )
        report = index_builder.finish()
        aligned = _text_aligned(store, staging / layout.TEXT_ALIGNED_INDEX, config, device)
        write_measured(staging, codes, dictionary, store.images, store.grid, config)

        manifest |= {
            "format": layout.FORMAT,
            "version": layout.VERSION,
            "code_version": CODE_VERSION,
            "computed": devices.recorded(device, "float32"),
            "model": store.manifest["model"],
            "site": site,
            "dictionary": described,
            "training": trained["training"],
            "data_sha256": store.manifest["data_sha256"],
            "images": len(store.images),
            "metrics": trained["metrics"] | {"build": metrics.result()._asdict()},
            "usual_explained_variance": float(np.quantile(explained_variance, _UNUSUAL)),
            "patch_index": report._asdict(),
            **aligned,
            "nearest_floor": nearest_floor(dictionary.width, dictionary.dim),
            "build": config.model_dump(mode="json"),
            **_carried(loaded, staging),
        }
    return read_bundle(directory, verify=False)
