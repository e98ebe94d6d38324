"""The command ``vision-sae``: harvest, train, build, describe, evaluate, serve, demo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

import vision_sae
from vision_sae.errors import VisionSaeError

app = typer.Typer(
    help="Find, explain and steer what the insides of a vision model mean.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Configuration = Annotated[
    Path | None, typer.Option("--config", help="YAML file; flags and environment override it.")
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
        raise typer.Exit(2) from error


def _command(function: Callable[P, R]) -> Callable[P, R]:
    """Register a command whose deliberate errors are shown as one line."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _clear_errors():
            return function(*args, **kwargs)

    return app.command()(run)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Find, explain and steer what the insides of a vision model mean."""
    if version:
        typer.echo(vision_sae.__version__)
        raise typer.Exit


@_command
def harvest(
    images: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    store: Annotated[Path, typer.Argument(help="Directory of the ActivationStore to make.")],
    model: Annotated[str | None, typer.Option(help="Model name or path.")] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="Site to capture; may be repeated.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float16 or bfloat16 on disk.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per forward pass.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only this many pictures.")] = None,
    views: Annotated[
        int | None, typer.Option(help="Pictures made of each: itself and random crops.")
    ] = None,
    config: Configuration = None,
) -> None:
    """Run a model over pictures and store the vectors of its sites. Resumes after a stop."""
    from vision_sae.activations.harvest import harvest as run
    from vision_sae.config import load_config
    from vision_sae.models.registry import load_model
    from vision_sae.pictures.folder import image_folder

    settings = load_config(
        config,
        harvest={
            "model": model,
            "sites": tuple(site) if site else None,
            "dtype": dtype,
            "batch_size": batch_size,
            "limit": limit,
            "views": views,
        },
    ).harvest
    made = run(load_model(settings.model), image_folder(images), store, settings)
    typer.echo(
        f"{store}: {made.manifest['images']} images, {made.rows} patches, "
        f"sites {', '.join(made.sites)}"
    )
    for row in made.skipped:
        typer.secho(f"skipped {row['id']}: {row['error']}", fg="yellow", err=True)


@_command
def train(
    store: Annotated[Path, typer.Argument(help="ActivationStore to train on.")],
    dictionary: Annotated[Path, typer.Argument(help="Directory of the dictionary to make.")],
    heldout: Annotated[
        Path | None, typer.Option(help="ActivationStore to measure the result on.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Site; needed when there are several.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="topk, batch_topk, matryoshka, relu, jumprelu, gated, ...")
    ] = None,
    expansion: Annotated[int | None, typer.Option(help="Features per dimension.")] = None,
    k: Annotated[int | None, typer.Option("--k", help="Active features per patch.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches per step.")] = None,
    ensemble: Annotated[str | None, typer.Option(help="bagging or boosting.")] = None,
    members: Annotated[int | None, typer.Option(help="Dictionaries of the ensemble.")] = None,
    end_to_end: Annotated[
        int | None, typer.Option(help="Further steps that train by the model's output.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures for end-to-end training.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    config: Configuration = None,
) -> None:
    """Train a sparse autoencoder, or fit another dictionary. Resumes after a stop."""
    from vision_sae.activations.store import ActivationStore
    from vision_sae.config import load_config
    from vision_sae.dictionaries.pipeline import splice, train_dictionary

    settings = load_config(
        config,
        train={
            "site": site,
            "architecture": architecture,
            "expansion": expansion,
            "k": k,
            "steps": steps,
            "batch_size": batch_size,
            "ensemble": ensemble,
            "members": members,
            "end_to_end": None if end_to_end is None else {"steps": end_to_end},
            "seed": seed,
        },
    ).train
    opened = ActivationStore(store)
    evaluation = {"heldout": ActivationStore(heldout)} if heldout else {}
    spliced = splice(opened, images) if images else None
    metrics = train_dictionary(opened, dictionary, settings, evaluation, spliced=spliced)
    _show_metrics(metrics)


def _show_metrics(metrics: dict[str, dict[str, float]]) -> None:
    for name, values in metrics.items():
        shown = " ".join(f"{key} {value:.4g}" for key, value in values.items())
        typer.echo(f"{name}: {shown}")


@_command
def sweep(
    store: Annotated[Path, typer.Argument(help="ActivationStore to train on.")],
    out: Annotated[Path, typer.Argument(help="Directory in which the dictionaries are made.")],
    heldout: Annotated[
        Path | None, typer.Option(help="ActivationStore to measure the results on.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Site; needed when there are several.")] = None,
    architecture: Annotated[
        list[str] | None, typer.Option(help="May be repeated, like all below.")
    ] = None,
    expansion: Annotated[list[int] | None, typer.Option(help="Features per dimension.")] = None,
    k: Annotated[list[int] | None, typer.Option("--k", help="Active features per patch.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Random seed.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each.")] = None,
    config: Configuration = None,
) -> None:
    """Train every combination of the given settings on one pass over the data."""
    from itertools import product

    from vision_sae.activations.store import ActivationStore
    from vision_sae.config import load_config
    from vision_sae.dictionaries.pipeline import sweep as run

    base = load_config(config).train
    settings = {}
    for choice in product(
        architecture or [base.architecture],
        expansion or [base.expansion],
        k or [base.k],
        seed or [base.seed],
    ):
        flags = dict(zip(("architecture", "expansion", "k", "seed"), choice, strict=True))
        name = "{architecture}-x{expansion}-k{k}-seed{seed}".format(**flags)
        settings[name] = load_config(config, train={"site": site, "steps": steps, **flags}).train
    evaluation = {"heldout": ActivationStore(heldout)} if heldout else {}
    for name, metrics in run(ActivationStore(store), out, settings, evaluation).items():
        typer.echo(out / name)
        _show_metrics(metrics)


@app.command("import")  # a keyword, so the function has another name
@_clear_errors()
def import_dictionary(
    source: Annotated[Path, typer.Argument(help="Checkpoint of another library: its directory.")],
    dictionary: Annotated[Path, typer.Argument(help="Directory of the dictionary to make.")],
    store: Annotated[Path, typer.Option(help="ActivationStore of the model and site it is for.")],
    site: Annotated[str | None, typer.Option(help="Site; needed when there are several.")] = None,
    format: Annotated[
        str | None, typer.Option(help="Format of SOURCE; found by its files when absent.")
    ] = None,
) -> None:
    """Publish a dictionary that another library trained, and measure it on a store."""
    from vision_sae.activations.store import ActivationStore
    from vision_sae.dictionaries.interop.exchange import import_dictionary as run

    made = run(source, dictionary, ActivationStore(store), site=site, format=format)
    shown = " ".join(f"{key} {value:.4g}" for key, value in made["metrics"]["store"].items())
    typer.echo(
        f"{dictionary}: {made['dictionary']['width']} features from "
        f"{made['training']['imported_from']}, {made['dictionary']['architecture']}, {shown}"
    )


@_command
def export(
    dictionary: Annotated[Path, typer.Argument(help="Trained dictionary.")],
    out: Annotated[Path, typer.Argument(help="New directory to write.")],
    format: Annotated[str, typer.Option(help="Format of another library.")] = "saelens",
) -> None:
    """Write a dictionary in the format of another library."""
    from vision_sae.dictionaries.interop.exchange import export_dictionary

    export_dictionary(dictionary, out, format)
    typer.echo(f"{out}: {format}")


@_command
def build(
    store: Annotated[Path, typer.Argument(help="ActivationStore to encode.")],
    dictionary: Annotated[Path, typer.Argument(help="Trained dictionary.")],
    bundle: Annotated[Path, typer.Argument(help="Directory of the bundle to publish.")],
    config: Configuration = None,
) -> None:
    """Encode every patch and publish a bundle: codes, statistics, exemplars, patch index."""
    from vision_sae.activations.store import ActivationStore
    from vision_sae.bundles.build import build as run
    from vision_sae.config import load_config

    made = run(ActivationStore(store), dictionary, bundle, load_config(config).build)
    index = made.manifest["patch_index"]
    typer.echo(
        f"{bundle}: {index['rows']} patches in {index['type']}, "
        f"recall@10 {index['recall_at_10']:.3f}, "
        f"EV {made.manifest['metrics']['build']['explained_variance']:.4f}"
    )


@_command
def describe(
    bundle: Annotated[Path, typer.Argument(help="Bundle to describe.")],
    config: Configuration = None,
) -> None:
    """Label every feature of a bundle, or abstain, with the evidence."""
    from vision_sae.config import load_config
    from vision_sae.descriptions.describe import describe_bundle

    made = describe_bundle(bundle, load_config(config).describe)
    summary: dict[str, Any] = made.manifest["describe"]
    typer.echo(f"{bundle}: {summary['labelled']} labelled, {summary['abstained']} abstained")


@_command
def evaluate(
    dictionary: Annotated[Path, typer.Argument(help="Dictionary or bundle to measure.")],
    store: Annotated[Path, typer.Option(help="ActivationStore to measure on, held out.")],
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of pictures to run the model on; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Use only this many pictures.", min=1)] = 256,
    name: Annotated[
        str, typer.Option(help="What a bundle's manifest calls these metrics.")
    ] = "heldout",
    against: Annotated[
        Path | None, typer.Option(help="Dictionary or bundle to match the features with.")
    ] = None,
) -> None:
    """Measure a dictionary on held-out data; a bundle is published anew with the figures."""
    from vision_sae.activations.harvest import choose
    from vision_sae.activations.store import ActivationStore
    from vision_sae.evaluation.report import evaluate as run
    from vision_sae.evaluation.report import lines, match_published
    from vision_sae.pictures.folder import image_folder

    pictures = [picture for folder in images or [] for picture in image_folder(folder)]
    matching = match_published(dictionary, against) if against else None
    found = run(dictionary, ActivationStore(store), choose(pictures, limit), name=name)
    for line in lines(found, matching):
        typer.echo(line)


@_command
def serve(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles to serve.")],
    host: Annotated[str | None, typer.Option(help="Address to bind.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0 chooses one.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the Prometheus endpoint; none when absent.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="File or postgresql:// URL that keeps labels; in memory when absent."),
    ] = None,
    allow_insecure_bind: Annotated[
        bool, typer.Option("--allow-insecure-bind", help="Bind an address others can reach.")
    ] = False,
    config: Configuration = None,
) -> None:
    """Serve bundles over gRPC until SIGTERM or Ctrl-C."""
    import asyncio

    from vision_sae_server.app import run

    from vision_sae.config import load_config

    settings = load_config(
        config, serve={"host": host, "port": port, "metrics_port": metrics_port, "labels": labels}
    ).serve
    asyncio.run(run(bundles, settings, allow_insecure_bind=allow_insecure_bind))


@_command
def demo(
    out: Annotated[Path, typer.Option(help="Where the answer is written.")] = Path("demo-out"),
    work: Annotated[
        Path, typer.Option(help="Where stores, dictionary and bundle are kept for the next run.")
    ] = Path("runs/demo"),
    once: Annotated[
        bool, typer.Option("--once", help="End after the answer instead of staying up.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the server that stays up.")] = 50051,
    web_port: Annotated[int, typer.Option(help="Port of the web page.")] = 7860,
) -> None:
    """The whole job on the embedded default, from pictures to a labelled answer over gRPC."""
    from vision_sae.demo.run import run

    run(out, work, once=once, port=port, web_port=web_port)


if __name__ == "__main__":
    app()
