"""What every command shares: how it is registered, its options, and how its errors are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, ParamSpec, TypeVar

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from vision_sae.errors import InvalidInputError, VisionSaeError
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

Address = Annotated[str, typer.Option(help="HOST:PORT of the server.", envvar="VISION_SAE_ADDRESS")]
Token = Annotated[
    str | None, typer.Option(help="Bearer token.", envvar="VISION_SAE_TOKEN", show_envvar=True)
]
Timeout = Annotated[
    float, typer.Option(help="Seconds that a call may take; inf: as long as it does.")
]
DictionaryName = Annotated[
    str | None, typer.Option("--dictionary", help="Dictionary; default: the server's first.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")]
P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What a user can mend becomes a line or two and exit status 2; the rest keeps its trace."""
    try:
        yield
    except BrokenPipeError:  # whoever reads our output has gone
        raise
    except (ClientError, VisionSaeError, OSError) as error:
        typer.secho(f"vision-sae-client: {_said(error)}", fg="red", err=True)
        raise typer.Exit(2) from error


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:  # a file that is read or written
        return f"{error.filename}: {error.strerror}; give another"
    return str(error)


def _check_words(given: Mapping[str, object]) -> None:
    """Refuse arguments that are not UTF-8, whose bytes no message can carry."""
    for name, value in given.items():
        for word in value if isinstance(value, list) else (value,):
            if isinstance(word, str) and _broken(word):
                raise InvalidInputError(f"{name} is not UTF-8; write it anew", field=name)


def _broken(word: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in word)


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Register a command whose deliberate errors are shown as one line."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _clear_errors():
            _check_words(kwargs)
            return function(*args, **kwargs)

    return app.command()(run)


def feature_name(client: Client, feature: str, dictionary: str | None) -> str:
    """The whole name of a feature that may be given by its index alone."""
    if not feature.isdecimal():
        return feature
    return f"{client.dictionary(dictionary).name}/features/{feature}"


def tell_unread(texts: Iterable[UnreadText]) -> None:
    """Say which ends of the texts were not read, beside the answer."""
    for text in texts:
        typer.secho(report.unread(text), fg="yellow", err=True)


def in_json(message: Message) -> str:
    """A message in JSON, its fields named as in the contract."""
    return MessageToJson(message, preserving_proto_field_name=True)
