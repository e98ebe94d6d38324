"""Commands of bundles: build, serve, and the demo of it all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vision_sae.cli.command import Configuration, Overwrite, command
from vision_sae.places import check_output


@command()
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

    made = run(ActivationStore(store), dictionary, bundle, settings, overwrite=overwrite)
    index = made.manifest["patch_index"]
    typer.echo(
        f"{bundle}: {index['rows']} patches in {index['type']}, "
        f"recall@10 {index['recall_at_10']:.3f}, "
        f"EV {made.manifest['metrics']['build']['explained_variance']:.4f}"
    )
    described = made.manifest.get("describe", {})
    if "released" in described:  # a bundle that was current already may be described otherwise
        typer.echo(f"{described['labelled']} labels of {described['released']}")


@command()
def delete(
    bundle: Annotated[Path, typer.Argument(help="Published bundle.")],
    image: Annotated[list[str], typer.Option(help="Identifier of a picture; may be repeated.")],
) -> None:
    """Take pictures out of a bundle, with all that was measured on them."""
    from vision_sae.artifacts import BUNDLE

    BUNDLE.manifest(bundle)

    from vision_sae.bundles.deletion import delete_images

    made = delete_images(bundle, image)
    typer.echo(f"{bundle}: {made.manifest['deleted']} pictures deleted in all")


@command()
def match(
    bundle: Annotated[Path, typer.Argument(help="Published bundle.")],
    against: Annotated[Path, typer.Argument(help="Another one, to find counterparts in.")],
) -> None:
    """Find each feature's counterpart in another dictionary, layer or model."""
    from vision_sae.artifacts import BUNDLE

    for path in (bundle, against):
        BUNDLE.manifest(path)

    from vision_sae.bundles.matches import match_bundles

    made = match_bundles(bundle, against)
    found = made.manifest["matches"][against.name]
    for name in ("nearest", "partner"):
        if name in found:
            typer.echo(
                f"{name} by {found['measure']}: mean {found[name]:.3f}, by chance "
                f"{found[f'{name}_floor']:.3f}"
            )


@command()
def serve(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles to serve.")],
    host: Annotated[str | None, typer.Option(help="Address to bind, IPv4 or IPv6.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0 chooses one.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the Prometheus endpoint; none when absent.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="File or postgresql:// URL that keeps labels; in memory when absent."),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="Contrastive model that labels, scores and finds; none when absent."),
    ] = None,
    neurons: Annotated[
        list[Path] | None,
        typer.Option(help="Evidence of a model's raw neurons that jobs may label; repeatable."),
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


@command()
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
    from vision_sae.demo.wheels import WHEELS
    from vision_sae.hosts import check_port

    for wheel in WHEELS:
        wheel.path()
    if not once:
        check_port("127.0.0.1", port)
        check_port("127.0.0.1", web_port, option="web-port")

    from vision_sae.demo.run import run

    run(out, work, once=once, port=port, web_port=web_port)
