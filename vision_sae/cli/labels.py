"""Commands that make labels: describe, label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vision_sae.cli.command import Configuration, Overwrite, command
from vision_sae.cli.pictures import Strict, tell
from vision_sae.registries import DESCRIBERS

if TYPE_CHECKING:
    from vision_sae.config import Config
    from vision_sae.pictures.reading import Reading

Describer = Annotated[
    str | None,
    typer.Option(
        help=f"How labels are made: {', '.join(DESCRIBERS.names)}; `describe --list` shows more.",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the describer, such as beam=20; may be repeated.",
        show_default=False,
    ),
]
Clip = Annotated[str | None, typer.Option(help="Contrastive model of describers and scores.")]
Labels = Annotated[str, typer.Option(help="Label store: a file, or a postgresql:// URL.")]


def _list_kinds(requested: bool) -> None:
    """Print the table of describers and scores, and exit."""
    if not requested:
        return
    from vision_sae.descriptions.kinds import describers_described, scores_described

    typer.echo("Describers (describe.describer, --describer):")
    for kind in describers_described():
        needs = f" Needs: {', '.join(kind.needs)}." if kind.needs else ""
        typer.echo(f"\n{kind.name}, version {kind.version}: {kind.summary}{needs}")
        for setting in kind.settings:
            typer.echo(f"    {setting.name}: {setting.type} = {setting.default}")
            typer.echo(f"        {setting.doc}")
    typer.echo("\nScores (describe.metrics; describers and judges add those in brackets):")
    for score in scores_described():
        metrics = ", ".join(score.metrics)
        names = metrics if score.selectable else f"[{metrics}]"
        typer.echo(f"\n{score.name}, version {score.version}: {score.summary}\n    {names}")
    raise typer.Exit


def _with_settings(settings: Config, values: list[str] | None) -> Config:
    """The configuration with the describer's settings from ``--set``."""
    from vision_sae.sections import parse_settings

    if not values:
        return settings
    describe = settings.describe
    changed = describe.with_settings(describe.describer, parse_settings(values), "describe")
    return settings.model_copy(update={"describe": changed})


@command(computes=True)
def describe(
    bundle: Annotated[Path, typer.Argument(help="Bundle to describe.")],
    describer: Describer = None,
    clip: Clip = None,
    probe_from: Annotated[
        Path | None,
        typer.Option(
            help="Store of the contrastive model over the bundle's pictures, harvested with "
            "--text-aligned; saves a pass over the pictures.",
            show_default=False,
        ),
    ] = None,
    set_: Settings = None,
    list_: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Print all describers with their settings, and all scores; then exit.",
            callback=_list_kinds,
            is_eager=True,
        ),
    ] = False,
    config: Configuration = None,
) -> None:
    """Label every feature of a bundle, or abstain, with the evidence and scores."""
    from vision_sae.artifacts import BUNDLE, STORE
    from vision_sae.cli.checks import check_describing
    from vision_sae.config import load_config

    whole = load_config(config, describe={"describer": describer, "clip": clip})
    BUNDLE.manifest(bundle)
    if probe_from:
        STORE.manifest(probe_from)
    settings = _with_settings(whole, set_).describe
    check_describing(settings)

    from vision_sae.activations.store import ActivationStore
    from vision_sae.descriptions.describe import describe_bundle

    store = ActivationStore(probe_from) if probe_from else None
    described = describe_bundle(bundle, settings, store=store)
    summary: dict[str, Any] = described.manifest["describe"]
    typer.echo(f"{bundle}: {summary['labelled']} labelled, {summary['abstained']} abstained")


@command(computes=True)
def label(
    units: Annotated[
        str,
        typer.Argument(help="Bundle, exemplars in MILAN's layout, or the name or path of a model."),
    ],
    labels: Labels = "runs/labels.sqlite",
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures; needed for a model's neurons.")
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site", "--sites", help="Pattern of sites, 'blocks.*.mlp'; may be repeated."
        ),
    ] = None,
    work: Annotated[
        Path, typer.Option(help="Folder that keeps evidence and probes for the next run.")
    ] = Path("runs/labelling"),
    workers: Annotated[int, typer.Option(help="Number of worker processes.", min=1)] = 1,
    max_units: Annotated[
        int | None, typer.Option(help="End after labelling this many units.", min=1, max=2**62)
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            help="End after this many seconds of computing, summed over all workers.", min=0
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only this many pictures.", min=1)] = None,
    strict: Strict = False,
    describer: Describer = None,
    clip: Clip = None,
    set_: Settings = None,
    overwrite: Overwrite = False,
    config: Configuration = None,
) -> None:
    """Label every feature of a bundle, or every neuron of a model, in one job. Resumes after a
    stop."""
    from vision_sae.cli.checks import check_describing
    from vision_sae.config import load_config
    from vision_sae.pictures.reading import Reading

    settings = load_config(
        config,
        neurons={"sites": tuple(site) if site else None},
        describe={"describer": describer, "clip": clip},
    )
    reading = Reading(strict)
    pictures = _pictures(units, images, settings, reading)
    settings = _with_settings(settings, set_)
    check_describing(settings.describe)

    from vision_sae.labels.batch import label_all
    from vision_sae.labels.jobs.job import Budget

    folder = _evidence(units, pictures, work, limit, settings, reading, overwrite=overwrite)
    job = label_all(
        labels,
        folder,
        settings.describe,
        work / "probes",
        workers=workers,
        budget=Budget(max_units, max_seconds),
    )
    typer.echo(
        f"{job.name} {job.state}: {job.labelled} labelled, {job.abstained} abstained, "
        f"{job.failed} failed of {job.total}; {job.used:.0f} s of computing"
    )
    typer.echo(f"evidence: {folder.path}")


def _pictures(units: str, images: Path | None, settings: Any, reading: Reading) -> list[Any] | None:
    """The pictures for evidence of a model's neurons; None if ``units`` is a folder of evidence."""
    from vision_sae.cli import checks
    from vision_sae.errors import InvalidInputError
    from vision_sae.models.names import check_sites
    from vision_sae.pictures.folder import image_folder

    if checks.is_published(Path(units)):
        checks.check_units(Path(units))
        return None
    if images is None:
        raise InvalidInputError(
            f"{units!r} is neither a bundle nor a folder of exemplars in MILAN's layout; to label "
            "the neurons of a model of that name, name a folder of pictures with --images",
            field="images",
        )
    check_sites(settings.neurons.sites, field="sites")
    checks.check_models(units, field="units")
    return image_folder(images, reading)


def _evidence(
    units: str,
    pictures: list[Any] | None,
    work: Path,
    limit: int | None,
    settings: Any,
    reading: Reading,
    *,
    overwrite: bool,
) -> Any:
    """The evidence of a bundle, or of a model's neurons, which is collected first."""
    from vision_sae.activations.harvest import choose
    from vision_sae.evidence.neuron_pass import collect_neurons
    from vision_sae.files import sha256_json
    from vision_sae.labels.batch import EvidenceFolder
    from vision_sae.models.loading import load_model
    from vision_sae.resources import model_resource

    if pictures is None:
        return EvidenceFolder.at(Path(units), settings.describe.clip)
    sites = sha256_json(settings.neurons.sites)[:8]
    place = work / f"{model_resource(units).removeprefix('models/')}-{sites}"
    chosen = choose(pictures, limit)
    collect_neurons(
        load_model(units), chosen, place, settings.neurons, reading=reading, overwrite=overwrite
    )
    tell(reading)
    return EvidenceFolder.at(place)
