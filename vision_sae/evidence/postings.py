"""Evidence from postings, which list every patch that fires each unit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from vision_sae.activations.store import ImageRecord
from vision_sae.bundles.codes import SparseRows
from vision_sae.evidence.protocol import FIRINGS, Firing, Places
from vision_sae.models.grid import PatchGrid


class Postings(ABC):
    """The methods of `vision_sae.evidence.protocol.Evidence` that need only postings."""

    images: Sequence[ImageRecord]
    grid: PatchGrid
    mask_quantile: float
    """Patches above this quantile of a unit's activations belong to its masks."""

    @property
    @abstractmethod
    def postings(self) -> SparseRows:
        """unit -> (patches, activations), strongest first."""

    @property
    def width(self) -> int:
        """Number of units."""
        return len(self.postings.indptr) - 1

    def peaks(self, unit: int) -> Float32[np.ndarray, " N"]:
        """The strongest activation in each picture; 0 where the unit is silent."""
        rows, values = self.postings.row(unit)
        peaks = np.zeros(len(self.images), dtype=np.float32)
        np.maximum.at(peaks, rows // self.grid.patches, values.astype(np.float32))
        return peaks

    def places(self, unit: int) -> Places:
        """Every patch that fires the unit, strongest first."""
        return Places(*self.postings.row(unit))

    def firings(self, unit: int) -> list[Firing]:
        """The pictures that fire the unit most, strongest first."""
        rows, values = self.postings.row(unit)
        if not len(rows):
            return []
        images, positions = np.divmod(rows.astype(np.int64), self.grid.patches)
        # Postings descend, so a picture's first posting is its strongest patch.
        _, first = np.unique(images, return_index=True)
        first = np.sort(first)[:FIRINGS]
        slots = np.full(len(self.images), -1)
        slots[images[first]] = np.arange(len(first))
        kept = slots[images] >= 0
        maps: NDArray[Any] = np.zeros((len(first), self.grid.patches), dtype=np.float32)
        maps[slots[images[kept]], positions[kept]] = values[kept]
        least = np.quantile(values, self.mask_quantile)
        # The strongest patch belongs to the mask even where the whole picture is faint.
        masks = maps >= np.minimum(least, maps.max(1))[:, None]
        shape = (len(first), self.grid.rows, self.grid.cols)
        return [
            Firing(int(images[at]), int(rows[at]), float(values[at]), map_, mask)
            for at, map_, mask in zip(first, maps.reshape(shape), masks.reshape(shape), strict=True)
        ]
