"""The effect of raising a feature of a scene generator, measured by a classifier of scenes.

The classifier (`vision_sae.evaluation.scene_attributes`) has never seen a generated picture, takes
no part in choosing labels, and is no contrastive model, so it is an independent judge of labels. A
feature's direction is added at every denoising step to pictures of prompts that lack the label. The
label is confirmed when its probability rises, relative to the twin without the addition, more than
under 95 % of random directions of the same norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from vision_sae.descriptions.describers.scenes import object_patches
from vision_sae.descriptions.protocol import Score
from vision_sae.descriptions.scene_terms import (
    SceneLabel,
    allowed_values,
    numbers,
    read_label,
    truth,
)
from vision_sae.descriptions.scoring.scored import scored
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.evaluation.scene_attributes import SIDE, AttributeClassifier
from vision_sae.models.generator import (
    Change,
    Denoising,
    GenerationSettings,
    Generator,
    generate,
    raising,
)
from vision_sae.pictures.scenes import VALUES, Attributes, Place, draw
from vision_sae.statistics.bootstrap import Counts
from vision_sae.transfers import Placed

JUDGE = "steering"
RANDOM_DIRECTIONS = 40
"""The number of random directions that a feature's direction is compared with."""
_PERCENTILE = 0.95
_OBJECT = ("shape", "colour", "texture")
"""The attributes that identify a requested object."""
_BORDER = 5
"""Pixels around an object that are painted over too, since its place varies a little."""

Seen = Mapping[str, NDArray[np.float32]]
"""{attribute: probabilities of its values (P, values)}"""


class LabelEffect(NamedTuple):
    """The effect of raising a feature on the probability of its label."""

    rise: float
    """Mean rise of the label's probability in pictures that lack the label."""
    random_rise: float
    """The 95th percentile of the same under random directions."""
    becomes: float
    """Share of these pictures that the classifier then assigns to the label."""
    score: Score | None
    """Share of trials, a picture against a random direction, that the feature wins."""

    @property
    def borne_out(self) -> bool:
        """Whether the probability rises more than under 95 % of random directions."""
        return self.rise > self.random_rise


class SceneSteering:
    """Pictures of scenes under the features of one dictionary, and under random directions."""

    def __init__(
        self,
        model: Generator,
        site_dictionary: SiteDictionary,
        classifier: AttributeClassifier,
        scenes: Sequence[Attributes],
        *,
        amount: float,
        randoms: int = RANDOM_DIRECTIONS,
        seed: int = 0,
    ) -> None:
        """``amount`` is the norm of the addition at every position of the site; ``seed`` draws the
        random directions."""
        self._model, self._site_dictionary, self._classifier = model, site_dictionary, classifier
        self._scenes, self.amount = list(scenes), amount
        self._shown = numbers(self._scenes)
        self._settings = [GenerationSettings(s.caption, seed=i) for i, s in enumerate(scenes)]
        dim = model.sites[site_dictionary.site].dim
        generator = torch.Generator().manual_seed(seed)
        self._directions = normalize(torch.randn(randoms, dim, generator=generator), dim=1)

    def label_effect(self, feature: int, label: SceneLabel, *, seed: int = 0) -> LabelEffect | None:
        """The effect of raising a feature on a label; None where every scene has the label
        already."""
        lacking = np.flatnonzero(~truth(label, self._shown))
        if not len(lacking):
            return None
        seen = self._seen(self._site_dictionary.dictionary.decoder[feature])
        before = probability(self._plain, label)[lacking]
        ours = probability(seen, label)[lacking] - before
        others = np.stack([probability(other, label)[lacking] for other in self._random]) - before
        wins = (ours > others).mean(0) + 0.5 * (ours == others).mean(0)

        def share(counts: Counts) -> NDArray[np.float64]:
            return np.asarray(counts @ wins / counts.sum(1))

        score = scored("causal", [share], [len(wins)], seed)
        return LabelEffect(
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
        return self._look(raising(self._model, self._site_dictionary.site, added))

    def _look(self, change: Change) -> Seen:
        pictures = generate(self._model, self._settings, change)
        return _numpy(self._classifier.probabilities(pictures))


def probability(seen: Seen, label: SceneLabel) -> Float[np.ndarray, " P"]:
    """The probability of a label in each picture: the product over the label's terms."""
    names = list(VALUES)
    whole = np.ones(len(seen[names[0]]), dtype=np.float32)
    for column, allowed in allowed_values(label).items():
        whole = whole * seen[names[column]][:, allowed].sum(1)
    return whole


def _taken_for(seen: Seen, label: SceneLabel) -> NDArray[np.bool_]:
    """The pictures (P) whose most probable values match a label, term by term."""
    likeliest = np.stack([seen[name].argmax(1) for name in VALUES], axis=1)
    return truth(label, likeliest)


class Addition(NamedTuple):
    """A request for an object at an empty place of a scene."""

    scene: Attributes
    place: Place


def additions(scenes: Sequence[Attributes]) -> list[Addition]:
    """A place opposite the object, for each scene that has room for a second object."""
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
    """Measures whether features of objects add an object at an empty place.

    The direction is added at every step to the patches that a large object at the requested place
    would cover. The scene's own object is painted over. A feature adds an object when the
    classifier then sees the shape, the colour and the texture of the label at that place, and does
    not see them in the twin.
    """

    def __init__(
        self,
        model: Generator,
        site_dictionary: SiteDictionary,
        classifier: AttributeClassifier,
        wanted: Sequence[Addition],
        *,
        amount: float,
    ) -> None:
        """``amount`` is the norm of the addition."""
        self._model, self._site_dictionary, self._classifier = model, site_dictionary, classifier
        self._wanted, self._amount = list(wanted), amount
        self._settings = [GenerationSettings(a.scene.caption, seed=i) for i, a in enumerate(wanted)]
        grid = model.grid(site_dictionary.site, model.usual_side, model.usual_side)
        areas = [
            object_patches("square", "large", a.place, grid.rows, grid.cols).ravel() for a in wanted
        ]
        self._areas = torch.from_numpy(np.stack(areas))[..., None]
        self._places = np.array([VALUES["place"].index(a.place) for a in wanted])

    def share(self, feature: int, label: SceneLabel) -> float | None:
        """Share of pictures to which a label's object is added; None for a label without a
        shape."""
        terms = tuple(term for term in label if term.attribute in _OBJECT)
        if not any(term.attribute == "shape" for term in terms):
            return None
        row = self._site_dictionary.dictionary.decoder[feature]
        seen = self._look(self._raising(self._amount * normalize(row, dim=0)))
        return float((self._there(seen, terms) & ~self._there(self._plain, terms)).mean())

    def _there(self, seen: Seen, terms: SceneLabel) -> NDArray[np.bool_]:
        placed = seen["place"].argmax(1) == self._places
        return np.asarray(_taken_for(seen, terms) & placed)

    def _raising(self, direction: Tensor) -> Change:
        here = Placed(self._areas * direction)

        def change(run: Denoising) -> AbstractContextManager[None]:
            added = here.at(self._model.device)
            halves = added.new_zeros(1 + run.guided, *added.shape)
            halves[-1] = added
            addition = halves.flatten(0, 1)
            return self._model.add(self._site_dictionary.site, lambda: addition)

        return change

    @cached_property
    def _plain(self) -> Seen:
        return self._look(nullcontext)

    def _look(self, change: Change) -> Seen:
        pictures = generate(self._model, self._settings, change, at_once=len(self._settings))
        views = [without_object(p, a.scene) for p, a in zip(pictures, self._wanted, strict=True)]
        return _numpy(self._classifier.probabilities(views))


def _numpy(probabilities: Mapping[str, Tensor]) -> Seen:
    return {name: values.numpy() for name, values in probabilities.items()}


def without_object(picture: Image.Image, scene: Attributes) -> Image.Image:
    """A picture in which a box around the scene's object has the median colour of the rest."""
    pixels = np.asarray(picture.convert("RGB").resize((SIDE, SIDE)))
    rows, columns = np.nonzero(draw(scene, side=SIDE, seed=0).parts["object"])
    box = np.zeros((SIDE, SIDE), np.bool_)
    top, left = max(rows.min() - _BORDER, 0), max(columns.min() - _BORDER, 0)
    box[top : rows.max() + _BORDER + 1, left : columns.max() + _BORDER + 1] = True
    ground = np.median(pixels[~box], axis=0).astype(np.uint8)
    return Image.fromarray(np.where(box[..., None], ground, pixels))


class SteeringJudgement(NamedTuple):
    """Settings for judging the labels of a dictionary by steering."""

    amount: float
    """The norm of the addition everywhere, in mean activations of a usual feature."""
    adding: float
    """The norm of the addition at the patches of one place, where an object is requested."""
    prompts: int = 16
    additions: int = 10
    randoms: int = RANDOM_DIRECTIONS


def judged_by_steering(
    model: Generator,
    site_dictionary: SiteDictionary,
    classifier: AttributeClassifier,
    rows: Iterable[Mapping[str, Any]],
    scenes: Sequence[Attributes],
    usual_mean: float,
    settings: SteeringJudgement,
    *,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Descriptions of the describer of scenes (as a bundle stores them), with a causal score and
    the detail `JUDGE` added. Descriptions without a label stay as they are.

    ``scenes`` are the attributes of prompts that took no part in choosing labels; ``usual_mean`` is
    the mean activation of a usual feature.
    """
    steering = SceneSteering(
        model,
        site_dictionary,
        classifier,
        scenes[: settings.prompts],
        amount=settings.amount * usual_mean,
        randoms=settings.randoms,
    )
    adding = ObjectAdding(
        model,
        site_dictionary,
        classifier,
        additions(scenes)[: settings.additions],
        amount=settings.adding * usual_mean,
    )
    judged = []
    for row in tqdm(list(rows), desc="steering", unit="label", disable=not progress):
        label = read_label(row["details"].get("terms", ())) if row["text"] else ()
        effect = steering.label_effect(row["feature"], label) if label else None
        if effect is None:
            judged.append(dict(row))
            continue
        detail = {
            "rise": round(effect.rise, 4),
            "random_rise": round(effect.random_rise, 4),
            "becomes": round(effect.becomes, 4),
            "borne_out": effect.borne_out,
            "adds_object": adding.share(row["feature"], label),
            "amount": settings.amount,
            "adding": settings.adding,
        }
        scores = [s for s in row["scores"] if s["metric"] != "causal"]
        if effect.score is not None:
            scores.append(asdict(effect.score))
        judged.append({**row, "scores": scores, "details": {**row["details"], JUDGE: detail}})
    return judged
