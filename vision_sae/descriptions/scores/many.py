"""Whole lists of labels, whoever wrote them: their scores, and how good they are together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.protocol import Metric, Negatives, Score
from vision_sae.descriptions.scores.scorer import (
    CONTROLS,
    Scorer,
    abstain,
    check_request,
    check_text,
)


@dataclass(frozen=True)
class Summary:
    """How good a list of labels is. Medians are over the labels that are no abstention."""

    labels: int
    """Labels in the list."""
    share_labelled: float
    """Share of them that is better than the control."""
    detection_auc_random: float | None
    """Median detection AUC against random negatives; None when nothing was measured."""
    detection_auc_hard: float | None
    """The same against hard negatives."""
    permuted_auc: float | None
    """Median detection AUC of other units' labels, random negatives, over ALL labels."""


@dataclass(frozen=True)
class Scored:
    """The outcome for a list of labels."""

    scores: dict[int, list[Score]]
    """Of each unit, in the order of their numbers."""
    abstained: dict[int, str]
    """Units whose label is too weak, and why."""
    summary: Summary


def control_texts(
    labels: Mapping[int, str], *, count: int = CONTROLS, seed: int = 0
) -> dict[int, list[str]]:
    """Texts of other units for each unit, drawn from all distinct texts.

    At most ``count`` each, and none that is the unit's own text (in any case of letters).
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
) -> Scored:
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
    abstained = {unit: reason for unit, found in scores.items() if (reason := abstain(found))}
    return Scored(scores, abstained, summary(scores, abstained))


def summary(scores: Mapping[int, Sequence[Score]], abstained: Mapping[int, str]) -> Summary:
    """What `Scored` says of the list as a whole."""
    kept = [found for unit, found in scores.items() if unit not in abstained]
    controls = [s.control for found in scores.values() for s in found if _is_auc(s, "random")]
    return Summary(
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
