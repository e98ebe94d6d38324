"""A layer of MILAN exemplars as evidence, so that its units can be described and scored here."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vision_sae.activations.store import ImageRecord
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.protocol import FIRINGS
from vision_sae.files import sha256_file, sha256_json
from vision_sae.labels.files.milan import EMPTY, IDS, MilanLayer
from vision_sae.labels.files.milan_layout import IMAGES
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.protocol import Model
from vision_sae.resources import site_resource

_BATCH = 16
_JPEG_QUALITY = 95


class _Thumbnails(Sequence[bytes]):
    """JPEGs of the pictures at some (row, slot) places, encoded on access."""

    def __init__(self, images: NDArray[np.uint8], places: NDArray[np.int64]) -> None:
        self._images, self._places = images, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        jpeg = io.BytesIO()
        self.picture(index).save(jpeg, "JPEG", quality=_JPEG_QUALITY)
        return jpeg.getvalue()

    def picture(self, index: int) -> Image.Image:
        """One stored picture."""
        row, slot = self._places[index]
        return Image.fromarray(np.ascontiguousarray(self._images[row, slot].transpose(1, 2, 0)))


def read_evidence(
    directory: Path, model: Model, *, name: str = "", side: int = 14
) -> ArrayEvidence:
    """A layer's exemplars as evidence, so that its units can be described and scored.

    Units keep their numbers; units missing from the files are silent. Each mask is reduced to a
    grid of ``side`` x ``side`` patches: a patch is in the mask if at least half of its pixels are.
    The files do not tell how a unit responds to other pictures; that counts as silence. ``name`` is
    the model of the units (the name of the root if empty). ``model`` embeds the pictures to find
    look-alikes, because the units' own model is not in the files.
    """
    layer = MilanLayer(directory)
    height, width = layer.images.shape[3:]
    if height % side or width % side:
        raise InvalidInputError(
            f"pictures of {width} x {height} pixels do not divide into {side} x {side} patches",
            field="side",
        )
    ids, places, numbers = _pictures(layer.picture_ids)
    grid = PatchGrid(side, side, 0, height // side, width // side)
    units = int(layer.units.max(initial=-1)) + 1
    kept = min(layer.exemplars, FIRINGS)
    peaks = np.zeros((units, len(ids)), dtype=np.float32)
    firing = np.full((units, kept), -1, dtype=np.int64)
    maps = np.zeros((units, kept, grid.patches), dtype=np.float32)
    for unit in layer.units.tolist():
        seen, own = layer.unit(unit), numbers[layer.row(unit)]
        order = np.argsort(-seen.activations, kind="stable")
        order = order[(seen.ids[order] != EMPTY) & (seen.activations[order] > 0)][:kept]
        np.maximum.at(peaks[unit], own[order], seen.activations[order])
        firing[unit, : len(order)] = own[order]
        regions = _patches(seen.masks[order], grid)
        maps[unit, : len(order)] = regions * seen.activations[order, None]
    thumbnails = _Thumbnails(layer.images, places)
    digests = {p.name: sha256_file(p) for p in layer.files}
    return ArrayEvidence(
        name=site_resource(name or directory.resolve().parent.name, layer.layer),
        identity=sha256_json([layer.layer, digests, grid.to_json(), model.identity()]),
        data_sha256=sha256_json([digests[IMAGES], digests.get(IDS)]),
        site=layer.layer,
        images=[ImageRecord(str(i), width, height, "", ()) for i in ids.tolist()],
        grid=grid,
        preprocessing=Preprocessing(height, width, crop_mode="squash"),
        thumbnails=thumbnails,
        embeddings=_embeddings(thumbnails, model),
        all_peaks=peaks,
        firing_images=firing,
        maps=maps,
        thresholds=_thresholds(maps),
    )


def _pictures(
    ids: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The distinct pictures of ids (units, k): their ids (N), the row and slot of each (N, 2), and
    the picture number at each place (units, k), undefined for padding."""
    distinct, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    inverse, real = inverse.reshape(ids.shape), distinct != EMPTY
    numbers = np.cumsum(real) - 1
    places = np.stack(np.unravel_index(first[real], ids.shape), axis=1)
    return distinct[real], places, numbers[inverse]


def _patches(masks: NDArray[np.bool_], grid: PatchGrid) -> NDArray[np.bool_]:
    """Masks (n, H, W) in pixels -> masks of patches (n, patches), each with at least one patch.

    If no patch is half covered, the best covered patches count; an empty mask counts as all
    patches.
    """
    shape = (len(masks), grid.rows, grid.patch_height, grid.cols, grid.patch_width)
    shares = masks.reshape(shape).mean((2, 4)).reshape(len(masks), grid.patches)
    return np.asarray(shares >= np.minimum(0.5, shares.max(1, keepdims=True, initial=0)))


def _thresholds(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The smallest positive activation of each unit (units), so that every active patch is in a
    mask."""
    positive = np.where(maps > 0, maps, np.inf).min(axis=(1, 2), initial=np.inf)
    return np.where(np.isfinite(positive), positive, 0).astype(np.float32)


def _embeddings(thumbnails: _Thumbnails, model: Model) -> NDArray[np.float32]:
    """Embeddings of all pictures (N, E), computed in batches."""
    embeddings = []
    with torch.inference_mode():
        for start in range(0, len(thumbnails), _BATCH):
            batch = range(start, min(start + _BATCH, len(thumbnails)))
            inputs = torch.stack([model.preprocess(thumbnails.picture(i)) for i in batch])
            embeddings.append(model.forward(inputs.to(model.device)).embedding.float().cpu())
    return np.asarray(torch.cat(embeddings)) if embeddings else np.zeros((0, 0), dtype=np.float32)
