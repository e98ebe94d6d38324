"""Scores of whole lists of labels from any source, and a summary of the list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from vision_sae.descriptions.protocol import Metric, Negatives, Score
from vision_sae.descriptions.scoring.scorer import (
    CONTROLS,
    Scorer,
    abstain,
    check_request,
    check_text,
)
from vision_sae.evidence.protocol import Evidence


@dataclass(frozen=True)
class LabelsSummary:
    """The quality of a list of labels; medians are over the labels that are strong enough."""

    labels: int
    """Labels in the list."""
    share_labelled: float
    """Share of the labels that are better than the control."""
    detection_auc_random: float | None
    """Median detection AUC against random negatives; None when nothing was measured."""
    detection_auc_hard: float | None
    """The same against hard negatives."""
    permuted_auc: float | None
    """Median detection AUC of other units' labels, random negatives, over ALL labels."""


@dataclass(frozen=True)
class ScoredLabels:
    """The scores of a list of labels."""

    scores: dict[int, list[Score]]
    """{unit: scores}, in the order of the units' numbers."""
    abstained: dict[int, str]
    """{unit: reason} of units whose label is too weak."""
    summary: LabelsSummary


def control_texts(
    labels: Mapping[int, str], *, count: int = CONTROLS, seed: int = 0
) -> dict[int, list[str]]:
    """{unit: texts of other units}, drawn from all distinct texts.

    A unit gets at most ``count`` texts. The unit's own text, in upper or lower case, is left out.
    """
    distinct = {text.casefold(): text for _, text in sorted(labels.items(), reverse=True)}
    texts, number = list(distinct.values()), {folded: i for i, folded in enumerate(distinct)}
    controls = {}
    for unit, text in sorted(labels.items()):
        random, own = np.random.default_rng([seed, unit]), number[text.casefold()]
        others = random.choice(len(texts) - 1, min(count, len(texts) - 1), replace=False)
        controls[unit] = [texts[other + (other >= own)] for other in others]
    return controls


def score_many(
    scorer: Scorer,
    evidence: Evidence,
    labels: Mapping[int, str],
    metrics: Sequence[Metric] = ("detection_auc",),
    *,
    negatives: Sequence[Negatives] = ("random", "hard"),
    sample: int = 50,
    seed: int = 0,
    controls: int = CONTROLS,
    progress: bool = True,
) -> ScoredLabels:
    """Score the label of every unit in ``labels``; see `Scorer.score`.

    The controls of a unit are labels of others in the list: `control_texts`.
    """
    check_request(metrics, negatives, sample, seed)
    for text in labels.values():
        check_text(text)
    others = control_texts(labels, count=controls, seed=seed)
    distinct = sorted(set(labels.values()))
    row = {text: number for number, text in enumerate(distinct)}
    embedded = scorer.embed(distinct)
    scores = {}
    for unit in tqdm(sorted(labels), desc="score", unit="unit", disable=not progress):
        texts = embedded[[row[text] for text in (labels[unit], *others[unit])]]
        scores[unit] = scorer.score_embedded(
            evidence, unit, texts, metrics, negatives, sample, seed
        )
    abstained = {unit: reason for unit, values in scores.items() if (reason := abstain(values))}
    return ScoredLabels(scores, abstained, summary(scores, abstained))


def summary(scores: Mapping[int, Sequence[Score]], abstained: Mapping[int, str]) -> LabelsSummary:
    """The summary of a list of scored labels."""
    kept = [values for unit, values in scores.items() if unit not in abstained]
    controls = [s.control for values in scores.values() for s in values if _is_auc(s, "random")]
    return LabelsSummary(
        labels=len(scores),
        share_labelled=len(kept) / len(scores) if scores else 0.0,
        detection_auc_random=_median([s.value for f in kept for s in f if _is_auc(s, "random")]),
        detection_auc_hard=_median([s.value for f in kept for s in f if _is_auc(s, "hard")]),
        permuted_auc=_median([control for control in controls if control is not None]),
    )


def _is_auc(score: Score, negatives: Negatives) -> bool:
    return score.metric == "detection_auc" and score.negatives == negatives


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
