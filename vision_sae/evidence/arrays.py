"""Evidence from plain arrays, in memory or mapped: raw neurons, and planted worlds of tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Int64, Integer, Num
from numpy.typing import NDArray

from vision_sae.activations.store import ImageRecord
from vision_sae.evidence.protocol import Firing, Places, silent
from vision_sae.models.grid import Geometry, PatchGrid, Preprocessing
from vision_sae.vectors import normalised


@dataclass(frozen=True)
class ArrayEvidence:
    """Evidence held in arrays, of F units in N pictures of P patches; see
    `vision_sae.evidence.protocol.Evidence`."""

    name: str
    identity: str
    data_sha256: str
    site: str
    images: Sequence[ImageRecord]
    grid: PatchGrid
    preprocessing: Preprocessing
    thumbnails: Sequence[bytes]
    embeddings: Float[np.ndarray, "N E"]
    """Pooled embeddings of the pictures, by the model that the units belong to."""
    all_peaks: Num[np.ndarray, "F N"]
    """The strongest activation of each unit in each picture."""
    firing_images: Integer[np.ndarray, "F K"]
    """Numbers of the pictures of `maps`, strongest first; -1 in empty slots."""
    maps: Num[np.ndarray, "F K P"]
    """Activations of all patches of these pictures."""
    thresholds: Num[np.ndarray, " F"]
    """The least activation of a patch in a mask, for each unit."""

    @property
    def width(self) -> int:
        """Number of units."""
        return len(self.all_peaks)

    def thumbnail(self, image: int) -> bytes:
        """JPEG thumbnail of a picture."""
        return self.thumbnails[image]

    def geometry(self, image: int) -> Geometry:
        """The resizing and cropping of a picture for the model."""
        record = self.images[image]
        return self.preprocessing.geometry(record.width, record.height)

    def peaks(self, unit: int) -> Float32[np.ndarray, " N"]:
        """The strongest activation in each picture; 0 where the unit is silent."""
        return np.asarray(np.maximum(self.all_peaks[unit], 0), dtype=np.float32)

    def firings(self, unit: int) -> list[Firing]:
        """The pictures that fire the unit most, strongest first."""
        firings = []
        for image, flat in zip(self.firing_images[unit], self.maps[unit], strict=True):
            values = np.maximum(flat.astype(np.float32), 0)
            strongest = int(values.argmax())
            peak = float(values[strongest])
            if image < 0 or peak == 0:
                continue
            # A mostly silent unit has a threshold of 0, but masks contain no silent patches.
            mask = (values >= min(float(self.thresholds[unit]), peak)) & (values > 0)
            shape = (self.grid.rows, self.grid.cols)
            row = int(image) * self.grid.patches + strongest
            firings.append(
                Firing(int(image), row, peak, values.reshape(shape), mask.reshape(shape))
            )
        return firings

    def places(self, unit: int) -> Places:
        """The firing patches of the pictures with a map, strongest first."""
        images = np.asarray(self.firing_images[unit], dtype=np.int64)
        maps = np.where(images[:, None] >= 0, self.maps[unit], 0).astype(np.float32)
        slot, patch = np.nonzero(maps > 0)
        rows, values = images[slot] * self.grid.patches + patch, maps[slot, patch]
        order = np.argsort(-values, kind="stable")
        return Places(rows[order], values[order])

    @cached_property
    def _directions(self) -> NDArray[np.float32]:
        """The centred embeddings (N, E), scaled to unit length."""
        return normalised(self.embeddings, self.embeddings.mean(0))

    def look_alikes(self, unit: int, count: int) -> Int64[np.ndarray, " n"]:
        """Silent pictures with the largest mean cosine to the embeddings of the firing pictures."""
        firing = [f.image for f in self.firings(unit)]
        if not firing:
            return np.zeros(0, dtype=np.int64)
        nearness = self._directions @ self._directions[firing].mean(0)
        nearness[~silent(self, unit)] = -np.inf
        order = np.argsort(-nearness, kind="stable")[:count]
        return np.asarray(order[np.isfinite(nearness[order])], dtype=np.int64)
