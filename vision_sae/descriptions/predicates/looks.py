"""The looks of a patch, measured in pixels: colour, light, texture, place, object or background.

Every look is a yes or no for each patch of a picture, measured in the thumbnail of the evidence
without any model. Looks of one family exclude each other, or nearly so, and a label has at most one
look of each family.

Geodesic distance separates objects from background: a patch belongs to the background when a path
of nearly equal colours leads from the patch to the border of the picture (Wei et al., Geodesic
Saliency Using Background Priors, ECCV 2012).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from tqdm import tqdm

from vision_sae.arrays import complete, open_growing
from vision_sae.evidence.protocol import Evidence
from vision_sae.files import sha256_json
from vision_sae.models.grid import Geometry, PatchGrid
from vision_sae.pictures.decode import decode_image

Family = Literal["ground", "part", "colour", "light", "texture", "lines", "place", "size"]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

VERSION = 1
"""The version of the definitions in this module; measurements of other versions are not reused."""
_PIXELS = 8
"""Side of a patch in the pixels that are measured."""
_BLOCK = 4
"""Side of a block of pixels whose mean is a node of the geodesic graph."""


class Look(NamedTuple):
    """One kind of look."""

    family: Family
    word: str
    """The word in a label: an adjective, a part, a place."""


COLOURS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "black": ((5, 0, 0),),
    "white": ((98, 0, 0),),
    "grey": ((35, 0, 0), (50, 0, 0), (65, 0, 0), (80, 0, 0)),
    "red": ((45, 65, 45), (35, 52, 35), (55, 65, 40)),
    "pink": ((80, 28, 2), (70, 45, 0), (65, 55, -5)),
    "orange": ((70, 32, 66), (62, 45, 60)),
    "yellow": ((90, -2, 65), (84, 5, 78), (92, -4, 40)),
    "brown": ((40, 22, 32), (28, 14, 20), (55, 18, 32)),
    "green": ((55, -42, 38), (40, -32, 24), (70, -40, 45), (85, -22, 22), (54, -28, 0)),
    "blue": (
        (45, 5, -50),
        (40, 28, -66),
        (32, 79, -108),
        (30, 15, -45),
        (60, -8, -38),
        (84, -8, -20),
        (15, 12, -32),
    ),
    "purple": ((42, 42, -42), (30, 35, -35), (60, 35, -35)),
}
"""CIELAB (D65) of the eleven basic colour terms (Berlin and Kay 1969), each at several lightnesses
at which English speakers use the term."""
_MARGIN = 5.0
"""How much nearer the named colour must be than any other colour."""
_DARK, _BRIGHT = 30.0, 82.0
"""CIELAB lightness below and above which a patch is dark and bright."""
_SMOOTH, _TEXTURED = 0.8, 9.0
"""Mean step of lightness from pixel to pixel below and above which a patch is smooth, textured."""
_COHERENT = 0.55
"""Least coherence of the structure tensor for lines of a direction."""
_LINES = 3.0
"""Least mean step of lightness for lines."""
_SAME_COLOUR = 3.0
"""Largest step in CIELAB that costs a path nothing: smooth colour gradients are background."""
_APART = 12.0
"""Geodesic distance from the border at which an object begins."""
_LARGE, _SMALL = 0.45, 0.1
"""Share of the picture that is object above and below which things are large and small."""

LOOKS: tuple[Look, ...] = (
    *(Look("ground", word) for word in ("background", "object", "edge")),
    *(Look("part", word) for word in ("top", "underside", "left side", "right side")),
    *(Look("colour", word) for word in COLOURS),
    *(Look("light", word) for word in ("dark", "bright")),
    *(Look("texture", word) for word in ("smooth", "textured")),
    *(Look("lines", word) for word in ("horizontal", "vertical", "diagonal")),
    *(
        Look("place", word)
        for word in ("top", "bottom", "left", "right", "middle", "corner", "border")
    ),
    *(Look("size", word) for word in ("large", "small")),
)
"""All looks, in the order of the last axis of `measured`."""
ROW: dict[Look, int] = {look: row for row, look in enumerate(LOOKS)}


@dataclass(frozen=True)
class ColourMeans:
    """The colours of one picture in CIELAB, in the crop that the model sees: R x C patches."""

    lightness: Float32[np.ndarray, "H W"]
    """The lightness of every pixel."""
    lab: Float32[np.ndarray, "R C 3"]
    """The mean of every patch."""
    blocks: Float32[np.ndarray, "rows cols 3"]
    """The mean of every block, two rows and two columns of blocks in a patch."""


def _linear() -> Floats:
    values = np.arange(256) / 255
    low = values / 12.92
    return np.where(values <= 0.04045, low, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


_LINEAR = _linear()
_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32
)
_WHITE = np.array([0.9505, 1.0, 1.089], np.float32)


def to_lab(pixels: UInt8[np.ndarray, "*any 3"]) -> Float32[np.ndarray, "*any 3"]:
    """sRGB -> CIELAB under D65 (CIE 15:2004)."""
    xyz = _LINEAR[pixels] @ _TO_XYZ.T / _WHITE
    cube = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(cube, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def _means(values: Floats, side: int) -> Floats:
    """Means over squares of ``side``: (H, W, ...) -> (H / side, W / side, ...)."""
    rows, cols = values.shape[0] // side, values.shape[1] // side
    parts = values.reshape(rows, side, cols, side, *values.shape[2:])
    return np.asarray(parts.mean(axis=(1, 3)))


def colour_means(thumbnail: bytes, geometry: Geometry, grid: PatchGrid) -> ColourMeans:
    """The colours in the part of a picture that the model sees, from the picture's thumbnail."""
    size = (grid.cols * _PIXELS, grid.rows * _PIXELS)
    picture = decode_image(thumbnail)
    x = np.array([0, grid.cols * grid.patch_width]) + geometry.left
    y = np.array([0, grid.rows * grid.patch_height]) + geometry.top
    x0, x1 = np.clip(x / geometry.scale_x * picture.width / geometry.width, 0, picture.width)
    y0, y1 = np.clip(y / geometry.scale_y * picture.height / geometry.height, 0, picture.height)
    view = picture.resize(size, Image.Resampling.BILINEAR, box=(x0, y0, x1, y1), reducing_gap=2)
    lab = to_lab(np.asarray(view))
    return ColourMeans(lab[..., 0], _means(lab, _PIXELS), _means(lab, _BLOCK))


def colour_names(lab: Float[np.ndarray, "*any 3"]) -> Int64[np.ndarray, "*any"]:
    """CIELAB -> number of the basic term in `COLOURS`; -1 when two terms are about as near."""
    nearest = np.stack(
        [
            np.min([np.linalg.norm(lab - np.array(p, np.float32), axis=-1) for p in some], axis=0)
            for some in COLOURS.values()
        ]
    )
    first, second = np.sort(nearest, axis=0)[:2]
    return np.where(second - first >= _MARGIN, nearest.argmin(axis=0), -1)


@lru_cache(maxsize=8)
def _graph(rows: int, cols: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Both ends of the edges of a grid of blocks, and the blocks at the grid's border."""
    at = np.arange(rows * cols).reshape(rows, cols)
    pairs = [(at[:, :-1], at[:, 1:]), (at[:-1], at[1:])]
    one = np.concatenate([a.ravel() for a, _ in pairs])
    other = np.concatenate([b.ravel() for _, b in pairs])
    border = np.unique(np.concatenate([at[0], at[-1], at[:, 0], at[:, -1]]))
    return one, other, border


def objects(blocks: Float[np.ndarray, "R C 3"]) -> Bool[np.ndarray, "R C"]:
    """The blocks of objects, from the blocks' means in CIELAB: R x C blocks."""
    rows, cols = blocks.shape[:2]
    one, other, border = _graph(rows, cols)
    flat = blocks.reshape(-1, 3)
    step = np.linalg.norm(flat[one] - flat[other], axis=1)
    cost = np.maximum(step - _SAME_COLOUR, 0) + 1e-3  # a cost of zero is no edge
    graph = csr_array((cost, (one, other)), shape=(len(flat), len(flat)))
    distance = dijkstra(graph, directed=False, indices=border, min_only=True)
    return np.asarray(distance.reshape(rows, cols) > _APART)


def _parts(inside: Mask, share: Floats) -> list[Mask]:
    """The patches (rows, cols) in the upper, lower, left and right third of their object."""
    labels, _ = ndimage.label(inside)
    of_patch = labels.reshape(share.shape[0], 2, share.shape[1], 2).max(axis=(1, 3))
    thirds = [np.zeros(share.shape, np.bool_) for _ in range(4)]
    for number, box in enumerate(ndimage.find_objects(of_patch), start=1):
        if box is None:
            continue
        mine = of_patch[box] == number
        for axis, (low, high) in enumerate(((thirds[0], thirds[1]), (thirds[2], thirds[3]))):
            length = mine.shape[axis]
            place = (np.arange(length) + 0.5) / length
            place = place[:, None] if axis == 0 else place[None, :]
            if length >= 3:
                low[box] |= mine & (place < 1 / 3)
                high[box] |= mine & (place > 2 / 3)
    return thirds


@lru_cache(maxsize=8)
def _places(rows: int, cols: int) -> NDArray[np.bool_]:
    """The looks of the family "place" (rows, cols, 7), equal for every picture."""
    y = ((np.arange(rows) + 0.5) / rows)[:, None] + np.zeros((1, cols))
    x = ((np.arange(cols) + 0.5) / cols)[None, :] + np.zeros((rows, 1))
    low_x, high_x, low_y, high_y = x < 1 / 3, x > 2 / 3, y < 1 / 3, y > 2 / 3
    middle = ~(low_x | high_x | low_y | high_y)
    corner = (low_x | high_x) & (low_y | high_y)
    border = np.ones((rows, cols), np.bool_)
    border[1:-1, 1:-1] = False
    return np.stack([low_y, high_y, low_x, high_x, middle, corner, border], axis=-1)


def _lines(lightness: Floats, rows: int, cols: int) -> tuple[Floats, list[Mask]]:
    """(mean step of lightness of each patch, patches with lines of each direction)."""
    down, along = (np.asarray(step, np.float32) for step in np.gradient(lightness))
    energy = _means(np.hypot(down, along), _PIXELS)
    xx, yy, xy = (_means(v, _PIXELS) for v in (along * along, down * down, along * down))
    coherence = np.hypot(xx - yy, 2 * xy) / np.maximum(xx + yy, 1e-6)
    # The gradient is perpendicular to the lines: an upright gradient means horizontal lines.
    angle = np.degrees(np.arctan2(2 * xy, xx - yy)) / 2 % 180
    clear = (coherence > _COHERENT) & (energy > _LINES)
    horizontal = clear & (np.abs(angle - 90) < 22.5)
    vertical = clear & ((angle < 22.5) | (angle > 157.5))
    return energy, [horizontal, vertical, clear & ~horizontal & ~vertical]


def looks_of(colours: ColourMeans) -> Bool[np.ndarray, "P L"]:
    """Whether a patch has a look, in the order of `LOOKS`."""
    rows, cols = colours.lab.shape[:2]
    inside = objects(colours.blocks)
    share = inside.reshape(rows, 2, cols, 2).mean(axis=(1, 3))
    names = colour_names(colours.lab)
    energy, lines = _lines(colours.lightness, rows, cols)
    light, covered = colours.lab[..., 0], float(inside.mean())
    everywhere = np.ones((rows, cols), np.bool_)
    looks = np.stack(
        [
            *(share < 0.1, share > 0.9, (share >= 0.1) & (share <= 0.9)),
            *_parts(inside, share),
            *(names == number for number in range(len(COLOURS))),
            *(light < _DARK, light > _BRIGHT),
            *(energy < _SMOOTH, energy > _TEXTURED),
            *lines,
            *np.moveaxis(_places(rows, cols), -1, 0),
            *(everywhere & (covered > _LARGE), everywhere & (0 < covered < _SMALL)),
        ],
        axis=-1,
    )
    return looks.reshape(rows * cols, len(LOOKS))


def measured(
    evidence: Evidence, directory: Path | None, *, progress: bool = False
) -> Bool[np.ndarray, "N P L"]:
    """Whether a patch of a picture has a look, in the order of `LOOKS`; cached in ``directory``.

    An interrupted measurement resumes in the next call.
    """
    grid, count = evidence.grid, len(evidence.images)
    shape = (count, grid.patches, len(LOOKS))
    if directory is None:
        array: Any = np.empty(shape, dtype=np.bool_)
        done, path = 0, None
    else:
        directory.mkdir(parents=True, exist_ok=True)
        inputs = [VERSION, evidence.data_sha256, grid.to_json(), list(LOOKS)]
        path = directory / f"looks-{sha256_json(inputs)[:16]}.npy"
        array, done = open_growing(path, shape, np.bool_)
    pictures = range(done, count)
    for image in tqdm(pictures, desc="looks", unit="img", disable=not progress or not pictures):
        thumbnail, geometry = evidence.thumbnail(image), evidence.geometry(image)
        array[image] = looks_of(colour_means(thumbnail, geometry, grid))
        if path is not None and (image % 512 == 511 or image + 1 == count):
            complete(array, path, image + 1)
    return np.asarray(array)
