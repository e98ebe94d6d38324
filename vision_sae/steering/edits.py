"""Edits of features: what, how much, where and when, and their effect on a site's vectors.

An edit moves a feature's activation and nothing else: ``x' = x + w (f' - f) d``, where f is the
feature's activation, f' the new activation, d the feature's direction, and w a strength for each
place and step. The reconstruction error stays as it is. The operation ``replace`` is different:
``x' = x + w (v d - x)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.bundles.read import Bundle
from vision_sae.dictionaries.protocol import Codes, Dictionary, check_feature
from vision_sae.errors import InvalidInputError
from vision_sae.models.grid import PatchGrid
from vision_sae.transfers import Placed

Operation = Literal["ablate", "add", "scale", "clamp", "replace"]
Half = Literal["conditional", "both", "opposed"]
IN_MEANS: frozenset[Operation] = frozenset({"add", "clamp", "replace"})
"""Operations whose value may be in mean activations of the feature; see `of_means`."""


@dataclass(frozen=True)
class When:
    """The denoising steps at which an edit applies, and its strength at each."""

    first: int = 0
    last: int | None = None
    """The last step, included; None means the final step."""
    factors: tuple[float, ...] = (1.0,)
    """The strength at each denoising step; the last factor holds for all further steps."""

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
    """Key of the dictionary in the mapping that comes with the edits."""
    feature: int
    operation: Operation
    value: float = 0.0
    """In units of the site: added, multiplied with, or set. Ignored by ``ablate``."""
    weights: Float[Tensor, " P"] | None = None
    """The strength at each patch, in [0, 1]; None means 1 everywhere."""
    fires_above: float | None = None
    """Edit only patches where the feature's activation exceeds this."""
    when: When = ALWAYS
    half: Half = "conditional"
    """The half of a guided batch that is edited; ``opposed`` subtracts from the other half, too."""

    @property
    def reads_site(self) -> bool:
        """Whether the edit depends on the site's vectors."""
        return self.operation != "add" or self.fires_above is not None

    @cached_property
    def placed_weights(self) -> Placed | None:
        """`weights`, copied to a device once for all steps."""
        return None if self.weights is None else Placed(self.weights)


def check_features(edits: Sequence[FeatureEdit], dictionaries: Mapping[str, Dictionary]) -> None:
    """Raise `FeatureNotFoundError` for an edit of a feature that its dictionary lacks."""
    for edit in edits:
        width = dictionaries[edit.dictionary].width
        check_feature(edit.feature, width, edit.dictionary, "edits.feature")


def of_means(value: float, feature: int, bundle: Bundle) -> float:
    """The activation that is ``value`` times a feature's mean activation over a bundle's data.

    Raises `InvalidInputError` for a feature that never fired in the data.
    """
    mean = float(bundle.statistics.mean[feature])
    if not mean and value:
        raise InvalidInputError(
            f"feature {feature} of {bundle.name} never fired in the data, so it has no mean "
            "activation; give a raw value",
            field="edits.unit",
        )
    return value * mean


def patch_weights(
    weights: Float[np.ndarray, ...], grid: PatchGrid, field: str
) -> Float[Tensor, " P"]:
    """The strengths of an edit at each patch (rows, cols), as `FeatureEdit.weights`.

    Raises `InvalidInputError`, which names ``field``, for another shape than the grid's and for a
    strength outside of 0 to 1.
    """
    shape = (grid.rows, grid.cols)
    if weights.shape != shape or not np.all((weights >= 0) & (weights <= 1)):
        raise InvalidInputError(
            f"weights are from 0 to 1 and of the shape {shape} of the site's grid; these have "
            f"{weights.shape}",
            field=field,
        )
    return torch.from_numpy(weights.reshape(-1))


def constant_addition(
    edits: Sequence[FeatureEdit], dictionary: Dictionary, step: int, patches: int
) -> Float[Tensor, "P D"]:
    """What edits of one dictionary add to a site, where no edit reads the site."""
    device = dictionary.decoder.device
    if not edits:
        return torch.zeros(patches, dictionary.dim, device=device)
    rows = directions_of(dictionary, [edit.feature for edit in edits])
    scales = torch.stack([_scale(edit, step, patches, device) for edit in edits], dim=1)
    return scales @ rows


def _scale(edit: FeatureEdit, step: int, patches: int, device: torch.device) -> Tensor:
    value = edit.value * (edit.when.factor(step) or 0.0)
    if edit.placed_weights is None:
        return torch.full((patches,), value, device=device)
    return edit.placed_weights.at(device) * value


def directions_of(dictionary: Dictionary, features: Sequence[int]) -> Float[Tensor, "n D"]:
    """The directions of n features; n is at least 1.

    A list as an index would be copied to a GPU at each step, and waited for.
    """
    decoder = dictionary.decoder
    return torch.stack([decoder[feature] for feature in features])


def activations(codes: Codes, features: Sequence[int] | Tensor) -> Float[Tensor, "N n"]:
    """The activations of n features in the codes of N vectors; 0 where a feature does not fire."""
    columns = codes.values.new_zeros(len(codes.values), len(features))
    for column, feature in enumerate(features):
        columns[:, column] = (codes.values * (codes.indices == feature)).sum(1)
    return columns


def apply_edits(
    vectors: Float[Tensor, "P D"],
    edits: Sequence[FeatureEdit],
    dictionary: Dictionary,
    step: int = 0,
    stand_ins: Mapping[int, Tensor] | None = None,
) -> Float[Tensor, "P D"]:
    """Site vectors with all ``edits`` of one dictionary, in their order.

    Several edits of one feature follow each other. Edits of different features are independent,
    except that ``replace`` discards all edits before it. With nothing to change, ``vectors`` itself
    is returned; on a GPU, activations that stay as they are add zeros, because a comparison would
    wait for the GPU.
    ``stand_ins`` {feature: direction (D)} replace the features' own directions; the amounts stay
    the same. The dictionary is on the vectors' device.
    """

    def directions(features: Sequence[int]) -> Tensor:
        if stand_ins is None:
            return directions_of(dictionary, features)
        return torch.stack([stand_ins[feature] for feature in features])

    codes = dictionary.encode(vectors.float())
    # left: the share that no `replace` took
    result, left = vectors, torch.ones(len(vectors), device=vectors.device)
    held, now = dict[int, Tensor](), dict[int, Tensor]()  # what `result` holds, and what it should

    def moved() -> Tensor:
        compares = vectors.device.type == "cpu"
        features = [f for f in now if not (compares and torch.equal(now[f], held[f]))]
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
        if edit.placed_weights is not None:
            weight = weight * edit.placed_weights.at(vectors.device)
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


def edited_code(code: Mapping[int, float], edit: FeatureEdit) -> dict[int, float]:
    """A code {feature: activation} after an edit, whatever the edit's places and steps; activations
    stay at 0 or more."""
    feature, value = edit.feature, edit.value
    now = code.get(feature, 0.0)
    match edit.operation:
        case "replace":
            return {feature: value}
        case "ablate":
            wanted = 0.0
        case "add":
            wanted = now + value
        case "scale":
            wanted = now * value
        case _:
            wanted = value
    return {**code, feature: max(0.0, wanted)}


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
