"""Edits of features, as words on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from vision_sae.errors import InvalidInputError
from vision_sae.v1.edit_pb2 import Edit
from vision_sae_client.cli.command import feature_name
from vision_sae_client.client import Client
from vision_sae_client.edits import edit
from vision_sae_client.edits import parse as parse_edits
from vision_sae_client.images import parse_box

Add = Annotated[
    list[str] | None,
    typer.Option(help="FEATURE=VALUE, in mean activations; may be repeated, like all edits."),
]
Scale = Annotated[list[str] | None, typer.Option(help="FEATURE=FACTOR.")]
Clamp = Annotated[list[str] | None, typer.Option(help="FEATURE=VALUE, in means.")]
Ablate = Annotated[list[str] | None, typer.Option(help="FEATURE: take it out.")]
EditBox = Annotated[
    str | None, typer.Option("--box", help="Edit within x0,y0,x1,y1 in pixels.", metavar="BOX")
]
EditMask = Annotated[
    Path | None,
    typer.Option("--mask", help="Edit where this picture is white.", metavar="PICTURE"),
]
OwnMapFlag = Annotated[
    bool, typer.Option("--own-map", help="Edit where the feature fires by itself.")
]


def edits(
    client: Client,
    dictionary: str | None,
    asked: Mapping[str, Sequence[str] | None],
    *,
    box: str | None,
    own_map: bool,
    mask: Path | None = None,
    first_step: int = 0,
    last_step: int | None = None,
    strengths: Sequence[float] = (),
    carried: bool = False,
) -> list[Edit]:
    """The edits of {operation: words}; without any, where and when may be said of what else is
    ``carried`` over only."""
    parsed = [
        (operation, *words)
        for operation, given in asked.items()
        for words in parse_edits(given or [], operation)
    ]
    conditions = (box, mask, own_map, first_step, last_step is not None, strengths)
    if not parsed and not carried and any(conditions):
        raise InvalidInputError(
            "--box, --mask, --own-map, steps and strengths say where and when an edit applies; "
            "give one, --add for example",
            field="edits",
        )
    return [
        edit(
            feature_name(client, feature, dictionary),
            operation,
            value,
            box=None if box is None else parse_box(box),
            mask=mask,
            own_map=own_map,
            first_step=first_step,
            last_step=last_step,
            strengths=strengths,
        )
        for operation, feature, value in parsed
    ]
