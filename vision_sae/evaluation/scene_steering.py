"""What raising a feature of a generator of scenes does, as a classifier of scenes sees it.

The judge of labels that has no part in choosing them and is no contrastive model: a classifier of
what composed scenes show (`vision_sae.evaluation.scene_attributes`), which has never seen a
generated picture. A feature's direction is added at every denoising step to pictures of prompts
that lack what the label says. The label is borne out when its probability rises, beside the twin
without the addition, more than under 95 % of random directions of the same norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from vision_sae.descriptions.describers.scene_terms import (
    Label,
    allowed_values,
    numbers,
    read_label,
    truth,
)
from vision_sae.descriptions.describers.scenes import object_patches
from vision_sae.descriptions.protocol import Score
from vision_sae.descriptions.scores.bootstrap import Counts, scored
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.evaluation.planted_scenes import VALUES, Attributes, Place, draw
from vision_sae.evaluation.scene_attributes import SIDE, AttributeClassifier
from vision_sae.models.generator import (
    Change,
    Denoising,
    GenerationSettings,
    Generator,
    generate,
    raising,
)

JUDGE = "steering"
RANDOMS = 40
"""Random directions that a feature's is compared with."""
_PERCENTILE = 0.95
_OBJECT = ("shape", "colour", "texture")
"""The attributes by which an object that was asked for is known."""
_BORDER = 5
"""Pixels around an object that are painted over with it: it may be drawn a little beside."""

Seen = Mapping[str, NDArray[np.float32]]
"""{attribute: probabilities of its values (P, values)}"""


class Outcome(NamedTuple):
    """What raising a feature does toward its label."""

    rise: float
    """Mean rise of the label's probability in pictures that lack it."""
    random_rise: float
    """The 95th percentile of the same under random directions."""
    becomes: float
    """Share of these pictures that the classifier then takes for what the label says."""
    score: Score | None
    """Share of trials, a picture against a random direction, that the feature wins."""

    @property
    def borne_out(self) -> bool:
        """Whether it rises more than under 95 % of random directions."""
        return self.rise > self.random_rise


class SceneSteering:
    """Pictures of scenes under the features of one dictionary, and under random directions."""

    def __init__(
        self,
        model: Generator,
        found: SiteDictionary,
        classifier: AttributeClassifier,
        scenes: Sequence[Attributes],
        *,
        amount: float,
        randoms: int = RANDOMS,
        seed: int = 0,
    ) -> None:
        """``amount`` is the length of what is added at every position of the site; ``seed`` is of
        the random directions."""
        self._model, self._found, self._classifier = model, found, classifier
        self._scenes, self.amount = list(scenes), amount
        self._shown = numbers(self._scenes)
        self._settings = [GenerationSettings(s.caption, seed=i) for i, s in enumerate(scenes)]
        dim = model.sites[found.site].dim
        generator = torch.Generator().manual_seed(seed)
        self._directions = normalize(torch.randn(randoms, dim, generator=generator), dim=1)

    def outcome(self, feature: int, label: Label, *, seed: int = 0) -> Outcome | None:
        """What raising a feature does toward a label; None where every scene has it already."""
        lacking = np.flatnonzero(~truth(label, self._shown))
        if not len(lacking):
            return None
        seen = self._seen(self._found.dictionary.decoder[feature])
        before = probability(self._plain, label)[lacking]
        ours = probability(seen, label)[lacking] - before
        others = np.stack([probability(other, label)[lacking] for other in self._random]) - before
        wins = (ours > others).mean(0) + 0.5 * (ours == others).mean(0)

        def share(counts: Counts) -> NDArray[np.float64]:
            return np.asarray(counts @ wins / counts.sum(1))

        score = scored("causal", [share], [len(wins)], seed)
        return Outcome(
            float(ours.mean()),
            float(np.quantile(others.mean(1), _PERCENTILE)),
            float(_taken_for(seen, label)[lacking].mean()),
            None if score is None else replace(score, judge=JUDGE),
        )

    @cached_property
    def _plain(self) -> Seen:
        return self._look(nullcontext)

    @cached_property
    def _random(self) -> list[Seen]:
        return [self._seen(direction) for direction in self._directions]

    def _seen(self, direction: Tensor) -> Seen:
        added = self.amount * normalize(direction, dim=0)
        return self._look(raising(self._model, self._found.site, added))

    def _look(self, change: Change) -> Seen:
        made = generate(self._model, self._settings, change)
        return _numpy(self._classifier.probabilities(made))


def probability(seen: Seen, label: Label) -> NDArray[np.float32]:
    """How probable a label is in each picture (P): the product over its terms."""
    names = list(VALUES)
    whole = np.ones(len(seen[names[0]]), dtype=np.float32)
    for column, allowed in allowed_values(label).items():
        whole = whole * seen[names[column]][:, allowed].sum(1)
    return whole


def _taken_for(seen: Seen, label: Label) -> NDArray[np.bool_]:
    """Which pictures (P) are most probably what a label says, term by term."""
    likeliest = np.stack([seen[name].argmax(1) for name in VALUES], axis=1)
    return truth(label, likeliest)


class Addition(NamedTuple):
    """An object that is asked for where there is none."""

    scene: Attributes
    place: Place


def additions(scenes: Sequence[Attributes]) -> list[Addition]:
    """For each scene that leaves room for a second object a place far from its own."""
    return [Addition(scene, _OPPOSITE[scene.place]) for scene in scenes if scene.place in _OPPOSITE]


_OPPOSITE: dict[Place, Place] = {
    "top left": "bottom right",
    "top": "bottom",
    "top right": "bottom left",
    "left": "right",
    "right": "left",
    "bottom left": "top right",
    "bottom": "top",
    "bottom right": "top left",
}


class ObjectAdding:
    """Features of objects, asked for an object where nothing is.

    The direction is added at every step to the patches that a large object would cover at the
    asked-for place. An object is added when the classifier, with the scene's own object painted
    over, sees one at that place with the shape, the colour and the texture that the label says, and
    does not see it in the twin.
    """

    def __init__(
        self,
        model: Generator,
        found: SiteDictionary,
        classifier: AttributeClassifier,
        wanted: Sequence[Addition],
        *,
        amount: float,
    ) -> None:
        """``amount`` is the length of what is added."""
        self._model, self._found, self._classifier = model, found, classifier
        self._wanted, self._amount = list(wanted), amount
        self._settings = [GenerationSettings(a.scene.caption, seed=i) for i, a in enumerate(wanted)]
        grid = model.grid(found.site, model.usual_side, model.usual_side)
        areas = [
            object_patches("square", "large", a.place, grid.rows, grid.cols).ravel() for a in wanted
        ]
        self._areas = torch.from_numpy(np.stack(areas))[..., None]
        self._places = np.array([VALUES["place"].index(a.place) for a in wanted])

    def share(self, feature: int, label: Label) -> float | None:
        """Share of pictures that the object of a label is added to; None for one of no shape."""
        asked = tuple(term for term in label if term.attribute in _OBJECT)
        if not any(term.attribute == "shape" for term in asked):
            return None
        row = self._found.dictionary.decoder[feature]
        seen = self._look(self._raising(self._amount * normalize(row, dim=0)))
        return float((self._there(seen, asked) & ~self._there(self._plain, asked)).mean())

    def _there(self, seen: Seen, asked: Label) -> NDArray[np.bool_]:
        placed = seen["place"].argmax(1) == self._places
        return np.asarray(_taken_for(seen, asked) & placed)

    def _raising(self, direction: Tensor) -> Change:
        here = self._areas * direction

        def change(run: Denoising) -> AbstractContextManager[None]:
            halves = torch.zeros(1 + run.guided, *here.shape)
            halves[-1] = here
            addition = halves.flatten(0, 1).to(self._model.device)
            return self._model.add(self._found.site, lambda: addition)

        return change

    @cached_property
    def _plain(self) -> Seen:
        return self._look(nullcontext)

    def _look(self, change: Change) -> Seen:
        made = generate(self._model, self._settings, change, at_once=len(self._settings))
        views = [without_object(p, a.scene) for p, a in zip(made, self._wanted, strict=True)]
        return _numpy(self._classifier.probabilities(views))


def _numpy(probabilities: Mapping[str, Tensor]) -> Seen:
    return {name: values.numpy() for name, values in probabilities.items()}


def without_object(picture: Image.Image, scene: Attributes) -> Image.Image:
    """A picture with a box around its scene's object painted over in the colour of the rest."""
    pixels = np.asarray(picture.convert("RGB").resize((SIDE, SIDE)))
    rows, columns = np.nonzero(draw(scene, side=SIDE, seed=0).parts["object"])
    box = np.zeros((SIDE, SIDE), np.bool_)
    top, left = max(rows.min() - _BORDER, 0), max(columns.min() - _BORDER, 0)
    box[top : rows.max() + _BORDER + 1, left : columns.max() + _BORDER + 1] = True
    ground = np.median(pixels[~box], axis=0).astype(np.uint8)
    return Image.fromarray(np.where(box[..., None], ground, pixels))


class Settings(NamedTuple):
    """How labels of a dictionary are judged by steering."""

    amount: float
    """The length of what is added everywhere, in mean activations of the usual feature."""
    adding: float
    """The same where an object is asked for, at the patches of one place."""
    prompts: int = 16
    additions: int = 10
    randoms: int = RANDOMS


def judged_by_steering(
    model: Generator,
    found: SiteDictionary,
    classifier: AttributeClassifier,
    rows: Iterable[Mapping[str, Any]],
    scenes: Sequence[Attributes],
    usual_mean: float,
    settings: Settings,
    *,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Descriptions (as a bundle keeps them) of the describer of scenes, with what raising their
    features does: a causal score, and the detail `JUDGE`. Those without a label stay as they are.

    ``scenes`` are what prompts ask for that no label was chosen by; ``usual_mean`` is the mean
    activation of the usual feature.
    """
    steering = SceneSteering(
        model,
        found,
        classifier,
        scenes[: settings.prompts],
        amount=settings.amount * usual_mean,
        randoms=settings.randoms,
    )
    adding = ObjectAdding(
        model,
        found,
        classifier,
        additions(scenes)[: settings.additions],
        amount=settings.adding * usual_mean,
    )
    made = []
    for row in tqdm(list(rows), desc="steering", unit="label", disable=not progress):
        label = read_label(row["details"].get("terms", ())) if row["text"] else ()
        outcome = steering.outcome(row["feature"], label) if label else None
        if outcome is None:
            made.append(dict(row))
            continue
        detail = {
            "rise": round(outcome.rise, 4),
            "random_rise": round(outcome.random_rise, 4),
            "becomes": round(outcome.becomes, 4),
            "borne_out": outcome.borne_out,
            "adds_object": adding.share(row["feature"], label),
            "amount": settings.amount,
            "adding": settings.adding,
        }
        scores = [s for s in row["scores"] if s["metric"] != "causal"]
        if outcome.score is not None:
            scores.append(asdict(outcome.score))
        made.append({**row, "scores": scores, "details": {**row["details"], JUDGE: detail}})
    return made
