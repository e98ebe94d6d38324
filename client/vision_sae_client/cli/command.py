"""What every command shares: how it is registered, its options, and how its errors are shown."""

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
from vision_sae_client import report
from vision_sae_client.client import Client
from vision_sae_client.errors import ClientError

app = typer.Typer(
    help="Ask a vision_sae server what fires in a picture, where, and what it means.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DEFAULT_ADDRESS = "127.0.0.1:50051"

Address = Annotated[
    str,
    typer.Option(help="HOST:PORT of the server; [::1]:PORT for IPv6.", envvar="VISION_SAE_ADDRESS"),
]
Token = Annotated[
    str | None, typer.Option(help="Bearer token.", envvar="VISION_SAE_TOKEN", show_envvar=True)
]
Timeout = Annotated[
    float, typer.Option(help="Seconds that a call may take; inf: as long as it does.")
]
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


@contextmanager
def _clear_errors(arguments: Iterable[object]) -> Iterator[None]:
    """What a user can mend becomes a line or two and exit status 2; the rest keeps its trace."""
    try:
        yield
    except BrokenPipeError:  # whoever reads our output has gone
        raise
    except (ClientError, VisionSaeError, OSError) as error:
        typer.secho(f"vision-sae-client: {_said(error, arguments)}", fg="red", err=True)
        raise typer.Exit(REFUSED) from error


def _said(error: Exception, arguments: Iterable[object]) -> str:
    if isinstance(error, OSError):
        told = storage_error(error)
        place = error.filename or "the output"
        return str(told or f"{place}: {error.strerror or error}; give another")
    of_picture = getattr(error, "reason", "") in _OF_PICTURES
    about = _broken_picture(arguments) if of_picture else None
    return f"{about}: {error}" if about and str(about) not in str(error) else str(error)


def _broken_picture(arguments: Iterable[object]) -> Path | None:
    """Which of the files that a command was given the server cannot read: it sees bytes only, and
    does not know their names. The only file is it, whatever the server's reason."""
    files = []
    for given in arguments:
        for value in given if isinstance(given, list) else [given]:
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
    """Register a command whose deliberate errors are shown as one line."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with interruptible("vision-sae-client"), _clear_errors([*args, *kwargs.values()]):
            check_arguments(kwargs)
            return function(*args, **kwargs)

    return app.command()(run)


def feature_name(client: Client, feature: str, dictionary: str | None) -> str:
    """The whole name of a feature that may be given by its index alone."""
    if feature.isdecimal():
        return f"{client.dictionary(dictionary).name}/features/{feature}"
    if "/features/" not in feature:
        raise InvalidInputError(
            f"{quoted(feature)} names no feature; give its number, or its whole name, "
            "dictionaries/NAME/features/NUMBER",
            field="feature",
        )
    return feature


def tell_unread(texts: Iterable[UnreadText]) -> None:
    """Say which ends of the texts were not read, beside the answer."""
    for text in texts:
        typer.secho(report.unread(text), fg="yellow", err=True)


def in_json(message: Message) -> str:
    """A message in JSON, its fields named as in the contract."""
    return MessageToJson(message, preserving_proto_field_name=True)
