"""The causal score of a label: does raising the feature move pictures toward what it says?

A trial compares how far one picture moves toward the text, as a contrastive model sees it, with how
far it moves under a random feature that is raised by as much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.protocol import Score
from vision_sae.descriptions.scores.bootstrap import Counts, scored
from vision_sae.steering.movements import Movements

STEERING = "steering"
"""The judge of what a label causes: pictures with the feature raised, beside their twins."""
_PERCENTILE = 0.95

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


class CausalScorer:
    """Scores of labels by P pictures and R random features."""

    def __init__(self, movements: Movements, embed: Embed) -> None:
        """``embed`` gives texts as unit vectors (T, E)."""
        self._movements, self._embed = movements, embed

    def _effects(self, feature: int, text: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """How far pictures move toward the text under the feature (P) and random ones (R, P)."""
        (direction,) = self._embed([text])
        return self._movements.of(feature) @ direction, self._movements.others(feature) @ direction

    def score(self, feature: int, text: str, *, seed: int = 0) -> Score | None:
        """The share of trials that the feature wins, chance .5, with an interval over prompts; None
        where there is no random feature to win against."""
        if not self._movements.compares(feature):
            return None
        ours, others = self._effects(feature, text)
        wins = (ours > others).mean(0) + 0.5 * (ours == others).mean(0)

        def share(counts: Counts) -> NDArray[np.float64]:
            return np.asarray(counts @ wins / counts.sum(1))

        made = scored("causal", [share], [len(wins)], seed)
        return None if made is None else replace(made, judge=STEERING)

    def beats_random(self, feature: int, text: str) -> bool:
        """Whether its mean movement exceeds the 95th percentile of those of random features; not
        where there are none."""
        if not self._movements.compares(feature):
            return False
        ours, others = self._effects(feature, text)
        return bool(ours.mean() > np.quantile(others.mean(1), _PERCENTILE))
