"""Commands that make labels: describe, label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vision_sae.cli.command import Configuration, Overwrite, command
from vision_sae.cli.pictures import Strict, tell

if TYPE_CHECKING:
    from vision_sae.pictures.reading import Reading

Describer = Annotated[
    str | None,
    typer.Option(help="caption-pmi, contrastive, milan, vlm or effects.", show_default=False),
]
Clip = Annotated[str | None, typer.Option(help="Contrastive model that labels and scores.")]
Labels = Annotated[str, typer.Option(help="Label store: a file, or a postgresql:// URL.")]


@command()
def describe(
    bundle: Annotated[Path, typer.Argument(help="Bundle to describe.")],
    describer: Describer = None,
    clip: Clip = None,
    probe_from: Annotated[
        Path | None,
        typer.Option(
            help="Store that the contrastive model was harvested to with --text-aligned, from the "
            "bundle's pictures: it need not look at them again.",
            show_default=False,
        ),
    ] = None,
    config: Configuration = None,
) -> None:
    """Label every feature of a bundle, or abstain, with the evidence and scores."""
    from vision_sae.artifacts import BUNDLE, STORE
    from vision_sae.cli.checks import check_describing
    from vision_sae.config import load_config

    settings = load_config(config, describe={"describer": describer, "clip": clip}).describe
    BUNDLE.manifest(bundle)
    if probe_from:
        STORE.manifest(probe_from)
    check_describing(settings)

    from vision_sae.activations.store import ActivationStore
    from vision_sae.descriptions.describe import describe_bundle

    store = ActivationStore(probe_from) if probe_from else None
    made = describe_bundle(bundle, settings, store=store)
    summary: dict[str, Any] = made.manifest["describe"]
    typer.echo(f"{bundle}: {summary['labelled']} labelled, {summary['abstained']} abstained")


@command()
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
        Path, typer.Option(help="Where evidence and probes are kept for the next run.")
    ] = Path("runs/labelling"),
    workers: Annotated[int, typer.Option(help="Processes at work.", min=1)] = 1,
    max_units: Annotated[
        int | None, typer.Option(help="End when so many units are labelled.", min=1, max=2**62)
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="End after so much computing, over all workers.", min=0)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only this many pictures.", min=1)] = None,
    strict: Strict = False,
    describer: Describer = None,
    clip: Clip = None,
    overwrite: Overwrite = False,
    config: Configuration = None,
) -> None:
    """Label every feature of a bundle, or every neuron of a model, in one job. Resumes."""
    from vision_sae.cli.checks import check_describing
    from vision_sae.config import load_config
    from vision_sae.pictures.reading import Reading

    settings = load_config(
        config,
        neurons={"sites": tuple(site) if site else None},
        describe={"describer": describer, "clip": clip},
    )
    check_describing(settings.describe)
    reading = Reading(strict)
    pictures = _pictures(units, images, settings, reading)

    from vision_sae.descriptions.batch import label_all
    from vision_sae.descriptions.jobs.job import Budget

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
    """The pictures in which a model's neurons are looked at; None where ``units`` names a folder of
    evidence."""
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
    """Where the evidence of a bundle lies, or of a model's neurons, which is collected first."""
    from vision_sae.activations.harvest import choose
    from vision_sae.descriptions.batch import EvidenceFolder
    from vision_sae.descriptions.evidence.neurons import collect_neurons
    from vision_sae.files import sha256_json
    from vision_sae.models.registry import load_model
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
