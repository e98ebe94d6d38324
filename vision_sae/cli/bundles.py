"""Commands of bundles: build, delete, match, serve, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vision_sae.cli.command import Configuration, Overwrite, command
from vision_sae.errors import InvalidInputError, quoted
from vision_sae.places import check_output


@command(computes=True)
def build(
    store: Annotated[Path, typer.Argument(help="ActivationStore to encode.")],
    dictionary: Annotated[
        str, typer.Argument(help="Trained dictionary, or the name of a released one.")
    ],
    bundle: Annotated[Path, typer.Argument(help="Directory of the bundle to publish.")],
    overwrite: Overwrite = False,
    config: Configuration = None,
) -> None:
    """Encode every patch and publish a bundle: codes, statistics, exemplars, patch index."""
    from vision_sae.artifacts import BUNDLE, STORE
    from vision_sae.cli.checks import check_dictionary, check_room
    from vision_sae.config import load_config

    settings = load_config(config).build
    STORE.manifest(store)
    check_output(bundle, BUNDLE.format, inputs=[store], field="bundle")
    files = check_dictionary(dictionary)["files"].values()
    check_room(bundle, sum(file["bytes"] for file in files), field="bundle")

    from vision_sae.activations.store import ActivationStore
    from vision_sae.bundles.build import build as run

    result = run(ActivationStore(store), dictionary, bundle, settings, overwrite=overwrite)
    index = result.manifest["patch_index"]
    typer.echo(
        f"{bundle}: {index['rows']} patches in {index['type']}, "
        f"recall@10 {index['recall_at_10']:.3f}, "
        f"EV {result.manifest['metrics']['build']['explained_variance']:.4f}"
    )
    described = result.manifest.get("describe", {})
    if "released" in described:  # an unchanged earlier bundle may have other labels
        typer.echo(f"{described['labelled']} labels of {described['released']}")


@command()
def delete(
    bundle: Annotated[Path, typer.Argument(help="Published bundle.")],
    image: Annotated[list[str], typer.Option(help="Identifier of a picture; may be repeated.")],
) -> None:
    """Delete pictures from a bundle, with everything that was measured on them."""
    from vision_sae.artifacts import BUNDLE

    BUNDLE.manifest(bundle)

    from vision_sae.bundles.deletion import delete_images

    result = delete_images(bundle, image)
    typer.echo(f"{bundle}: {result.manifest['deleted']} pictures deleted in all")


@command(computes=True)
def match(
    bundle: Annotated[Path, typer.Argument(help="Published bundle.")],
    against: Annotated[Path, typer.Argument(help="Bundle in which counterparts are searched.")],
) -> None:
    """Find each feature's counterpart in another dictionary, layer or model."""
    from vision_sae.artifacts import BUNDLE

    for path in (bundle, against):
        BUNDLE.manifest(path)

    from vision_sae.bundles.matches import match_bundles

    result = match_bundles(bundle, against)
    matches = result.manifest["matches"][against.name]
    for name in ("nearest", "partner"):
        if name in matches:
            typer.echo(
                f"{name} by {matches['measure']}: mean {matches[name]:.3f}, by chance "
                f"{matches[f'{name}_floor']:.3f}"
            )


@command(computes=True)
def serve(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles to serve.")],
    host: Annotated[str | None, typer.Option(help="Address to bind, IPv4 or IPv6.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0 chooses one.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the Prometheus endpoint; no endpoint by default.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="File or postgresql:// URL that keeps labels; in memory by default."),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="Contrastive model for labels, scores and search; none by default."),
    ] = None,
    neurons: Annotated[
        list[Path] | None,
        typer.Option(help="Evidence of a model's raw neurons that jobs may label; repeatable."),
    ] = None,
    model_device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=DEVICE",
            help="Another device for one model, as demo:clip=cuda:1, or several with a replica "
            "each, as demo:clip=cuda:0,cuda:1; may be repeated.",
        ),
    ] = None,
    allow_insecure_bind: Annotated[
        bool, typer.Option("--allow-insecure-bind", help="Bind an address others can reach.")
    ] = False,
    allow_downloads: Annotated[
        bool,
        typer.Option("--allow-downloads", help="Ask hubs for models that are not on this machine."),
    ] = False,
    log_level: Annotated[
        str | None, typer.Option(help="Least severe level logged: debug, info, warning or error.")
    ] = None,
    config: Configuration = None,
) -> None:
    """Serve bundles over gRPC until SIGTERM or Ctrl-C."""
    from vision_sae_server.start import run

    from vision_sae.config import load_config

    settings = load_config(
        config,
        serve={
            "host": host,
            "port": port,
            "metrics_port": metrics_port,
            "labels": labels,
            "clip": clip,
            "neurons": tuple(neurons) if neurons else None,
            "devices": _by_model(model_device) if model_device else None,
            "log_level": log_level,
        },
    )
    run(
        bundles,
        settings.serve,
        settings.describe,
        allow_insecure_bind=allow_insecure_bind,
        allow_downloads=allow_downloads,
    )


def _by_model(assignments: list[str]) -> dict[str, str]:
    """``["demo:clip=cuda:1"]`` -> ``{"demo:clip": "cuda:1"}``."""
    devices: dict[str, str] = {}
    for assignment in assignments:
        model, sign, device = assignment.rpartition("=")
        if not sign:
            raise InvalidInputError(
                f"{quoted(assignment)} is not MODEL=DEVICE, such as demo:clip=cuda:1",
                field="model_device",
            )
        devices[model] = device
    return devices


@command(computes=True)
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the answer.")] = Path("demo-out"),
    work: Annotated[
        Path, typer.Option(help="Folder that keeps stores, dictionary and bundle for the next run.")
    ] = Path("runs/demo"),
    once: Annotated[
        bool, typer.Option("--once", help="Exit after the answer instead of serving.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the server.")] = 50051,
    web_port: Annotated[int, typer.Option(help="Port of the web page.")] = 7860,
) -> None:
    """Run the whole job on embedded models, from pictures to a labelled answer over gRPC."""
    from vision_sae.hosts import check_port
    from vision_sae.models.embedded.wheels import WHEELS

    for wheel in WHEELS:
        wheel.path()
    if not once:
        check_port("127.0.0.1", port)
        check_port("127.0.0.1", web_port, option="web-port")

    from vision_sae.demo.run import run

    run(out, work, once=once, port=port, web_port=web_port)
