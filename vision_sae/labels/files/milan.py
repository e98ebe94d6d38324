"""MILAN's exemplar layout (Hernandez et al. 2022): one directory per layer below a root.

``images.npy`` is uint8 (units, k, 3, H, W). ``masks.npy`` (units, k, 1, H, W) is nonzero where the
unit fires. ``units.npy`` (units) holds the unit numbers; without that file they are 0, 1, 2...
``ids.csv`` and ``activations.csv`` have no header and one row per unit: the number of each picture
in its data set, and its activation. Both files may be absent. The name of a layer is the name of
its directory, even if the name is a number.

Layers of real networks take gigabytes, so arrays are memory-mapped and written one unit at a time.
A unit with fewer than k pictures is padded with black pictures, empty masks and the id -1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_sae.arrays import new_array
from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError, shortened
from vision_sae.evidence.protocol import Evidence, Firing, split
from vision_sae.files import publishing
from vision_sae.labels.files.milan_layout import IMAGES, MASKS
from vision_sae.pictures.decode import decode_image
from vision_sae.places import check_collection, check_output, check_replaceable

FORMAT = "milan.exemplars"
UNITS = "units.npy"
IDS, ACTIVATIONS = "ids.csv", "activations.csv"
EXEMPLARS = 15
"""Number of pictures of a unit, MILAN's k."""
SIZE = 224
"""Side of a picture in pixels."""
EMPTY = -1
"""The id of padding."""
_MOST_UNITS = 10_000_000
"""Largest number of a unit; evidence has a row for every number up to the largest."""


class UnitExemplars(NamedTuple):
    """The pictures of one unit, in the order of the file."""

    images: NDArray[np.uint8]
    """(k, 3, H, W)"""
    masks: NDArray[np.bool_]
    """(k, H, W)"""
    ids: NDArray[np.int64]
    """Number of each picture (k); `EMPTY` for padding."""
    activations: NDArray[np.float32]
    """(k); 1 without ``activations.csv``."""


class MilanLayer:
    """The exemplars of one layer, memory-mapped."""

    def __init__(self, directory: Path) -> None:
        """Open ``root/layer``. Raises `NotFoundError`, and `CorruptArtifactError` naming the
        file."""
        self.path, self.layer = directory, directory.name
        self.images, self.masks = (_mapped(directory / name) for name in (IMAGES, MASKS))
        self._check_shapes()
        count, self.exemplars = self.images.shape[:2]
        units = directory / UNITS
        self.units = _numbers(units) if units.is_file() else np.arange(count)
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
        if self.masks.dtype.kind not in "biuf":
            raise CorruptArtifactError(f"{self.path / MASKS} holds {self.masks.dtype}, not numbers")
        if masks != (*images[:2], 1, *images[3:]):
            raise CorruptArtifactError(
                f"{self.path / MASKS} has shape {masks}, not {(*images[:2], 1, *images[3:])} to "
                "match the images"
            )

    def _check_tables(self) -> None:
        count, k = self.images.shape[:2]
        if self.units.shape != (count,) or len(np.unique(self.units)) != count:
            raise CorruptArtifactError(
                f"{self.path / UNITS} must number each of the {count} units differently"
            )
        for name, table in ((IDS, self.ids), (ACTIVATIONS, self.activations)):
            if table is not None and table.shape != (count, k):
                raise CorruptArtifactError(
                    f"{self.path / name} has shape {table.shape}, not {(count, k)} as the pictures"
                )
        if self.activations is not None and not np.isfinite(self.activations).all():
            row, column = np.argwhere(~np.isfinite(self.activations))[0]
            raise CorruptArtifactError(
                f"{self.path / ACTIVATIONS}, line {row + 1}, column {column + 1}: not finite"
            )

    def row(self, unit: int) -> int:
        """The row of a unit in the arrays."""
        if unit not in self._row:
            raise NotFoundError(
                f"layer {self.layer} in {self.path} has no unit {unit}", field="unit"
            )
        return self._row[unit]

    def unit(self, unit: int) -> UnitExemplars:
        """The exemplars of a unit; pictures stay memory-mapped."""
        row = self.row(unit)
        activations = np.ones(self.exemplars, dtype=np.float32)
        if self.activations is not None:
            activations = self.activations[row]
        masks = self.masks[row, :, 0] != 0
        return UnitExemplars(self.images[row], masks, self.picture_ids[row], activations)

    @property
    def files(self) -> list[Path]:
        """The existing files of the layout."""
        names = (IMAGES, MASKS, UNITS, IDS, ACTIVATIONS)
        return [self.path / name for name in names if (self.path / name).is_file()]

    @property
    def picture_ids(self) -> NDArray[np.int64]:
        """`ids`, or consecutive numbers without ``ids.csv`` (units, k)."""
        if self.ids is not None:
            return self.ids
        return np.arange(len(self.units) * self.exemplars).reshape(-1, self.exemplars)


def layers(root: Path) -> list[str]:
    """The layers below ``root``, by name. Raises `NotFoundError` if there is none."""
    names = sorted(p.parent.name for p in root.glob(f"*/{IMAGES}") if p.parent.name[0] != ".")
    if not names:
        raise NotFoundError(f"{root} holds no layer: no */{IMAGES}", field="exemplars")
    return names


def _mapped(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise NotFoundError(f"{path} is missing; MILAN's layout needs it", field="exemplars")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise CorruptArtifactError(f"{path} is not a NumPy array ({error})") from error
    if not isinstance(array, np.ndarray):
        raise CorruptArtifactError(f"{path} holds several NumPy arrays, not one")
    return array


def _numbers(path: Path) -> NDArray[np.int64]:
    """The unit numbers in a file."""
    numbers = _mapped(path)
    if numbers.dtype.kind not in "iu":
        raise CorruptArtifactError(f"{path} holds {numbers.dtype}, not integers")
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < _MOST_UNITS:
        raise CorruptArtifactError(
            f"{path} has units from {numbers.min()} to {numbers.max()}; they count from 0 to "
            f"{_MOST_UNITS} at most"
        )
    return np.array(numbers, dtype=np.int64)


def _table(path: Path, dtype: type[np.generic]) -> NDArray[Any] | None:
    if not path.is_file():
        return None
    try:
        return np.loadtxt(path, dtype=dtype, delimiter=",", ndmin=2)
    except ValueError as error:
        raise CorruptArtifactError(
            f"{path} is not a table of numbers ({shortened(str(error))})"
        ) from error


def write_exemplars(
    evidence: Evidence,
    root: Path,
    units: Sequence[int],
    *,
    layer: str = "",
    exemplars: int = EXEMPLARS,
    size: int = SIZE,
    overwrite: bool = False,
) -> Path:
    """Write the strongest firings of ``units`` as MILAN's exemplars; return the directory.

    The firings come from the describing side only, so that labels made from the exemplars can be
    scored on the other sides. The layer is named ``layer``, or after the evidence's site. Each
    picture is the model's crop, made from the thumbnail. ``overwrite`` allows replacing exemplars.
    """
    layer = layer or evidence.site
    if Path(layer).name != layer or layer.startswith("."):
        raise InvalidInputError(f"a layer cannot be named {layer!r}", field="layer")
    if not units or len(set(units)) != len(units):
        raise InvalidInputError("name at least one unit, and each unit once", field="units")
    directory, rows = root / layer, sorted(units)
    seen = (split(evidence, unit).describe[:exemplars] for unit in rows)
    check_collection(root, FORMAT)
    check_replaceable(directory, check_output(directory, FORMAT), overwrite=overwrite)
    with publishing(directory) as (staging, manifest):
        _write(staging, rows, (_exemplars(evidence, s, size) for s in seen), exemplars, size)
        manifest |= {
            "format": FORMAT,
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
    staging: Path, units: list[int], rows: Iterable[list[_Exemplar]], k: int, size: int
) -> None:
    images, masks = (
        new_array(staging / name, (len(units), k, channels, size, size), np.uint8)
        for name, channels in ((IMAGES, 3), (MASKS, 1))
    )
    np.save(staging / UNITS, np.array(units, dtype=np.int64), allow_pickle=False)
    with (staging / IDS).open("w") as ids, (staging / ACTIVATIONS).open("w") as activations:
        for row, exemplars in enumerate(rows):
            for slot, exemplar in enumerate(exemplars):
                images[row, slot], masks[row, slot, 0] = exemplar.image, exemplar.mask
            missing = k - len(exemplars)
            numbers = [e.number for e in exemplars] + [EMPTY] * missing
            values = [e.activation for e in exemplars] + [0.0] * missing
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
    """The model's crop of a picture (3, size, size); padding is black."""
    picture = decode_image(evidence.thumbnail(image))
    at, grid = evidence.geometry(image), evidence.grid
    # Pixels of the thumbnail per pixel of the resized picture.
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
    """A mask (rows, cols) enlarged to pixels (size, size)."""
    rows, cols = (np.arange(size) * side // size for side in mask.shape)
    return mask[np.ix_(rows, cols)]
