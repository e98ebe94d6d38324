"""A summary of the activations of a site with too many units to store every patch.

One pass over the pictures keeps the peak of every unit in every picture, the whole activation map
in the pictures that fire the unit most, and a sample of patches for quantiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float16, Float32, Int32
from torch import Tensor

from vision_sae.activations.shards import rounded

_SAMPLE = 4096
"""The most patches in the sample."""


REMEDY = "peaks are kept in float16; choose a site of other size"
"""What to do about values that float16 cannot hold."""


class UnitPeaks(NamedTuple):
    """The result of a `PeakCollector` for F units in N pictures of P patches."""

    peaks: Float16[Tensor, "F N"]
    """The strongest activation in each picture."""
    images: Int32[Tensor, "F K"]
    """Numbers of the pictures that fire each unit most, strongest first; -1 in empty slots."""
    maps: Float16[Tensor, "F K P"]
    """The activations of all patches of these pictures."""
    thresholds: Float32[Tensor, " F"]
    """The requested quantile of the activations, estimated from a sample of patches."""


class PeakCollector:
    """Collects the peaks of one site; the result does not depend on the batching of pictures."""

    def __init__(self, width: int, patches: int, *, keep: int, pictures: int) -> None:
        """Collect ``width`` units over ``pictures`` pictures, with maps of ``keep`` of them."""
        self._every = -(-pictures // _SAMPLE)
        self.seen = 0
        """Number of pictures that were added."""
        self.peaks = torch.zeros(pictures, width, dtype=torch.float16)
        self.sample = torch.zeros(-(-pictures // self._every), width, dtype=torch.float16)
        self.best = torch.zeros(width, keep, dtype=torch.float16)
        self.images = torch.full((width, keep), -1, dtype=torch.int32)
        self.maps = torch.zeros(width, keep, patches, dtype=torch.float16)

    def add(self, site: str, vectors: Float[Tensor, "B P F"]) -> None:
        """Add the site vectors of the next pictures.

        Raises `InvalidInputError` for values that float16 cannot hold.
        """
        self.add_rounded(torch.from_numpy(rounded(site, vectors, "float16", remedy=REMEDY)))

    def add_rounded(self, low: Float16[Tensor, "B P F"]) -> None:
        """`add` for site vectors in float16, in host memory."""
        highest = low.amax(1)
        self.peaks[self.seen : self.seen + len(low)] = highest
        for picture, peaks in zip(low, highest, strict=True):
            if self.seen % self._every == 0:
                # The sampled position varies over the grid, and is the same in every run.
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
        """The state for checkpoints; the tensors share memory with the collector."""
        return {
            "peaks": self.peaks,
            "sample": self.sample,
            "best": self.best,
            "images": self.images,
            "maps": self.maps,
        }

    def result(self, quantile: float) -> UnitPeaks:
        """The collected peaks and maps, with the thresholds at this quantile."""
        seen = self.seen
        # Sorted by activation, then by picture, with two stable sorts.
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
