"""Evidence from plain arrays, in memory or mapped: raw neurons, and worlds made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.evidence.protocol import Firing, Places, silent
from vision_sae.models.grid import Geometry, PatchGrid, Preprocessing
from vision_sae.vectors import normalised


@dataclass(frozen=True)
class ArrayEvidence:
    """See `vision_sae.descriptions.evidence.protocol.Evidence`. F units, N pictures, P patches."""

    name: str
    identity: str
    data_sha256: str
    site: str
    images: Sequence[ImageRecord]
    grid: PatchGrid
    preprocessing: Preprocessing
    thumbnails: Sequence[bytes]
    embeddings: NDArray[np.float32]
    """Pooled embeddings of the units' own model (N, E)."""
    all_peaks: NDArray[np.floating]
    """The strongest activation of each unit in each picture (F, N)."""
    firing_images: NDArray[np.integer]
    """Numbers of the pictures of `maps`, strongest first (F, K); -1 in empty slots."""
    maps: NDArray[np.floating]
    """Activations of all patches of these pictures (F, K, P)."""
    thresholds: NDArray[np.floating]
    """The activation from which on a firing patch belongs to a mask (F)."""

    @property
    def width(self) -> int:
        """Number of units."""
        return len(self.all_peaks)

    def thumbnail(self, image: int) -> bytes:
        """JPEG thumbnail of a picture."""
        return self.thumbnails[image]

    def geometry(self, image: int) -> Geometry:
        """How a picture was resized and cropped for the model."""
        record = self.images[image]
        return self.preprocessing.geometry(record.width, record.height)

    def peaks(self, unit: int) -> NDArray[np.float32]:
        """The strongest activation in each picture (N); 0 where the unit is silent."""
        return np.asarray(np.maximum(self.all_peaks[unit], 0), dtype=np.float32)

    def firings(self, unit: int) -> list[Firing]:
        """The pictures that fire the unit most, strongest first."""
        found = []
        for image, flat in zip(self.firing_images[unit], self.maps[unit], strict=True):
            values = np.maximum(flat.astype(np.float32), 0)
            strongest = int(values.argmax())
            peak = float(values[strongest])
            if image < 0 or peak == 0:
                continue
            # A unit that is mostly silent has a threshold of 0: silent patches are of no mask.
            mask = (values >= min(float(self.thresholds[unit]), peak)) & (values > 0)
            shape = (self.grid.rows, self.grid.cols)
            row = int(image) * self.grid.patches + strongest
            found.append(Firing(int(image), row, peak, values.reshape(shape), mask.reshape(shape)))
        return found

    def places(self, unit: int) -> Places:
        """The firing patches of the pictures that a map is kept of, strongest first."""
        images = np.asarray(self.firing_images[unit], dtype=np.int64)
        maps = np.where(images[:, None] >= 0, self.maps[unit], 0).astype(np.float32)
        slot, patch = np.nonzero(maps > 0)
        rows, values = images[slot] * self.grid.patches + patch, maps[slot, patch]
        order = np.argsort(-values, kind="stable")
        return Places(rows[order], values[order])

    @cached_property
    def _directions(self) -> NDArray[np.float32]:
        """Of the embeddings from their mean (N, E), of unit length."""
        return normalised(self.embeddings, self.embeddings.mean(0))

    def look_alikes(self, unit: int, count: int) -> NDArray[np.int64]:
        """Silent pictures whose embeddings point most where those of the firing ones do."""
        firing = [f.image for f in self.firings(unit)]
        if not firing:
            return np.zeros(0, dtype=np.int64)
        nearness = self._directions @ self._directions[firing].mean(0)
        nearness[~silent(self, unit)] = -np.inf
        order = np.argsort(-nearness, kind="stable")[:count]
        return np.asarray(order[np.isfinite(nearness[order])], dtype=np.int64)
