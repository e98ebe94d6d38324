"""Labels that are known beforehand, at the level of matrices: who finds them under noise?

N pictures show some of W concepts. A contrastive model's similarity of a picture and a concept is
low, offset and scaled by concept (some words are near everything), and noisy. A unit fires on one
concept, though not always, a little on everything, as neurons do, and on some pictures by mistake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.words.wpmi import top_words


class PlantedAccuracy(NamedTuple):
    """Shares of units whose first word is the planted one."""

    soft_wpmi: float
    cosine: float
    """Of the word whose similarities have the largest cosine with the unit's activations."""


@dataclass(frozen=True)
class PlantedLabels:
    """A world of labelled units; see `planted_labels`."""

    similarities: NDArray[np.float32]
    """Of pictures and concepts (N, W)."""
    activations: NDArray[np.float32]
    """Of pictures and units (N, U), positive."""
    concepts: NDArray[np.int64]
    """What each unit fires on (U)."""


def planted_labels(
    *, concepts: int = 40, images: int = 2000, units: int = 400, noise: float = 1.0, seed: int = 0
) -> PlantedLabels:
    """A world from a seed. ``noise`` scales what hides the concepts, in model and units alike."""
    random = np.random.default_rng(seed)
    share = random.uniform(0.02, 0.2, concepts)
    shown = random.random((images, concepts)) < share
    strength = shown * random.uniform(0.5, 1.0, (images, concepts))
    signal = 0.12 * strength + noise * random.normal(0, 0.075, (images, concepts))
    similarities = random.uniform(0.1, 0.3, concepts) + signal * random.uniform(0.5, 1.5, concepts)
    fires_on = np.arange(units) % concepts
    seen = strength[:, fires_on] * (random.random((images, units)) < 0.8)
    mistaken = (random.random((images, units)) < 0.02) * random.uniform(0, 1, (images, units))
    hum = noise * random.exponential(0.16, (images, units))
    activations = np.maximum(seen, mistaken) + hum
    return PlantedLabels(
        similarities.astype(np.float32), activations.astype(np.float32), fires_on.astype(np.int64)
    )


def accuracy(world: PlantedLabels, *, exemplars: int = 100) -> PlantedAccuracy:
    """How often soft-WPMI over each unit's strongest pictures, and a plain cosine, are right."""
    strongest = np.argsort(-world.activations, axis=0, kind="stable")[:exemplars].T
    words, _ = top_words(world.similarities, np.ascontiguousarray(strongest), count=1)
    cosine = world.activations.T @ (world.similarities / np.linalg.norm(world.similarities, axis=0))
    return PlantedAccuracy(
        float((words[:, 0] == world.concepts).mean()),
        float((cosine.argmax(1) == world.concepts).mean()),
    )


def planted_accuracy(worlds: int = 5) -> PlantedAccuracy:
    """Both accuracies at high noise, averaged over as many worlds."""
    found = [accuracy(planted_labels(seed=seed)) for seed in range(worlds)]
    return PlantedAccuracy(*np.mean(found, axis=0).tolist())
