"""What every command shares: how it is registered, and how its errors are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

import vision_sae
from vision_sae.arguments import check_arguments
from vision_sae.errors import VisionSaeError
from vision_sae.exits import REFUSED, interruptible
from vision_sae.places import check_output_file
from vision_sae.storage import storage_error

app = typer.Typer(
    help="Find, explain and steer what the insides of a vision model mean.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

evaluations = typer.Typer(help="Measure dictionaries, and what they do.", no_args_is_help=True)
app.add_typer(evaluations, name="evaluate")

Configuration = Annotated[
    Path | None, typer.Option("--config", help="YAML file; flags and environment override it.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run of this command made.")
]
P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Errors we raise on purpose become one line and exit status 2; others keep their trace."""
    try:
        yield
    except VisionSaeError as error:
        typer.secho(f"vision-sae: {error}", fg="red", err=True)
        raise typer.Exit(REFUSED) from error
    except OSError as error:
        if not (told := storage_error(error)) and error.filename is None:
            raise
        typer.secho(f"vision-sae: {told or _plain(error)}", fg="red", err=True)
        raise typer.Exit(REFUSED) from error


def _plain(error: OSError) -> str:
    """What the system refused, of which file: ``data/x: Is a directory``."""
    return f"{error.filename}: {error.strerror}"


def check_report(out: Path | None, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse, before any work, a file that a command's report may not be written to."""
    if out is not None:
        check_output_file(out, inputs=inputs, overwrite=overwrite)


def command(
    name: str | None = None, group: typer.Typer = app
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a command of a group, under its function's name or another, whose deliberate errors
    are shown as one line."""

    def register(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with interruptible("vision-sae"), _clear_errors():
                check_arguments(kwargs)
                return function(*args, **kwargs)

        return group.command(name)(run)

    return register


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Find, explain and steer what the insides of a vision model mean."""
    if version:
        typer.echo(vision_sae.__version__)
        raise typer.Exit
