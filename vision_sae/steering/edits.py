"""Edits of features: what, how much, where and when, and what they do to a site's vectors.

Every edit moves a feature's activation and nothing else: ``x' = x + w (f' - f) d``, with the
feature's activation f, what it becomes f', its direction d and a strength w for each place and
step. What the dictionary does not explain stays as it is. Only ``replace`` is otherwise:
``x' = x + w (v d - x)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.errors import FeatureNotFoundError

Operation = Literal["ablate", "add", "scale", "clamp", "replace"]
Half = Literal["conditional", "both", "opposed"]


@dataclass(frozen=True)
class When:
    """The denoising steps that something happens at, and how much."""

    first: int = 0
    last: int | None = None
    """Included; None means the final one."""
    factors: tuple[float, ...] = (1.0,)
    """How strong it is at each denoising step; the last holds for all further ones."""

    def factor(self, step: int) -> float | None:
        """The factor at a denoising step; None outside of the steps."""
        if step < self.first or (self.last is not None and step > self.last):
            return None
        return self.factors[min(step, len(self.factors) - 1)]


ALWAYS = When()


@dataclass(frozen=True, eq=False)
class FeatureEdit:
    """A change to one feature of one dictionary."""

    dictionary: str
    """Key of the dictionary in what goes with the edits."""
    feature: int
    operation: Operation
    value: float = 0.0
    """In units of the site: added, multiplied with, or set. Ignored by ``ablate``."""
    weights: Tensor | None = None
    """How strong it is at each patch (P), in [0, 1]; everywhere alike when None."""
    fires_above: float | None = None
    """Only at patches where the feature's activation exceeds this."""
    when: When = ALWAYS
    half: Half = "conditional"
    """Which half of a batch with guidance it reaches; ``opposed`` subtracts from the other."""

    @property
    def looks(self) -> bool:
        """Whether it depends on what the site holds."""
        return self.operation != "add" or self.fires_above is not None


def check_features(edits: Sequence[FeatureEdit], dictionaries: Mapping[str, Dictionary]) -> None:
    """Raise `FeatureNotFoundError` for an edit of a feature that its dictionary does not have."""
    for edit in edits:
        width = dictionaries[edit.dictionary].width
        if not 0 <= edit.feature < width:
            raise FeatureNotFoundError(
                f"{edit.dictionary} has features 0 to {width - 1}, not {edit.feature}",
                field="edits.feature",
            )


def added(edits: Sequence[FeatureEdit], dictionary: Dictionary, step: int, patches: int) -> Tensor:
    """What edits that do not look at the site add to it (P, D); all of one dictionary."""
    if not edits:
        return torch.zeros(patches, dictionary.dim)
    rows = dictionary.decoder[[edit.feature for edit in edits]]
    scales = torch.stack([_scale(edit, step, patches) for edit in edits], dim=1)
    return scales @ rows


def _scale(edit: FeatureEdit, step: int, patches: int) -> Tensor:
    value = edit.value * (edit.when.factor(step) or 0.0)
    return torch.full((patches,), value) if edit.weights is None else edit.weights * value


def activations(codes: Codes, features: Sequence[int]) -> Tensor:
    """What codes (N, k) say of some features (N, len(features)), 0 where they do not fire."""
    made = codes.values.new_zeros(len(codes.values), len(features))
    for column, feature in enumerate(features):
        made[:, column] = (codes.values * (codes.indices == feature)).sum(1)
    return made


def changed(
    vectors: Tensor,
    edits: Sequence[FeatureEdit],
    dictionary: Dictionary,
    step: int = 0,
    stand_ins: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Site vectors (P, D) with all ``edits`` of one dictionary, in their order.

    Several edits of one feature follow each other; edits of different features do not touch, but
    for ``replace``, which leaves nothing of what was there before. With nothing to change
    ``vectors`` itself is returned. ``stand_ins`` {feature: direction (D)} are moved along in the
    place of the features' own directions, by the same amounts.
    """

    def directions(features: Sequence[int]) -> Tensor:
        if stand_ins is None:
            return dictionary.decoder[list(features)]
        return torch.stack([stand_ins[feature] for feature in features])

    codes = dictionary.encode(vectors.float())
    result, left = vectors, torch.ones(len(vectors))  # left: the share that nothing has replaced
    held, now = dict[int, Tensor](), dict[int, Tensor]()  # what `result` holds, and what it should

    def moved() -> Tensor:
        features = [f for f in now if not torch.equal(now[f], held[f])]
        if not features:
            return result
        change = torch.stack([now[f] - held[f] for f in features], dim=1)
        return result + change @ directions(features)

    for edit in edits:
        strength = edit.when.factor(step)
        if strength is None:
            continue
        feature = edit.feature
        (fires,) = activations(codes, [feature]).T
        if feature not in now:
            held[feature] = now[feature] = left * fires
        weight = torch.full_like(left, strength)
        if edit.weights is not None:
            weight = weight * edit.weights
        if edit.fires_above is not None:
            weight = weight * (fires > edit.fires_above)
        if edit.operation == "replace":
            result = moved()
            result = result + weight[:, None] * (edit.value * directions([feature]) - result)
            left = left * (1 - weight)
            now = {f: (1 - weight) * activation for f, activation in now.items()}
            now[feature] = now[feature] + weight * edit.value
            held = dict(now)
        else:
            wanted = _wanted(edit.operation, now[feature], edit.value)
            now[feature] = now[feature] + weight * (wanted - now[feature])
    return moved()


def _wanted(operation: Operation, activation: Tensor, value: float) -> Tensor:
    match operation:
        case "ablate":
            return torch.zeros_like(activation)
        case "add":
            return activation + value
        case "scale":
            return activation * value
        case _:
            return torch.full_like(activation, value)
