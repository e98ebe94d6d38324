"""Edits of features, as people ask for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vision_sae.errors import InvalidInputError
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
    When,
    Where,
)
from vision_sae.v1.image_pb2 import Region
from vision_sae_client.images import BoxLike
from vision_sae_client.requests import box_message

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
    own_map: bool = False,
    first_step: int = 0,
    last_step: int | None = None,
) -> Edit:
    """A change to one feature, ``dictionaries/{dictionary}/features/{index}``.

    ``operation`` is add, scale, clamp, replace, or ablate, which takes no ``value``. Values are in
    units of the feature's mean activation; scale's is a factor. It happens everywhere, or in a
    ``box`` of the picture, or where the feature fires by itself; at all steps, or at some.
    """
    if operation not in _OPERATIONS:
        raise InvalidInputError(
            f"{operation!r} is no operation; use {', '.join(_OPERATIONS)}", field="operation"
        )
    if box is not None and own_map:
        raise InvalidInputError("give either a box or the feature's own map", field="box")
    made = Edit(feature=feature, operation=_OPERATIONS[operation], value=value)
    if box is not None:
        made.where.CopyFrom(Where(region=Region(box=box_message(box))))
    elif own_map:
        made.where.CopyFrom(Where(own_map=OwnMap()))
    if first_step or last_step is not None:
        made.when.CopyFrom(When(steps=StepRange(first=first_step, last=last_step)))
    return made


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
