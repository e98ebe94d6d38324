"""Scores of any text for any unit, and the rule that refuses labels with weak scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from vision_sae.descriptions.kinds import ScoreRequest, score_kinds, text_metrics
from vision_sae.descriptions.protocol import Metric, Negatives, Score
from vision_sae.descriptions.scoring.sampling import ScoringCase
from vision_sae.descriptions.scoring.texts import TextEmbeddings
from vision_sae.errors import FeatureNotFoundError, InvalidInputError
from vision_sae.evidence.probe import Probe
from vision_sae.evidence.protocol import Evidence
from vision_sae.evidence.sources import Sources
from vision_sae.models.protocol import ContrastiveModel

METRICS = text_metrics()
"""The metrics that can be measured for any text."""
_MEASURED = [kind for kind in score_kinds() if kind.measure]
_KINDS: tuple[Negatives, ...] = ("random", "hard")
_MOST_CHARACTERS = 500

VERSION = 2
"""The version of the sampling of pictures and of `abstain`, part of a label's identity. Each score
has a separate version."""
_CHANCE = 0.5

FEWEST = 5
"""The fewest independent pictures for a score that decides."""
CONTROLS = 8
"""The most texts of other units that a unit's text is compared with."""


def other_texts(texts: Mapping[int, str], unit: int, text: str, seed: int) -> list[str]:
    """At most `CONTROLS` different ``texts`` {unit: text} of other units, drawn by the seed."""
    others = sorted({other for i, other in texts.items() if i != unit} - {text})
    count = min(CONTROLS, len(others))
    chosen = np.random.default_rng(seed).choice(len(others), count, replace=False)
    return [others[i] for i in chosen]


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
        """``embed`` embeds texts as directions; when absent, the model embeds them unchanged."""
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
        """How well ``text`` describes ``unit``: scores by metric and then by kind of negatives.

        The scores use at most ``sample`` firings that no describer saw, and as many negatives of
        each kind. ``control_texts`` are texts of other units, and the mean of their scores is the
        control. Metrics without enough pictures are left out. The result depends on the arguments
        alone.

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
        texts: Float[np.ndarray, "T E"],
        metrics: Sequence[Metric],
        negatives: Sequence[Negatives],
        sample: int,
        seed: int,
    ) -> list[Score]:
        """`score` from embeddings of length 1: of the text, then of the control texts."""
        if not 0 <= unit < evidence.width:
            raise FeatureNotFoundError(
                f"{evidence.name} has units 0 to {evidence.width - 1}, not {unit}", field="unit"
            )
        sources = self._checked(evidence)
        case = ScoringCase(evidence, sources, unit, sample=sample, seed=seed)
        scores = list[Score]()
        for kind in _MEASURED:
            wanted = tuple(m for m in metrics if m in {entry.name for entry in kind.metrics})
            if wanted and kind.measure:
                request = ScoreRequest(
                    evidence, self._probe, case, texts, wanted, tuple(negatives), seed
                )
                scores += kind.measure(request)
        return sorted(scores, key=lambda s: metrics.index(s.metric))  # stable: kinds keep order

    def _checked(self, evidence: Evidence) -> Sources:
        """The sources of ``evidence``; checks first that the probe is of the same pictures."""
        if evidence.identity not in self._sources:
            self._probe.check(self._model, evidence)
            self._sources[evidence.identity] = Sources(evidence)
        return self._sources[evidence.identity]


def check_text(text: str) -> None:
    """Raise `InvalidInputError` for a text that is empty or too long."""
    if not text.strip():
        raise InvalidInputError("the text to score is empty; say what the unit does", field="text")
    if len(text) > _MOST_CHARACTERS:
        raise InvalidInputError(
            f"the text has {len(text)} characters, the limit is {_MOST_CHARACTERS}", field="text"
        )


def check_request(
    metrics: Sequence[Metric], negatives: Sequence[Negatives], sample: int, seed: int
) -> None:
    """Raise `InvalidInputError` for unknown metrics or negatives, and for an invalid sample size or
    seed."""
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
    needing = [
        kind.name
        for kind in _MEASURED
        if kind.needs_negatives and any(entry.name in metrics for entry in kind.metrics)
    ]
    if not negatives and needing:
        raise InvalidInputError(
            f"{' and '.join(needing)} need negatives; name one kind at least", field="negatives"
        )
    if sample < 1:
        raise InvalidInputError(f"a sample of {sample} pictures says nothing", field="sample")
    if seed < 0:
        raise InvalidInputError(f"a seed is not negative, {seed} is", field="seed")


JUDGED_BY: Metric = "detection_auc"
"""The metric that decides about a label, against random negatives."""


def abstain(scores: Sequence[Score]) -> str:
    """The reason to refuse a text with these scores; empty for a text that can be a label.

    The detection AUC against random negatives decides. It must rest on `FEWEST` pictures, and its
    whole interval must be above the control plus the control's standard error. Chance replaces a
    control below chance.
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
    """Standard error of the mean AUC of `CONTROLS` unrelated texts on n firing and n silent
    pictures (Mann and Whitney 1947): .03 for n = 24."""
    return math.sqrt((2 * n + 1) / (12 * n**2) / CONTROLS)
