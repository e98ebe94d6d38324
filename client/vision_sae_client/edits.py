"""Edits of features, and what is carried over from another picture, as people ask for them."""

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
from vision_sae_client.images import BoxLike, ImageSource, opened
from vision_sae_client.requests import box_message, dictionary_name
from vision_sae_client.values import sendable

_OPERATIONS: dict[str, EditOperation.ValueType] = {
    "ablate": EDIT_OPERATION_ABLATE,
    "add": EDIT_OPERATION_ADD,
    "scale": EDIT_OPERATION_SCALE,
    "clamp": EDIT_OPERATION_CLAMP,
    "replace": EDIT_OPERATION_REPLACE,
}


class Scope(TypedDict, total=False):
    """Where and when something is done; everywhere and always by default."""

    box: BoxLike | None
    """In this part of the picture."""
    mask: ImageSource | None
    """Where this picture is white."""
    first_step: int
    last_step: int | None
    """At the denoising steps from one to the other."""
    strengths: Sequence[float]
    """So strong at each step; the last one holds for all further ones."""


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
    units of the feature's mean activation; scale's is a factor. It happens in the `Scope`, or where
    the feature fires by itself.
    """
    if operation not in _OPERATIONS:
        raise InvalidInputError(
            f"{operation!r} is no operation; use {', '.join(_OPERATIONS)}", field="operation"
        )
    place = _region(scope)
    if place is not None and own_map:
        raise InvalidInputError("give a box, or a mask, or the feature's own map", field="own_map")
    made = Edit(feature=feature, operation=_OPERATIONS[operation], value=value)
    if place is not None:
        made.where.CopyFrom(Where(region=place))
    elif own_map:
        made.where.CopyFrom(Where(own_map=OwnMap()))
    if (time := _when(scope)) is not None:
        made.when.CopyFrom(time)
    return made


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
    """What ``source_prompt``'s picture has of some features, carried over into the picture.

    Without ``features``, of the ``top_k`` by which the two differ most. The `Scope` is of both
    pictures; without a part, all of one goes into all of the other. A ``strength`` of 1 carries all
    of it.
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
    return None if box is None else Region(box=box_message(box))


def _when(scope: Scope) -> When | None:
    first, last = scope.get("first_step", 0), scope.get("last_step")
    strengths, some = scope.get("strengths"), first != 0 or last is not None
    if some and strengths:
        raise InvalidInputError(
            "strengths say already at which steps an edit applies: at those that are not 0",
            field="strengths",
        )
    if strengths:
        return When(schedule=StrengthSchedule(factors=strengths))
    return When(steps=StepRange(first=first, last=last)) if some else None


def parse(words: Sequence[str], operation: str) -> list[tuple[str, float | None]]:
    """``FEATURE=VALUE``, or ``FEATURE`` alone for ablate -> (feature, value)."""
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
