"""Grounded labels: facts about pictures that predict a unit's firing, from captions and pixels.

The predicates of a label are kinds of things that captions name, with their hypernyms, and looks
that are measured in the pixels of the firing patches. The describer sees the choosing side of the
sources only (`vision_sae.statistics.sides`), in two folds. The gain of a predicate is its
information about firing in nats, measured on each fold with the probabilities of the other fold,
less its description length. A further predicate is added only while the gain rises. A predicate
must hold for most of the strongest pictures, and more often than in other pictures.

Information about kinds is measured over all pictures, with weak and silent pictures. Information
about looks compares the firing patches with all patches of the same pictures.

Sources: the objective is MILAN's pointwise mutual information (Hernandez et al. 2022,
arXiv:2201.11114) with counted probabilities, and minimum description length (Rissanen 1978);
predicates and their conjunctions as in Mu and Andreas, Compositional Explanations of Neurons,
NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray

from vision_sae.descriptions.kinds import DescriberKind, register_describer
from vision_sae.descriptions.predicates.facts import Facts, cost_of_look
from vision_sae.descriptions.predicates.label import Label
from vision_sae.descriptions.predicates.looks import LOOKS, Family, Look
from vision_sae.descriptions.predicates.ranges import better_range
from vision_sae.descriptions.predicates.regions import Regions, regions_of
from vision_sae.descriptions.protocol import Description
from vision_sae.evidence.protocol import Evidence, spaced
from vision_sae.sections import NoSettings

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

STRONGEST = 20
"""The strongest pictures, of different sources: a label must hold for most of these."""
FEWEST = 5
"""The fewest firing sources of the choosing side for a label."""
DENSE = 0.2
"""A unit that fires in a larger share of pictures is described by looks alone."""
_HOLDS, _LIFT = 0.6, 3.0
"""The least share of the strongest pictures that show a kind, and the least ratio of this share to
the share of all pictures."""
_PART = 0.2
"""The least share for each of several kinds that a label names together."""
_LOOKS_HOLD, _LOOKS_LIFT = 0.85, 1.7
"""The least share and ratio for a look, over the strongest regions."""
_REGIONS = 48
"""The number of the strongest regions: with twenty regions, some looks would pass by chance."""
_FURTHER_LIFT: Mapping[Family, float] = {"ground": 1.15, "part": 1.15, "colour": 1.15}
"""The least ratio for a further look, to its share of the patches that the label fits;
`_USUAL_FURTHER_LIFT` for the other families, which carry less information."""
_USUAL_FURTHER_LIFT = 1.5
_KIND_FIRST = 0.5
"""A label names a kind when its gain is at least this share of the gain of looks alone. The look
"object" is informative, but the name of a thing implies this look."""
_USUAL = 384
"""Pictures, evenly spaced, that give the base rates of looks among patches that a label fits."""
_MOST_TERMS = 3
_MOST_KINDS = 3
_SMOOTHING = 0.5
_CANDIDATES = 10


_A_THING = Label((), (Look("ground", "object"),))
"""A label that is refused, because it is true of many units."""


class _Unit(NamedTuple):
    """The activations and regions of one unit on the choosing side."""

    activation: Floats
    """Strongest activation in each picture (N)."""
    strongest: NDArray[np.int64]
    """Pictures of different sources, strongest first, at most `STRONGEST`."""
    regions: Regions
    """The regions of firing pictures, strongest first."""


@dataclass(frozen=True)
class _Candidate:
    label: Label
    gain: float
    """Information less description length, in nats."""
    holds: float
    """Share of the strongest pictures or regions that the label holds for."""


class GroundedDescriber:
    """Labels that captions and pixels can test."""

    name = "grounded"
    version = 1

    def __init__(self, facts: Facts, *, side: Bool[np.ndarray, N] | None = None) -> None:
        """``side`` marks the pictures that choose labels; the choosing side when absent."""
        self._facts = facts
        side = facts.side("choose") if side is None else side
        fold = facts.sources % 2 == 0
        self._folds = (side & fold, side & ~fold)
        self._choose = side
        weights = facts.weights * side
        self._usual_looks = (weights @ facts.look_shares) / max(1e-9, float(weights.sum()))

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``units`` in order; each depends on the evidence of its unit alone."""
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
            return self._abstention(unit, self._common_looks(seen, share), patches)
        if not best.label.kinds and kinds and kinds[0].gain > 0:
            refined, alone = self._grow(seen, kinds[0]), self._grow(seen, best)
            best = refined if refined.gain >= _KIND_FIRST * alone.gain else alone
        else:
            best = self._grow(seen, best)
        if best.label == _A_THING:
            return self._abstention(unit, self._common_looks(seen, share), patches)
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
                "over": better_range(self._facts, evidence, unit, best.label, self._choose),
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

    def _common_looks(self, seen: _Unit, share: float) -> str:
        """The reason of an abstention, with the looks that most of the regions have in common."""
        regions = seen.regions
        common = (regions.weights @ regions.looks) / max(1e-9, regions.weights.sum())
        lift = common / np.maximum(self._usual_looks, 1e-3)
        rows = [row for row in np.argsort(-lift) if common[row] >= 0.5 and lift[row] > 1.2][:2]
        often = f"fires in {share:.0%} of all pictures" if share > DENSE else ""
        mostly = " and ".join(f"{_english(LOOKS[row])} ({common[row]:.0%})" for row in rows)
        if not mostly:
            return often or "its strongest pictures share no kind of thing and no look"
        return f"{often}: mostly {mostly}" if often else f"mostly {mostly}, which is no label"

    def _kinds(self, seen: _Unit) -> list[_Candidate]:
        """Kinds, alone and in unions, that hold for the strongest pictures; largest gain first."""
        facts = self._facts
        weights = facts.weights * self._choose
        holds = np.asarray(facts.shows[seen.strongest].mean(axis=0)).ravel()
        base = (weights @ facts.shows) / max(1e-9, float(weights.sum()))
        gains = self._information(seen.activation, facts.shows) - facts.costs
        (eligible,) = np.nonzero((holds >= _PART) & (holds >= _LIFT * base) & (gains > 0))
        eligible = eligible[np.argsort(-gains[eligible], kind="stable")][:_CANDIDATES]
        alone = [
            _Candidate(facts.label([int(facts.kinds[v])]), float(gains[v]), float(holds[v]))
            for v in eligible
        ]
        fits = [c for c in alone if c.holds >= _HOLDS]
        union = self._union(seen, eligible, gains) if len(eligible) > 1 else None
        return sorted([*fits, *([union] if union else [])], key=lambda c: -c.gain)

    def _union(self, seen: _Unit, eligible: NDArray[np.int64], gains: Floats) -> _Candidate | None:
        """A union of kinds: the kind of largest gain, joined with others while the gain rises.

        None when a single kind has the largest gain, or the union does not hold often enough.
        """
        facts = self._facts
        shown = facts.shows[:, eligible].toarray() > 0
        chosen, gain = [0], float(gains[eligible[0]])
        while len(chosen) < _MOST_KINDS:
            together = shown | shown[:, chosen].any(axis=1)[:, None]
            cost = facts.costs[eligible] + facts.costs[eligible[chosen]].sum()
            further = self._information(seen.activation, together.astype(np.float64)) - cost
            further[chosen] = -np.inf
            best = int(further.argmax())
            if further[best] <= gain:
                break
            chosen.append(best)
            gain = float(further[best])
        holds = float(shown[:, chosen].any(axis=1)[seen.strongest].mean())
        if len(chosen) == 1 or holds < _HOLDS:
            return None
        kinds = [int(facts.kinds[eligible[c]]) for c in chosen]
        return _Candidate(facts.label(kinds), gain, holds)

    def _information(self, activation: Floats, shown: Any) -> Floats:
        """The information of each column of ``shown`` (N, V) about firing, in nats.

        The result is the mean of the information about firing at all and the information about
        strong firing, above the median.
        """
        fires = activation > 0
        values = activation[fires & self._choose]
        strong = activation >= (np.median(values) if len(values) else np.inf)
        return (self._about(fires, shown) + self._about(fires & strong, shown)) / 2

    def _about(self, event: Mask, shown: Any) -> Floats:
        """The information of each column of ``shown`` (N, V) about an ``event`` (N), in nats.

        The likelihood on each fold uses the probabilities of the other fold.
        """
        facts = self._facts
        gain = np.zeros(shown.shape[1])
        for ours, theirs in (self._folds, self._folds[::-1]):
            mine, other = facts.weights * ours, facts.weights * theirs
            total, true = float(mine.sum()), float((mine * event).sum())
            usual = (true + _SMOOTHING) / (total + 2 * _SMOOTHING)
            with_kind, true_with = mine @ shown, (mine * event) @ shown
            other_with, other_true = other @ shown, (other * event) @ shown
            there, then = float(other.sum()), float((other * event).sum())
            for n, k, m, t in (
                (with_kind, true_with, other_with, other_true),
                (total - with_kind, true - true_with, there - other_with, then - other_true),
            ):
                # Shares are smoothed toward the base rate, so that rare kinds gain little.
                share = (k + usual) / (n + 1)
                gain += t * np.log(share / usual)
                gain += (m - t) * np.log((1 - share) / (1 - usual))
        return np.asarray(gain)

    def _looks(self, seen: _Unit, label: Label, where: Mask) -> list[_Candidate]:
        """The label with one more look, largest gain first.

        ``where`` marks the pictures (N) that show one of the label's kinds.
        """
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
        implied = Look("ground", "object") if label.kinds else None  # a named kind is a thing
        candidates = []
        lift = np.array([_LOOKS_LIFT if not label.length else _further_lift(x) for x in LOOKS])
        for row in np.flatnonzero((most >= _LOOKS_HOLD) & (most >= lift * usual)):
            look, net = LOOKS[row], float(gain[row]) - cost_of_look()
            if look.family not in taken and look != implied and net > 0:
                candidates.append(_Candidate(label.with_look(look), net, float(most[row])))
        return sorted(candidates, key=lambda c: -c.gain)

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
        """The candidate with further looks, while the gain rises."""
        while len(best.label.looks) + bool(best.label.kinds) < _MOST_TERMS:
            where = self._facts.names(best.label) & self._choose
            more = self._looks(seen, best.label, where)
            if not more:
                break
            best = _Candidate(more[0].label, best.gain + more[0].gain, more[0].holds)
        return best


def strongest_sources(
    activation: Float[np.ndarray, N], sources: Int64[np.ndarray, N], count: int
) -> Int64[np.ndarray, strongest]:
    """At most ``count`` pictures of largest activation above 0, each of a different source."""
    firing = np.flatnonzero(activation > 0)
    ranked = firing[np.argsort(-activation[firing], kind="stable")]
    _, first = np.unique(sources[ranked], return_index=True)
    return np.asarray(ranked[np.sort(first)[:count]])


def _further_lift(look: Look) -> float:
    return _FURTHER_LIFT.get(look.family, _USUAL_FURTHER_LIFT)


def _english(look: Look) -> str:
    return Label((), (look,)).text


GROUNDED = register_describer(
    DescriberKind(
        GroundedDescriber,
        NoSettings,
        lambda tools, evidence, settings: GroundedDescriber(tools.facts(evidence)),
        needs=("captions",),
        scored=False,
        looked_up=True,
        one_thread=True,
        served=lambda settings: False,
    )
)
