"""How true a dictionary's labels are, on pictures that neither chose nor judged the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vision_sae.descriptions.grounding import label_of, over_of
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.predicates.label import Label
from vision_sae.descriptions.protocol import Description, Metric
from vision_sae.descriptions.scores.truth import CAPTIONS, PIXELS, Verdict, judge
from vision_sae.evidence.protocol import Evidence
from vision_sae.statistics.sides import Side

_FEWEST = 10
"""A feature counts in the labelled share if it fires in at least this many pictures of the side."""
_HALF = 0.5


def label_truth(
    evidence: Evidence,
    facts: Facts,
    descriptions: Sequence[Description],
    sides: Sequence[Side] = ("audit",),
) -> dict[str, Any]:
    """The figures of a list of labels, on the pictures of ``sides``."""
    side = facts.side(*sides)
    peaks = {d.feature: evidence.peaks(d.feature) for d in descriptions}
    firing = {unit: int((peak[side] > 0).sum()) for unit, peak in peaks.items()}
    alive = [d for d in descriptions if (peaks[d.feature] > 0).any()]
    counted = [d for d in descriptions if firing[d.feature] >= _FEWEST]
    labelled = [d for d in counted if d.text is not None]
    with_noun = [d for d in labelled if label_of(d).kinds]
    verdicts = {d.feature: _audit(facts, evidence, d, sides) for d in labelled}
    nouns = [verdicts[d.feature] for d in with_noun]
    named = [v for v in (_value(x, "precision", CAPTIONS) for x in nouns) if v is not None]
    lifts = [v for v in (_value(x, "lift", CAPTIONS) for x in nouns) if v is not None]
    looked = [
        v for v in (_value(x, "precision", PIXELS) for x in verdicts.values()) if v is not None
    ]
    unsupported = [
        d.text
        for d in with_noun
        if not label_of(d).looks and _value(verdicts[d.feature], "precision", CAPTIONS) == 0
    ]
    return {
        "features": len(descriptions),
        "alive": len(alive),
        "features_with_10_pictures": len(counted),
        "labels": len(labelled),
        "with_noun": len(with_noun),
        "labelled_share_of_features_with_10_pictures": _share(len(labelled), len(counted)),
        "noun_share_of_features_with_10_pictures": _share(len(with_noun), len(counted)),
        "noun_holds_for_half": _mean([v >= _HALF for v in named]),
        "noun_holds_for_half_with_lift_3": _mean(
            [v >= _HALF and lift >= 3 for v, lift in zip(named, lifts, strict=True)]
        ),
        "lift_median": _median(lifts),
        "unsupported": len(unsupported),
        "measured_right": _mean(looked),
        "correlation_median": _median(_values(verdicts, "correlation")),
        "correlation_control_median": _median(_values(verdicts, "correlation", control=True)),
        "auprc_lift_median": _median(
            [
                s.value / max(s.control or 0, 1e-6)
                for v in verdicts.values()
                for s in v.scores
                if s.metric == "auprc"
            ]
        ),
        "image_share_median": _median([float((peaks[d.feature] > 0).mean()) for d in alive]),
        "best_constant": best_constant(evidence, facts, labelled, sides),
    }


def _audit(
    facts: Facts, evidence: Evidence, description: Description, sides: Sequence[Side]
) -> Verdict:
    side, label = facts.side(*sides), label_of(description)
    return judge(facts, evidence, description.feature, label, side=side, over=over_of(description))


def best_constant(
    evidence: Evidence, facts: Facts, descriptions: Sequence[Description], sides: Sequence[Side]
) -> dict[str, Any]:
    """The baseline of a list of labels: the one label that, given to every unit, has the highest
    median correlation."""
    side = facts.side(*sides)
    weights = facts.weights * side
    weights = weights / weights.sum()
    labels = {label_of(d) for d in descriptions}
    best: dict[str, Any] = {"label": "", "correlation_median": None}
    activations = (
        np.stack([evidence.peaks(d.feature) for d in descriptions])
        if descriptions
        else np.zeros((0, 1))
    )
    if not len(activations):
        return best
    a = activations - (activations @ weights)[:, None]
    spread = np.sqrt(np.maximum((a * a) @ weights, 1e-12))
    for label in sorted(labels, key=lambda one: one.text)[:400]:
        truth = (facts.fits(label).counts > 0).astype(np.float64)
        t = truth - truth @ weights
        deviation = float(np.sqrt(max((t * t) @ weights, 1e-12)))
        median = float(np.median((a @ (weights * t)) / spread / deviation))
        if best["correlation_median"] is None or median > best["correlation_median"]:
            best = {"label": label.text, "correlation_median": round(median, 4)}
    return best


def agreement_of_halves(one: Sequence[Description], other: Sequence[Description]) -> float | None:
    """Of the units that both lists label, the share whose two labels agree: they mean the same, or
    one is a hypernym of the other."""
    from vision_sae.descriptions.predicates.wordnet import nouns

    def same(a: Label, b: Label) -> bool:
        if bool(a.kinds) != bool(b.kinds):
            return False
        if a.kinds:
            return any(
                k in nouns().above(other) or other in nouns().above(k)
                for k in a.kinds
                for other in b.kinds
            )
        return bool(set(a.looks) & set(b.looks))

    theirs = {d.feature: label_of(d) for d in other if d.text is not None}
    both = [(label_of(d), theirs[d.feature]) for d in one if d.text and d.feature in theirs]
    return _mean([same(a, b) for a, b in both])


def _value(verdict: Verdict, metric: Metric, by: str) -> float | None:
    values = [s.value for s in verdict.scores if (s.metric, s.judge) == (metric, by)]
    return values[0] if values else None


def _values(verdicts: dict[int, Verdict], metric: Metric, *, control: bool = False) -> list[float]:
    scores = [s for v in verdicts.values() for s in v.scores if s.metric == metric]
    return [float(s.control or 0) if control else s.value for s in scores]


def _share(part: int, whole: int) -> float:
    return round(part / max(1, whole), 4)


def _mean(values: Sequence[float | bool]) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None


def _median(values: Sequence[float]) -> float | None:
    return round(float(np.median(values)), 4) if len(values) else None
