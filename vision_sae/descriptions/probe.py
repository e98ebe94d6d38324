"""The data set as a contrastive model sees it: every picture, and every patch of it, as a vector.

A unit's evidence is a mask over the patches of the unit's own model. The contrastive model has
another grid, and often crops otherwise; both lie in the same original picture, where the mask is
carried over by overlapping area. Both grids are made of upright boxes, so that the area that patch
(R, C) of one and (r, c) of the other share is ``vertical[R, r] * horizontal[C, c]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from vision_sae.activations.store import ALIGNED, ALIGNED_WEIGHTS, EMBEDDING, ActivationStore
from vision_sae.arrays import new_array, read_array
from vision_sae.descriptions.evidence.protocol import Evidence, Firing
from vision_sae.errors import CorruptArtifactError, InvalidInputError, MismatchError, NotFoundError
from vision_sae.files import (
    MANIFEST,
    published,
    publishing,
    read_json,
    sha256_file,
    sha256_json,
    verify_files,
)
from vision_sae.models.grid import Geometry, PatchGrid, Preprocessing
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.models.similarity import embed_in_pieces
from vision_sae.pictures.decode import decode_image
from vision_sae.places import check_output
from vision_sae.threads import side_by_side
from vision_sae.vectors import normalised

FORMAT = "vision_sae.probe"
VERSION = 2

EMBEDDINGS = "embeddings.npy"
PATCHES = "patches.npy"
WEIGHTS = "weights.npy"
WINDOWS = "windows.npy"

_WINDOW, _STRIDE = 3, 2
"""Side of a window in patches, and how far the next one is."""


class Overlaps(NamedTuple):
    """Shared lengths, in pixels of the original picture, of the rows and columns of two grids."""

    vertical: NDArray[np.float32]
    """(rows of the one, rows of the other)"""
    horizontal: NDArray[np.float32]
    """(columns of the one, columns of the other)"""


def _edges(patches: int, side: int, cut: int, scale: float, limit: int) -> NDArray[np.float64]:
    """Where the rows or columns of a grid begin and end in the original picture (patches + 1)."""
    return np.clip((np.arange(patches + 1) * side + cut) / scale, 0, limit)


def _shared(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float32]:
    """Lengths of the intersections of the intervals between these edges."""
    ends = np.minimum(one[1:, None], other[None, 1:])
    starts = np.maximum(one[:-1, None], other[None, :-1])
    return np.asarray(np.maximum(ends - starts, 0), dtype=np.float32)


@lru_cache(maxsize=1024)
def overlaps(
    grid: PatchGrid, geometry: Geometry, other: PatchGrid, other_geometry: Geometry
) -> Overlaps:
    """How two grids overlap in an original picture; both geometries are of this picture."""

    def rows(g: PatchGrid, at: Geometry) -> NDArray[np.float64]:
        return _edges(g.rows, g.patch_height, at.top, at.scale_y, at.height)

    def columns(g: PatchGrid, at: Geometry) -> NDArray[np.float64]:
        return _edges(g.cols, g.patch_width, at.left, at.scale_x, at.width)

    return Overlaps(
        _shared(rows(grid, geometry), rows(other, other_geometry)),
        _shared(columns(grid, geometry), columns(other, other_geometry)),
    )


class Probe:
    """A published probe; arrays are mapped read-only. N pictures, P patches each."""

    def __init__(self, path: Path) -> None:
        self.path = published(path)
        if not (self.path / MANIFEST).is_file():
            raise NotFoundError(f"{path} is not a finished probe; make it again", field="probe")
        self.manifest: dict[str, Any] = read_json(self.path / MANIFEST)
        if self.manifest.get("format") != FORMAT or self.manifest.get("version") != VERSION:
            raise CorruptArtifactError(f"{path} is not a {FORMAT} of version {VERSION}")
        self.identity = sha256_file(self.path / MANIFEST)
        self.grid = PatchGrid(**self.manifest["model"]["grid"])
        self.preprocessing = Preprocessing(**self.manifest["model"]["preprocessing"])
        self.embeddings: NDArray[np.float32] = read_array(self.path / EMBEDDINGS)
        """Pictures (N, E), of unit length."""
        self.patches: NDArray[np.float16] = read_array(self.path / PATCHES)
        """Their patches (N, P, E), not normalised."""
        self.weights: NDArray[np.float16] = read_array(self.path / WEIGHTS)
        """What each patch contributes to a region (N, P)."""
        self.windows: NDArray[np.float16] = read_array(self.path / WINDOWS)
        """Places all over the pictures (N, R, E); see `windows_of`."""

    def verify(self) -> None:
        """Check every file against the manifest; raises `CorruptArtifactError` with its name."""
        verify_files(self.path, self.manifest["files"])

    def check(self, model: ContrastiveModel, evidence: Evidence) -> None:
        """Raise `MismatchError` unless this is how ``model`` sees the pictures of ``evidence``."""
        if self.manifest["data_sha256"] != evidence.data_sha256:
            raise MismatchError(
                f"{self.path} holds other pictures than those of {evidence.name}; make a probe of "
                "these",
                field="probe",
            )
        if sha256_json(self.manifest["model"]) != sha256_json(model.identity()):
            raise MismatchError(
                f"{self.path} was made with {self.manifest['model']['name']}, not with this "
                f"{model.name}; make it again",
                field="probe",
            )

    def cover(self, evidence: Evidence, firing: Firing) -> NDArray[np.float32]:
        """How much of each patch (P) a firing's mask covers, in pixels of the original picture.

        Where the mask lies wholly outside what the contrastive model was shown, the patch nearest
        to its middle counts as covered.
        """
        record, there = evidence.images[firing.image], evidence.geometry(firing.image)
        here = self.preprocessing.geometry(record.width, record.height)
        shared = overlaps(self.grid, here, evidence.grid, there)
        area = shared.vertical @ firing.mask.astype(np.float32) @ shared.horizontal.T
        if not area.any():
            x0, y0, x1, y1 = evidence.grid.boxes(there)[firing.mask.reshape(-1)].mean(0).tolist()
            covered = np.zeros(self.grid.patches, dtype=np.float32)
            covered[self.grid.nearest((x0 + x1) / 2, (y0 + y1) / 2, here)] = 1
            return covered
        return np.asarray(area.reshape(-1))

    def regions(self, evidence: Evidence, firings: Sequence[Firing]) -> NDArray[np.float32]:
        """The masked region of each firing as one vector of unit length (n, E)."""
        vectors = np.zeros((len(firings), self.patches.shape[2]), dtype=np.float32)
        for vector, firing in zip(vectors, firings, strict=True):
            cover = self.cover(evidence, firing)
            shares = cover * self.weights[firing.image].astype(np.float32)
            if not shares.any():  # an attention that looks away from all of the region
                shares = cover
            (chosen,) = np.nonzero(shares)
            vector[:] = shares[chosen] @ self.patches[firing.image][chosen].astype(np.float32)
        return normalised(vectors)


def windows_of(patches: NDArray[np.floating[Any]], grid: PatchGrid) -> NDArray[np.float32]:
    """The patches (n, P, E) of pictures by the window -> (n, R, E): squares of 3 x 3 around every
    second patch of every second row, cut off at the border, each the mean of its patches'
    directions. So a text's product with a window is its mean cosine with the patches there.
    """
    directions = torch.nn.functional.normalize(torch.from_numpy(np.float32(patches)), dim=2)
    maps = directions.transpose(1, 2).unflatten(2, (grid.rows, grid.cols))
    means = torch.nn.functional.avg_pool2d(
        maps, _WINDOW, _STRIDE, padding=_WINDOW // 2, count_include_pad=False
    )
    return np.asarray(means.flatten(2).transpose(1, 2).numpy())


class _Seen(NamedTuple):
    """What the model sees in some rows of the evidence, which follow each other."""

    wholes: NDArray[np.float32]
    """(n, E)"""
    patches: NDArray[np.floating[Any]]
    """(n, P, E)"""
    weights: NDArray[np.floating[Any]]
    """(n, P)"""


def _seen(
    model: ContrastiveModel, evidence: Evidence, size: int, progress: bool
) -> Iterator[_Seen]:
    """Run the model over all pictures, ``size`` at a time.

    Rows that follow each other with the same picture, as the steps of a generation do, are one
    input.
    """
    count = len(evidence.images)
    runs = [(data, len([*rows])) for data, rows in groupby(range(count), evidence.thumbnail)]

    def see(some: Sequence[tuple[bytes, int]]) -> _Seen:
        inputs = torch.stack([model.preprocess(decode_image(data)) for data, _ in some])
        with torch.inference_mode():
            vectors, weights, whole = embed_in_pieces(model, inputs.to(model.device))
        times = [rows for _, rows in some]
        return _Seen(*(x.float().cpu().numpy().repeat(times, 0) for x in (whole, vectors, weights)))

    batches = [runs[first : first + size] for first in range(0, len(runs), size)]
    workers = torch.get_num_threads() if model.device.type == "cpu" else 1
    with tqdm(total=count, desc="probe", unit="img", disable=not progress) as bar:
        for seen in side_by_side(see, batches, workers):
            yield seen
            bar.update(len(seen.wholes))


def _kept(store: ActivationStore) -> Iterator[_Seen]:
    """What a store kept of what the model saw, shard by shard."""
    shards = zip(store.shards, store.arrays(ALIGNED), store.arrays(ALIGNED_WEIGHTS), strict=True)
    for shard, patches, weights in shards:
        wholes = read_array(shard / EMBEDDING)
        vectors = store.checked(ALIGNED, patches).numpy()
        yield _Seen(wholes, vectors, store.checked(ALIGNED_WEIGHTS, weights).numpy())


def _write(staging: Path, parts: Iterator[_Seen], model: ContrastiveModel, count: int) -> None:
    """Write the arrays of a probe of ``count`` pictures."""
    patches, dim = model.grid.patches, model.embedding_dim
    windows = -(-model.grid.rows // _STRIDE) * -(-model.grid.cols // _STRIDE)
    shapes: dict[str, tuple[type[np.floating[Any]], tuple[int, ...]]] = {
        EMBEDDINGS: (np.float32, (count, dim)),
        PATCHES: (np.float16, (count, patches, dim)),
        WEIGHTS: (np.float16, (count, patches)),
        WINDOWS: (np.float16, (count, windows, dim)),
    }
    files = {
        name: new_array(staging / name, of_array, dtype)
        for name, (dtype, of_array) in shapes.items()
    }
    done = 0
    for seen in parts:
        rows = slice(done, done := done + len(seen.wholes))
        files[EMBEDDINGS][rows] = normalised(seen.wholes)
        files[PATCHES][rows] = seen.patches
        files[WEIGHTS][rows] = seen.weights
        files[WINDOWS][rows] = windows_of(seen.patches, model.grid)
        if not (np.isfinite(seen.wholes).all() and np.isfinite(files[PATCHES][rows]).all()):
            raise InvalidInputError(
                f"{model.name} gives picture {rows.start} or one soon after it vectors that are "
                "not finite in half precision; use another model",
                field="clip",
            )
    for array in files.values():
        array.flush()


def make_probe(
    model: ContrastiveModel,
    evidence: Evidence,
    directory: Path,
    *,
    batch_size: int = 8,
    store: ActivationStore | None = None,
    progress: bool = True,
) -> Probe:
    """Embed the pictures of ``evidence`` (their thumbnails) and publish the probe at ``directory``.

    A probe that is there already, of the same model and pictures, is used as it is. A ``store``
    that was harvested with ``text_aligned`` from these pictures by this model has seen them, larger
    than thumbnails: its vectors are taken; of others it is a `MismatchError`. Whoever asks while
    another thread or process makes it waits for that.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(f".{directory.name}.lock")):
        return _found_or_made(model, evidence, directory, batch_size, store, progress)


def _found_or_made(
    model: ContrastiveModel,
    evidence: Evidence,
    directory: Path,
    batch_size: int,
    store: ActivationStore | None,
    progress: bool,
) -> Probe:
    """`make_probe`, with nobody else at it."""
    if (published(directory) / MANIFEST).is_file():
        try:
            probe = Probe(directory)
            probe.check(model, evidence)
        except (MismatchError, CorruptArtifactError):
            pass  # of something else, or of another version: made anew below
        else:
            return probe
    check_output(directory, FORMAT, field="probe")
    count = len(evidence.images)
    if store:
        _check_store(store, model, evidence)
        parts = _kept(store)
    else:
        parts = _seen(model, evidence, batch_size, progress)
    with publishing(directory) as (staging, manifest):
        _write(staging, parts, model, count)
        manifest |= {
            "format": FORMAT,
            "version": VERSION,
            "model": model.identity(),
            "data_sha256": evidence.data_sha256,
            "images": count,
            "seen": "store" if store else "thumbnails",
        }
    return Probe(directory)


def _check_store(store: ActivationStore, model: ContrastiveModel, evidence: Evidence) -> None:
    """Raise `MismatchError` unless ``store`` kept how ``model`` sees the pictures of
    ``evidence``."""
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
