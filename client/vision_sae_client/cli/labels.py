"""The command ``label``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from vision_sae.errors import InvalidInputError
from vision_sae.v1.label_job_service_pb2 import LabelJob
from vision_sae_client import report
from vision_sae_client.cli.command import (
    DEFAULT_ADDRESS,
    Address,
    AsJson,
    DictionaryName,
    Timeout,
    Token,
    command,
    in_json,
)
from vision_sae_client.client import Client
from vision_sae_client.jobs import label_job


@command
def label(
    job: Annotated[
        str | None, typer.Argument(help="Job to follow; default: create a new job.")
    ] = None,
    filter: Annotated[
        str, typer.Option(help="Which features, 'image_count >= 5'; default: all that fire.")
    ] = "",
    model: Annotated[
        str | None, typer.Option(help="Label neurons of this model instead of features.")
    ] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="Sites of the model, 'blocks.*.mlp'; may be repeated.")
    ] = None,
    describer: Annotated[str, typer.Option(help="Describer; default: the server's.")] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Relabel units that have a label.")
    ] = False,
    max_units: Annotated[
        int, typer.Option(help="Units to label; 0: all.", min=0, max=2**31 - 1)
    ] = 0,
    max_seconds: Annotated[
        float, typer.Option(help="Seconds of computing; 0: no limit.", min=0)
    ] = 0.0,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop the job.")] = False,
    every: Annotated[bool, typer.Option("--list", help="Show all jobs.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end.")] = False,
    address: Address = DEFAULT_ADDRESS,
    dictionary: DictionaryName = None,
    as_json: AsJson = False,
    token: Token = None,
    timeout: Timeout = 60.0,
) -> None:
    """Label many features or neurons on the server, in the background, and watch."""
    if cancel and job is None:
        raise InvalidInputError("name the job to stop", field="job")
    show: Callable[[LabelJob], str] = in_json if as_json else report.job
    with Client(address, token=token, timeout=timeout) as client:
        if every:
            for each in client.label_jobs():
                typer.echo(show(each))
            return
        if job is None:
            wanted = label_job(
                dictionary=None if model else client.dictionary(dictionary).name,
                filter=filter,
                model=model,
                sites=site or [],
                describer=describer,
                force=force,
                max_units=max_units,
                max_seconds=max_seconds,
            )
            followed = client.create_label_job(wanted)
        else:
            followed = client.cancel_label_job(job) if cancel else client.label_job(job)
        typer.echo(show(followed))
        if not detach and not cancel:
            for message in client.watch_label_job(followed.name):
                typer.echo(in_json(message) if as_json else report.news(message))
