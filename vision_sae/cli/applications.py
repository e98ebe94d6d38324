"""Commands that use labels: audit, analyse, edit."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from vision_sae.cli.command import Overwrite, check_report, command
from vision_sae.cli.pictures import Strict, tell

LabelledUnits = Annotated[
    Path, typer.Argument(help="Bundle, or folder of neurons that `label` made.", metavar="UNITS")
]
OfStore = Annotated[
    str | None, typer.Option(help="Label store; the bundle's own labels by default.")
]
ClassFolders = Annotated[
    Path, typer.Option(help="Pictures in one folder per class, named after the class.")
]
Guesses = Annotated[
    bool,
    typer.Option("--guesses", help="Also use guesses: labels without an independent judge."),
]
Out = Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")]
_TEMPLATE = "a picture of {}"


def _check(units: Path, labels: str | None) -> None:
    """Refuse missing units and a missing label store."""
    from vision_sae.cli.checks import check_labels, check_units

    check_units(units)
    if labels:
        check_labels(labels)


def _labelled(units: Path, labels: str | None, guesses: bool) -> Any:
    """The model with its labelled units; prints a line on the labels in use."""
    from vision_sae.applications.sources import labelled_model
    from vision_sae.labels.batch import EvidenceFolder
    from vision_sae.labels.store import LabelStore

    with LabelStore(labels) if labels else nullcontext() as store:
        labelled = labelled_model(EvidenceFolder.at(units), store, guesses=guesses)
    used = labelled.unit_set.units
    guessed = sum(unit.is_guess for unit in used)
    left_out = labelled.guesses_left_out
    typer.echo(
        f"{len(used) - guessed} labels confirmed by an independent judge"
        + (f", and {guessed} guesses" if guesses else "")
        + (f"; {left_out} guesses are left out (--guesses uses them)" if left_out else "")
    )
    return labelled


def _task(model: Any, train: Any) -> Any:
    """The task: zero-shot for a contrastive model, else a linear probe on half of the pictures."""
    from vision_sae.evaluation.tasks import LinearProbe, ZeroShot
    from vision_sae.models.protocol import ContrastiveModel

    if isinstance(model, ContrastiveModel):
        return ZeroShot(model, train.names, _TEMPLATE)
    return LinearProbe(model, train)


def _report(content: Any, out: Path | None) -> None:
    from vision_sae.files import write_json

    if out:
        write_json(out, content)
        typer.echo(f"written: {out}")


def _measured(report: Any, model: Any) -> dict[str, Any]:
    """A report as JSON, with the device that computed it."""
    from dataclasses import asdict

    from vision_sae.devices import recorded

    return {**asdict(report), "computed": recorded(model.device, model.dtype)}


@command(computes=True)
def audit(
    units: LabelledUnits,
    query: Annotated[str, typer.Argument(help="Word or phrase, matched as whole words.")],
    labels: OfStore = None,
    guesses: Guesses = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Find units whose label has this word or phrase, and show the pictures they fire on."""
    from dataclasses import asdict

    _check(units, labels)

    from vision_sae.applications.audit import audit as run

    check_report(out, [units], overwrite=overwrite)
    labelled = _labelled(units, labels, guesses)
    findings = [
        finding
        for evidence in labelled.evidence.values()
        for finding in run(evidence, labelled.unit_set.units, query)
    ]
    for finding in findings:
        mark = "" if finding.judged_by else " (guess)"
        typer.echo(f"{finding.collection} {finding.index}: {finding.text}{mark}")
        typer.echo(f"    {'; '.join(finding.captions[:3])}")
    typer.echo(f"{len(findings)} of {len(labelled.unit_set.units)} labelled units")
    _report([asdict(finding) for finding in findings], out)


@command(computes=True)
def analyse(
    units: LabelledUnits,
    images: ClassFolders,
    labels: OfStore = None,
    guesses: Guesses = False,
    draws: Annotated[int, typer.Option(help="Random groups of units per kind.", min=1)] = 3,
    limit: Annotated[int | None, typer.Option(help="Use only this many pictures.", min=2)] = None,
    strict: Strict = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure how much the model needs each kind of unit: ablate the kind, and random units."""
    from vision_sae.pictures.folder import image_folder
    from vision_sae.pictures.reading import Reading

    _check(units, labels)
    check_report(out, [units, images], overwrite=overwrite)
    reading = Reading(strict)
    folder = image_folder(images, reading)

    from vision_sae.activations.harvest import choose
    from vision_sae.applications.analysis import analyse as run
    from vision_sae.evaluation.class_folders import class_names, classified

    labelled = _labelled(units, labels, guesses)
    pictures = choose(folder, limit)
    names = class_names(pictures)
    halves = pictures[::2], pictures[1::2]
    train, test = (classified(labelled.model, half, names, reading) for half in halves)
    tell(reading)
    report = run(labelled.model, _task(labelled.model, train), test, labelled.unit_set, draws=draws)
    typer.echo(f"accuracy {report.accuracy:.3f} on {report.pictures} pictures")
    for effect in report.effects:
        typer.echo(
            f"without {effect.units:5} units of {effect.kind:10}: {effect.accuracy:.3f}, "
            f"of {effect.random_units} random ones {effect.random_mean:.3f} "
            f"+- {effect.random_std:.3f}"
        )
    _report(_measured(report, labelled.model), out)


@command(computes=True)
def edit(
    units: LabelledUnits,
    images: ClassFolders,
    remove: Annotated[
        list[str] | None, typer.Option(help="Words of the labels of units to remove.")
    ] = None,
    labels: OfStore = None,
    guesses: Guesses = False,
    draws: Annotated[int, typer.Option(help="Random groups of units.", min=1)] = 3,
    limit: Annotated[int | None, typer.Option(help="Use only this many pictures.", min=2)] = None,
    strict: Strict = False,
    seed: Annotated[
        int, typer.Option(help="Random seed of the painted words and the groups.", min=0)
    ] = 0,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Remove units by label, and test the model on pictures with painted words."""
    from vision_sae.pictures.folder import image_folder
    from vision_sae.pictures.reading import Reading

    _check(units, labels)
    check_report(out, [units, images], overwrite=overwrite)
    reading = Reading(strict)
    folder = image_folder(images, reading)

    from vision_sae.activations.harvest import choose
    from vision_sae.applications.editing import TEXT_WORDS, units_that_say
    from vision_sae.applications.editing import edit as run
    from vision_sae.evaluation.class_folders import class_names, classified, painted_over

    labelled = _labelled(units, labels, guesses)
    pictures = choose(folder, limit)
    chosen = units_that_say(labelled.unit_set.units, remove or TEXT_WORDS)
    names, test = class_names(pictures), pictures[1::2]
    train, plain = (classified(labelled.model, p, names, reading) for p in (pictures[::2], test))
    painted = painted_over(labelled.model, test, names, seed, reading)
    tell(reading)
    report = run(
        labelled.model,
        _task(labelled.model, train),
        plain,
        painted,
        labelled.unit_set,
        chosen,
        draws=draws,
        seed=seed,
    )
    for name, measured in (
        ("as it is", report.before),
        (f"without {report.units} units", report.after),
        (f"without {report.random_units} random ones", report.random),
    ):
        typer.echo(
            f"{name:24} plain {measured.plain:.3f}, painted on {measured.painted:.3f}, "
            f"misled by the word {measured.misled:.3f}"
        )
    typer.echo(f"recovered {report.recovered:.1%}, by random units {report.random_recovered:.1%}")
    _report(_measured(report, labelled.model), out)
