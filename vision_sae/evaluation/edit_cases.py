"""Edits of composed scenes, measured: does the requested attribute change, and nothing else?

A case is a prompt, a second prompt that differs in one attribute, and the part of the picture that
shows the attribute. Each method carries the change into the first prompt's picture:

- ``features``: codes of the SAEs are carried over from the second prompt's picture (`transport`)
- ``neurons``: the same with raw neurons of the blocks, of either sign, instead of features
- ``difference``: the difference of the region's mean vectors is added to its patches
- ``prompt``: the second prompt, from the same noise: the baseline without any steering

``toward`` is the rise of the attribute classifier's probability of the requested value. ``beside``
is the change of everything else: the mean total variation of the other attributes'
probabilities, plus the pixel change outside of the region in units of that between pictures of
different prompts. Editing precision is ``toward`` over the sum of both.

An edit of the count adds a second object of the same kind at an empty place. The classifier knows
only scenes of one object, so it looks at such a picture twice: with the first object painted over
to see the new object, and with the second painted over to see the old object. The demo's prompts
cannot express numbers; the second prompt of these cases has the object at the second place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vision_sae.dictionaries.kinds.neurons import NeuronBasis
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.evaluation.scene_attributes import SIDE, AttributeClassifier
from vision_sae.models.generator import Denoising, GenerationSettings, Generator, finish
from vision_sae.pictures.scenes import (
    VALUES,
    Attributes,
    Place,
    draw,
    random_attributes,
)
from vision_sae.steering import effects
from vision_sae.steering.generation import (
    PICTURE,
    SOURCES,
    TWIN,
    Changes,
    SteeredPictures,
    generate,
)
from vision_sae.steering.transport import Transport

CASES = Path(__file__).parent / "edit_cases.jsonl"
EditMethod = Literal["features", "neurons", "difference", "prompt"]
METHODS: tuple[EditMethod, ...] = get_args(EditMethod)
COUNT = "count"
EDITED = ("colour", "texture", "shape", "background", COUNT)
_PER_ATTRIBUTE = 12
_SEED = 77
_BORDER = 5
"""Pixels around an object that are painted over too, since its place varies a little."""
_TOP_K = 20
_STRENGTHS = (1.0, 2.0, 4.0)
"""Candidate strengths. The first half of an attribute's cases chooses one for each method, by
``toward`` times precision."""
ALL = "all"
"""The key of all attributes together in the result of `evaluate_edits`."""


@dataclass(frozen=True)
class EditCase:
    """One edit."""

    before: Attributes
    attribute: str
    """The attribute that changes, one of `EDITED`."""
    value: str
    """The new value; for a count, the place of the second object."""
    seed: int

    @property
    def after(self) -> Attributes:
        """The attributes that the second prompt describes."""
        changed = "place" if self.attribute == COUNT else self.attribute
        change: dict[str, Any] = {changed: self.value}
        return replace(self.before, **change)

    @property
    def expected(self) -> dict[str, str]:
        """{attribute: value} that the edit should produce."""
        if self.attribute != COUNT:
            return {self.attribute: self.value}
        return {"place": self.value, "shape": self.before.shape, "colour": self.before.colour}

    @property
    def unchanged(self) -> list[str]:
        """The attributes that should stay; for a count, those of the first object."""
        return [name for name in VALUES if name != self.attribute]

    def region(self) -> Bool[np.ndarray, "H W"]:
        """The pixels that may change, where the attribute shows before or after the edit."""
        before, after = (draw(a, side=SIDE, seed=0) for a in (self.before, self.after))
        if self.attribute == COUNT:
            return after.parts["object"]
        shown = before.evidence(self.attribute) | after.evidence(self.attribute)
        return np.asarray(shown)

    def views(self, picture: Image.Image) -> tuple[Image.Image, Image.Image]:
        """(the picture that shows the requested change, the picture that shows what should stay)"""
        sized = _sized(picture)
        if self.attribute != COUNT:
            return sized, sized
        first, second = _around(self.before), _around(self.after)
        pixels = np.asarray(sized.convert("RGB"))
        ground = np.median(pixels[~(first | second)], axis=0).astype(np.uint8)
        expected, unchanged = (
            Image.fromarray(np.where(hidden[..., None], ground, pixels))
            for hidden in (first, second)
        )
        return expected, unchanged


def _around(attributes: Attributes) -> NDArray[np.bool_]:
    """The pixels (SIDE, SIDE) of a box around the object of a scene."""
    rows, columns = np.nonzero(draw(attributes, side=SIDE, seed=0).parts["object"])
    box = np.zeros((SIDE, SIDE), np.bool_)
    top, left = max(rows.min() - _BORDER, 0), max(columns.min() - _BORDER, 0)
    box[top : rows.max() + _BORDER + 1, left : columns.max() + _BORDER + 1] = True
    return box


def _apart(one: Attributes) -> list[str]:
    """The places where a second object, with its border, does not overlap the first."""
    elsewhere = (replace(one, place=place) for place in get_args(Place))
    return [other.place for other in elsewhere if not (_around(one) & _around(other)).any()]


def make_cases() -> list[EditCase]:
    """The cases of `CASES`: equally many of each attribute, otherwise random, with large
    objects."""
    cases = []
    for number in range(_PER_ATTRIBUTE * len(EDITED)):
        random = np.random.default_rng([_SEED, number])
        before = replace(random_attributes(random), word=None, size="large")
        attribute = EDITED[number % len(EDITED)]
        if attribute == COUNT:
            if before.place == "centre":  # no room for a second object
                before = replace(before, place="left")
            others = _apart(before)
        else:
            others = [v for v in VALUES[attribute] if v != getattr(before, attribute)]
        cases.append(EditCase(before, attribute, others[random.integers(len(others))], number))
    return cases


def read_cases(path: Path = CASES) -> list[EditCase]:
    """The cases of a file."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [
        EditCase(Attributes(**row["before"]), row["attribute"], row["value"], row["seed"])
        for row in rows
    ]


class EditScores(NamedTuple):
    """Mean scores of a method over many cases."""

    success: float
    """Share of cases in which the classifier sees the requested value."""
    preserved: float
    """Share of the other attributes that the classifier sees unchanged."""
    toward: float
    beside: float
    precision: float
    strength: float | None
    """The method's chosen strength; None where strengths differ."""


class _CaseScores(NamedTuple):
    success: float
    preserved: float
    toward: float
    beside: float


def patches_of(region: Bool[np.ndarray, "H W"], rows: int, cols: int) -> Bool[Tensor, " P"]:
    """Mask of the patches of which a quarter or more lies in a region of pixels."""
    height, width = region.shape
    shares = region.reshape(rows, height // rows, cols, width // cols).mean((1, 3))
    return torch.from_numpy(shares >= min(0.25, float(shares.max()))).flatten()


def _carry(
    model: Generator,
    dictionaries: Mapping[str, SiteDictionary],
    case: EditCase,
    strength: float,
    patches: Tensor,
) -> SteeredPictures:
    source = GenerationSettings(case.after.caption, seed=case.seed)
    transports = [
        Transport(
            name,
            source,
            top_k=_TOP_K,
            source_patches=patches,
            target_patches=patches,
            strength=strength,
        )
        for name in dictionaries
    ]
    settings = GenerationSettings(case.before.caption, seed=case.seed)
    return generate(model, settings, Changes((), transports, dictionaries))


def _add_difference(
    model: Generator, sites: Sequence[str], case: EditCase, strength: float, patches: Tensor
) -> SteeredPictures:
    settings = GenerationSettings(case.before.caption, seed=case.seed)
    run = model.start(settings, settings, replace(settings, prompt=case.after.caption))

    def edit(vectors: Tensor) -> Tensor:
        means = vectors[:, patches].float().mean(1)
        moved = vectors.clone()
        moved[PICTURE, patches] += (strength * (means[SOURCES] - means[TWIN])).to(vectors.dtype)
        return moved

    @contextmanager
    def edited(_: Denoising) -> Iterator[None]:
        with ExitStack() as stack:
            for site in sites:
                stack.enter_context(model.replace(site, edit))
            yield

    picture, twin, _ = finish(run, edited)
    return SteeredPictures(picture, twin, run.batch[PICTURE])


def _reprompt(model: Generator, case: EditCase) -> SteeredPictures:
    settings = GenerationSettings(case.before.caption, seed=case.seed)
    run = model.start(replace(settings, prompt=case.after.caption), settings)
    picture, twin = finish(run)
    return SteeredPictures(picture, twin, run.batch[TWIN])


def _unit() -> float:
    """The mean absolute difference of pixels between scenes of different attributes."""
    random = np.random.default_rng(_SEED)
    scenes = [draw(random_attributes(random), side=SIDE, seed=i).image for i in range(64)]
    pairs = zip(scenes[::2], scenes[1::2], strict=True)
    return float(np.mean([effects.difference(a, b).mean() for a, b in pairs]))


def _measure(
    case: EditCase, steered: SteeredPictures, classifier: AttributeClassifier, unit: float
) -> _CaseScores:
    changing, fixed = zip(*map(case.views, (steered.picture, steered.twin)), strict=True)
    seen, stayed = classifier.probabilities(changing), classifier.probabilities(fixed)
    wanted = {name: VALUES[name].index(value) for name, value in case.expected.items()}
    after, before = (
        prod(float(seen[name][at, number]) for name, number in wanted.items()) for at in (0, 1)
    )
    others = [stayed[name] for name in case.unchanged]
    variation = float(np.mean([float((a - b).abs().sum()) / 2 for a, b in others]))
    outside = ~case.region()
    moved = effects.difference(_sized(steered.picture), _sized(steered.twin))
    return _CaseScores(
        float(all(seen[name][0].argmax() == number for name, number in wanted.items())),
        float(np.mean([float(a.argmax() == b.argmax()) for a, b in others])),
        after - before,
        variation + float(moved[outside].mean()) / unit,
    )


def _sized(picture: Image.Image) -> Image.Image:
    return picture if picture.size == (SIDE, SIDE) else picture.resize((SIDE, SIDE))


def evaluate_edits(
    model: Generator,
    dictionaries: Mapping[str, SiteDictionary],
    cases: Sequence[EditCase],
    classifier: AttributeClassifier,
    *,
    progress: bool = True,
) -> dict[EditMethod, dict[str, EditScores]]:
    """Scores of every method for each attribute, and for `ALL`.

    Strengths are chosen on the first half of an attribute's cases; scores are of the second half.
    """
    sites = [each.site for each in dictionaries.values()]
    neurons = {
        site: SiteDictionary(
            NeuronBasis.fit([torch.zeros(1, model.sites[site].dim)], signed=True), site
        )
        for site in sites
    }
    unit = _unit()

    def scores_of(method: EditMethod, strength: float, case: EditCase) -> _CaseScores:
        grid = model.grid(sites[0], model.usual_side, model.usual_side)
        patches = patches_of(case.region(), grid.rows, grid.cols)
        if method == "prompt":
            steered = _reprompt(model, case)
        elif method == "difference":
            steered = _add_difference(model, sites, case, strength, patches)
        else:
            used = dictionaries if method == "features" else neurons
            steered = _carry(model, used, case, strength, patches)
        return _measure(case, steered, classifier, unit)

    def merit(method: EditMethod, strength: float, some: Sequence[EditCase]) -> float:
        tried = _mean_scores([scores_of(method, strength, case) for case in some], strength)
        return tried.toward * tried.precision

    results: dict[EditMethod, dict[str, EditScores]] = {}
    for method in tqdm(METHODS, desc="edits", disable=not progress):
        by_attribute: dict[str, EditScores] = {}
        all_scores: list[_CaseScores] = []
        for attribute in sorted({case.attribute for case in cases}, key=EDITED.index):
            mine = [case for case in cases if case.attribute == attribute]
            known, judged = mine[: len(mine) // 2], mine[len(mine) // 2 :]
            best = 1.0
            if known and method != "prompt":
                tried = {s: merit(method, s, known) for s in _STRENGTHS}
                best = max(tried, key=tried.__getitem__)
            judged_scores = [scores_of(method, best, case) for case in judged]
            by_attribute[attribute] = _mean_scores(judged_scores, best)
            all_scores += judged_scores
        results[method] = {ALL: _mean_scores(all_scores, None), **by_attribute}
    return results


def _mean_scores(scores: Sequence[_CaseScores], strength: float | None) -> EditScores:
    success, preserved, toward, beside = np.mean(np.array(scores), axis=0).tolist()
    rise = max(toward, 0.0)
    return EditScores(success, preserved, toward, beside, rise / max(rise + beside, 1e-9), strength)


def lines(results: Mapping[EditMethod, Mapping[str, EditScores]]) -> list[str]:
    """A table of the scores of each method, for all attributes and for each."""
    figures = EditScores._fields[:-1]
    header = f"{'method':12}{'attribute':12}" + "".join(f"{name:>11}" for name in figures)
    return [
        header + f"{'strength':>11}",
        *(
            f"{method:12}{attribute:12}"
            + "".join(f"{getattr(edited, name):11.3f}" for name in figures)
            + f"{'' if edited.strength is None else edited.strength:>11}"
            for method, of_attributes in results.items()
            for attribute, edited in of_attributes.items()
        ),
    ]


def to_json(results: Mapping[EditMethod, Mapping[str, EditScores]]) -> dict[str, Any]:
    """{method: {attribute: {figure: value}}}"""
    return {
        method: {attribute: edited._asdict() for attribute, edited in of_attributes.items()}
        for method, of_attributes in results.items()
    }
