"""The commands ``describe`` and ``search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vision_sae.errors import InvalidInputError
from vision_sae.v1.description_pb2 import Description
from vision_sae_client import report
from vision_sae_client.cli.command import (
    DEFAULT_ADDRESS,
    Address,
    AsJson,
    DictionaryName,
    Timeout,
    Token,
    command,
    feature_name,
    in_json,
    warn_unread,
)
from vision_sae_client.client import Client
from vision_sae_client.images import parse_box


@command
def describe(
    feature: Annotated[
        str, typer.Argument(help="dictionaries/NAME/features/INDEX, or INDEX alone.")
    ],
    describer: Annotated[
        str, typer.Option(help="Describer; default: any that has described it.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Describe it anew.")] = False,
    score: Annotated[
        str | None, typer.Option(help="Measure how well this text fits; store nothing.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Write this text as the description.")] = None,
    abstain: Annotated[
        str | None, typer.Option(help="Write that it has no description, and why.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    dictionary: DictionaryName = None,
    as_json: AsJson = False,
    token: Token = None,
    timeout: Timeout = 60.0,
) -> None:
    """Show what a feature means, how well that fits, and pictures that fire it; or write it."""
    if sum(option is not None for option in (score, text, abstain)) > 1:
        raise InvalidInputError("give only one of --score, --text and --abstain", field="text")
    with Client(address, token=token, timeout=timeout) as client:
        name = feature_name(client, feature, dictionary)
        if score is not None:
            answer = client.score_description(name, score)
            described = Description(text=score, scores=answer.scores)
            warn_unread(answer.unread_texts)
        elif text is not None or abstain is not None:
            described = client.update_description(name, text, reason=abstain or "")
        else:
            described = client.describe_feature(name, describer=describer, force=force)
        if as_json:
            typer.echo(in_json(described))
            return
        typer.echo(report.description(name, described))
        typer.echo(report.statistics(client.feature(name)))


@command
def search(
    text: Annotated[
        str | None,
        typer.Option(help="Find features about this text; with --patches, what shows it."),
    ] = None,
    feature: Annotated[
        str | None,
        typer.Option(help="Find patches that fire this feature (name, or index alone)."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Find patches like this picture, or like --box of it.")
    ] = None,
    box: Annotated[
        str | None, typer.Option(help="x0,y0,x1,y1 in pixels of the picture.", metavar="BOX")
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Find features instead of patches.")
    ] = False,
    patches: Annotated[
        bool, typer.Option("--patches", help="Find patches by text instead of features.")
    ] = False,
    count: Annotated[int, typer.Option(help="Hits to show.", min=1, max=1000)] = 20,
    address: Address = DEFAULT_ADDRESS,
    dictionary: DictionaryName = None,
    as_json: AsJson = False,
    token: Token = None,
    timeout: Timeout = 60.0,
) -> None:
    """Find patches or features by a text, a feature or a picture."""
    with Client(address, token=token, timeout=timeout) as client:
        named = None if feature is None else feature_name(client, feature, dictionary)
        corners = None if box is None else parse_box(box)
        if features or (text is not None and not patches):
            features_answer = client.search_features(
                text=text,
                feature=named,
                image=image,
                box=corners,
                dictionaries=[dictionary] if dictionary else [],
                count=count,
            )
            typer.echo(in_json(features_answer) if as_json else report.features(features_answer))
            warn_unread(features_answer.unread_texts)
            return
        answer = client.search_patches(
            text=text, feature=named, image=image, box=corners, dictionary=dictionary, count=count
        )
    typer.echo(in_json(answer) if as_json else report.patches(answer))
    warn_unread(answer.unread_texts)
