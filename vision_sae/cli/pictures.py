"""Shared parts of commands that read pictures: the option --strict and the final summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vision_sae.pictures.reading import Reading

Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Refuse unreadable files and captions that match no picture, instead of skipping.",
    ),
]


def tell(reading: Reading) -> None:
    """Print the number of pictures read, and on stderr the skipped files with reasons."""
    typer.echo(reading.summary())
    for line in reading.details():
        typer.secho(line, fg="yellow", err=True)
