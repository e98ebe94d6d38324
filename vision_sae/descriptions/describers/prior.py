"""What a word or phrase is worth before any unit is looked at: the prior of labels by search.

It is estimated once for an evidence, a probe and a vocabulary, from the regions of a fixed, evenly
spaced choice of units, and kept on disk. Labels therefore do not depend on which units are asked
for together, nor in which order.

Contrastive models put pictures and texts into two narrow cones with a gap between them, and some
words near everything. So both are *centred*: the mean region is subtracted from every region, the
mean word from every text, and they are scaled to unit length again. The means belong to the prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from vision_sae.descriptions.describers.wpmi import TEMPERATURE
from vision_sae.descriptions.evidence.protocol import Evidence, Firing, spaced, split, spread
from vision_sae.descriptions.probe import Probe
from vision_sae.dictionaries.weights import read_tensor_file
from vision_sae.files import kept, sha256_json

_UNITS = 512
"""Units whose regions are taken, evenly spaced over those that fire."""
_REGIONS_PER_UNIT = 4
"""Regions of each, evenly spaced over the ranks."""
_FEWEST_REGIONS = 256
"""When the units show fewer, their masks are laid on other pictures until there are so many."""
_NOWHERE = 1e-3
"""A vector as near as that to the mean has no direction, only rounding errors."""
_CHUNK = 256
"""Regions compared with all words at a time."""


@dataclass(frozen=True)
class Prior:
    """The data without regard to any unit: R regions, W words."""

    identity: str
    """Hex SHA-256 of all it was made from."""
    region_mean: Tensor
    """The mean region (E)."""
    word_mean: Tensor
    """The mean word (E)."""
    regions: Tensor
    """Centred regions (R, E), of unit length."""
    log_partition: Tensor
    """Log of the denominator of each region's softmax over the words (R, 1)."""
    mean_posterior: Tensor
    """Mean probability of each word over the regions (W)."""

    def centred_regions(self, regions: Tensor) -> Tensor:
        """Regions (..., E) as directions from the mean region."""
        return _directions(regions, self.region_mean)

    def centred_texts(self, texts: Tensor) -> Tensor:
        """Texts (..., E) as directions from the mean word."""
        return _directions(texts, self.word_mean)


class Posterior(NamedTuple):
    """Probabilities of texts that are added to a vocabulary, and what they leave to others."""

    probabilities: Tensor
    """Of each text, for each region (n, T)."""
    log_partition: Tensor
    """Log of the denominator of each region's softmax, with these texts in it (n, 1)."""


def posterior_beside(similarities: Tensor, log_partition: Tensor) -> Posterior:
    """Texts together with the words (and texts) that are in ``log_partition`` (n, 1) already.

    ``similarities`` (n, T) are the cosines of centred regions and texts.
    """
    logits = TEMPERATURE * similarities
    total = torch.logsumexp(torch.cat([log_partition, logits], dim=1), dim=1, keepdim=True)
    return Posterior(torch.exp(logits - total), total)


def _directions(vectors: Tensor, mean: Tensor) -> Tensor:
    return F.normalize(vectors - mean, dim=-1, eps=_NOWHERE)


def _sample(evidence: Evidence) -> list[Firing]:
    """Firings of units all over the evidence, of the half that is for describing."""
    halves = (split(evidence, unit).describe for unit in spread(evidence, _UNITS))
    taken = [[half[i] for i in spaced(len(half), _REGIONS_PER_UNIT)] for half in halves if half]
    firings = list(chain.from_iterable(taken))
    if not firings:
        return []
    elsewhere = spaced(len(evidence.images), max(0, _FEWEST_REGIONS - len(firings)))
    moved = (firings[i % len(firings)]._replace(image=int(at)) for i, at in enumerate(elsewhere))
    return [*firings, *moved]


def _estimate(identity: str, regions: Tensor, words: Tensor) -> Prior:
    region_mean, word_mean = regions.mean(0), words.mean(0)
    centred, directions = _directions(regions, region_mean), _directions(words, word_mean)
    total = torch.zeros(len(words), dtype=torch.float64)
    partitions = []
    for chunk in centred.split(_CHUNK):
        logits = TEMPERATURE * (chunk @ directions.T)
        partition = torch.logsumexp(logits, dim=1, keepdim=True)
        total += torch.exp(logits - partition).sum(0, dtype=torch.float64)
        partitions.append(partition)
    mean = (total / len(regions)).float()
    return Prior(identity, region_mean, word_mean, centred, torch.cat(partitions), mean)


_TENSORS = ("region_mean", "word_mean", "regions", "log_partition", "mean_posterior")


def load_prior(
    evidence: Evidence, probe: Probe, words: Tensor, vocabulary: str, directory: Path
) -> Prior | None:
    """The prior of this evidence, probe and vocabulary (its identity; its ``words`` (W, E)).

    It is estimated on first use and kept in ``directory``; workers may ask for it at the same
    time. None when none of the units looked at fires anywhere.
    """
    chosen = [_UNITS, _REGIONS_PER_UNIT, _FEWEST_REGIONS, TEMPERATURE]
    identity = sha256_json([evidence.identity, probe.identity, vocabulary, chosen])
    path = directory / f"prior-{identity}.safetensors"
    if not path.is_file() and not _sample(evidence):
        return None

    def write(path: Path) -> None:
        regions = torch.from_numpy(probe.regions(evidence, _sample(evidence)))
        made = _estimate(identity, regions, words)
        save_file({name: getattr(made, name).contiguous() for name in _TENSORS}, path)

    return Prior(identity, **kept(path, read_tensor_file, write))
