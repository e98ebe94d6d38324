"""The commands ``info`` and ``web``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vision_sae.hosts import check_address, check_port
from vision_sae_client import report
from vision_sae_client.cli.command import (
    DEFAULT_ADDRESS,
    Address,
    AsJson,
    Timeout,
    Token,
    command,
    in_json,
)
from vision_sae_client.client import Client


@command
def info(
    address: Address = DEFAULT_ADDRESS,
    model: Annotated[
        str | None, typer.Option(help="Show this model and the names of its classes.")
    ] = None,
    as_json: AsJson = False,
    token: Token = None,
    timeout: Timeout = 60.0,
) -> None:
    """Show what the server is and what it serves."""
    with Client(address, token=token, timeout=timeout) as client:
        if model is not None:
            message = client.model(model)
            typer.echo(in_json(message) if as_json else report.model(message))
            return
        server = client.server_info()
        if as_json:
            typer.echo(in_json(server))
            return
        typer.echo(report.server(server, client.models(), client.dictionaries()))


@command
def web(
    address: Address = DEFAULT_ADDRESS,
    host: Annotated[str, typer.Option(help="Address the page listens on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port of the page; 0 takes a free one.", min=0, max=65535)
    ] = 7860,
    examples: Annotated[
        Path | None, typer.Option(help="Folder of pictures to offer as examples.")
    ] = None,
    token: Token = None,
) -> None:
    """Start the web page: upload a picture, see the features that fire and what they mean."""
    check_address(address)
    check_port(host, port)  # before Gradio, which takes seconds to import

    from vision_sae_client.web import launch

    launch(address, examples_dir=examples, host=host, port=port, token=token)
