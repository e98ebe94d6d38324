"""Labels that can be looked up: which facts about pictures go with a unit's firing?

A unit is described by predicates: kinds of things that captions name, with their hypernyms, and
looks that are measured in the pixels of the patches where it fires. The choosing side of the
sources alone is looked at (`vision_sae.statistics.sides`), in two folds. A predicate is worth the
information that it gives about firing, in nats, measured on each fold with the probabilities of the
other, less what it costs to say; a further one is added only while that rises. To be considered, it
must hold for most of the strongest pictures, and more often than elsewhere.

Information about kinds is over all pictures, those that fire weakly or not at all too; information
about looks is how the patches that fire differ from all patches of the same pictures.

Sources: the objective is MILAN's pointwise mutual information (Hernandez et al. 2022,
arXiv:2201.11114) with probabilities that are counted, and minimum description length (Rissanen
1978); predicates and their conjunctions as in Mu and Andreas, Compositional Explanations of
Neurons, NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.evidence.protocol import Evidence, spaced
from vision_sae.descriptions.predicates.facts import Facts, cost_of_look
from vision_sae.descriptions.predicates.label import Label
from vision_sae.descriptions.predicates.looks import LOOKS, Family, Look
from vision_sae.descriptions.predicates.ranges import more_telling
from vision_sae.descriptions.predicates.regions import Regions, regions_of
from vision_sae.descriptions.protocol import Description

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

STRONGEST = 20
"""Pictures of different sources for most of which a label must hold."""
FEWEST = 5
"""Sources of the choosing side that must fire a unit before it is described."""
DENSE = 0.2
"""Share of pictures from which on a unit is described by looks alone."""
_HOLDS, _LIFT = 0.6, 3.0
"""Share of the strongest pictures that must show a kind, and how much more often than all do."""
_PART = 0.2
"""The same share for each of several kinds that are named together."""
_LOOKS_HOLD, _LOOKS_LIFT = 0.85, 1.7
"""The same of a look, of the strongest regions."""
_REGIONS = 48
"""How many of the strongest regions those are: of twenty, some would do by chance."""
_FURTHER_LIFT: Mapping[Family, float] = {"ground": 1.15, "part": 1.15, "colour": 1.15}
"""How much more often a look that is added must hold than among patches that the label fits;
`_SAYS` for the other families, which say less."""
_SAYS = 1.5
_KIND_FIRST = 0.5
"""Share of the information of looks alone from which on a label names a kind: that a thing is no
background says much, but naming the thing implies it."""
_USUAL = 384
"""Pictures, evenly spaced, that tell how usual looks are among patches that a label fits."""
_MOST_TERMS = 3
_MOST_KINDS = 3
_SMOOTHING = 0.5
_CANDIDATES = 10


_A_THING = Label((), (Look("ground", "object"),))
"""True of many units, and no label."""


class _Unit(NamedTuple):
    """What the choosing side says of one unit."""

    activation: Floats
    """Strongest activation in each picture (N)."""
    strongest: NDArray[np.int64]
    """Pictures of different sources, strongest first, at most `STRONGEST`."""
    regions: Regions
    """Of firing pictures, strongest first."""


@dataclass(frozen=True)
class _Candidate:
    label: Label
    gain: float
    """Information less cost, in nats."""
    holds: float
    """Share of the strongest that it holds for."""


class GroundedDescriber:
    """Labels from captions and pixels."""

    name = "grounded"
    version = 1

    def __init__(self, facts: Facts, *, side: Mask | None = None) -> None:
        """``side`` are the pictures (N) looked at; those of the choosing side where absent."""
        self._facts = facts
        side = facts.side("choose") if side is None else side
        fold = facts.sources % 2 == 0
        self._folds = (side & fold, side & ~fold)
        self._choose = side
        weights = facts.weights * side
        self._usual_looks = (weights @ facts.look_shares) / max(1e-9, float(weights.sum()))

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``units`` in order; each depends on nothing but its own evidence."""
        for unit in units:
            yield self._describe(evidence, unit)

    def _describe(self, evidence: Evidence, unit: int) -> Description:
        seen = self._unit(evidence, unit)
        patches = tuple(int(row) for row in seen.regions.strongest_rows[:STRONGEST])
        firing = len(seen.strongest)
        if firing < FEWEST:
            reason = f"fires in {firing} independent pictures, fewer than {FEWEST}"
            return self._abstention(unit, reason, patches)
        share = float(((seen.activation > 0) * self._facts.weights)[self._choose].sum())
        share /= float(self._facts.weights[self._choose].sum())
        looks = self._looks(seen, Label(), self._choose)
        kinds = [] if share > DENSE else self._kinds(seen)
        best = max([*kinds[:1], *looks[:1]], key=lambda c: c.gain, default=None)
        if best is None:
            return self._abstention(unit, self._what_it_looks_like(seen, share), patches)
        if not best.label.kinds and kinds and kinds[0].gain > 0:
            refined, alone = self._grow(seen, kinds[0]), self._grow(seen, best)
            best = refined if refined.gain >= _KIND_FIRST * alone.gain else alone
        else:
            best = self._grow(seen, best)
        if best.label == _A_THING:
            return self._abstention(unit, self._what_it_looks_like(seen, share), patches)
        others = sorted([*kinds[:_CANDIDATES], *looks[:_CANDIDATES]], key=lambda c: -c.gain)
        return Description(
            unit,
            best.label.text,
            "",
            self.name,
            self.version,
            evidence=patches,
            details={
                "label": best.label.to_json(),
                "over": more_telling(self._facts, evidence, unit, best.label, self._choose),
                "gain": round(best.gain, 3),
                "picture_share": round(share, 5),
            },
            candidates=tuple((c.label.text, round(c.gain, 3)) for c in others[:_CANDIDATES]),
        )

    def _abstention(self, unit: int, reason: str, patches: tuple[int, ...]) -> Description:
        return Description(unit, None, reason, self.name, self.version, evidence=patches)

    def _unit(self, evidence: Evidence, unit: int) -> _Unit:
        activation = evidence.peaks(unit).astype(np.float64)
        strongest = strongest_sources(activation * self._choose, self._facts.sources, STRONGEST)
        return _Unit(activation, strongest, regions_of(evidence, unit, self._facts, self._choose))

    def _what_it_looks_like(self, seen: _Unit, share: float) -> str:
        """The reason of an abstention, with what most of the regions have in common."""
        regions = seen.regions
        common = (regions.weights @ regions.looks) / max(1e-9, regions.weights.sum())
        lift = common / np.maximum(self._usual_looks, 1e-3)
        told = [row for row in np.argsort(-lift) if common[row] >= 0.5 and lift[row] > 1.2][:2]
        often = f"fires in {share:.0%} of all pictures" if share > DENSE else ""
        mostly = " and ".join(f"{_said(LOOKS[row])} ({common[row]:.0%})" for row in told)
        if not mostly:
            return often or "its strongest pictures share no kind of thing and no look"
        return f"{often}: mostly {mostly}" if often else f"mostly {mostly}, which is no label"

    def _kinds(self, seen: _Unit) -> list[_Candidate]:
        """Kinds, and a few together, that hold for the strongest pictures, the most informative
        first."""
        facts = self._facts
        weights = facts.weights * self._choose
        holds = np.asarray(facts.shows[seen.strongest].mean(axis=0)).ravel()
        base = (weights @ facts.shows) / max(1e-9, float(weights.sum()))
        gains = self._information(seen.activation, facts.shows) - facts.costs
        (open_,) = np.nonzero((holds >= _PART) & (holds >= _LIFT * base) & (gains > 0))
        open_ = open_[np.argsort(-gains[open_], kind="stable")][:_CANDIDATES]
        alone = [
            _Candidate(facts.label([int(facts.kinds[v])]), float(gains[v]), float(holds[v]))
            for v in open_
        ]
        fits = [c for c in alone if c.holds >= _HOLDS]
        several = self._several(seen, open_, gains) if len(open_) > 1 else None
        return sorted([*fits, *([several] if several else [])], key=lambda c: -c.gain)

    def _several(self, seen: _Unit, open_: NDArray[np.int64], gains: Floats) -> _Candidate | None:
        """Kinds of which the strongest pictures show one or another: the best, and others while
        information rises. None when one alone says as much, or they do not hold."""
        facts = self._facts
        shown = facts.shows[:, open_].toarray() > 0
        chosen, gain = [0], float(gains[open_[0]])
        while len(chosen) < _MOST_KINDS:
            together = shown | shown[:, chosen].any(axis=1)[:, None]
            cost = facts.costs[open_] + facts.costs[open_[chosen]].sum()
            worth = self._information(seen.activation, together.astype(np.float64)) - cost
            worth[chosen] = -np.inf
            best = int(worth.argmax())
            if worth[best] <= gain:
                break
            chosen.append(best)
            gain = float(worth[best])
        holds = float(shown[:, chosen].any(axis=1)[seen.strongest].mean())
        if len(chosen) == 1 or holds < _HOLDS:
            return None
        kinds = [int(facts.kinds[open_[c]]) for c in chosen]
        return _Candidate(facts.label(kinds), gain, holds)

    def _information(self, activation: Floats, shown: Any) -> Floats:
        """What each column of ``shown`` (N, V) tells about firing, in nats: the mean of what it
        tells about firing at all and about firing strongly, above the median."""
        fires = activation > 0
        values = activation[fires & self._choose]
        strong = activation >= (np.median(values) if len(values) else np.inf)
        return (self._told(fires, shown) + self._told(fires & strong, shown)) / 2

    def _told(self, happens: Mask, shown: Any) -> Floats:
        """What each column of ``shown`` (N, V) tells about what ``happens`` in pictures (N), in
        nats: each fold with the probabilities of the other."""
        facts = self._facts
        gain = np.zeros(shown.shape[1])
        for ours, theirs in (self._folds, self._folds[::-1]):
            mine, other = facts.weights * ours, facts.weights * theirs
            total, true = float(mine.sum()), float((mine * happens).sum())
            usual = (true + _SMOOTHING) / (total + 2 * _SMOOTHING)
            with_kind, true_with = mine @ shown, (mine * happens) @ shown
            other_with, other_true = other @ shown, (other * happens) @ shown
            there, then = float(other.sum()), float((other * happens).sum())
            for n, k, m, t in (
                (with_kind, true_with, other_with, other_true),
                (total - with_kind, true - true_with, there - other_with, then - other_true),
            ):
                # Smoothed toward what is usual, so that rare kinds promise little.
                share = (k + usual) / (n + 1)
                gain += t * np.log(share / usual)
                gain += (m - t) * np.log((1 - share) / (1 - usual))
        return np.asarray(gain)

    def _looks(self, seen: _Unit, label: Label, where: Mask) -> list[_Candidate]:
        """The label with one more look, the most informative first; ``where`` are the pictures
        (N) in which the label's kinds are shown."""
        facts, regions = self._facts, seen.regions
        inside = where[regions.pictures] & regions.have(label)
        if inside.sum() < FEWEST:
            return []
        usual = self._usual_given(label, where)
        holds = regions.looks[inside].astype(np.float64)
        weights, fold = regions.weights[inside], facts.sources[regions.pictures[inside]] % 2 == 0
        gain = np.zeros(len(LOOKS))
        for mine, other in ((fold, ~fold), (~fold, fold)):
            total = float(weights[mine].sum())
            share = (weights[mine] @ holds[mine] + usual) / (total + 1)
            true = weights[other] @ holds[other]
            false = float(weights[other].sum()) - true
            gain += true * np.log(share / usual)
            gain += false * np.log((1 - share) / (1 - usual))
        most = holds[:_REGIONS].mean(axis=0)
        taken = {look.family for look in label.looks}
        if "part" in taken:
            taken.add("ground")
        implied = Look("ground", "object") if label.kinds else None  # what is named is a thing
        found = []
        lift = np.array([_LOOKS_LIFT if not label.length else _further_lift(x) for x in LOOKS])
        for row in np.flatnonzero((most >= _LOOKS_HOLD) & (most >= lift * usual)):
            look, worth = LOOKS[row], float(gain[row]) - cost_of_look()
            if look.family not in taken and look != implied and worth > 0:
                found.append(_Candidate(label.with_look(look), worth, float(most[row])))
        return sorted(found, key=lambda c: -c.gain)

    def _usual_given(self, label: Label, where: Mask) -> Floats:
        """Share of patches with each look (L), among patches that the label holds for."""
        facts = self._facts
        weights = facts.weights * (where & self._choose)
        if not label.looks:
            shares = weights @ facts.look_shares / max(1e-9, float(weights.sum()))
        else:
            pictures = np.flatnonzero(weights)
            pictures = pictures[spaced(len(pictures), _USUAL)]
            looks = facts.looks[pictures]
            held = looks[:, :, label.rows].all(axis=2)
            each = np.repeat(weights[pictures], held.sum(axis=1))
            shares = each @ looks[held] / max(1e-9, float(each.sum()))
        return np.asarray(np.clip(shares, 1e-3, 1 - 1e-3))

    def _grow(self, seen: _Unit, best: _Candidate) -> _Candidate:
        """The candidate with further looks, while information rises."""
        while len(best.label.looks) + bool(best.label.kinds) < _MOST_TERMS:
            where = self._facts.names(best.label) & self._choose
            more = self._looks(seen, best.label, where)
            if not more:
                break
            best = _Candidate(more[0].label, best.gain + more[0].gain, more[0].holds)
        return best


def strongest_sources(
    activation: Floats, sources: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """The ``count`` pictures of largest activation (N) above 0, each of another source."""
    firing = np.flatnonzero(activation > 0)
    ranked = firing[np.argsort(-activation[firing], kind="stable")]
    _, first = np.unique(sources[ranked], return_index=True)
    return np.asarray(ranked[np.sort(first)[:count]])


def _further_lift(look: Look) -> float:
    return _FURTHER_LIFT.get(look.family, _SAYS)


def _said(look: Look) -> str:
    return Label((), (look,)).text
