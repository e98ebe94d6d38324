"""The pass of a contrastive model over the pictures of a data set that makes a probe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.activations.passes import Look, Pass, in_groups
from vision_sae.activations.store import ALIGNED, ALIGNED_WEIGHTS, EMBEDDING, ActivationStore
from vision_sae.arrays import DONE, complete, open_growing, read_array
from vision_sae.errors import CorruptArtifactError, InvalidInputError, MismatchError
from vision_sae.evidence.probe import (
    EMBEDDINGS,
    FORMAT,
    PATCHES,
    VERSION,
    WEIGHTS,
    WINDOWS,
    Probe,
)
from vision_sae.evidence.protocol import Evidence
from vision_sae.files import MANIFEST, open_staging, publish, published, sha256_json
from vision_sae.models.grid import PatchGrid
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.models.similarity import embed_in_pieces
from vision_sae.pictures.decode import decode_image
from vision_sae.places import check_output
from vision_sae.storage import storing
from vision_sae.threads import map_in_threads
from vision_sae.transfers import to_device, to_host
from vision_sae.vectors import normalised
from vision_sae.version import CODE_VERSION

_WINDOW, _STRIDE = 3, 2
"""Side of a window and distance between windows, in patches."""
_UNIT_BATCHES = 64
"""Batches in a unit of work, after which the rows so far are kept."""


def windows_of(
    patches: Float[np.ndarray, "n P E"], grid: PatchGrid
) -> Float32[np.ndarray, "n windows E"]:
    """Mean directions of the patches in windows of 3 x 3 patches.

    Windows are centred on every second patch of every second row and are cut off at the border. The
    product of a text's unit vector with a window is the mean cosine of the text with the patches.
    """
    directions = torch.nn.functional.normalize(torch.from_numpy(np.float32(patches)), dim=2)
    maps = directions.transpose(1, 2).unflatten(2, (grid.rows, grid.cols))
    means = torch.nn.functional.avg_pool2d(
        maps, _WINDOW, _STRIDE, padding=_WINDOW // 2, count_include_pad=False
    )
    return np.asarray(means.flatten(2).transpose(1, 2).numpy())


class _Vectors(NamedTuple):
    """The model's vectors of n consecutive rows of the evidence."""

    wholes: NDArray[np.float32]
    """(n, E)"""
    patches: NDArray[np.floating[Any]]
    """(n, P, E)"""
    weights: NDArray[np.floating[Any]]
    """(n, P)"""


class _Input(NamedTuple):
    """A picture of consecutive rows of the evidence."""

    thumbnail: bytes
    rows: int
    """Number of rows; the steps of one generation have the same picture."""


def _rows(inputs: Sequence[_Input]) -> int:
    return sum(each.rows for each in inputs)


def embedded(
    model: ContrastiveModel, images: Float[Tensor, "B C H W"]
) -> tuple[Float32[Tensor, "B E"], Float32[Tensor, "B P E"], Float32[Tensor, "B P"]]:
    """(embeddings of pictures, vectors of their patches, weights of the patches) in host memory;
    the pictures are copied to the model's device once, and the results back once."""
    with torch.inference_mode():
        vectors, weights, whole = embed_in_pieces(model, to_device(images, model.device))
    whole, vectors, weights = to_host(whole.float(), vectors.float(), weights.float())
    return whole, vectors, weights


def _look(model: ContrastiveModel) -> Look[_Input, _Vectors]:
    """Run the model over thumbnails; on a CPU each core processes a separate batch."""

    def see(inputs: Sequence[_Input]) -> _Vectors:
        pictures = [model.preprocess(decode_image(each.thumbnail)) for each in inputs]
        times = [each.rows for each in inputs]
        tensors = embedded(model, torch.stack(pictures))
        return _Vectors(*(tensor.numpy().repeat(times, 0) for tensor in tensors))

    workers = torch.get_num_threads() if model.device.type == "cpu" else 1
    return partial(map_in_threads, see, workers=workers)


class _ProbeWriter:
    """The sink of the pass: four arrays that are filled from the front."""

    def __init__(self, staging: Path, model: ContrastiveModel, pictures: int) -> None:
        """Resume the arrays that an interrupted run left in ``staging``."""
        self._model = model
        patches, dim = model.grid.patches, model.embedding_dim
        windows = -(-model.grid.rows // _STRIDE) * -(-model.grid.cols // _STRIDE)
        shapes: dict[str, tuple[type[np.floating[Any]], tuple[int, ...]]] = {
            EMBEDDINGS: (np.float32, (pictures, dim)),
            PATCHES: (np.float16, (pictures, patches, dim)),
            WEIGHTS: (np.float16, (pictures, patches)),
            WINDOWS: (np.float16, (pictures, windows, dim)),
        }
        opened = {
            staging / name: open_growing(staging / name, shape, dtype)
            for name, (dtype, shape) in shapes.items()
        }
        self._files = {path: array for path, (array, _) in opened.items()}
        self._arrays = {path.name: array for path, array in self._files.items()}
        self.done = min(rows for _, rows in opened.values())
        """Number of written rows."""

    def add(self, part: _Vectors) -> None:
        """Write the next rows; raises `InvalidInputError` for vectors that are not finite."""
        rows = slice(self.done, self.done + len(part.wholes))
        self._arrays[EMBEDDINGS][rows] = normalised(part.wholes)
        self._arrays[PATCHES][rows] = part.patches
        self._arrays[WEIGHTS][rows] = part.weights
        self._arrays[WINDOWS][rows] = windows_of(part.patches, self._model.grid)
        patches = self._arrays[PATCHES][rows]
        if not (np.isfinite(part.wholes).all() and np.isfinite(patches).all()):
            raise InvalidInputError(
                f"{self._model.name} gives picture {rows.start} or one soon after it vectors that "
                "are not finite in half precision; use another model",
                field="clip",
            )
        self.done = rows.stop

    def commit(self, unit: int) -> None:
        """Record that the rows so far are complete."""
        for path, array in self._files.items():
            complete(array, path, self.done)

    def finish(self) -> None:
        """Flush the arrays, and delete the files with their numbers of complete rows."""
        for path, array in self._files.items():
            array.flush()
            path.with_suffix(DONE).unlink(missing_ok=True)


def _fill(
    writer: _ProbeWriter,
    model: ContrastiveModel,
    evidence: Evidence,
    batch_size: int,
    *,
    progress: bool,
) -> None:
    """Run the model over the pictures whose rows are not written yet."""
    runs = groupby(range(len(evidence.images)), evidence.thumbnail)
    inputs = [_Input(thumbnail, len([*rows])) for thumbnail, rows in runs]
    units, start = dict[int, Sequence[_Input]](), 0
    for unit in in_groups(inputs, batch_size * _UNIT_BATCHES):
        if start >= writer.done:
            units[start] = unit
        start += _rows(unit)
    of_probe = Pass(units, batch_size, _look(model), "probe", done=writer.done, size=_rows)
    of_probe.run(writer, progress=progress)


def _stored(store: ActivationStore) -> Iterator[_Vectors]:
    """The text-aligned vectors of a store, shard by shard."""
    shards = zip(store.shards, store.arrays(ALIGNED), store.arrays(ALIGNED_WEIGHTS), strict=True)
    for shard, patches, weights in shards:
        wholes = read_array(shard / EMBEDDING)
        vectors = store.checked(ALIGNED, patches).numpy()
        yield _Vectors(wholes, vectors, store.checked(ALIGNED_WEIGHTS, weights).numpy())


def make_probe(
    model: ContrastiveModel,
    evidence: Evidence,
    directory: Path,
    *,
    batch_size: int = 8,
    store: ActivationStore | None = None,
    progress: bool = True,
) -> Probe:
    """Embed the thumbnails of ``evidence`` and publish the probe at ``directory``.

    A finished probe of the same model and pictures is returned as it is, and an interrupted run is
    resumed. If another thread or process is making the probe, this call waits for it.

    With a ``store`` that was harvested with ``text_aligned`` from the same pictures by the same
    model, the vectors are taken from the store, where the pictures were larger than thumbnails.
    Raises `MismatchError` for any other store.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(f".{directory.name}.lock")):
        return _open_or_make(model, evidence, directory, batch_size, store, progress)


def _open_or_make(
    model: ContrastiveModel,
    evidence: Evidence,
    directory: Path,
    batch_size: int,
    store: ActivationStore | None,
    progress: bool,
) -> Probe:
    """`make_probe` while holding the lock."""
    if (published(directory) / MANIFEST).is_file():
        try:
            probe = Probe(directory)
            probe.check(model, evidence)
        except (MismatchError, CorruptArtifactError):
            pass  # a probe of other pictures, another model or another version is replaced below
        else:
            return probe
    check_output(directory, FORMAT, field="probe")
    if store:
        _check_store(store, model, evidence)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "model": model.identity(),
        "data_sha256": evidence.data_sha256,
        "images": len(evidence.images),
        "seen": "store" if store else "thumbnails",
    }
    plan = sha256_json([manifest, evidence.identity, batch_size, CODE_VERSION])
    with storing(directory):
        writer = _ProbeWriter(open_staging(directory, plan=plan), model, len(evidence.images))
        if store:
            for part in _stored(store):
                writer.add(part)
        else:
            _fill(writer, model, evidence, batch_size, progress=progress)
        writer.finish()
        publish(directory, manifest)
    return Probe(directory)


def _check_store(store: ActivationStore, model: ContrastiveModel, evidence: Evidence) -> None:
    """Raise `MismatchError` unless ``store`` holds the text-aligned vectors of ``model`` for the
    pictures of ``evidence``."""
    ids = [record.id for record in store.images]
    if not store.text_aligned:
        why = "was harvested without --text-aligned"
    elif sha256_json(store.manifest["model"]) != sha256_json(model.identity()):
        why = f"was harvested from {store.manifest['model']['name']}, not from this {model.name}"
    elif ids != [record.id for record in evidence.images] or (
        store.manifest["data_sha256"] != evidence.data_sha256
    ):
        why = f"holds other pictures than those of {evidence.name}"
    else:
        return
    raise MismatchError(
        f"{store.path} {why}; name another store, or none: then the pictures are looked at anew",
        field="probe_from",
    )
