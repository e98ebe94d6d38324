"""Shared parts of all commands: registration and the display of errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from vision_sae import devices
from vision_sae.arguments import check_arguments
from vision_sae.errors import VisionSaeError
from vision_sae.exits import REFUSED, interruptible
from vision_sae.places import check_output_file
from vision_sae.storage import storage_error
from vision_sae.version import build

app = typer.Typer(
    help="Find, explain and steer the internal features of a vision model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

evaluations = typer.Typer(
    help="Measure dictionaries, labels, attributions and edits.", no_args_is_help=True
)
app.add_typer(evaluations, name="evaluate")

Configuration = Annotated[
    Path | None, typer.Option("--config", help="YAML file; flags and environment override it.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the result of an earlier run of this command.")
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where to compute: auto, cpu, cuda, cuda:N or mps; by default the first GPU with "
        "room, else the CPU. Harvest takes several GPUs, as cuda:0,cuda:1.",
        show_default=False,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help=f"Precision to compute in: {', '.join(devices.DTYPES)}; by default the device's "
        "fastest of float32 and bfloat16.",
        show_default=False,
    ),
]
_SETTING: dict[str, Any] = {"device": Device, "dtype": Dtype}
"""{name: type} of the options that every command that computes has."""
P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Print an error of the catalogue as one line with exit status 2; other errors keep their
    traceback."""
    try:
        yield
    except VisionSaeError as error:
        typer.secho(f"vision-sae: {error}", fg="red", err=True)
        raise typer.Exit(REFUSED) from error
    except OSError as error:
        if not (reason := storage_error(error)) and error.filename is None:
            raise
        typer.secho(f"vision-sae: {reason or _plain(error)}", fg="red", err=True)
        raise typer.Exit(REFUSED) from error


def _plain(error: OSError) -> str:
    """The file and the system's reason: ``data/x: Is a directory``."""
    return f"{error.filename}: {error.strerror}"


def check_report(out: Path | None, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse, before any work, a file to which the command's report may not be written."""
    if out is not None:
        check_output_file(out, inputs=inputs, overwrite=overwrite)


def command(
    name: str | None = None,
    group: typer.Typer = app,
    *,
    computes: bool = False,
    on_several: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function as a command of a group, under its own name or ``name``.

    Errors of the catalogue are printed as one line. A command that ``computes`` gets the options
    --device and --dtype, and its body runs with this setting; see `vision_sae.devices`. Several
    devices are refused, unless the command computes ``on_several``.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with interruptible("vision-sae"), _clear_errors():
                check_arguments(kwargs)
                with _setting(kwargs, on_several) if computes else nullcontext():
                    return function(*args, **kwargs)

        if computes:
            run.__signature__ = _with_options(function)  # type: ignore[attr-defined]
        return group.command(name)(run)

    return register


def _with_options(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a command's function, with the options of the setting behind its own."""
    signature = inspect.signature(function, eval_str=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in _SETTING.items()
    ]
    return signature.replace(parameters=[*signature.parameters.values(), *options])


@contextmanager
def _setting(arguments: dict[str, Any], on_several: bool) -> Iterator[None]:
    """Take the setting out of a command's arguments, and compute with it in the body.

    A flag overrides the environment, which overrides the file of --config. Raises
    `InvalidInputError` for several devices, unless the body computes ``on_several``.
    """
    device, dtype = (arguments.pop(name, None) for name in _SETTING)
    if (path := arguments.get("config")) is not None and None in (device, dtype):
        from vision_sae.config import load_config

        configured = load_config(path)
        device = configured.device if device is None else device
        dtype = configured.dtype if dtype is None else dtype
    with devices.using(device, dtype, tell=partial(typer.echo, err=True)):
        if not on_several:
            devices.requested_one()
        yield


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and its commit, and exit.")
    ] = False,
) -> None:
    """Find, explain and steer the internal features of a vision model."""
    if version:
        typer.echo(build())
        raise typer.Exit
