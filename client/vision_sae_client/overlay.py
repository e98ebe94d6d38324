"""Draws heat maps and patch boxes over pictures, to show where a feature fires.

All positions come from `PatchGrid.extent`, the part of the original picture that the patches cover.
The part that a model crops away stays uncoloured.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vision_sae.pictures.decode import decode_image
from vision_sae.v1.image_pb2 import Box, PatchActivation, PatchGrid
from vision_sae_client.colours import FEATURES, ramp
from vision_sae_client.images import ImageSource, image_bytes

MAX_SIDE = 1024
"""The longer side of an overlay in pixels; larger pictures are reduced."""

_OPAQUE = 0.85
"""Opacity of the strongest patch."""


def open_picture(source: ImageSource, max_side: int = MAX_SIDE) -> Image.Image:
    """The picture as the server decodes it (upright, RGB), reduced to ``max_side`` pixels.

    Raises `InvalidImageError` for a file that is no JPEG, PNG or WebP.
    """
    picture = decode_image(image_bytes(source))
    picture.thumbnail((max_side, max_side))
    return picture


def heat_layer(
    heatmap: NDArray[np.floating],
    grid: PatchGrid,
    size: tuple[int, int],
    *,
    peak: float | None = None,
) -> Image.Image:
    """A heat map (rows, cols) as a transparent RGBA layer for a picture of ``size`` (width,
    height).

    Values between patch centres are interpolated. ``peak`` is the value of the strongest colour, by
    default the map's largest magnitude. Negative values have cold colours; zero is transparent.
    """
    peak = float(np.abs(heatmap).max()) if peak is None else peak
    relative = np.asarray(heatmap, dtype=np.float64) / (peak or 1.0)
    rows, inside_rows = _positions(size[1], grid.image_height, grid.extent.y0, grid.extent.y1)
    cols, inside_cols = _positions(size[0], grid.image_width, grid.extent.x0, grid.extent.x1)
    values = _interpolate(relative, rows * grid.rows, cols * grid.cols)
    # The square root keeps weak patches visible.
    opacity = np.sqrt(np.clip(np.abs(values), 0.0, 1.0)) * _OPAQUE
    opacity[~(inside_rows[:, None] & inside_cols[None, :])] = 0.0
    return _rgba(ramp(values), opacity)


def winner_layer(
    heatmaps: Sequence[NDArray[np.floating]], grid: PatchGrid, size: tuple[int, int]
) -> Image.Image:
    """Each patch in the colour of its strongest feature, relative to the peak of each feature.

    Feature ``i`` has the colour ``colours.FEATURES[i]``; patches without a firing feature stay
    transparent.
    """
    relative = np.stack([heatmap / (heatmap.max() or 1.0) for heatmap in heatmaps])
    rows, inside_rows = _positions(size[1], grid.image_height, grid.extent.y0, grid.extent.y1)
    cols, inside_cols = _positions(size[0], grid.image_width, grid.extent.x0, grid.extent.x1)
    row = np.clip((rows * grid.rows).astype(int), 0, grid.rows - 1)
    col = np.clip((cols * grid.cols).astype(int), 0, grid.cols - 1)
    colours = np.resize(np.array(FEATURES, dtype=np.uint8), (len(relative), 3))
    opacity = (relative.max(axis=0) * 0.75)[np.ix_(row, col)]
    opacity[~(inside_rows[:, None] & inside_cols[None, :])] = 0.0
    return _rgba(colours[relative.argmax(axis=0)][np.ix_(row, col)], opacity)


def overlay(
    picture: Image.Image,
    heatmap: NDArray[np.floating],
    grid: PatchGrid,
    patches: Sequence[PatchActivation] = (),
) -> Image.Image:
    """The picture with a heat map over it and boxes around the strongest ``patches``, as RGBA."""
    drawn = Image.alpha_composite(_faded(picture), heat_layer(heatmap, grid, picture.size))
    draw_boxes(drawn, [patch.box for patch in patches], (grid.image_width, grid.image_height))
    return drawn


def winners(
    picture: Image.Image, heatmaps: Sequence[NDArray[np.floating]], grid: PatchGrid
) -> Image.Image:
    """The picture with every patch in the colour of its strongest feature, as RGBA."""
    if not heatmaps:
        return picture.convert("RGBA")
    return Image.alpha_composite(_faded(picture), winner_layer(heatmaps, grid, picture.size))


def draw_boxes(
    picture: Image.Image, boxes: Sequence[Box], original: tuple[int, int], width: int = 2
) -> None:
    """Draw boxes onto a (reduced) copy of a picture; the boxes are in pixels of the picture of
    ``original`` size (width, height)."""
    draw = ImageDraw.Draw(picture)
    scale_x, scale_y = picture.width / original[0], picture.height / original[1]
    for box in boxes:
        # Boxes are half-open: the last pixel drawn lies before x1, y1.
        x0, y0 = round(box.x0 * scale_x), round(box.y0 * scale_y)
        x1 = max(x0, round(box.x1 * scale_x) - 1)
        y1 = max(y0, round(box.y1 * scale_y) - 1)
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0))
        draw.rectangle((x0, y0, x1, y1), outline=(255, 255, 255), width=width)


def png(picture: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _faded(picture: Image.Image) -> Image.Image:
    """The picture with weaker colours, so that the colours of the map stand out."""
    grey = picture.convert("L").convert("RGB")
    return Image.blend(picture.convert("RGB"), grey, 0.6).convert("RGBA")


def _positions(
    pixels: int, original: int, low: float, high: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(position of each pixel's centre between the edges of the extent, in [0, 1) inside of it;
    mask of the pixels that lie inside)"""
    centres = (np.arange(pixels) + 0.5) * original / pixels
    share = (centres - low) / (high - low)
    return share, (share >= 0) & (share < 1)


def _interpolate(
    values: NDArray[np.float64], rows: NDArray[np.float64], cols: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Bilinear interpolation between patch centres, which lie at half-integers; constant beyond the
    outer centres."""
    return _along(_along(values, rows).T, cols).T


def _along(values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate the first axis of ``values`` at the positions ``at``."""
    last = len(values) - 1
    position = np.clip(at - 0.5, 0, last)
    lower = np.minimum(position.astype(int), max(last - 1, 0))
    share = (position - lower)[:, None]
    upper = np.minimum(lower + 1, last)
    blended: NDArray[np.float64] = values[lower] * (1 - share) + values[upper] * share
    return blended


def _rgba(colours: NDArray[np.uint8], opacity: NDArray[np.float64]) -> Image.Image:
    alpha = (opacity * 255).round().astype(np.uint8)
    return Image.fromarray(np.dstack([colours, alpha]))
