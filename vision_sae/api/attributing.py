"""Attribution of a target to the features of a picture, or to its patches alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast, get_args, overload

import numpy as np
import torch
from jaxtyping import Float64
from PIL import Image

from vision_sae.api.choices import check_top
from vision_sae.api.encoding import PlacedPicture, label_of, placed, vectors_of
from vision_sae.api.pictures import PictureLike, Pictures, is_one, named, to_pil
from vision_sae.api.showing import Row, Table, cell, html_table, img, paragraph, text_table
from vision_sae.api.subjects import AnyDictionary, AnyModel, Subject, as_subject
from vision_sae.api.targets import AnyTarget, named_target, resolved
from vision_sae.attribution.ledger import (
    Ledger,
    Reference,
    ReferenceKind,
    of_picture,
    reference_of,
)
from vision_sae.attribution.maps import Factorisation, PatchMap
from vision_sae.attribution.method import ABLATED, COMPONENTS, METHODS, NODES, AttributionTask
from vision_sae.attribution.observation import Observation
from vision_sae.attribution.targets import check_has_targets
from vision_sae.errors import FeatureNotFoundError, InvalidInputError
from vision_sae.models.vectors import vectors_at


@dataclass(frozen=True, eq=False)
class Contribution:
    """The contribution of one feature."""

    feature: int
    contribution: float
    """Sum over all patches, in the units of the target."""
    activation: float
    """Largest activation over the patches."""
    label: str | None
    confirmed: bool
    """Whether a judge has confirmed the label; an unconfirmed label is a guess."""
    map: Float64[np.ndarray, "R C"] = field(repr=False)
    """The contribution at each patch (rows, cols)."""


@dataclass(frozen=True, eq=False)
class AttributionComponent:
    """One component of a factorisation of the picture's site vectors."""

    contribution: float
    """By how much the target falls without the component."""
    map: Float64[np.ndarray, "R C"] = field(repr=False)
    """The strength of the component at each patch (rows, cols)."""


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Table):
    """The attribution of one picture: by most methods a ledger, the contributions of features, of
    the SAE error and of the bias.

    Of a ledger, ``features_total + error + bias + gap`` equals ``value - baseline``, up to
    rounding. A method without features gives one map, or components with a map each.
    """

    placed: PlacedPicture
    """The picture with the positions of its patches."""
    dictionary: str
    target: str
    method: str
    value: float
    """The target for the unchanged picture."""
    answer: Ledger | PatchMap | Factorisation
    """The full result of `vision_sae.attribution`."""
    features: tuple[Contribution, ...]
    """The features with the largest contributions by magnitude, at most ``top``; empty for
    a method without features."""
    components: tuple[AttributionComponent, ...]
    """The components of a factorisation, those with most weight first; empty for other methods."""
    per_patch: Float64[np.ndarray, "R C"]
    """The value of each patch (rows, cols): of a ledger, the sum of features, error and bias."""

    def __iter__(self) -> Iterator[Contribution]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, feature: int) -> Contribution:
        """The feature with this number. Raises `FeatureNotFoundError` for a feature not shown."""
        for each in self.features:
            if each.feature == feature:
                return each
        raise FeatureNotFoundError(
            f"feature {feature} is not among the {len(self)} shown; a larger top shows more",
            field="feature",
        )

    @property
    def ledger(self) -> Ledger:
        """The full ledger. Raises `InvalidInputError` for a method without features."""
        if isinstance(self.answer, Ledger):
            return self.answer
        known = ", ".join(method.name for method in METHODS if method.gives == "ledger")
        raise InvalidInputError(
            f"{self.method} has no features, so there is no ledger; choose one of {known}",
            field="method",
        )

    @property
    def baseline(self) -> float:
        """The target at the reference."""
        return self.ledger.baseline_value

    @property
    def features_total(self) -> float:
        """Contribution of all features, shown or not."""
        return self.ledger.features_total

    @property
    def error(self) -> float:
        """Contribution of the SAE error."""
        return float(self.ledger.error.sum())

    @property
    def bias(self) -> float:
        """Contribution of the decoder's bias; 0 unless the reference is ``removed``."""
        return float(self.ledger.bias.sum())

    @property
    def gap(self) -> float:
        """The completeness gap: the part of the target that the method did not attribute."""
        return self.ledger.completeness_gap

    @property
    def remainder(self) -> float:
        """Contribution of the features that are not shown."""
        return self.features_total - sum(f.contribution for f in self.features)

    def rows(self) -> list[Row]:
        """The features, or else the components, as rows of a table."""
        components: list[Row] = [
            {"component": number, "contribution": component.contribution}
            for number, component in enumerate(self.components)
        ]
        return components or [
            {
                "feature": f.feature,
                "contribution": f.contribution,
                "activation": f.activation,
                "label": label_of(f.label, f.confirmed),
            }
            for f in self.features
        ]

    def sums(self) -> dict[str, float]:
        """The parts of a ledger by name; they sum to ``value - baseline``."""
        return {
            "features shown": self.features_total - self.remainder,
            "other features": self.remainder,
            "error": self.error,
            "bias": self.bias,
            "gap": self.gap,
        }

    def to_pil(self, feature: int | None = None) -> Image.Image:
        """The picture with positive values painted over it, of one feature or of the whole
        attribution."""
        return self.placed.overlay(self.per_patch if feature is None else self[feature].map)

    def numpy(self) -> Float64[np.ndarray, "R C"]:
        """The value of each patch (rows, cols), float64."""
        return self.per_patch

    def _heading(self) -> str:
        reference = (
            f", at the reference {cell(self.baseline)}" if isinstance(self.answer, Ledger) else ""
        )
        return (
            f"{self.placed.name}, {self.target}: {cell(self.value)}{reference} "
            f"({self.method}, {self.dictionary})"
        )

    def _sums(self) -> str:
        if not isinstance(self.answer, Ledger):
            return f"a map of {self.per_patch.shape[0]} x {self.per_patch.shape[1]} patches"
        parts = " + ".join(f"{name} {cell(value)}" for name, value in self.sums().items())
        return f"{cell(self.value - self.baseline)} = {parts}"

    def __repr__(self) -> str:
        table = f"{text_table(self.rows())}\n" if self.rows() else ""
        return f"{self._heading()}\n{table}{self._sums()}"

    def _repr_html_(self) -> str:
        painted = img(self.to_pil(), "what raises the target")
        table = html_table(self.rows()) if self.rows() else ""
        return paragraph(self._heading()) + painted + table + paragraph(self._sums())


@overload
def attribute(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
    pictures: PictureLike,
    dictionary: AnyDictionary,
    target: AnyTarget,
    *,
    model: AnyModel | None = None,
    method: str = "integrated_gradients",
    nodes: int = NODES,
    reference: ReferenceKind | PictureLike = "zero",
    special_tokens: bool = False,
    top: int = ABLATED,
    context: Pictures = (),
    components: int = COMPONENTS,
) -> Attribution: ...
@overload
def attribute(
    pictures: Pictures,
    dictionary: AnyDictionary,
    target: AnyTarget,
    *,
    model: AnyModel | None = None,
    method: str = "integrated_gradients",
    nodes: int = NODES,
    reference: ReferenceKind | PictureLike = "zero",
    special_tokens: bool = False,
    top: int = ABLATED,
    context: Pictures = (),
    components: int = COMPONENTS,
) -> list[Attribution]: ...
def attribute(
    pictures: PictureLike | Pictures,
    dictionary: AnyDictionary,
    target: AnyTarget,
    *,
    model: AnyModel | None = None,
    method: str = "integrated_gradients",
    nodes: int = NODES,
    reference: ReferenceKind | PictureLike = "zero",
    special_tokens: bool = False,
    top: int = ABLATED,
    context: Pictures = (),
    components: int = COMPONENTS,
) -> Attribution | list[Attribution]:
    """Attribute a target of one picture, or of each of several, to the features of a dictionary.

    ``pictures``, ``dictionary`` and ``model`` are as in `encode`. ``target`` is the number of a
    class, a text (for contrastive models), or a `ClassTarget`, `TextTarget`, `PictureTarget`,
    `MeanTarget`, `FeatureTarget`, `ProbeTarget` or `ContrastTarget`. ``method`` is
    ``integrated_gradients`` over ``nodes`` Gauss-Legendre nodes (Sundararajan et al. 2017),
    ``act_x_grad``, ``exact_ablation`` of the ``top`` features, ``raw_neuron`` of the site in the
    place of features, or another method of `vision_sae.attribution.methods`. ``grad_cam``,
    ``eigen_cam`` and ``gradient_x_input`` give one map without features, and
    ``deep_feature_factorisation`` gives at most ``components`` components of the picture together
    with the pictures of ``context``. ``reference`` is ``zero`` (no feature fires), ``mean`` (the
    data's mean code; of a bundle), ``removed`` (the block adds nothing) or another picture. With
    ``special_tokens`` the class token's codes count too. Maps have the shape (rows, cols) of the
    model's grid of patches.

    Raises `InvalidInputError` for a target that the model does not have and for options that the
    method has no use for, and `NotServedError` for a text-to-image model.
    """
    subject = as_subject(dictionary, model)
    check_has_targets(subject.model, subject.name, "dictionary")
    check_top(top)
    chosen = METHODS[method]
    from_zero = isinstance(reference, str) and reference == "zero"
    chosen.check(from_zero=from_zero, special_tokens=special_tokens, field="reference")
    if chosen.of_neurons:
        subject = subject.of_neurons()
    baseline = _reference(subject, reference, special_tokens=special_tokens)
    scalar = resolved(target, subject, after=[subject.site])
    further = [vectors_of(subject, placed(subject, item)) for item in named(context)]
    results = []
    for item in named(pictures):
        picture = placed(subject, item)
        pixels = subject.model.preprocess(picture.picture)
        observation = Observation(
            subject.model, pixels, scalar, [subject.site], special_tokens=special_tokens
        )
        task = AttributionTask(
            observation,
            subject.at_site,
            baseline,
            nodes,
            ablated=top,
            context=torch.stack(further) if further else None,
            components=components,
        )
        shape = (picture.grid.rows, picture.grid.cols)
        answer = chosen.answer(task)
        results.append(
            Attribution(
                placed=picture,
                dictionary=subject.name,
                target=named_target(target),
                method=method,
                value=observation.value,
                answer=answer,
                features=_features(subject, answer, top, shape),
                components=_components(answer, shape),
                per_patch=answer.per_patch.numpy().reshape(shape),
            )
        )
    return results[0] if is_one(pictures) else results


def _reference(
    subject: Subject, reference: ReferenceKind | PictureLike, *, special_tokens: bool
) -> Reference:
    if isinstance(reference, str) and reference in get_args(ReferenceKind):
        if reference == "mean":
            subject.needs_bundle("reference='mean'", "reference")
        kind = cast(ReferenceKind, reference)
        return reference_of(kind, subject.dictionary, subject.bundle)
    pixels = subject.model.preprocess(to_pil(reference))[None]
    vectors = vectors_at(subject.model, [subject.site], pixels, special_tokens=special_tokens)
    return of_picture(subject.dictionary, vectors[subject.site][0])


def _features(
    subject: Subject, answer: Ledger | PatchMap | Factorisation, top: int, shape: tuple[int, int]
) -> tuple[Contribution, ...]:
    if not isinstance(answer, Ledger):
        return ()
    confirmed = subject.confirmed
    return tuple(
        Contribution(
            feature=part.feature,
            contribution=part.contribution,
            activation=part.activation,
            label=subject.label(part.feature),
            confirmed=part.feature in confirmed,
            map=part.contributions.reshape(shape),
        )
        for part in answer.parts(top)
    )


def _components(
    answer: Ledger | PatchMap | Factorisation, shape: tuple[int, int]
) -> tuple[AttributionComponent, ...]:
    if not isinstance(answer, Factorisation):
        return ()
    return tuple(
        AttributionComponent(effect, component.maps[0].double().numpy().reshape(shape))
        for component, effect in zip(answer.components, answer.effects, strict=True)
    )
