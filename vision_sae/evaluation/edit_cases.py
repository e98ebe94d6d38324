"""Edits of composed scenes, measured: does what was asked for change, and nothing else?

A case is a prompt, another that differs in one attribute, and the part of the picture that shows
it. Each method carries the change into the first prompt's picture:

- ``features``: codes of the SAEs are carried over from the second prompt's picture (`transport`)
- ``neurons``: the same with raw neurons of the blocks, of either sign, instead of features
- ``difference``: the difference of the region's mean vectors is added to its patches
- ``prompt``: the second prompt, from the same noise: what a user without any of this would do

``toward`` is how much the probability of the asked-for value rises, as the attribute classifier
sees it; ``beside`` is how much all else changes: the mean total variation of the other attributes'
probabilities, plus the pixel change outside of the region in units of that between pictures of
different prompts. Editing precision is the first over the sum of both.

A count becomes two: a second object of the same kind where there was none. The classifier knows
scenes of one object, so it looks at such a picture twice: with the first place painted over for
what was asked for, with the second for what should have stayed. The demo's prompts know no
numbers; the second prompt of these cases has the object at the second place.
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
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vision_sae.dictionaries.neurons import NeuronBasis
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.evaluation.planted_scenes import (
    VALUES,
    Attributes,
    Place,
    draw,
    random_attributes,
)
from vision_sae.evaluation.scene_attributes import SIDE, AttributeClassifier
from vision_sae.models.generator import Denoising, GenerationSettings, Generator, finish
from vision_sae.steering import effects
from vision_sae.steering.generation import (
    PICTURE,
    SOURCES,
    TWIN,
    Changes,
    Steered,
    generate,
)
from vision_sae.steering.transport import Transport

CASES = Path(__file__).parent / "edit_cases.jsonl"
Method = Literal["features", "neurons", "difference", "prompt"]
METHODS: tuple[Method, ...] = get_args(Method)
COUNT = "count"
EDITED = ("colour", "texture", "shape", "background", COUNT)
_PER_ATTRIBUTE = 12
_SEED = 77
_BORDER = 5
"""Pixels around an object that are painted over with it: it may be drawn a little beside."""
_TOP_K = 20
_STRENGTHS = (1.0, 2.0, 4.0)
"""Of which the first half of an attribute's cases chooses for each method, by how far the edit gets
and how precisely."""
ALL = "all"
"""All attributes together, in what `evaluate_edits` returns."""


@dataclass(frozen=True)
class Case:
    """One edit."""

    before: Attributes
    attribute: str
    """What changes, of `EDITED`."""
    value: str
    """What it becomes; of a count, the place that the second object comes to."""
    seed: int

    @property
    def after(self) -> Attributes:
        """What the second prompt says."""
        changed = "place" if self.attribute == COUNT else self.attribute
        change: dict[str, Any] = {changed: self.value}
        return replace(self.before, **change)

    @property
    def asked(self) -> dict[str, str]:
        """{attribute: value} of what the edit should bring."""
        if self.attribute != COUNT:
            return {self.attribute: self.value}
        return {"place": self.value, "shape": self.before.shape, "colour": self.before.colour}

    @property
    def kept(self) -> list[str]:
        """The attributes that should stay: of the first object, where there will be two."""
        return [name for name in VALUES if name != self.attribute]

    def region(self) -> NDArray[np.bool_]:
        """The pixels (SIDE, SIDE) that may change: the object's place, or all around it."""
        before, after = (draw(a, side=SIDE, seed=0) for a in (self.before, self.after))
        if self.attribute == COUNT:
            return after.parts["object"]
        shown = before.evidence(self.attribute) | after.evidence(self.attribute)
        return np.asarray(shown)

    def views(self, picture: Image.Image) -> tuple[Image.Image, Image.Image]:
        """(where the classifier sees what was asked for, where it sees what should stay)"""
        sized = _sized(picture)
        if self.attribute != COUNT:
            return sized, sized
        first, second = _around(self.before), _around(self.after)
        pixels = np.asarray(sized.convert("RGB"))
        ground = np.median(pixels[~(first | second)], axis=0).astype(np.uint8)
        asked, kept = (
            Image.fromarray(np.where(hidden[..., None], ground, pixels))
            for hidden in (first, second)
        )
        return asked, kept


def _around(attributes: Attributes) -> NDArray[np.bool_]:
    """The pixels (SIDE, SIDE) of a box around the object of a scene."""
    rows, columns = np.nonzero(draw(attributes, side=SIDE, seed=0).parts["object"])
    box = np.zeros((SIDE, SIDE), np.bool_)
    top, left = max(rows.min() - _BORDER, 0), max(columns.min() - _BORDER, 0)
    box[top : rows.max() + _BORDER + 1, left : columns.max() + _BORDER + 1] = True
    return box


def _apart(one: Attributes) -> list[str]:
    """The places where a second object has nothing in common with the first, and its border."""
    elsewhere = (replace(one, place=place) for place in get_args(Place))
    return [other.place for other in elsewhere if not (_around(one) & _around(other)).any()]


def make_cases() -> list[Case]:
    """The cases of `CASES`: as many of each attribute, all else at random; objects are large."""
    cases = []
    for number in range(_PER_ATTRIBUTE * len(EDITED)):
        random = np.random.default_rng([_SEED, number])
        before = replace(random_attributes(random), word=None, size="large")
        attribute = EDITED[number % len(EDITED)]
        if attribute == COUNT:
            if before.place == "centre":  # there is no room beside it
                before = replace(before, place="left")
            others = _apart(before)
        else:
            others = [v for v in VALUES[attribute] if v != getattr(before, attribute)]
        cases.append(Case(before, attribute, others[random.integers(len(others))], number))
    return cases


def write_cases(path: Path = CASES) -> None:
    """Write `make_cases` down, a case a line, with both prompts for people to read."""
    rows = [
        {
            "prompt": case.before.caption,
            "edited": case.after.caption,
            "before": {name: getattr(case.before, name) for name in VALUES},
            "attribute": case.attribute,
            "value": case.value,
            "seed": case.seed,
        }
        for case in make_cases()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def read_cases(path: Path = CASES) -> list[Case]:
    """The cases of a file."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [
        Case(Attributes(**row["before"]), row["attribute"], row["value"], row["seed"])
        for row in rows
    ]


class Edited(NamedTuple):
    """What a method does, over many cases."""

    success: float
    """Share of cases whose attribute is seen to have become what was asked for."""
    preserved: float
    """Share of the other attributes that are seen as before."""
    toward: float
    beside: float
    precision: float
    strength: float | None
    """That the method did best with; None where strengths differ."""


class _Outcome(NamedTuple):
    success: float
    preserved: float
    toward: float
    beside: float


def patches_of(region: NDArray[np.bool_], rows: int, cols: int) -> Tensor:
    """Patches (P) of which a quarter or more lies in a region of pixels."""
    height, width = region.shape
    shares = region.reshape(rows, height // rows, cols, width // cols).mean((1, 3))
    return torch.from_numpy(shares >= min(0.25, float(shares.max()))).flatten()


def _carry(
    model: Generator,
    dictionaries: Mapping[str, SiteDictionary],
    case: Case,
    strength: float,
    patches: Tensor,
) -> Steered:
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
    model: Generator, sites: Sequence[str], case: Case, strength: float, patches: Tensor
) -> Steered:
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
    return Steered(picture, twin, run.batch[PICTURE])


def _reprompt(model: Generator, case: Case) -> Steered:
    settings = GenerationSettings(case.before.caption, seed=case.seed)
    run = model.start(replace(settings, prompt=case.after.caption), settings)
    picture, twin = finish(run)
    return Steered(picture, twin, run.batch[TWIN])


def _unit() -> float:
    """The mean absolute difference of pixels between scenes of different attributes."""
    random = np.random.default_rng(_SEED)
    scenes = [draw(random_attributes(random), side=SIDE, seed=i).image for i in range(64)]
    pairs = zip(scenes[::2], scenes[1::2], strict=True)
    return float(np.mean([effects.difference(a, b).mean() for a, b in pairs]))


def _measure(case: Case, made: Steered, classifier: AttributeClassifier, unit: float) -> _Outcome:
    asked, kept = zip(*map(case.views, (made.picture, made.twin)), strict=True)
    seen, stayed = classifier.probabilities(asked), classifier.probabilities(kept)
    wanted = {name: VALUES[name].index(value) for name, value in case.asked.items()}
    after, before = (
        prod(float(seen[name][at, number]) for name, number in wanted.items()) for at in (0, 1)
    )
    others = [stayed[name] for name in case.kept]
    variation = float(np.mean([float((a - b).abs().sum()) / 2 for a, b in others]))
    outside = ~case.region()
    moved = effects.difference(_sized(made.picture), _sized(made.twin))
    return _Outcome(
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
    cases: Sequence[Case],
    classifier: AttributeClassifier,
    *,
    progress: bool = True,
) -> dict[Method, dict[str, Edited]]:
    """What every method does to each attribute, and to `ALL`.

    Strengths are chosen on the first half of an attribute's cases, figures are of the second.
    """
    sites = [found.site for found in dictionaries.values()]
    neurons = {
        site: SiteDictionary(
            NeuronBasis.fit([torch.zeros(1, model.sites[site].dim)], signed=True), site
        )
        for site in sites
    }
    unit = _unit()

    def outcome(method: Method, strength: float, case: Case) -> _Outcome:
        grid = model.grid(sites[0], model.usual_side, model.usual_side)
        patches = patches_of(case.region(), grid.rows, grid.cols)
        if method == "prompt":
            made = _reprompt(model, case)
        elif method == "difference":
            made = _add_difference(model, sites, case, strength, patches)
        else:
            used = dictionaries if method == "features" else neurons
            made = _carry(model, used, case, strength, patches)
        return _measure(case, made, classifier, unit)

    def promise(method: Method, strength: float, some: Sequence[Case]) -> float:
        tried = _summary([outcome(method, strength, case) for case in some], strength)
        return tried.toward * tried.precision

    results: dict[Method, dict[str, Edited]] = {}
    for method in tqdm(METHODS, desc="edits", disable=not progress):
        found: dict[str, Edited] = {}
        outcomes: list[_Outcome] = []
        for attribute in sorted({case.attribute for case in cases}, key=EDITED.index):
            mine = [case for case in cases if case.attribute == attribute]
            known, judged = mine[: len(mine) // 2], mine[len(mine) // 2 :]
            best = 1.0
            if known and method != "prompt":
                tried = {s: promise(method, s, known) for s in _STRENGTHS}
                best = max(tried, key=tried.__getitem__)
            made = [outcome(method, best, case) for case in judged]
            found[attribute] = _summary(made, best)
            outcomes += made
        results[method] = {ALL: _summary(outcomes, None), **found}
    return results


def _summary(found: Sequence[_Outcome], strength: float | None) -> Edited:
    success, preserved, toward, beside = np.mean(np.array(found), axis=0).tolist()
    rise = max(toward, 0.0)
    return Edited(success, preserved, toward, beside, rise / max(rise + beside, 1e-9), strength)


def lines(results: Mapping[Method, Mapping[str, Edited]]) -> list[str]:
    """A table for people: what each method does to all attributes, and to each."""
    figures = Edited._fields[:-1]
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


def to_json(results: Mapping[Method, Mapping[str, Edited]]) -> dict[str, Any]:
    """{method: {attribute: {figure: value}}}"""
    return {
        method: {attribute: edited._asdict() for attribute, edited in of_attributes.items()}
        for method, of_attributes in results.items()
    }
