"""What is kept of a site whose units are too many to store: peaks, and maps where they are high.

A layer of an MLP has a few numbers worth keeping for each unit and picture, not one a patch. In
one pass, whatever the size of the data, this keeps the peak of every unit in every picture, the
whole map in the pictures that fire the unit most, and a sample of patches for its quantiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vision_sae.activations.shards import rounded

_SAMPLE = 4096
"""Patches of a unit's sample, at most."""


class UnitPeaks(NamedTuple):
    """What `PeakCollector` found of F units in N pictures of P patches."""

    peaks: Tensor
    """The strongest activation in each picture (F, N), float16."""
    images: Tensor
    """The pictures that fire each unit most (F, K), int32, strongest first; -1 in empty slots."""
    maps: Tensor
    """All activations of these pictures (F, K, P), float16."""
    thresholds: Tensor
    """The wanted quantile over all patches, from a sample of them (F), float32."""


class PeakCollector:
    """Collects one site; what comes out does not depend on how pictures are batched."""

    def __init__(self, width: int, patches: int, *, keep: int, pictures: int) -> None:
        """For ``width`` units, keeping the maps of ``keep`` of ``pictures`` pictures."""
        self._every = -(-pictures // _SAMPLE)
        self.seen = 0
        """Pictures so far."""
        self.peaks = torch.zeros(pictures, width, dtype=torch.float16)
        self.sample = torch.zeros(-(-pictures // self._every), width, dtype=torch.float16)
        self.best = torch.zeros(width, keep, dtype=torch.float16)
        self.images = torch.full((width, keep), -1, dtype=torch.int32)
        self.maps = torch.zeros(width, keep, patches, dtype=torch.float16)

    def add(self, site: str, vectors: Tensor) -> None:
        """Add the site vectors (B, P, F) of the next pictures.

        Raises `InvalidInputError` for values that float16 cannot hold.
        """
        remedy = "peaks are kept in float16; choose a site of other size"
        low = torch.from_numpy(rounded(site, vectors, "float16", remedy=remedy))
        highest = low.amax(1)
        self.peaks[self.seen : self.seen + len(low)] = highest
        for picture, peaks in zip(low, highest, strict=True):
            if self.seen % self._every == 0:
                # A patch that wanders over the grid, the same for every run.
                patch = self.seen * 7919 % picture.shape[0]
                self.sample[self.seen // self._every] = picture[patch]
            floor, slot = self.best.min(1)
            units = (peaks > floor).nonzero()[:, 0]
            slots = slot[units]
            self.best[units, slots] = peaks[units]
            self.images[units, slots] = self.seen
            self.maps[units, slots] = picture[:, units].T
            self.seen += 1

    def tensors(self) -> dict[str, Tensor]:
        """The live state, for checkpoints."""
        return {
            "peaks": self.peaks,
            "sample": self.sample,
            "best": self.best,
            "images": self.images,
            "maps": self.maps,
        }

    def result(self, quantile: float) -> UnitPeaks:
        """What was found, with the thresholds at this quantile."""
        seen = self.seen
        # By activation, then by picture: two stable sorts.
        by_image = self.images.argsort(dim=1, stable=True)
        by_value = self.best.gather(1, by_image).argsort(dim=1, descending=True, stable=True)
        order = by_image.gather(1, by_value)
        sample = self.sample[: -(-seen // self._every)].float()
        return UnitPeaks(
            peaks=self.peaks[:seen].T.contiguous(),
            images=self.images.gather(1, order),
            maps=self.maps.gather(1, order[:, :, None].expand_as(self.maps)),
            thresholds=torch.quantile(sample, quantile, dim=0),
        )
