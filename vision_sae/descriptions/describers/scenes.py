"""Labels of a scene generator's features by what their prompts asked for, whose truth is known.

The prompts of composed scenes are captions that say all there is to see
(`vision_sae.evaluation.planted_scenes`), so that any statement about a picture can be looked up. A
label is a conjunction of at most three terms (`scene_terms`): the one that says most about how
strongly a feature fires in the pictures of a prompt, in nats of mutual information over all
prompts, silent ones included, less what it takes to say it, among those that are true of the
prompts that fire it most, where there are such. Prompts have three sides
(`vision_sae.statistics.sides`):

- half of them choose. A part of these proposes labels of one term, two and three; another part, in
  which none was chosen, takes the one that is worth most there, so that a label grows only while
  held-out information does;
- a quarter judges: the label is given when it is true of the strongest prompts, and correlates with
  the firing over all of them, above the labels of other features by a whole bootstrap interval;
- a quarter is looked at by nobody, and is left for whoever audits the labels.

Where in a picture a feature fires, on the object or on what lies around it, is read from the maps
of the strongest pictures and the place where the scene has its object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.describers.scene_terms import (
    MOST,
    Label,
    Part,
    english,
    numbers,
    terms,
    truth,
)
from vision_sae.descriptions.evidence.protocol import Evidence, spread
from vision_sae.descriptions.protocol import JUDGED_BY, Description, Score
from vision_sae.descriptions.scores.bootstrap import Counts, scored
from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.planted_scenes import (
    VALUES,
    Attributes,
    Place,
    Shape,
    Size,
    draw,
    read_caption,
)
from vision_sae.statistics.sides import Side, side_of

JUDGE = "scenes"
STRONGEST = 20
"""Prompts that fire a feature most, of which its label should be true."""
_FEWEST = 10
"""Prompts of each part of the choosing side, and of the judging side, that a feature must fire in
before a label is tried."""
_LEVELS = (0.5, 0.8, 0.95)
"""Quantiles of the peaks at which a feature fires that part weak from strong."""
_BEAM = 8
"""Labels of one length that are made longer."""
_PROPOSED = 24
"""Labels of one length that the other part of the prompts sees."""
_TRUE = 0.8
"""Share of the strongest prompts that a label should be true of: of labels of any worth one is
taken that is, where there is one."""
_LEAST_TRUE = 0.7
"""Share of the strongest judging prompts that a label must be true of."""
_POOL = 64
"""Features whose labels are the controls, evenly spaced over those that fire."""
_CONTROLS = 8
_SIDE = 64
"""Pixels of the scenes that are drawn to see where their object is."""
_COVERED = 0.1
"""Share of a patch that an object must cover for the patch to be its."""
_CLEARLY = 0.8
"""How much of the firing of two patches, one on the object and one beside it, must be on either for
it to be said."""


class Scenes(NamedTuple):
    """The prompts of a data set that are captions of scenes."""

    shown: NDArray[np.int64]
    """The numbers of the values of each prompt's attributes (N, attributes)."""
    true: NDArray[np.bool_]
    """Which term is true of which prompt (terms, N)."""
    attributes: list[Attributes]
    prompt: NDArray[np.int64]
    """The prompt of each picture; -1 where it is no caption of a scene."""
    proposing: NDArray[np.int64]
    """Prompts (of N) that labels are proposed by,"""
    choosing: NDArray[np.int64]
    """that one of them is chosen by,"""
    judging: NDArray[np.int64]
    """that the chosen one is judged by,"""
    auditing: NDArray[np.int64]
    """and that nobody looks at."""

    def peaks(self, of_pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """The strongest activation in all pictures and denoising steps of each prompt (N)."""
        peaks = np.zeros(len(self.shown), dtype=np.float32)
        known = self.prompt >= 0
        np.maximum.at(peaks, self.prompt[known], of_pictures[known])
        return peaks


@lru_cache(maxsize=4)
def read_scenes(images: tuple[ImageRecord, ...]) -> Scenes:
    """What the captions of pictures say; equal captions are one prompt."""
    found = dict[str, int]()
    attributes: list[Attributes] = []
    prompt = np.full(len(images), -1, dtype=np.int64)
    for row, image in enumerate(images):
        if image.caption not in found:
            scene = read_caption(image.caption)
            if scene is None:
                continue
            found[image.caption] = len(attributes)
            attributes.append(scene)
        prompt[row] = found[image.caption]
    sides = np.array([side_of(caption) or "" for caption in found], dtype=np.str_)

    def on(side: Side) -> NDArray[np.int64]:
        return np.flatnonzero(sides == side)

    shown = numbers(attributes)
    return Scenes(
        shown,
        _true(shown),
        attributes,
        prompt,
        on("choose")[::2],
        on("choose")[1::2],
        on("judge"),
        on("audit"),
    )


class Choice(NamedTuple):
    """A label that was chosen, and its rivals."""

    label: Label
    """Empty where no term says anything that holds on other prompts."""
    worth: float
    """Nats of information about the choosing prompts, less the cost of saying it."""
    rivals: list[tuple[Label, float]]
    """The best proposals and what they are worth, best first."""


def choose(peaks: NDArray[np.float32], scenes: Scenes) -> Choice:
    """The label of a feature with these peaks (N) for each prompt."""
    offered = terms()
    true = scenes.true
    edges = _edges(peaks[scenes.proposing])
    by_level = [_levels(peaks[part], edges) for part in (scenes.proposing, scenes.choosing)]
    first, second = (true[:, part] for part in (scenes.proposing, scenes.choosing))
    beam: list[tuple[int, ...]] = [()]
    proposed: list[tuple[int, ...]] = []
    for _ in range(MOST):
        longer = _longer(beam)
        worth = _worth(longer, first, by_level[0])
        order = np.argsort(-worth, kind="stable")
        beam = [longer[i] for i in order[:_BEAM]]
        proposed += [longer[i] for i in order[:_PROPOSED]]
    held = _worth(proposed, second, by_level[1])
    fits = _true_of_strongest(proposed, second, peaks[scenes.choosing])
    # A label that fits none too well is still worth a look by the judge.
    order = np.lexsort((-held, ~((fits >= _TRUE) & (held > 0))))
    rivals = [(tuple(offered[i] for i in proposed[at]), float(held[at])) for at in order]
    label, worth_of_it = rivals[0]
    return Choice(label if worth_of_it > 0 else (), worth_of_it, rivals[:_BEAM])


@lru_cache(maxsize=1)
def _column() -> list[int]:
    """The number of each term's attribute."""
    names = list(VALUES)
    return [names.index(term.attribute) for term in terms()]


def _longer(labels: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """All labels that have one more term, of another attribute."""
    column = _column()
    made = {
        tuple(sorted((*label, term), key=column.__getitem__))
        for label in labels
        for term in range(len(column))
        if column[term] not in {column[other] for other in label}
    }
    return sorted(made)


def _true(shown: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which term is true of which prompt (terms, N)."""
    return np.stack([truth((term,), shown) for term in terms()])


def _edges(peaks: NDArray[np.float32]) -> NDArray[np.float32]:
    """What parts silence from weak and from strong firing."""
    fires = peaks[peaks > 0]
    return np.unique([0.0, *np.quantile(fires, _LEVELS)] if len(fires) else [0.0])


def _levels(peaks: NDArray[np.float32], edges: NDArray[np.float32]) -> NDArray[np.float32]:
    """The level of each peak, one-hot (N, levels)."""
    level = np.searchsorted(edges, peaks, side="left")
    return np.eye(len(edges) + 1, dtype=np.float32)[level]


def _worth(
    labels: Sequence[tuple[int, ...]], true: NDArray[np.bool_], levels: NDArray[np.float32]
) -> NDArray[np.float64]:
    """What labels are worth on prompts: their information in nats, summed, less their cost; without
    any worth is what is true where the feature fires less."""
    held = _together(labels, true).astype(np.float32) @ levels  # (labels, levels)
    all_levels = levels.sum(0)
    joint = np.stack([held, all_levels - held], axis=1).astype(np.float64)
    total = max(len(levels), 1)
    expected = joint.sum(2, keepdims=True) * all_levels / total
    with np.errstate(divide="ignore", invalid="ignore"):
        nats = np.where(joint > 0, joint * np.log(joint / expected), 0.0).sum((1, 2))
        ranks = all_levels.cumsum() - all_levels / 2
        higher = (held @ ranks) / held.sum(1) > (all_levels @ ranks) / total
    costs = np.array([term.cost for term in terms()])
    paid = [sum(costs[list(label)]) for label in labels]
    return np.asarray(np.where(higher, nats, 0.0) - np.array(paid))


def _together(labels: Sequence[tuple[int, ...]], true: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which label is true of which prompt (labels, N)."""
    padded = np.array([(*label, *label[:1] * (MOST - len(label))) for label in labels])
    return np.asarray(true[padded].all(1))


def _true_of_strongest(
    labels: Sequence[tuple[int, ...]], true: NDArray[np.bool_], peaks: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The share of the prompts that fire a feature most that each label is true of."""
    strongest = strongest_of(peaks)
    return np.asarray(_together(labels, true[:, strongest]).mean(1))


def strongest_of(peaks: NDArray[np.float32]) -> NDArray[np.int64]:
    """The prompts that a feature fires in most, strongest first, at most `STRONGEST`."""
    order = np.argsort(-peaks, kind="stable")[:STRONGEST]
    return np.asarray(order[peaks[order] > 0], dtype=np.int64)


class Judgement(NamedTuple):
    """What prompts that had no part in the choice say of a label."""

    scores: tuple[Score, ...]
    base_rate: float
    refused: str
    """Why the label is no label; empty when it is one."""


def judge(
    label: Label,
    peaks: NDArray[np.float32],
    shown: NDArray[np.int64],
    controls: Sequence[Label] = (),
    *,
    seed: int = 0,
) -> Judgement:
    """Judge a label by the peaks (N) of prompts and what they show; ``controls`` are labels of
    other features."""
    true = [truth(each, shown).astype(np.float64) for each in (label, *controls)]
    strongest = strongest_of(peaks)
    if len(strongest) < _FEWEST:
        few = f"it fires in {len(strongest)} prompts to judge it by, fewer than {_FEWEST}"
        return Judgement((), float(true[0].mean()) if len(peaks) else 0.0, few)

    def share(held: NDArray[np.float64]) -> Any:
        return lambda counts: counts @ held[strongest] / counts.sum(1)

    precision = scored("precision", [share(t) for t in true], [len(strongest)], seed)
    base_rate = float(true[0].mean())
    correlation = scored(
        "correlation", [_correlation(t, peaks.astype(np.float64)) for t in true], [len(peaks)], seed
    )
    found = [_by_scenes(score) for score in (precision, correlation) if score is not None]
    if precision is not None and base_rate > 0:
        lift = precision.value / base_rate
        found.insert(1, _by_scenes(Score("lift", lift, precision.n)))
    return Judgement(tuple(found), base_rate, _refused(precision, correlation, base_rate))


def _by_scenes(score: Score) -> Score:
    return replace(score, judge=JUDGE)


def _correlation(true: NDArray[np.float64], peaks: NDArray[np.float64]) -> Any:
    """The statistic: Pearson's correlation between a label's truth and the peaks."""
    sums = np.stack([true, peaks, true * peaks, true**2, peaks**2], axis=1)

    def statistic(counts: Counts) -> NDArray[np.float64]:
        means = counts @ sums / counts.sum(1, keepdims=True)
        covariance = means[:, 2] - means[:, 0] * means[:, 1]
        variances = (means[:, 3:] - means[:, :2] ** 2).clip(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(covariance / np.sqrt(variances.prod(1)))

    return statistic


def _refused(precision: Score | None, correlation: Score | None, base_rate: float) -> str:
    if precision is None or correlation is None or precision.lower is None:
        return "no held-out scene has what it says"
    if precision.value < _LEAST_TRUE:
        return f"it is true of {precision.value:.0%} of the held-out scenes that fire it most"
    if precision.lower <= max(precision.control or 0.0, base_rate):
        return "of the strongest held-out scenes it is true no more often than other labels"
    if correlation.lower is None or correlation.lower <= max(correlation.control or 0.0, 0.0):
        return "over all held-out scenes it goes with the firing no more than other labels"
    return ""


class ScenesDescriber:
    """Labels features by the attributes of scenes, and judges the labels itself."""

    name = "scenes"
    version = 1

    def __init__(self) -> None:
        self._pools: dict[str, list[tuple[int, Label]]] = {}

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``units`` in order.

        Raises `InvalidInputError` when no picture has the caption of a scene.
        """
        scenes = read_scenes(tuple(evidence.images))
        if not len(scenes.shown):
            raise InvalidInputError(
                f"no picture of {evidence.name} has the caption of a composed scene, such as "
                '"a small red star at the top left of a white background"; take another describer',
                field="describer",
            )
        for unit in units:
            yield self._describe(evidence, scenes, unit)

    def _describe(self, evidence: Evidence, scenes: Scenes, unit: int) -> Description:
        peaks = scenes.peaks(evidence.peaks(unit))
        fires = [
            int((peaks[part] > 0).sum())
            for part in (scenes.proposing, scenes.choosing, scenes.judging)
        ]
        if min(fires) < _FEWEST:
            few = f"fires in {sum(fires)} prompts, too few to choose and to judge a label by"
            return Description(unit, None, few, self.name, self.version)
        where = _part(evidence, scenes, unit)
        choice = choose(peaks, scenes)
        candidates = tuple((english(label), round(worth, 2)) for label, worth in choice.rivals)
        seen = f"fires in {(peaks > 0).mean():.0%} of prompts{_ON[where.part]}"
        if not choice.label:
            return Description(
                unit,
                None,
                f"no attribute says when it fires; it {seen}",
                self.name,
                self.version,
                candidates=candidates,
            )
        controls = self._controls(evidence, scenes, unit, choice.label)
        judging = scenes.judging
        found = judge(choice.label, peaks[judging], scenes.shown[judging], controls, seed=unit)
        details: dict[str, Any] = {
            "terms": [term.to_json() for term in choice.label],
            "part": where.part,
            "base_rate": round(found.base_rate, 4),
        }
        if not found.refused:
            details[JUDGED_BY] = JUDGE
        text = english(choice.label, part=where.part)
        return Description(
            unit,
            None if found.refused else text,
            f'"{text}": {found.refused}; it {seen}' if found.refused else "",
            self.name,
            self.version,
            scores=found.scores,
            evidence=where.patches,
            details=details,
            candidates=candidates,
        )

    def _controls(self, evidence: Evidence, scenes: Scenes, unit: int, label: Label) -> list[Label]:
        """Labels of other features that say something else; the same whenever asked for."""
        if evidence.identity not in self._pools:
            chosen = (
                (other, choose(scenes.peaks(evidence.peaks(other)), scenes).label)
                for other in spread(evidence, _POOL)
            )
            self._pools[evidence.identity] = [(o, found) for o, found in chosen if found]
        others = sorted(
            {found for o, found in self._pools[evidence.identity] if o != unit and found != label}
        )
        count = min(_CONTROLS, len(others))
        drawn = np.random.default_rng(unit).choice(len(others), count, replace=False)
        return [others[i] for i in sorted(drawn.tolist())]


class _Where(NamedTuple):
    """Where in pictures a feature fires."""

    part: Part
    patches: tuple[int, ...]
    """The strongest patches of pictures on the choosing side."""


_ON: dict[Part, str] = {"": "", "object": ", on the object", "background": ", on the background"}


def _part(evidence: Evidence, scenes: Scenes, unit: int) -> _Where:
    """The part whose patches nearly alone fire, in the strongest pictures of the choosing
    prompts and in those of the judging ones."""
    grid = evidence.grid
    choosing = {*scenes.proposing.tolist(), *scenes.choosing.tolist()}
    judging = set(scenes.judging.tolist())
    shares: tuple[list[float], list[float]] = ([], [])
    patches = []
    for firing in evidence.firings(unit):
        prompt = int(scenes.prompt[firing.image])
        if prompt < 0:
            continue
        scene = scenes.attributes[prompt]
        on_object = object_patches(scene.shape, scene.size, scene.place, grid.rows, grid.cols)
        inside, beside = (float(firing.map[area].mean()) for area in (on_object, ~on_object))
        share = inside / (inside + beside)
        if prompt in choosing:
            patches.append(firing.patch)
            shares[0].append(share)
        elif prompt in judging:
            shares[1].append(share)
    means = [float(np.mean(found)) if found else 0.5 for found in shares]
    part: Part = ""
    if min(means) >= _CLEARLY:
        part = "object"
    elif max(means) <= 1 - _CLEARLY:
        part = "background"
    return _Where(part, tuple(patches))


@lru_cache(maxsize=1024)
def object_patches(
    shape: Shape, size: Size, place: Place, rows: int, cols: int
) -> NDArray[np.bool_]:
    """The patches (rows, cols) that the object of a scene touches."""
    side = max(_SIDE // rows, 1) * rows
    scene = draw(Attributes(shape, "red", "plain", size, place, "white"), side=side)
    covered = scene.parts["object"].astype(np.float64)
    height = side // rows
    columns = np.array_split(covered, cols, axis=1)
    shares = np.stack([c.reshape(rows, height, -1).mean((1, 2)) for c in columns], axis=1)
    return np.asarray(shares >= _COVERED)
