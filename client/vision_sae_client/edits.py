"""Builds edits of features, and transports of features from another picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict, Unpack

import numpy as np

from vision_sae.errors import InvalidInputError
from vision_sae.tensors import to_proto
from vision_sae.v1.edit_pb2 import (
    EDIT_OPERATION_ABLATE,
    EDIT_OPERATION_ADD,
    EDIT_OPERATION_CLAMP,
    EDIT_OPERATION_REPLACE,
    EDIT_OPERATION_SCALE,
    Edit,
    EditOperation,
    OwnMap,
    StepRange,
    StrengthSchedule,
    When,
    Where,
)
from vision_sae.v1.generation_service_pb2 import Transport
from vision_sae.v1.image_pb2 import Region
from vision_sae_client.images import BoxLike, ImageSource, opened, region_message
from vision_sae_client.requests.names import dictionary_name
from vision_sae_client.values import sendable

_OPERATIONS: dict[str, EditOperation.ValueType] = {
    "ablate": EDIT_OPERATION_ABLATE,
    "add": EDIT_OPERATION_ADD,
    "scale": EDIT_OPERATION_SCALE,
    "clamp": EDIT_OPERATION_CLAMP,
    "replace": EDIT_OPERATION_REPLACE,
}


class Scope(TypedDict, total=False):
    """Where and when an edit applies; by default, at all patches and all steps."""

    box: BoxLike | None
    """The edit applies in this part of the picture."""
    mask: ImageSource | None
    """The edit applies where this picture is white."""
    first_step: int
    last_step: int | None
    """The edit applies from the first to the last of these denoising steps, both included."""
    strengths: Sequence[float]
    """The strength at each step; the last strength applies to all further steps."""


@sendable
def edit(
    feature: str,
    operation: str,
    value: float | None = None,
    *,
    own_map: bool = False,
    **scope: Unpack[Scope],
) -> Edit:
    """A change to one feature, ``dictionaries/{dictionary}/features/{index}``.

    ``operation`` is add, scale, clamp, replace, or ablate, which takes no ``value``. Values are in
    units of the feature's mean activation; the value of scale is a factor. The edit applies in the
    `Scope` or, with ``own_map``, where the feature fires by itself. Raises `InvalidInputError`.
    """
    if operation not in _OPERATIONS:
        raise InvalidInputError(
            f"{operation!r} is no operation; use {', '.join(_OPERATIONS)}", field="operation"
        )
    place = _region(scope)
    if place is not None and own_map:
        raise InvalidInputError("give a box, or a mask, or the feature's own map", field="own_map")
    change = Edit(feature=feature, operation=_OPERATIONS[operation], value=value)
    if place is not None:
        change.where.CopyFrom(Where(region=place))
    elif own_map:
        change.where.CopyFrom(Where(own_map=OwnMap()))
    if (time := _when(scope)) is not None:
        change.when.CopyFrom(time)
    return change


@sendable
def transport(
    dictionary: str,
    source_prompt: str,
    *,
    source_seed: int | None = None,
    features: Sequence[int] = (),
    top_k: int = 0,
    strength: float | None = None,
    **scope: Unpack[Scope],
) -> Transport:
    """A transport: features of the picture of ``source_prompt`` are carried over into the picture.

    Without ``features``, the ``top_k`` features in which the pictures differ most are carried. The
    `Scope` applies to both pictures; without a box or mask, it is all of them. A ``strength`` of 1
    carries the whole activation over.
    """
    place = _region(scope)
    return Transport(
        dictionary=dictionary_name(dictionary),
        source_prompt=source_prompt,
        source_seed=source_seed,
        features=features,
        top_k=top_k,
        source_region=place,
        target_region=place,
        strength=strength,
        when=_when(scope),
    )


def _region(scope: Scope) -> Region | None:
    box, mask = scope.get("box"), scope.get("mask")
    if box is not None and mask is not None:
        raise InvalidInputError("give either a box or a mask", field="mask")
    if mask is not None:
        return Region(mask=to_proto(np.asarray(opened(mask).convert("L"))))
    return region_message(box)


def _when(scope: Scope) -> When | None:
    first, last = scope.get("first_step", 0), scope.get("last_step")
    strengths, has_range = scope.get("strengths"), first != 0 or last is not None
    if has_range and strengths:
        raise InvalidInputError(
            "strengths already say at which steps an edit applies; leave out the first and "
            "last step",
            field="strengths",
        )
    if strengths:
        return When(schedule=StrengthSchedule(factors=strengths))
    return When(steps=StepRange(first=first, last=last)) if has_range else None


def parse(words: Sequence[str], operation: str) -> list[tuple[str, float | None]]:
    """Parse ``FEATURE=VALUE``, or ``FEATURE`` alone for ablate, into (feature, value)."""
    parsed: list[tuple[str, float | None]] = []
    for word in words:
        feature, separator, number = word.partition("=")
        try:
            value = float(number) if separator else None
        except ValueError:
            value = math.nan
        if (value is None) != (operation == "ablate") or (value is not None and value != value):
            wanted = "FEATURE" if operation == "ablate" else "FEATURE=NUMBER"
            raise InvalidInputError(
                f"--{operation} takes {wanted}, as in --{operation} "
                f"{wanted.replace('FEATURE', '812').replace('NUMBER', '4')}, not {word!r}",
                field=operation,
            )
        parsed.append((feature, value))
    return parsed
