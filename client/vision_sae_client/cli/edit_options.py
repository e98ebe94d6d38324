"""The command-line options of edits of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from vision_sae.errors import InvalidInputError
from vision_sae.v1.edit_pb2 import Edit
from vision_sae_client.cli.command import feature_name
from vision_sae_client.client import Client
from vision_sae_client.edits import Scope, edit
from vision_sae_client.edits import parse as parse_edits

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
_EVERYWHERE: Mapping[str, object] = Scope(first_step=0, strengths=())
"""Values that apply to all places and steps; None where absent."""
OwnMapFlag = Annotated[
    bool, typer.Option("--own-map", help="Edit where the feature fires by itself.")
]


def edits(
    client: Client,
    dictionary: str | None,
    operations: Mapping[str, Sequence[str] | None],
    scope: Scope,
    *,
    own_map: bool,
    carried: bool = False,
) -> list[Edit]:
    """The edits of ``operations``, {operation: arguments}. Raises `InvalidInputError` for a
    ``scope`` without edits, unless the scope is also that of features that are ``carried`` over."""
    parsed = [
        (operation, *words)
        for operation, arguments in operations.items()
        for words in parse_edits(arguments or [], operation)
    ]
    conditions = own_map or any(value != _EVERYWHERE.get(name) for name, value in scope.items())
    if conditions and not parsed and not carried:
        raise InvalidInputError(
            "--box, --mask, --own-map, --first-step, --last-step and --strengths say where and "
            "when an edit applies; give one, --add for example",
            field="edits",
        )
    return [
        edit(
            feature_name(client, feature, dictionary),
            operation,
            value,
            own_map=own_map,
            **scope,
        )
        for operation, feature, value in parsed
    ]
