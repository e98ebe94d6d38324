"""Interventions: the output of a model for a picture before and after edits of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from jaxtyping import Float32
from PIL import Image

from vision_sae.api.edits import Edit, translated
from vision_sae.api.encoding import PlacedPicture, placed
from vision_sae.api.pictures import PictureLike, Pictures, is_one, named
from vision_sae.api.showing import Row, Table, cell, html_table, img, paragraph, text_table
from vision_sae.api.subjects import AnyDictionary, AnyModel, Subject, as_subject
from vision_sae.api.targets import Targets, named_target, resolved
from vision_sae.attribution.targets import Target, check_has_targets
from vision_sae.errors import InvalidInputError
from vision_sae.models.protocol import ModelOutput
from vision_sae.steering.intervention import FeatureIntervention, InterventionResult


@dataclass(frozen=True, eq=False)
class TargetChange:
    """One target before and after the edits."""

    name: str
    before: float
    after: float
    control: float | None
    """Mean absolute change when random other features are changed by the same amount; None without
    controls."""

    @property
    def change(self) -> float:
        """After minus before."""
        return self.after - self.before


@dataclass(frozen=True, eq=False, repr=False)
class Intervention(Table):
    """The output of a model for one picture before and after edits."""

    placed: PlacedPicture
    dictionary: str
    edits: tuple[Edit, ...]
    result: InterventionResult
    """The full result of `vision_sae.steering`."""
    targets: tuple[TargetChange, ...]
    classes: tuple[TargetChange, ...]
    """Logits of the top classes before or after the edits, ordered by the logit before; empty for a
    model without classes."""

    @property
    def before(self) -> ModelOutput:
        """The embedding (1, E), and the logits (1, C) of a model with classes."""
        return self.result.before

    @property
    def after(self) -> ModelOutput:
        """The same after the edits."""
        return self.result.after

    @property
    def relative_change(self) -> float:
        """Norm of the change at the site divided by the norm of the site vectors, over all
        patches."""
        return self.result.relative_change

    @property
    def embedding_similarity(self) -> float:
        """Cosine similarity of the embeddings before and after."""
        return self.result.embedding_similarity

    @property
    def flipped(self) -> bool:
        """Whether the top class differs after the edits."""
        return self.result.flipped

    def rows(self) -> list[Row]:
        """Targets and leading classes as rows of a table."""
        return [
            {
                "target": t.name,
                "before": t.before,
                "after": t.after,
                "change": t.change,
                "control": t.control,
            }
            for t in (*self.targets, *self.classes)
        ]

    def to_pil(self) -> Image.Image:
        """A copy of the caller's picture."""
        return self.placed.picture.copy()

    def numpy(self) -> Float32[np.ndarray, "2 E"]:
        """The embeddings before and after (2, E), float32."""
        return self.result.embeddings

    def _heading(self) -> str:
        edits = ", ".join(f"{e.operation} {e.feature}" for e in self.edits) or "no edit"
        return (
            f"{self.placed.name}, {edits} of {self.dictionary}: the site changes by "
            f"{self.relative_change:.1%}, embeddings have cosine {cell(self.embedding_similarity)}"
        )

    def __repr__(self) -> str:
        table = f"\n{text_table(self.rows())}" if self.rows() else ""
        return self._heading() + table

    def _repr_html_(self) -> str:
        table = html_table(self.rows()) if self.rows() else ""
        return paragraph(self._heading()) + img(self.placed.picture, self.placed.name) + table


@overload
def intervene(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
    pictures: PictureLike,
    dictionary: AnyDictionary,
    edits: Edit | Sequence[Edit],
    *,
    model: AnyModel | None = None,
    targets: Targets = (),
    top_classes: int = 5,
    controls: int = 0,
    seed: int = 0,
) -> Intervention: ...
@overload
def intervene(
    pictures: Pictures,
    dictionary: AnyDictionary,
    edits: Edit | Sequence[Edit],
    *,
    model: AnyModel | None = None,
    targets: Targets = (),
    top_classes: int = 5,
    controls: int = 0,
    seed: int = 0,
) -> list[Intervention]: ...
def intervene(
    pictures: PictureLike | Pictures,
    dictionary: AnyDictionary,
    edits: Edit | Sequence[Edit],
    *,
    model: AnyModel | None = None,
    targets: Targets = (),
    top_classes: int = 5,
    controls: int = 0,
    seed: int = 0,
) -> Intervention | list[Intervention]:
    """Edit features while the model runs on one picture, or each of several; compare the outputs.

    ``pictures``, ``dictionary`` and ``model`` are as in `encode`, and each of ``targets`` as in
    `attribute`; the keys of a mapping name the targets. Edits keep the SAE error, so without edits
    the outputs equal those of the plain model bit for bit. Each of ``controls`` repeats the edits
    by the same amount on other features, drawn by ``seed``. The embedding has the shape (1, E) and
    the logits (1, C).

    Raises `FeatureNotFoundError`, `InvalidInputError`, and `NotServedError` for a text-to-image
    model; use `steer` for those.
    """
    subject = as_subject(dictionary, model)
    check_has_targets(subject.model, subject.name, "dictionary")
    wanted = (edits,) if isinstance(edits, Edit) else tuple(edits)
    if controls and not wanted:
        raise InvalidInputError("controls compare edits; give some", field="controls")
    measured = _named(targets, subject)
    results = []
    for item in named(pictures):
        picture = placed(subject, item)
        results.append(_changed(subject, picture, wanted, measured, top_classes, controls, seed))
    return results[0] if is_one(pictures) else results


def _named(targets: Targets, subject: Subject) -> dict[str, Target]:
    if isinstance(targets, Mapping):
        return {name: resolved(target, subject) for name, target in targets.items()}
    if isinstance(targets, str):
        raise InvalidInputError("give targets as a list, or as {name: target}", field="targets")
    return {named_target(target): resolved(target, subject) for target in targets}


def _changed(
    subject: Subject,
    picture: PlacedPicture,
    edits: tuple[Edit, ...],
    targets: Mapping[str, Target],
    top_classes: int,
    controls: int,
    seed: int,
) -> Intervention:
    intervening = FeatureIntervention(
        subject.model,
        translated(edits, subject, picture.grid, picture.geometry),
        {subject.name: subject.at_site},
        controls=controls,
        alive={subject.name: subject.bundle.statistics.alive} if subject.bundle else None,
        seed=seed,
    )
    result = intervening(subject.model.preprocess(picture.picture), list(targets.values()))
    return Intervention(
        placed=picture,
        dictionary=subject.name,
        edits=edits,
        result=result,
        targets=tuple(_change(name, result, place) for place, name in enumerate(targets)),
        classes=tuple(_classes(result, top_classes, subject.model.class_names)),
    )


def _change(name: str, result: InterventionResult, place: int) -> TargetChange:
    before, after = float(result.values_before[place]), float(result.values_after[place])
    return TargetChange(name, before, after, result.control_change(place))


def _classes(result: InterventionResult, count: int, names: Sequence[str]) -> list[TargetChange]:
    """The logits of the ``count`` top classes before or after the edits."""
    return [
        TargetChange(
            names[each.index] if names else f"class {each.index}",
            each.logit_before,
            each.logit_after,
            None,
        )
        for each in result.classes(count)
    ]
