"""The command ``vision-sae-client``: attribute, intervene, describe, search, label, steer, info,
web."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from vision_sae import tensors
from vision_sae.errors import InvalidInputError, VisionSaeError
from vision_sae.v1.description_pb2 import Description
from vision_sae.v1.edit_pb2 import Edit
from vision_sae.v1.generation_service_pb2 import GenerationSettings, Recipe
from vision_sae.v1.label_job_service_pb2 import LabelJob
from vision_sae.v1.ledger_pb2 import (
    ATTRIBUTION_METHOD_ACT_X_GRAD,
    ATTRIBUTION_METHOD_EXACT_ABLATION,
    ATTRIBUTION_METHOD_INTEGRATED_GRADIENTS,
    ATTRIBUTION_METHOD_RAW_NEURON,
    SiteAttribution,
)
from vision_sae_client import overlay, report, steering, targets
from vision_sae_client.client import Client
from vision_sae_client.edits import edit
from vision_sae_client.edits import parse as parse_edits
from vision_sae_client.errors import ClientError
from vision_sae_client.jobs import label_job
from vision_sae_client.requests import BoxLike

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
Timeout = Annotated[float, typer.Option(help="Seconds that a call may take.")]
DictionaryName = Annotated[
    str | None, typer.Option("--dictionary", help="Dictionary; default: the server's first.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")]
Add = Annotated[
    list[str] | None,
    typer.Option(help="FEATURE=VALUE, in mean activations; may be repeated, like all edits."),
]
Scale = Annotated[list[str] | None, typer.Option(help="FEATURE=FACTOR.")]
Clamp = Annotated[list[str] | None, typer.Option(help="FEATURE=VALUE, in means.")]
Ablate = Annotated[list[str] | None, typer.Option(help="FEATURE: take it out.")]
EditBox = Annotated[
    str | None, typer.Option("--box", help="Edit within x0,y0,x1,y1 in pixels.", metavar="BOX")
]
OwnMapFlag = Annotated[
    bool, typer.Option("--own-map", help="Edit where the feature fires by itself.")
]
P = ParamSpec("P")
R = TypeVar("R")


class AttributionBy(StrEnum):
    """Methods of attribution that keep books."""

    INTEGRATED = "integrated-gradients"
    ACT_X_GRAD = "act-x-grad"
    EXACT_ABLATION = "exact-ablation"
    RAW_NEURON = "raw-neuron"


_METHODS = {
    AttributionBy.INTEGRATED: ATTRIBUTION_METHOD_INTEGRATED_GRADIENTS,
    AttributionBy.ACT_X_GRAD: ATTRIBUTION_METHOD_ACT_X_GRAD,
    AttributionBy.EXACT_ABLATION: ATTRIBUTION_METHOD_EXACT_ABLATION,
    AttributionBy.RAW_NEURON: ATTRIBUTION_METHOD_RAW_NEURON,
}


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What goes wrong on purpose becomes one line and exit status 2; the rest keeps its trace."""
    try:
        yield
    except (ClientError, VisionSaeError) as error:
        typer.secho(f"vision-sae-client: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


def _command(function: Callable[P, R]) -> Callable[P, R]:
    """Register a command whose deliberate errors are shown as one line."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _clear_errors():
            return function(*args, **kwargs)

    return app.command()(run)


@_command
def attribute(
    image: Annotated[Path, typer.Argument(help="Picture: JPEG, PNG or WebP.")],
    address: Address = DEFAULT_ADDRESS,
    dictionary: DictionaryName = None,
    target: Annotated[
        str,
        typer.Option(help="mean, image:FILE, class:INDEX, text:WORDS, feature:NAME, or 'A vs B'."),
    ] = "mean",
    method: Annotated[AttributionBy, typer.Option(help="How.")] = AttributionBy.INTEGRATED,
    baseline: Annotated[
        Path | None, typer.Option(help="Measure from this picture; default: no feature fires.")
    ] = None,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness", help="Measure how faithful the answer is.")
    ] = False,
    top_k: Annotated[int, typer.Option(help="Features to show.", min=1, max=1000)] = 10,
    out: Annotated[
        Path | None, typer.Option(help="Directory for a heat-map PNG per feature.")
    ] = None,
    as_json: AsJson = False,
    token: Token = None,
    timeout: Timeout = 60.0,
) -> None:
    """Show what the features of a picture contribute to a target, with the check of the sum."""
    with Client(address, token=token, timeout=timeout) as client:
        answer = client.attribute(
            image,
            targets.parse(target),
            dictionaries=[dictionary] if dictionary else None,
            method=_METHODS[method],
            baseline=baseline,
            top_k=top_k,
            faithfulness=faithfulness,
        )
    (site,) = answer.sites
    typer.echo(_json(site) if as_json else report.attribution(site))
    if faithfulness and not as_json:
        typer.echo("\n" + report.faithfulness(site))
    if out is not None:
        written = write_overlays(image, site, out)
        typer.echo(f"{written} overlays in {out}", err=True)


def write_overlays(image: Path, site: SiteAttribution, directory: Path) -> int:
    """Write ``01-feature-INDEX.png``, ... into a directory; gives how many."""
    directory.mkdir(parents=True, exist_ok=True)
    picture = overlay.open_picture(image)
    for rank, item in enumerate(site.features, start=1):
        drawn = overlay.overlay(picture, tensors.from_proto(item.heatmap), site.grid, item.patches)
        path = directory / f"{rank:02d}-feature-{item.feature.index}.png"
        path.write_bytes(overlay.png(drawn))
    return len(site.features)


@_command
def describe(
    feature: Annotated[
        str, typer.Argument(help="dictionaries/NAME/features/INDEX, or INDEX alone.")
    ],
    describer: Annotated[
        str, typer.Option(help="Describer to ask; default: whoever has described it.")
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
        name = _feature_name(client, feature, dictionary)
        if score is not None:
            made = Description(text=score, scores=client.score_description(name, score))
        elif text is not None or abstain is not None:
            made = client.update_description(name, text, reason=abstain or "")
        else:
            made = client.describe_feature(name, describer=describer, force=force)
        if as_json:
            typer.echo(_json(made))
            return
        typer.echo(report.description(name, made))
        typer.echo(report.statistics(client.feature(name)))


@_command
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
        named = None if feature is None else _feature_name(client, feature, dictionary)
        corners = None if box is None else parse_box(box)
        if features or (text is not None and not patches):
            found = client.search_features(
                text=text,
                feature=named,
                image=image,
                box=corners,
                dictionaries=[dictionary] if dictionary else [],
                count=count,
            )
            typer.echo(_json(found) if as_json else report.features(found))
            return
        answer = client.search_patches(
            text=text, feature=named, image=image, box=corners, dictionary=dictionary, count=count
        )
    typer.echo(_json(answer) if as_json else report.patches(answer))


@_command
def label(
    job: Annotated[
        str | None, typer.Argument(help="Job to follow; without, a new one is made.")
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
    force: Annotated[bool, typer.Option("--force", help="Label those anew that have one.")] = False,
    max_units: Annotated[int, typer.Option(help="Units to label; 0: all.", min=0)] = 0,
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
    show: Callable[[LabelJob], str] = _json if as_json else report.job
    with Client(address, token=token, timeout=timeout) as client:
        if every:
            for found in client.label_jobs():
                typer.echo(show(found))
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
                typer.echo(_json(message) if as_json else report.news(message))


@_command
def intervene(
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    add: Add = None,
    scale: Scale = None,
    clamp: Clamp = None,
    ablate: Ablate = None,
    target: Annotated[
        list[str] | None, typer.Option(help="What to measure, as in attribute; may be repeated.")
    ] = None,
    box: EditBox = None,
    own_map: OwnMapFlag = False,
    control: Annotated[
        int, typer.Option(help="Random features of equal norm to compare with.", min=0, max=100)
    ] = 20,
    address: Address = DEFAULT_ADDRESS,
    dictionary: DictionaryName = None,
    as_json: AsJson = False,
    token: Token = None,
    timeout: Timeout = 600.0,
) -> None:
    """Show what a model says of pictures with features turned up, down or off."""
    asked = {"add": add, "scale": scale, "clamp": clamp, "ablate": ablate}
    with Client(address, token=token, timeout=timeout) as client:
        answer = client.intervene(
            images,
            _edits(client, dictionary, asked, box=box, own_map=own_map),
            {words: targets.parse(words) for words in target or ["mean"]},
            control_count=control,
        )
    typer.echo(_json(answer) if as_json else report.intervention(answer, [i.name for i in images]))


@_command
def steer(
    prompt: Annotated[str, typer.Argument(help="What to show; empty shows a feature alone.")] = "",
    add: Add = None,
    scale: Scale = None,
    clamp: Clamp = None,
    ablate: Ablate = None,
    replace: Annotated[
        list[str] | None, typer.Option(help="FEATURE=VALUE: nothing but this feature.")
    ] = None,
    box: EditBox = None,
    own_map: OwnMapFlag = False,
    first_step: Annotated[int, typer.Option(help="First denoising step to edit.", min=0)] = 0,
    last_step: Annotated[int | None, typer.Option(help="Last one; default: the end.")] = None,
    model: Annotated[
        str | None, typer.Option(help="models/NAME; default: the first that generates.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise; default: drawn.", min=0)] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps; 0: as usual.", min=0)] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default: usual.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Make the picture of this recipe.json again.")
    ] = None,
    allow_drift: Annotated[
        bool, typer.Option("--allow-drift", help="Even where something is not as it was.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Directory for pictures and recipe.")] = Path("steered"),
    address: Address = DEFAULT_ADDRESS,
    dictionary: DictionaryName = None,
    as_json: AsJson = False,
    token: Token = None,
    timeout: Timeout = 600.0,
) -> None:
    """Make a picture with features turned up or down, and its twin without."""
    asked = {"add": add, "scale": scale, "clamp": clamp, "ablate": ablate, "replace": replace}
    if recipe is not None and (prompt or any(asked.values())):
        raise InvalidInputError("a recipe holds the prompt and the edits already", field="recipe")
    with Client(address, token=token, timeout=timeout) as client:
        content: GenerationSettings | Recipe
        if recipe is not None:
            content = steering.read_recipe(recipe)
        else:
            content = GenerationSettings(
                model=model or _generator(client),
                prompt=prompt,
                seed=seed,
                steps=steps,
                guidance_scale=guidance,
                edits=_edits(
                    client,
                    dictionary,
                    asked,
                    box=box,
                    own_map=own_map,
                    first_step=first_step,
                    last_step=last_step,
                ),
            )
        for message in client.generate(content, allow_drift=allow_drift):
            if message.HasField("progress"):
                typer.echo(report.generation_progress(message.progress), err=True)
        written = steering.write(message.result, out)
    typer.echo(_json(message.result) if as_json else report.generation(message.result))
    typer.echo(f"written: {', '.join(map(str, written))}", err=True)


def _edits(
    client: Client,
    dictionary: str | None,
    asked: Mapping[str, Sequence[str] | None],
    *,
    box: str | None,
    own_map: bool,
    first_step: int = 0,
    last_step: int | None = None,
) -> list[Edit]:
    """The edits of {operation: words}."""
    parsed = [
        (operation, *words)
        for operation, given in asked.items()
        for words in parse_edits(given or [], operation)
    ]
    return [
        edit(
            _feature_name(client, feature, dictionary),
            operation,
            value,
            box=None if box is None else parse_box(box),
            own_map=own_map,
            first_step=first_step,
            last_step=last_step,
        )
        for operation, feature, value in parsed
    ]


def _generator(client: Client) -> str:
    """The first model of the server that generates."""
    model = client.generator()
    if model is None:
        raise InvalidInputError("this server has no text-to-image model", field="model")
    return model


@_command
def info(
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
    token: Token = None,
    timeout: Timeout = 60.0,
) -> None:
    """Show what the server is and what it serves."""
    with Client(address, token=token, timeout=timeout) as client:
        server = client.server_info()
        if as_json:
            typer.echo(_json(server))
            return
        typer.echo(report.server(server, client.models(), client.dictionaries()))


@_command
def web(
    address: Address = DEFAULT_ADDRESS,
    host: Annotated[str, typer.Option(help="Address the page listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = 7860,
    examples: Annotated[
        Path | None, typer.Option(help="Folder of pictures to offer as examples.")
    ] = None,
    token: Token = None,
) -> None:
    """Start the web page: upload a picture, see the features that fire and what they mean."""
    from vision_sae_client.web import launch

    launch(address, examples_dir=examples, host=host, port=port, token=token)


def parse_box(words: str) -> BoxLike:
    """``x0,y0,x1,y1`` -> four numbers."""
    try:
        x0, y0, x1, y1 = (float(word) for word in words.split(","))
    except ValueError as error:
        raise InvalidInputError(
            f"{words!r} is no box; give four numbers x0,y0,x1,y1", field="box"
        ) from error
    return x0, y0, x1, y1


def _feature_name(client: Client, feature: str, dictionary: str | None) -> str:
    """The whole name of a feature that may be given by its index alone."""
    if not feature.isdecimal():
        return feature
    return f"{client.dictionary(dictionary).name}/features/{feature}"


def _json(message: Message) -> str:
    return MessageToJson(message, preserving_proto_field_name=True)
