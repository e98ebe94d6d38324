"""MILAN's exemplar layout (Hernandez et al. 2022), one directory a layer below a root.

``images.npy`` uint8 (units, k, 3, H, W) and ``masks.npy`` (units, k, 1, H, W), not zero where the
unit fires; ``units.npy`` (units) says which units these are, 0, 1, 2... where it is absent.
``ids.csv`` and ``activations.csv``, without header, hold the number of each picture in its data set
and its activation, one row a unit; both may be absent. Layers are named by their directory, also
where that is a number.

Layers of real networks hold gigabytes: arrays are mapped, read and written one unit at a time. A
unit of fewer than k pictures is written with black ones, empty masks and the id -1 in their places.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image

from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.evidence.arrays import ArrayEvidence
from vision_sae.descriptions.evidence.protocol import FIRINGS, Evidence, Firing, split
from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from vision_sae.files import publishing, sha256_file, sha256_json
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.protocol import Model
from vision_sae.pictures.decode import decode_image
from vision_sae.resources import site_resource

IMAGES, MASKS, UNITS = "images.npy", "masks.npy", "units.npy"
IDS, ACTIVATIONS = "ids.csv", "activations.csv"
EXEMPLARS = 15
"""Pictures of a unit, MILAN's k."""
SIZE = 224
"""Side of a picture in pixels."""
EMPTY = -1
"""The id in a place without a picture."""

_BATCH = 16
_JPEG_QUALITY = 95


class UnitExemplars(NamedTuple):
    """The pictures of one unit, in the order of the file."""

    images: NDArray[np.uint8]
    """(k, 3, H, W)"""
    masks: NDArray[np.bool_]
    """(k, H, W)"""
    ids: NDArray[np.int64]
    """Number of each picture (k); `EMPTY` where there is none."""
    activations: NDArray[np.float32]
    """(k); 1 where the files do not tell."""


class MilanLayer:
    """The exemplars of one layer, mapped."""

    def __init__(self, directory: Path) -> None:
        """Open ``root/layer``; raises `NotFoundError`, or `CorruptArtifactError` with the file."""
        self.path, self.layer = directory, directory.name
        self.images, self.masks = (_mapped(directory / name) for name in (IMAGES, MASKS))
        self._check_shapes()
        count, self.exemplars = self.images.shape[:2]
        units = directory / UNITS
        self.units: NDArray[np.int64] = np.load(units) if units.is_file() else np.arange(count)
        """Number of each unit (units)."""
        self.ids = _table(directory / IDS, np.int64)
        """Number of each picture (units, k); None without ``ids.csv``."""
        self.activations = _table(directory / ACTIVATIONS, np.float32)
        """(units, k); None without ``activations.csv``."""
        self._check_tables()
        self._row = {int(unit): row for row, unit in enumerate(self.units)}

    def _check_shapes(self) -> None:
        images, masks = self.images.shape, self.masks.shape
        if len(images) != 5 or images[2] != 3 or self.images.dtype != np.uint8:
            raise CorruptArtifactError(
                f"{self.path / IMAGES} holds {self.images.dtype} {images}, not uint8 "
                "(units, k, 3, height, width)"
            )
        if masks != (*images[:2], 1, *images[3:]):
            raise CorruptArtifactError(
                f"{self.path / MASKS} has shape {masks}, not {(*images[:2], 1, *images[3:])} as "
                "the images ask for"
            )

    def _check_tables(self) -> None:
        count, k = self.images.shape[:2]
        if self.units.shape != (count,) or len(np.unique(self.units)) != count:
            raise CorruptArtifactError(
                f"{self.path / UNITS} must name each of the {count} units once"
            )
        for name, table in ((IDS, self.ids), (ACTIVATIONS, self.activations)):
            if table is not None and table.shape != (count, k):
                raise CorruptArtifactError(
                    f"{self.path / name} has shape {table.shape}, not {(count, k)} as the images"
                )

    def row(self, unit: int) -> int:
        """Where a unit stands in the arrays."""
        if unit not in self._row:
            raise NotFoundError(
                f"layer {self.layer} in {self.path} has no unit {unit}", field="unit"
            )
        return self._row[unit]

    def unit(self, unit: int) -> UnitExemplars:
        """The pictures of a unit, read from the disk."""
        row = self.row(unit)
        return UnitExemplars(
            np.array(self.images[row]),
            self.masks[row, :, 0] != 0,
            self.picture_ids[row],
            np.ones(self.exemplars, np.float32) if self.activations is None
            else self.activations[row],
        )  # fmt: skip

    @property
    def picture_ids(self) -> NDArray[np.int64]:
        """`ids`, or numbers of their own where the files do not tell (units, k)."""
        if self.ids is not None:
            return self.ids
        return np.arange(len(self.units) * self.exemplars).reshape(-1, self.exemplars)


def layers(root: Path) -> list[str]:
    """The layers below ``root``, by name; raises `NotFoundError` when there is none."""
    found = sorted(p.parent.name for p in root.glob(f"*/{IMAGES}") if p.parent.name[0] != ".")
    if not found:
        raise NotFoundError(f"{root} holds no layer: no */{IMAGES}", field="exemplars")
    return found


def _mapped(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise NotFoundError(f"{path} is missing; MILAN's layout needs it", field="exemplars")
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError as error:
        raise CorruptArtifactError(f"{path} is no NumPy array ({error})") from error


def _table(path: Path, dtype: type[np.generic]) -> NDArray[Any] | None:
    if not path.is_file():
        return None
    try:
        return np.loadtxt(path, delimiter=",", ndmin=2).astype(dtype)
    except ValueError as error:
        raise CorruptArtifactError(f"{path} is no table of numbers ({error})") from error


# Reading a layer as evidence


class _Thumbnails(Sequence[bytes]):
    """JPEGs of the pictures that stand at some (row, slot), made when asked for."""

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
        """One picture as it is stored."""
        row, slot = self._places[index]
        return Image.fromarray(np.ascontiguousarray(self._images[row, slot].transpose(1, 2, 0)))


def read_evidence(
    directory: Path, model: Model, *, name: str = "", side: int = 14
) -> ArrayEvidence:
    """A layer's exemplars as evidence, so that its units can be described and scored.

    Units keep their numbers; those that the files leave out are silent. Each mask is laid on a grid
    of ``side`` x ``side`` patches: a patch belongs to it when at least half of it does. What a
    unit does in pictures beside its own exemplars is not in the files and counts as silence.
    ``name`` is the model the units belong to (the root's name when empty). ``model`` embeds the
    pictures, since the units' own is not in the files; look-alikes are found by it.
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
    maps = np.zeros((units, kept, grid.patches), dtype=np.float16)
    for unit in layer.units.tolist():
        seen, own = layer.unit(unit), numbers[layer.row(unit)]
        order = np.argsort(-seen.activations, kind="stable")
        order = order[(seen.ids[order] != EMPTY) & (seen.activations[order] > 0)][:kept]
        np.maximum.at(peaks[unit], own[order], seen.activations[order])
        firing[unit, : len(order)] = own[order]
        regions = _patches(seen.masks[order], grid)
        maps[unit, : len(order)] = regions * seen.activations[order, None]
    thumbnails = _Thumbnails(layer.images, places)
    digests = {p.name: sha256_file(p) for p in _files(directory)}
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


def _files(directory: Path) -> list[Path]:
    names = (IMAGES, MASKS, UNITS, IDS, ACTIVATIONS)
    return [directory / name for name in names if (directory / name).is_file()]


def _pictures(
    ids: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The distinct pictures of (units, k) ids: their ids (N), where each stands (N, 2) as row and
    slot, and the number of each place (units, k), meaningless in empty ones."""
    distinct, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    inverse, real = inverse.reshape(ids.shape), distinct != EMPTY
    numbers = np.cumsum(real) - 1
    places = np.stack(np.unravel_index(first[real], ids.shape), axis=1)
    return distinct[real], places, numbers[inverse]


def _patches(masks: NDArray[np.bool_], grid: PatchGrid) -> NDArray[np.bool_]:
    """Masks (n, H, W) in pixels -> which patches they are (n, patches), at least one each.

    Where no patch is half covered, the best covered ones count; of an empty mask, all.
    """
    shape = (len(masks), grid.rows, grid.patch_height, grid.cols, grid.patch_width)
    shares = masks.reshape(shape).mean((2, 4)).reshape(len(masks), grid.patches)
    return np.asarray(shares >= np.minimum(0.5, shares.max(1, keepdims=True, initial=0)))


def _thresholds(maps: NDArray[np.float16]) -> NDArray[np.float32]:
    """The smallest activation of each unit's maps (units): every active patch is in a mask."""
    positive = np.where(maps > 0, maps, np.inf).min(axis=(1, 2), initial=np.inf)
    return np.where(np.isfinite(positive), positive, 0).astype(np.float32)


def _embeddings(thumbnails: _Thumbnails, model: Model) -> NDArray[np.float32]:
    """Of all pictures (N, E), some at a time."""
    made = []
    with torch.inference_mode():
        for start in range(0, len(thumbnails), _BATCH):
            batch = range(start, min(start + _BATCH, len(thumbnails)))
            inputs = torch.stack([model.preprocess(thumbnails.picture(i)) for i in batch])
            made.append(model.forward(inputs.to(model.device)).embedding.float().cpu())
    return np.asarray(torch.cat(made)) if made else np.zeros((0, 0), dtype=np.float32)


# Writing evidence as a layer


def write_exemplars(
    evidence: Evidence,
    root: Path,
    units: Sequence[int],
    *,
    layer: str = "",
    exemplars: int = EXEMPLARS,
    size: int = SIZE,
    choose: Callable[[Evidence, int], Sequence[Firing]] = lambda e, u: split(e, u).describe,
) -> Path:
    """Write the strongest firings of ``units`` as MILAN's exemplars; gives the directory.

    The layer is named ``layer``, or by the evidence's site. ``choose`` says which firings of a unit
    count: those that describers may see, so that what describes them elsewhere can be scored here.
    Each picture is what the model was shown of it, made from its thumbnail.
    """
    layer = layer or evidence.site
    if Path(layer).name != layer or layer.startswith("."):
        raise InvalidInputError(f"a layer cannot be named {layer!r}", field="layer")
    if not units or len(set(units)) != len(units):
        raise InvalidInputError("name each unit once, and one at least", field="units")
    directory, rows = root / layer, sorted(units)
    root.mkdir(parents=True, exist_ok=True)
    with publishing(directory) as (staging, manifest):
        _write(staging, rows, exemplars, size, (
            _exemplars(evidence, choose(evidence, unit)[:exemplars], size) for unit in rows
        ))  # fmt: skip
        manifest |= {
            "format": "milan.exemplars",
            "evidence": evidence.name,
            "evidence_identity": evidence.identity,
        }
    return directory


class _Exemplar(NamedTuple):
    image: NDArray[np.uint8]
    """(3, size, size)"""
    mask: NDArray[np.bool_]
    """(size, size)"""
    number: int
    activation: float


def _write(
    staging: Path, units: list[int], k: int, size: int, rows: Iterable[list[_Exemplar]]
) -> None:
    images, masks = (
        open_memmap(
            staging / name, mode="w+", dtype=np.uint8, shape=(len(units), k, channels, size, size)
        )
        for name, channels in ((IMAGES, 3), (MASKS, 1))
    )
    np.save(staging / UNITS, np.array(units, dtype=np.int64), allow_pickle=False)
    with (staging / IDS).open("w") as ids, (staging / ACTIVATIONS).open("w") as activations:
        for row, found in enumerate(rows):
            for slot, exemplar in enumerate(found):
                images[row, slot], masks[row, slot, 0] = exemplar.image, exemplar.mask
            missing = k - len(found)
            numbers = [e.number for e in found] + [EMPTY] * missing
            values = [e.activation for e in found] + [0.0] * missing
            ids.write(",".join(f"{n}" for n in numbers) + "\n")
            activations.write(",".join(f"{v:.5e}" for v in values) + "\n")
    images.flush()
    masks.flush()


def _exemplars(evidence: Evidence, firings: Sequence[Firing], size: int) -> list[_Exemplar]:
    return [
        _Exemplar(
            _shown(evidence, firing.image, size),
            _enlarged(firing.mask, size),
            firing.image,
            firing.activation,
        )
        for firing in firings
    ]


def _shown(evidence: Evidence, image: int, size: int) -> NDArray[np.uint8]:
    """What the model was shown of a picture (3, size, size); black where it was padded."""
    picture, at, grid = (
        decode_image(evidence.thumbnail(image)),
        evidence.geometry(image),
        evidence.grid,
    )
    across, down = picture.width / at.width / at.scale_x, picture.height / at.height / at.scale_y
    width, height = grid.cols * grid.patch_width, grid.rows * grid.patch_height
    box = (
        round(at.left * across),
        round(at.top * down),
        max(round((at.left + width) * across), round(at.left * across) + 1),
        max(round((at.top + height) * down), round(at.top * down) + 1),
    )
    crop = picture.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(crop).transpose(2, 0, 1)


def _enlarged(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """A mask (rows, cols) in pixels (size, size)."""
    rows, cols = (np.arange(size) * side // size for side in mask.shape)
    return mask[np.ix_(rows, cols)]
