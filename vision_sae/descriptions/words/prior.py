"""The prior of labels by search: the probability of each word without regard to any unit.

The prior is estimated once for an evidence, a probe and a vocabulary, from the regions of a fixed,
evenly spaced choice of units, and kept on disk. Labels therefore do not depend on the order of
units or on the other units of a call.

Contrastive models put pictures and texts into two narrow cones with a gap between them, and some
words near every picture. So both are *centred*: the mean region is subtracted from every region,
the mean word is subtracted from every text, and the results are scaled to length 1. The two means
belong to the prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from vision_sae.descriptions.words.wpmi import TEMPERATURE
from vision_sae.dictionaries.weights import read_tensor_file
from vision_sae.evidence.probe import Probe
from vision_sae.evidence.protocol import Evidence, Firing, spaced, split, spread
from vision_sae.files import read_cached, sha256_json

_UNITS = 512
"""Units whose regions are taken, evenly spaced over the units that fire."""
_REGIONS_PER_UNIT = 4
"""Regions of each unit, evenly spaced over the ranks."""
_FEWEST_REGIONS = 256
"""The fewest regions: when the units have fewer, their masks are applied to other pictures."""
_NOWHERE = 1e-3
"""Distance to the mean below which a vector's direction is only rounding error."""
_CHUNK = 256
"""Regions compared with all words at a time."""


@dataclass(frozen=True)
class Prior:
    """The prior of W words, from R regions."""

    identity: str
    """Hex SHA-256 of all inputs."""
    region_mean: Float[Tensor, E]
    """The mean region."""
    word_mean: Float[Tensor, E]
    """The mean word."""
    regions: Float[Tensor, "R E"]
    """Centred regions, of length 1."""
    log_partition: Float[Tensor, "R 1"]
    """Log of the denominator of each region's softmax over the words."""
    mean_posterior: Float[Tensor, W]
    """Mean probability of each word over the regions."""

    def centred_regions(self, regions: Float[Tensor, "*any E"]) -> Float[Tensor, "*any E"]:
        """Regions as directions from the mean region."""
        return _directions(regions, self.region_mean)

    def centred_texts(self, texts: Float[Tensor, "*any E"]) -> Float[Tensor, "*any E"]:
        """Texts as directions from the mean word."""
        return _directions(texts, self.word_mean)


class Posterior(NamedTuple):
    """Probabilities of T texts that are added to a vocabulary, for n regions."""

    probabilities: Float[Tensor, "n T"]
    """The probability of each text for each region."""
    log_partition: Float[Tensor, "n 1"]
    """Log of the denominator of each region's softmax, with these texts."""


def posterior_beside(
    similarities: Float[Tensor, "n T"], log_partition: Float[Tensor, "n 1"]
) -> Posterior:
    """The probabilities of texts that are added to a softmax with this ``log_partition``.

    ``similarities`` are the cosines of centred regions and texts.
    """
    logits = TEMPERATURE * similarities
    total = torch.logsumexp(torch.cat([log_partition, logits], dim=1), dim=1, keepdim=True)
    return Posterior(torch.exp(logits - total), total)


def _directions(vectors: Tensor, mean: Tensor) -> Tensor:
    return F.normalize(vectors - mean, dim=-1, eps=_NOWHERE)


def _sample(evidence: Evidence) -> list[Firing]:
    """Firings of units all over the evidence, from the describing half of each unit's firings."""
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
    evidence: Evidence,
    probe: Probe,
    words: Float[Tensor, "W E"],
    vocabulary: str,
    directory: Path,
) -> Prior | None:
    """The prior of an evidence, a probe and a vocabulary.

    ``vocabulary`` is the identity of the vocabulary, and ``words`` are its embeddings. The prior is
    estimated on first use and kept in ``directory``; several workers may call this at the same
    time. None when no unit of the sample fires in any picture.
    """
    constants = [_UNITS, _REGIONS_PER_UNIT, _FEWEST_REGIONS, TEMPERATURE]
    identity = sha256_json([evidence.identity, probe.identity, vocabulary, constants])
    path = directory / f"prior-{identity}.safetensors"
    if not path.is_file() and not _sample(evidence):
        return None

    def write(path: Path) -> None:
        regions = torch.from_numpy(probe.regions(evidence, _sample(evidence)))
        prior = _estimate(identity, regions, words)
        save_file({name: getattr(prior, name).contiguous() for name in _TENSORS}, path)

    return Prior(identity, **read_cached(path, read_tensor_file, write))
