"""Scores of any text for any unit, and when they are too weak for a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from vision_sae.config import TextMetric
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.evidence.sources import Sources
from vision_sae.descriptions.probe import Probe
from vision_sae.descriptions.protocol import Metric, Negatives, Score
from vision_sae.descriptions.scores import cosy, detection, fuzzing, intruder, simulation
from vision_sae.descriptions.scores.sampling import Case
from vision_sae.descriptions.scores.texts import TextEmbeddings
from vision_sae.errors import FeatureNotFoundError, InvalidInputError
from vision_sae.models.protocol import ContrastiveModel

METRICS: tuple[Metric, ...] = get_args(TextMetric)
"""What can be measured of a text; ``pmi`` is its describer's own."""
_KINDS: tuple[Negatives, ...] = ("random", "hard")
_WITH_NEGATIVES = detection.METRICS | {"intruder_accuracy"}
_MOST_CHARACTERS = 500

VERSION = 2
"""Of the scores, and of what abstains by them: another one makes other labels."""
_CHANCE = 0.5

FEWEST = 5
"""Independent pictures on which a score must rest to count."""
CONTROLS = 8
"""Texts of other units that a unit's text is compared with, where there are so many."""


class Scorer:
    """Scores texts with one contrastive model; texts are embedded once."""

    metrics = METRICS

    def __init__(
        self,
        model: ContrastiveModel,
        probe: Probe,
        *,
        embed: TextEmbeddings | None = None,
    ) -> None:
        """``embed``: texts as directions, as the model has them when absent."""
        self.embed = embed or TextEmbeddings(model)
        self._model, self._probe = model, probe
        self._sources: dict[str, Sources] = {}

    def score(
        self,
        evidence: Evidence,
        unit: int,
        text: str,
        metrics: Sequence[Metric],
        *,
        negatives: Sequence[Negatives] = _KINDS,
        sample: int = 50,
        seed: int = 0,
        control_texts: Sequence[str] = (),
    ) -> list[Score]:
        """How well ``text`` says what ``unit`` does, by metric and then by kind of negatives.

        Of the firings, only those that describers did not see are used: at most ``sample``, and as
        many negatives of each kind. ``control_texts`` are texts of other units: the mean of their
        scores is the control. What cannot be measured, for want of pictures, is left out. The
        answer depends on nothing but the arguments.

        Raises `InvalidInputError`, `FeatureNotFoundError`, and `MismatchError` when the probe
        holds other pictures than ``evidence``.
        """
        for each in (text, *control_texts):
            check_text(each)
        check_request(metrics, negatives, sample, seed)
        texts = self.embed([text, *control_texts])
        return self.score_embedded(evidence, unit, texts, metrics, negatives, sample, seed)

    def score_embedded(
        self,
        evidence: Evidence,
        unit: int,
        texts: NDArray[np.float32],
        metrics: Sequence[Metric],
        negatives: Sequence[Negatives],
        sample: int,
        seed: int,
    ) -> list[Score]:
        """`score` of embeddings (T, E) of unit length: of the text, then of the control texts."""
        if not 0 <= unit < evidence.width:
            raise FeatureNotFoundError(
                f"{evidence.name} has units 0 to {evidence.width - 1}, not {unit}", field="unit"
            )
        sources = self._checked(evidence)
        case = Case(evidence, sources, unit, sample=sample, seed=seed)
        found = [
            *self._pictures(case, texts, metrics, negatives, seed),
            *self._places(evidence, case, texts, metrics, negatives, seed),
        ]
        if wanted := [m for m in metrics if m in cosy.METRICS]:
            pictures = case.undescribed
            peaks, origin = evidence.peaks(unit)[pictures], sources.of_picture[pictures]
            found += cosy.score(wanted, self._probe, texts, peaks, pictures, origin, seed=seed)
        return sorted(found, key=lambda s: metrics.index(s.metric))  # stable: kinds keep order

    def _pictures(
        self,
        case: Case,
        texts: NDArray[np.float32],
        metrics: Sequence[Metric],
        negatives: Sequence[Negatives],
        seed: int,
    ) -> list[Score]:
        """Scores that tell pictures apart."""
        wanted = [m for m in metrics if m in detection.METRICS]
        return [
            score
            for kind in (negatives if wanted else ())
            for score in detection.score(
                wanted,
                self._probe,
                texts,
                case.fired,
                case.negatives(kind),
                kind,
                seed=seed,
            )
        ]

    def _places(
        self,
        evidence: Evidence,
        case: Case,
        texts: NDArray[np.float32],
        metrics: Sequence[Metric],
        negatives: Sequence[Negatives],
        seed: int,
    ) -> list[Score]:
        """Scores that look at the places in pictures."""
        probe, firings = self._probe, case.firings
        found: list[Score | None] = []
        if "fuzzing_auc" in metrics:
            random = case.random(1)
            found.append(fuzzing.score(probe, evidence, texts, firings, random=random, seed=seed))
        if "simulation_pearson" in metrics:
            found.append(simulation.score(probe, evidence, texts, firings, seed=seed))
        if "intruder_accuracy" in metrics:
            found += [
                intruder.score(
                    probe,
                    evidence,
                    firings,
                    case.negatives(kind),
                    kind,
                    random=case.random(2),
                    seed=seed,
                )
                for kind in negatives
            ]
        return [score for score in found if score is not None]

    def _checked(self, evidence: Evidence) -> Sources:
        """The sources of ``evidence``, after a look whether the probe is of its pictures."""
        if evidence.identity not in self._sources:
            self._probe.check(self._model, evidence)
            self._sources[evidence.identity] = Sources(evidence)
        return self._sources[evidence.identity]


def check_text(text: str) -> None:
    """Refuse a text that says nothing, or too much."""
    if not text.strip():
        raise InvalidInputError("the text to score is empty; say what the unit does", field="text")
    if len(text) > _MOST_CHARACTERS:
        raise InvalidInputError(
            f"the text has {len(text)} characters, the limit is {_MOST_CHARACTERS}", field="text"
        )


def check_request(
    metrics: Sequence[Metric], negatives: Sequence[Negatives], sample: int, seed: int
) -> None:
    """Refuse metrics, kinds of negatives, sizes and seeds that do not exist."""
    for metric in metrics:
        if metric not in METRICS:
            raise InvalidInputError(
                f"{metric!r} cannot be measured of a text; choose from {', '.join(METRICS)}",
                field="metrics",
            )
    for kind in negatives:
        if kind not in _KINDS:
            raise InvalidInputError(
                f"negatives are {' or '.join(_KINDS)}, not {kind!r}", field="negatives"
            )
    if not negatives and _WITH_NEGATIVES & set(metrics):
        raise InvalidInputError(
            "detection and intruder need negatives; name one kind at least", field="negatives"
        )
    if sample < 1:
        raise InvalidInputError(f"a sample of {sample} pictures says nothing", field="sample")
    if seed < 0:
        raise InvalidInputError(f"a seed is not negative, {seed} is", field="seed")


JUDGED_BY: Metric = "detection_auc"
"""What a label stands or falls by, against random negatives."""


def abstain(scores: Sequence[Score]) -> str:
    """Why a text with these scores is no label; empty when it is one.

    It is judged by its detection AUC against random negatives: that must rest on `FEWEST` pictures
    and be better, by its whole interval, than the control with its standard error. A control below
    chance is there by luck: then chance takes its place.
    """
    judged = [s for s in scores if s.metric == JUDGED_BY and s.negatives == "random"]
    rests_on = judged[0].n if judged else 0
    if rests_on < FEWEST:
        return f"{rests_on} independent pictures to score it on, fewer than {FEWEST}"
    lower, control = judged[0].lower, judged[0].control
    reference, name = _CHANCE, "chance"
    if control is not None:
        if control >= _CHANCE:
            reference, name = control, "the control"
        reference += _control_error(rests_on)
    return "" if lower is not None and lower > reference else f"score interval covers {name}"


def _control_error(n: int) -> float:
    """Standard error of the mean AUC of `CONTROLS` texts that have nothing to do with n pictures
    that fire and n that do not (Mann and Whitney 1947): .03 for n = 24."""
    return math.sqrt((2 * n + 1) / (12 * n**2) / CONTROLS)
