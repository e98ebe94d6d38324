"""Labels by what a feature does: the word toward which raising it moves a generator's pictures.

What makes a feature of a generator fire and what it makes of a picture are two things, and whoever
steers wants the second. The feature is raised in generations of some prompts; of all words the one
is chosen toward which the pictures move furthest, in standard deviations of how far random features
of the same norm move them. Pictures of other prompts then judge the word by the causal score: the
describer abstains unless there too it moves them further than 95 % of random features. A word that
stands is confirmed so, by the judge `STEERING`.

Source: the idea of describing features by their effect on the output is that of Gur-Arieh et al.,
Enhancing Automated Interpretability with Output-Centric Feature Descriptions, ACL 2025.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.evidence.protocol import Evidence, spaced
from vision_sae.descriptions.protocol import JUDGED_BY, Description
from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import GenerationSettings
from vision_sae.steering.causal import STEERING, CausalScorer
from vision_sae.steering.movements import Movements

_FEWEST_PROMPTS = 4
_CANDIDATES = 10
"""Words that a description keeps."""


def prompts_of(evidence: Evidence, count: int) -> list[GenerationSettings]:
    """At most ``count`` different prompts of the pictures, evenly spaced, each with a seed.

    Raises `InvalidInputError` when the pictures have fewer than four.
    """
    captions = list(dict.fromkeys(image.caption for image in evidence.images if image.caption))
    if len(captions) < _FEWEST_PROMPTS:
        raise InvalidInputError(
            f"labels by effects take {_FEWEST_PROMPTS} different prompts, the pictures of "
            f"{evidence.name} have {len(captions)}; harvest pictures of more",
            field="describer",
        )
    chosen = [captions[i] for i in spaced(len(captions), count)]
    return [GenerationSettings(prompt, seed=seed) for seed, prompt in enumerate(chosen)]


class EffectsDescriber:
    """W words as unit directions (W, E); movements to choose by, and a scorer on other prompts."""

    name = "effects"
    version = 2

    def __init__(
        self,
        words: Sequence[str],
        directions: NDArray[np.float32],
        movements: Movements,
        scorer: CausalScorer,
    ) -> None:
        self._words, self._directions = words, directions
        self._movements, self._scorer = movements, scorer

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``units`` in order, each computed by itself."""
        for unit in units:
            yield self._describe(evidence, unit)

    def _describe(self, evidence: Evidence, unit: int) -> Description:
        if not evidence.peaks(unit).any():
            return Description(unit, None, "it fires in no picture", self.name, self.version)
        if not self._movements.compares(unit):
            reason = "no other feature fires that it could be compared with"
            return Description(unit, None, reason, self.name, self.version)
        distinct = self._distinctness(unit)
        best = np.argsort(-distinct, kind="stable")[:_CANDIDATES]
        text = self._words[best[0]]
        score = self._scorer.score(unit, text)
        confirmed = self._scorer.beats_random(unit, text)
        reason = f'raising it moves other pictures no further toward "{text}" than at random'
        return Description(
            unit,
            text if confirmed else None,
            "" if confirmed else reason,
            self.name,
            self.version,
            scores=() if score is None else (score,),
            details={JUDGED_BY: STEERING} if confirmed else {},
            candidates=tuple((self._words[word], float(distinct[word])) for word in best),
        )

    def _distinctness(self, unit: int) -> NDArray[np.float32]:
        """How much further raising the unit moves pictures toward each word (W) than random
        features do, in their standard deviations."""
        ours = self._movements.of(unit).mean(0) @ self._directions.T
        others = self._movements.others(unit).mean(1) @ self._directions.T
        spread = np.maximum(others.std(0), 1e-9)
        return np.asarray((ours - others.mean(0)) / spread)
