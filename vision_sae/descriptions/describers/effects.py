"""Labels by effect: the word toward which raising a feature moves a generator's pictures.

The inputs that make a generator's feature fire can differ from the feature's effect on pictures,
and steering needs the effect. The feature is raised in generations of some prompts. The chosen word
is the word toward which the pictures move furthest, in standard deviations of the movement under
random features of the same norm. Pictures of other prompts then judge the word by the causal score:
the describer abstains unless these pictures, too, move further than under 95 % of random features.
A word that passes is confirmed by the judge `STEERING`.

Source: Gur-Arieh et al., Enhancing Automated Interpretability with Output-Centric Feature
Descriptions, ACL 2025, for descriptions of features by their effect on the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field

from vision_sae.descriptions.kinds import DescriberKind, register_describer
from vision_sae.descriptions.protocol import JUDGED_BY, Description
from vision_sae.descriptions.scores.causal import STEERING, CausalScorer
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.protocol import Evidence, spaced
from vision_sae.models.generator import GenerationSettings
from vision_sae.sections import Section
from vision_sae.steering.bundles import open_bundles
from vision_sae.steering.movements import Movements

if TYPE_CHECKING:
    from vision_sae.descriptions.toolbox import Toolbox

_FEWEST_PROMPTS = 4
_CANDIDATES = 10
"""Words in the candidates of a description."""


class EffectsConfig(Section):
    """Labels by the effect of raising a feature on a generator's pictures."""

    prompts: int = Field(16, ge=4, le=2**31 - 1)
    """The most prompts to generate pictures for: one half chooses a label, the other judges it."""
    amount: float = Field(16.0, gt=0, le=1e30)
    """How much activation is added, in mean activations of the usual feature."""


def prompts_of(evidence: Evidence, count: int) -> list[GenerationSettings]:
    """At most ``count`` different prompts of the pictures, evenly spaced, each with a seed.

    Raises `InvalidInputError` when the pictures have fewer than four.
    """
    captions = list(dict.fromkeys(image.caption for image in evidence.images if image.caption))
    if len(captions) < _FEWEST_PROMPTS:
        raise InvalidInputError(
            f"labels by effects need {_FEWEST_PROMPTS} different prompts, the pictures of "
            f"{evidence.name} have {len(captions)}; harvest pictures of more",
            field="describer",
        )
    chosen = [captions[i] for i in spaced(len(captions), count)]
    return [GenerationSettings(prompt, seed=seed) for seed, prompt in enumerate(chosen)]


class EffectsDescriber:
    """Labels by the effect of raising a feature on the pictures of a generator."""

    name = "effects"
    version = 2

    def __init__(
        self,
        words: Sequence[str],
        directions: Float[np.ndarray, "W E"],
        movements: Movements,
        scorer: CausalScorer,
    ) -> None:
        """``directions`` are the words' embeddings, of length 1.

        ``movements`` choose a word, and ``scorer`` judges the word on other prompts.
        """
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
            reason = "no other feature fires, so there is none to compare it with"
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
        """How much further the unit moves pictures toward each word (W) than random features do.

        The unit of the result is the standard deviation over random features.
        """
        ours = self._movements.of(unit).mean(0) @ self._directions.T
        others = self._movements.others(unit).mean(1) @ self._directions.T
        spread = np.maximum(others.std(0), 1e-9)
        return np.asarray((ours - others.mean(0)) / spread)


def _make(tools: Toolbox, evidence: Evidence, settings: EffectsConfig) -> EffectsDescriber:
    """The describer of a bundle's features; generates the pictures to compare.

    Raises `InvalidInputError` for evidence that is no bundle of a generator.
    """
    if not isinstance(evidence, BundleEvidence):
        raise InvalidInputError(
            "labels by effects are of features of a generator's bundle", field="describer"
        )
    prompts = prompts_of(evidence, settings.prompts)
    generator, (steered,) = open_bundles([evidence.bundle.path])
    choosing, judging = (
        steered.movements(generator, tools.clip, part, amount=settings.amount, seed=seed)
        for seed, part in ((1, prompts[::2]), (2, prompts[1::2]))
    )
    vocabulary = tools.vocabulary(evidence, nouns=False)  # the words of the prompts
    embed = tools.embeddings(vocabulary)
    return EffectsDescriber(
        vocabulary.words, embed(vocabulary.words), choosing, CausalScorer(judging, embed)
    )


EFFECTS = register_describer(
    DescriberKind(
        EffectsDescriber,
        EffectsConfig,
        _make,
        needs=("generator", "contrastive model"),
        scored=False,
        served=lambda settings: False,
    )
)
