"""What commands that read pictures share: the option --strict, and the account at their end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vision_sae.pictures.reading import Reading

Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="End where a file would be skipped or a caption matches no picture."
    ),
]


def tell(reading: Reading) -> None:
    """Say how many pictures were read, and on stderr what was left out and why."""
    typer.echo(reading.summary())
    for line in reading.details():
        typer.secho(line, fg="yellow", err=True)
