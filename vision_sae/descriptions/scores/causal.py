"""The causal score of a label: does raising the feature move pictures toward the text?

A trial compares two movements of one picture toward the text, in the space of a contrastive model:
under the feature, and under a random feature that is raised by the same amount.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.kinds import EXTRA, FailedChecks, MetricKind, ScoreKind, register_score
from vision_sae.descriptions.protocol import Score
from vision_sae.descriptions.scoring.scored import scored
from vision_sae.statistics.bootstrap import Counts
from vision_sae.steering.movements import Movements

STEERING = "steering"
"""The name of this judge: pictures with the feature raised, beside the same pictures without it."""
_PERCENTILE = 0.95

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts -> their embeddings (T, E), of length 1."""


class CausalScorer:
    """Scores of labels by P pictures and R random features."""

    def __init__(self, movements: Movements, embed: Embed) -> None:
        """``movements`` are of the pictures to score on, ``embed`` embeds texts."""
        self._movements, self._embed = movements, embed

    def _effects(self, feature: int, text: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Movements toward the text under the feature (P) and under random features (R, P)."""
        (direction,) = self._embed([text])
        return self._movements.of(feature) @ direction, self._movements.others(feature) @ direction

    def score(self, feature: int, text: str, *, seed: int = 0) -> Score | None:
        """The share of trials that the feature wins, chance .5, with an interval over prompts.

        None when there is no random feature to compare with.
        """
        if not self._movements.compares(feature):
            return None
        ours, others = self._effects(feature, text)
        wins = (ours > others).mean(0) + 0.5 * (ours == others).mean(0)

        def share(counts: Counts) -> NDArray[np.float64]:
            return np.asarray(counts @ wins / counts.sum(1))

        result = scored("causal", [share], [len(wins)], seed)
        return None if result is None else replace(result, judge=STEERING)

    def beats_random(self, feature: int, text: str) -> bool:
        """Whether the mean movement exceeds the 95th percentile over random features; False without
        random features."""
        if not self._movements.compares(feature):
            return False
        ours, others = self._effects(feature, text)
        return bool(ours.mean() > np.quantile(others.mean(1), _PERCENTILE))


CAUSAL = register_score(
    ScoreKind(
        "causal",
        (
            MetricKind(
                "causal",
                FailedChecks(
                    EXTRA,
                    "It counts the random features that move a picture less toward the label. "
                    "Among many random features, the few that fit a too wide label hardly change "
                    "the count.",
                ),
            ),
        ),
        __doc__,
    )
)
