"""What all commands share: their registration, their common options, and the errors shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from vision_sae.arguments import check_arguments
from vision_sae.errors import (
    ImageTooLargeError,
    InvalidImageError,
    InvalidInputError,
    VisionSaeError,
    quoted,
)
from vision_sae.exits import REFUSED, interruptible
from vision_sae.pictures.decode import decode_image
from vision_sae.storage import storage_error
from vision_sae.v1.measure_pb2 import UnreadText
from vision_sae.version import build
from vision_sae_client import report
from vision_sae_client.client import Client
from vision_sae_client.errors import ClientError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

DEFAULT_ADDRESS = "127.0.0.1:50051"

Address = Annotated[
    str,
    typer.Option(help="HOST:PORT of the server; [::1]:PORT for IPv6.", envvar="VISION_SAE_ADDRESS"),
]
Token = Annotated[
    str | None, typer.Option(help="Bearer token.", envvar="VISION_SAE_TOKEN", show_envvar=True)
]
Timeout = Annotated[float, typer.Option(help="Seconds that a call may take; inf: no limit.")]
DictionaryName = Annotated[
    str | None, typer.Option("--dictionary", help="Dictionary; default: the server's first.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run of this command wrote.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")]
_OF_PICTURES = (InvalidImageError.reason, ImageTooLargeError.reason)
P = ParamSpec("P")
R = TypeVar("R")


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and its commit, and exit.")
    ] = False,
) -> None:
    """Ask a vision_sae server what fires in a picture, where, and what it means."""
    if version:
        typer.echo(build())
        raise typer.Exit


@contextmanager
def _clear_errors(arguments: Iterable[object]) -> Iterator[None]:
    """Show an error that the user can correct as a message with exit status 2; other errors keep
    their traceback."""
    try:
        yield
    except BrokenPipeError:  # the reader of our output has closed it
        raise
    except (ClientError, VisionSaeError, OSError) as error:
        typer.secho(f"vision-sae-client: {_message(error, arguments)}", fg="red", err=True)
        raise typer.Exit(REFUSED) from error


def _message(error: Exception, arguments: Iterable[object]) -> str:
    if isinstance(error, OSError):
        known = storage_error(error)
        place = error.filename or "the output"
        return str(known or f"{place}: {error.strerror or error}; give another")
    of_picture = getattr(error, "reason", "") in _OF_PICTURES
    about = _broken_picture(arguments) if of_picture else None
    return f"{about}: {error}" if about and str(about) not in str(error) else str(error)


def _broken_picture(arguments: Iterable[object]) -> Path | None:
    """The picture file, among a command's arguments, that the server could not read.

    The server receives bytes without a file name, so each file is decoded here. A command with a
    single picture blames this one, whatever the server's reason.
    """
    files = []
    for argument in arguments:
        for value in argument if isinstance(argument, list) else [argument]:
            if isinstance(value, str) and value.startswith("image:"):  # a target
                files.append(Path(value.removeprefix("image:")))
            elif isinstance(value, Path) and os.path.isfile(value):  # False for any odd path
                files.append(value)
    for file in files:
        try:
            decode_image(file.read_bytes())
        except (InvalidInputError, OSError):
            return file
    return files[0] if len(files) == 1 else None


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Register a command that shows the errors of `vision_sae.errors` as one line."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with interruptible("vision-sae-client"), _clear_errors([*args, *kwargs.values()]):
            check_arguments(kwargs)
            return function(*args, **kwargs)

    return app.command()(run)


def feature_name(client: Client, feature: str, dictionary: str | None) -> str:
    """The resource name of a feature, from this name or from the feature's index alone."""
    if feature.isdecimal():
        return f"{client.dictionary(dictionary).name}/features/{feature}"
    if "/features/" not in feature:
        raise InvalidInputError(
            f"{quoted(feature)} names no feature; give its number, or its whole name, "
            "dictionaries/NAME/features/NUMBER",
            field="feature",
        )
    return feature


def warn_unread(texts: Iterable[UnreadText]) -> None:
    """Warn on stderr about the ends of texts that the model's text encoder did not read."""
    for text in texts:
        typer.secho(report.unread(text), fg="yellow", err=True)


def in_json(message: Message) -> str:
    """A message as JSON with the field names of the contract."""
    return MessageToJson(message, preserving_proto_field_name=True)
