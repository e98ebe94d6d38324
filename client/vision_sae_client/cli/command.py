"""What every command shares: how it is registered, its options, and how its errors are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, ParamSpec, TypeVar

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from vision_sae.errors import VisionSaeError
from vision_sae.exits import REFUSED, interruptible
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
Timeout = Annotated[float, typer.Option(help="Seconds that a call may take.")]
DictionaryName = Annotated[
    str | None, typer.Option("--dictionary", help="Dictionary; default: the server's first.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")]
P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What goes wrong on purpose becomes one line and exit status 2; the rest keeps its trace."""
    try:
        yield
    except (ClientError, VisionSaeError) as error:
        typer.secho(f"vision-sae-client: {error}", fg="red", err=True)
        raise typer.Exit(REFUSED) from error


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Register a command whose deliberate errors are shown as one line."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with interruptible("vision-sae-client"), _clear_errors():
            return function(*args, **kwargs)

    return app.command()(run)


def feature_name(client: Client, feature: str, dictionary: str | None) -> str:
    """The whole name of a feature that may be given by its index alone."""
    if not feature.isdecimal():
        return feature
    return f"{client.dictionary(dictionary).name}/features/{feature}"


def in_json(message: Message) -> str:
    """A message in JSON, its fields named as in the contract."""
    return MessageToJson(message, preserving_proto_field_name=True)
