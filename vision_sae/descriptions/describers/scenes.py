"""Labels of a scene generator's features, from prompts whose truth about each picture is known.

The prompt of a composed scene is a complete caption of the picture
(`vision_sae.pictures.scenes`), so any statement about a picture can be checked. A label is a
conjunction of at most three terms (`scene_terms`). Its gain is the mutual information of its truth
and the firing of the feature over all prompts, in nats, less the description length of the label.
The label of largest gain is chosen; labels that are true of the strongest prompts come before all
other labels. Prompts have three sides (`vision_sae.statistics.sides`):

- Half of the prompts choose. One part of this half proposes labels of one, two and three terms. The
  other part chooses the proposal of largest gain, so that a label has a further term only when
  held-out information rises.
- A quarter of the prompts judges. A label is confirmed when it is true of the strongest prompts and
  correlates with the firing over all prompts, more than labels of other features do, by the whole
  bootstrap interval.
- A quarter of the prompts is left for audits of the labels.

The part of a picture that a feature fires on (the object or the background) is read from the
activation maps of the strongest pictures and the place of the object in the scene.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from numpy.typing import NDArray

from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.kinds import DescriberKind, register_describer
from vision_sae.descriptions.protocol import JUDGED_BY, Description, Score
from vision_sae.descriptions.scene_terms import (
    MOST,
    SceneLabel,
    ScenePart,
    english,
    numbers,
    terms,
    truth,
)
from vision_sae.descriptions.scoring.scored import scored
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.protocol import Evidence, spread
from vision_sae.pictures.scenes import (
    VALUES,
    Attributes,
    Place,
    Shape,
    Size,
    draw,
    read_caption,
)
from vision_sae.sections import NoSettings
from vision_sae.statistics.bootstrap import Counts
from vision_sae.statistics.sides import Side, side_of

JUDGE = "scenes"
"""The name of this judge in descriptions and scores."""
STRONGEST = 20
"""Prompts of largest activation, on which the precision of a label is measured."""
_FEWEST = 10
"""A label is tried only for a feature that fires in this many prompts of each part of the choosing
side, and of the judging side."""
_LEVELS = (0.5, 0.8, 0.95)
"""Quantiles of the positive peaks that separate levels of firing."""
_BEAM = 8
"""Width of the beam: labels of one length that get a further term."""
_PROPOSED = 24
"""Proposals of each length."""
_TRUE = 0.8
"""A label that is true of this share of the strongest prompts comes before all other labels."""
_LEAST_TRUE = 0.7
"""Share of the strongest judging prompts that a label must be true of."""
_POOL = 64
"""Features whose labels form the pool of controls, evenly spaced over the features that fire."""
_CONTROLS = 8
"""Control labels of a judgement."""
_SIDE = 64
"""Side in pixels of the scenes that are drawn to locate their object."""
_COVERED = 0.1
"""Share of a patch that the object must cover for the patch to belong to the object."""
_PART_SHARE = 0.8
"""A label names a part when this share of the activation falls on the part: mean activation on the
part, divided by the sum of the means on both parts."""


class Scenes(NamedTuple):
    """The N prompts of a data set that are captions of scenes with A attributes."""

    shown: Int64[np.ndarray, "N A"]
    """The number of each prompt's value for each attribute."""
    true: Bool[np.ndarray, "terms N"]
    """Whether a term is true of a prompt."""
    attributes: list[Attributes]
    prompt: Int64[np.ndarray, B]
    """The prompt of each picture; -1 for a picture whose caption is no scene."""
    proposing: Int64[np.ndarray, proposing]
    """Prompts that propose labels."""
    choosing: Int64[np.ndarray, choosing]
    """Prompts that choose among the proposals."""
    judging: Int64[np.ndarray, judging]
    """Prompts that judge the chosen label."""
    auditing: Int64[np.ndarray, auditing]
    """Prompts left for audits."""

    def peaks(self, of_pictures: Float[np.ndarray, B]) -> Float32[np.ndarray, N]:
        """The strongest activation in all pictures and denoising steps of each prompt."""
        peaks = np.zeros(len(self.shown), dtype=np.float32)
        known = self.prompt >= 0
        np.maximum.at(peaks, self.prompt[known], of_pictures[known])
        return peaks


@lru_cache(maxsize=4)
def read_scenes(images: tuple[ImageRecord, ...]) -> Scenes:
    """The scenes in the captions of pictures; equal captions are one prompt."""
    number = dict[str, int]()
    attributes: list[Attributes] = []
    prompt = np.full(len(images), -1, dtype=np.int64)
    for row, image in enumerate(images):
        if image.caption not in number:
            scene = read_caption(image.caption)
            if scene is None:
                continue
            number[image.caption] = len(attributes)
            attributes.append(scene)
        prompt[row] = number[image.caption]
    sides = np.array([side_of(caption) or "" for caption in number], dtype=np.str_)

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
    """The chosen label, and the best proposals."""

    label: SceneLabel
    """Empty when no proposal has a positive gain on the choosing prompts."""
    gain: float
    """Information about the firing in the choosing prompts less description length, in nats."""
    proposals: list[tuple[SceneLabel, float]]
    """The best proposals and their gains, best first."""


def choose(peaks: Float[np.ndarray, N], scenes: Scenes) -> Choice:
    """The label of a feature with these peaks in the prompts."""
    vocabulary = terms()
    true = scenes.true
    edges = _edges(peaks[scenes.proposing])
    by_level = [_levels(peaks[part], edges) for part in (scenes.proposing, scenes.choosing)]
    first, second = (true[:, part] for part in (scenes.proposing, scenes.choosing))
    beam: list[tuple[int, ...]] = [()]
    proposed: list[tuple[int, ...]] = []
    for _ in range(MOST):
        longer = _longer(beam)
        order = np.argsort(-_gains(longer, first, by_level[0]), kind="stable")
        beam = [longer[i] for i in order[:_BEAM]]
        proposed += [longer[i] for i in order[:_PROPOSED]]
    gains = _gains(proposed, second, by_level[1])
    fits = true_of_strongest(proposed, second, peaks[scenes.choosing])
    # Without a label that fits the strongest prompts, the judge decides about the largest gain.
    order = np.lexsort((-gains, ~((fits >= _TRUE) & (gains > 0))))
    ranked = [(tuple(vocabulary[i] for i in proposed[at]), float(gains[at])) for at in order]
    label, gain = ranked[0]
    return Choice(label if gain > 0 else (), gain, ranked[:_BEAM])


@lru_cache(maxsize=1)
def _column() -> list[int]:
    """The number of each term's attribute."""
    names = list(VALUES)
    return [names.index(term.attribute) for term in terms()]


def _longer(labels: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """All labels with one more term, of another attribute."""
    column = _column()
    longer = {
        tuple(sorted((*label, term), key=column.__getitem__))
        for label in labels
        for term in range(len(column))
        if column[term] not in {column[other] for other in label}
    }
    return sorted(longer)


def _true(shown: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a term is true of a prompt (terms, N)."""
    return np.stack([truth((term,), shown) for term in terms()])


def _edges(peaks: NDArray[np.float32]) -> NDArray[np.float32]:
    """The boundaries between silence and the levels of firing."""
    fires = peaks[peaks > 0]
    return np.unique([0.0, *np.quantile(fires, _LEVELS)] if len(fires) else [0.0])


def _levels(peaks: NDArray[np.float32], edges: NDArray[np.float32]) -> NDArray[np.float32]:
    """The level of each peak, one-hot (N, levels)."""
    level = np.searchsorted(edges, peaks, side="left")
    return np.eye(len(edges) + 1, dtype=np.float32)[level]


def _gains(
    labels: Sequence[tuple[int, ...]], true: NDArray[np.bool_], levels: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The information of labels about the prompts' levels in nats, less their description length.

    The information counts as 0 for a label that is true where the feature fires less.
    """
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
    lengths = [sum(costs[list(label)]) for label in labels]
    return np.asarray(np.where(higher, nats, 0.0) - np.array(lengths))


def _together(labels: Sequence[tuple[int, ...]], true: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a label is true of a prompt (labels, N)."""
    padded = np.array([(*label, *label[:1] * (MOST - len(label))) for label in labels])
    return np.asarray(true[padded].all(1))


def true_of_strongest(
    labels: Sequence[tuple[int, ...]],
    true: Bool[np.ndarray, "terms N"],
    peaks: Float[np.ndarray, N],
) -> Float[np.ndarray, labels]:
    """The share of a feature's strongest prompts that each label is true of.

    A label is numbers of terms, and ``true`` says whether a term is true of a prompt. The share is
    0 for a feature that fires in no prompt: no prompt supports any label.
    """
    strongest = strongest_of(peaks)
    if not len(strongest):
        return np.zeros(len(labels))
    return np.asarray(_together(labels, true[:, strongest]).mean(1))


def strongest_of(peaks: Float[np.ndarray, N]) -> Int64[np.ndarray, strongest]:
    """The prompts of largest peak above 0, strongest first, at most `STRONGEST`."""
    order = np.argsort(-peaks, kind="stable")[:STRONGEST]
    return np.asarray(order[peaks[order] > 0], dtype=np.int64)


class Judgement(NamedTuple):
    """The result of testing a label on prompts that had no part in the choice of the label."""

    scores: tuple[Score, ...]
    base_rate: float
    """Share of the prompts that the label is true of."""
    refused: str
    """Why the label is refused; empty when it is confirmed."""


def judge(
    label: SceneLabel,
    peaks: Float[np.ndarray, N],
    shown: Int64[np.ndarray, "N A"],
    controls: Sequence[SceneLabel] = (),
    *,
    seed: int = 0,
) -> Judgement:
    """Test a label on prompts with these peaks and values of attributes.

    ``controls`` are labels of other features.
    """
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
    scores = [_by_scenes(score) for score in (precision, correlation) if score is not None]
    if precision is not None and base_rate > 0:
        lift = precision.value / base_rate
        scores.insert(1, _by_scenes(Score("lift", lift, precision.n)))
    return Judgement(tuple(scores), base_rate, _refused(precision, correlation, base_rate))


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
        return "it is true of no held-out scene"
    if precision.value < _LEAST_TRUE:
        return f"it is true of {precision.value:.0%} of the held-out scenes that fire it most"
    if precision.lower <= max(precision.control or 0.0, base_rate):
        return "it is true of the strongest held-out scenes no more often than other labels are"
    if correlation.lower is None or correlation.lower <= max(correlation.control or 0.0, 0.0):
        return "it correlates with the firing no more than other labels do, over held-out scenes"
    return ""


class ScenesDescriber:
    """Labels features by the attributes of scenes, and judges the labels itself."""

    name = "scenes"
    version = 1

    def __init__(self) -> None:
        self._pools: dict[str, list[tuple[int, SceneLabel]]] = {}

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
        candidates = tuple((english(label), round(gain, 2)) for label, gain in choice.proposals)
        firing = f"fires in {(peaks > 0).mean():.0%} of prompts{_ON[where.part]}"
        if not choice.label:
            return Description(
                unit,
                None,
                f"no attribute predicts its firing; it {firing}",
                self.name,
                self.version,
                candidates=candidates,
            )
        controls = self._controls(evidence, scenes, unit, choice.label)
        judging = scenes.judging
        verdict = judge(choice.label, peaks[judging], scenes.shown[judging], controls, seed=unit)
        details: dict[str, Any] = {
            "terms": [term.to_json() for term in choice.label],
            "part": where.part,
            "base_rate": round(verdict.base_rate, 4),
        }
        if not verdict.refused:
            details[JUDGED_BY] = JUDGE
        text = english(choice.label, part=where.part)
        return Description(
            unit,
            None if verdict.refused else text,
            f'"{text}": {verdict.refused}; it {firing}' if verdict.refused else "",
            self.name,
            self.version,
            scores=verdict.scores,
            evidence=where.patches,
            details=details,
            candidates=candidates,
        )

    def _controls(
        self, evidence: Evidence, scenes: Scenes, unit: int, label: SceneLabel
    ) -> list[SceneLabel]:
        """Different labels, of other features; the same labels in every call."""
        if evidence.identity not in self._pools:
            chosen = (
                (other, choose(scenes.peaks(evidence.peaks(other)), scenes).label)
                for other in spread(evidence, _POOL)
            )
            self._pools[evidence.identity] = [(o, control) for o, control in chosen if control]
        pool = self._pools[evidence.identity]
        others = sorted({control for o, control in pool if o != unit and control != label})
        count = min(_CONTROLS, len(others))
        drawn = np.random.default_rng(unit).choice(len(others), count, replace=False)
        return [others[i] for i in sorted(drawn.tolist())]


class _Where(NamedTuple):
    """Where in pictures a feature fires."""

    part: ScenePart
    patches: tuple[int, ...]
    """The strongest patches of pictures on the choosing side."""


_ON: dict[ScenePart, str] = {
    "": "",
    "object": ", on the object",
    "background": ", on the background",
}


def _part(evidence: Evidence, scenes: Scenes, unit: int) -> _Where:
    """The part of the scene that most of the activation falls on.

    The part must be the same for the strongest pictures of choosing and of judging prompts.
    """
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
    means = [float(np.mean(side)) if side else 0.5 for side in shares]
    part: ScenePart = ""
    if min(means) >= _PART_SHARE:
        part = "object"
    elif max(means) <= 1 - _PART_SHARE:
        part = "background"
    return _Where(part, tuple(patches))


@lru_cache(maxsize=1024)
def object_patches(
    shape: Shape, size: Size, place: Place, rows: int, cols: int
) -> Bool[np.ndarray, "R C"]:
    """The patches that the object of a scene covers."""
    side = max(_SIDE // rows, 1) * rows
    scene = draw(Attributes(shape, "red", "plain", size, place, "white"), side=side)
    covered = scene.parts["object"].astype(np.float64)
    height = side // rows
    columns = np.array_split(covered, cols, axis=1)
    shares = np.stack([c.reshape(rows, height, -1).mean((1, 2)) for c in columns], axis=1)
    return np.asarray(shares >= _COVERED)


SCENES = register_describer(
    DescriberKind(
        ScenesDescriber,
        NoSettings,
        lambda tools, evidence, settings: ScenesDescriber(),
        needs=("captions",),
        scored=False,
        served=lambda settings: False,
    )
)
