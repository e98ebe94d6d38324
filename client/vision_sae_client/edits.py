"""Edits of features, and what is carried over from another picture, as people ask for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

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

_OPERATIONS: dict[str, EditOperation.ValueType] = {
    "ablate": EDIT_OPERATION_ABLATE,
    "add": EDIT_OPERATION_ADD,
    "scale": EDIT_OPERATION_SCALE,
    "clamp": EDIT_OPERATION_CLAMP,
    "replace": EDIT_OPERATION_REPLACE,
}


def edit(
    feature: str,
    operation: str,
    value: float | None = None,
    *,
    box: BoxLike | None = None,
    mask: ImageSource | None = None,
    own_map: bool = False,
    first_step: int = 0,
    last_step: int | None = None,
    strengths: Sequence[float] = (),
) -> Edit:
    """A change to one feature, ``dictionaries/{dictionary}/features/{index}``.

    ``operation`` is add, scale, clamp, replace, or ablate, which takes no ``value``. Values are in
    units of the feature's mean activation; scale's is a factor. It happens everywhere, or in a
    ``box`` of the picture, or where a ``mask`` is white, or where the feature fires by itself; at
    all steps, or at some, or with one of ``strengths`` at each.
    """
    if operation not in _OPERATIONS:
        raise InvalidInputError(
            f"{operation!r} is no operation; use {', '.join(_OPERATIONS)}", field="operation"
        )
    place = region(box, mask)
    if place is not None and own_map:
        raise InvalidInputError("give a box, or a mask, or the feature's own map", field="own_map")
    made = Edit(feature=feature, operation=_OPERATIONS[operation], value=value)
    if place is not None:
        made.where.CopyFrom(Where(region=place))
    elif own_map:
        made.where.CopyFrom(Where(own_map=OwnMap()))
    if (time := when(first_step, last_step, strengths)) is not None:
        made.when.CopyFrom(time)
    return made


def transport(
    dictionary: str,
    source_prompt: str,
    *,
    source_seed: int | None = None,
    features: Sequence[int] = (),
    top_k: int = 0,
    box: BoxLike | None = None,
    mask: ImageSource | None = None,
    strength: float | None = None,
    first_step: int = 0,
    last_step: int | None = None,
    strengths: Sequence[float] = (),
) -> Transport:
    """What ``source_prompt``'s picture has of some features, carried over into the picture.

    Without ``features``, of the ``top_k`` by which the two differ most. Both pictures have the same
    region, a ``box`` or where a ``mask`` is white; else all of one goes into all of the other. A
    ``strength`` of 1 carries all of it.
    """
    place = region(box, mask)
    return Transport(
        dictionary=dictionary_name(dictionary),
        source_prompt=source_prompt,
        source_seed=source_seed,
        features=features,
        top_k=top_k,
        source_region=place,
        target_region=place,
        strength=strength,
        when=when(first_step, last_step, strengths),
    )


def region(box: BoxLike | None, mask: ImageSource | None) -> Region | None:
    """A part of the picture: a box, or where the picture ``mask`` is white; None for all of it.

    Raises `InvalidInputError` for both.
    """
    if box is not None and mask is not None:
        raise InvalidInputError("give either a box or a mask", field="mask")
    if mask is not None:
        return Region(mask=to_proto(np.asarray(opened(mask).convert("L"))))
    return None if box is None else Region(box=box_message(box))


def when(
    first_step: int = 0, last_step: int | None = None, strengths: Sequence[float] = ()
) -> When | None:
    """Denoising steps from one to another, or a strength for each, the last of which holds for all
    further ones; None for always.

    Raises `InvalidInputError` for both.
    """
    some = first_step != 0 or last_step is not None
    if some and strengths:
        raise InvalidInputError(
            "strengths say already at which steps an edit applies: at those that are not 0",
            field="strengths",
        )
    if strengths:
        return When(schedule=StrengthSchedule(factors=strengths))
    return When(steps=StepRange(first=first_step, last=last_step)) if some else None


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
