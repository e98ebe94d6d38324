"""Commands that use labels: audit, analyse, edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vision_sae.cli.command import Overwrite, check_report, command
from vision_sae.cli.pictures import Strict, tell

LabelledUnits = Annotated[
    Path, typer.Argument(help="Bundle, or folder of neurons that `label` made.", metavar="UNITS")
]
OfStore = Annotated[
    str | None, typer.Option(help="Label store; the bundle's own labels when absent.")
]
ClassFolders = Annotated[
    Path, typer.Option(help="Pictures in one folder a class, named as the class.")
]
Guesses = Annotated[
    bool,
    typer.Option("--guesses", help="Use labels, too, that no independent judge has confirmed."),
]
Out = Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")]
_TEMPLATE = "a picture of {}"


def _check(units: Path, labels: str | None) -> None:
    """Refuse units and a label store that are not there."""
    from vision_sae.cli.checks import check_labels, check_units

    check_units(units)
    if labels:
        check_labels(labels)


def _labelled(units: Path, labels: str | None, guesses: bool) -> Any:
    """The model with its labelled units, after a line that says which labels are used."""
    from vision_sae.descriptions.applications.sources import labelled_model
    from vision_sae.descriptions.batch import EvidenceFolder
    from vision_sae.descriptions.store import LabelStore

    store = LabelStore(labels) if labels else None
    found = labelled_model(EvidenceFolder.at(units), store, guesses=guesses)
    used = found.unit_set.units
    guessed = sum(unit.is_guess for unit in used)
    left_out = found.guesses_left_out
    typer.echo(
        f"{len(used) - guessed} labels confirmed by an independent judge"
        + (f", and {guessed} guesses" if guesses else "")
        + (f"; {left_out} guesses are left out (--guesses uses them)" if left_out else "")
    )
    return found


def _task(model: Any, train: Any) -> Any:
    """Zero-shot for a model with texts; a linear probe on half of the pictures for others."""
    from vision_sae.evaluation.tasks import LinearProbe, ZeroShot
    from vision_sae.models.protocol import ContrastiveModel

    if isinstance(model, ContrastiveModel):
        return ZeroShot(model, train.names, _TEMPLATE)
    return LinearProbe(model, train)


def _report(value: Any, out: Path | None) -> None:
    from dataclasses import asdict

    from vision_sae.files import write_json

    if out:
        write_json(
            out, asdict(value) if not isinstance(value, list) else [asdict(v) for v in value]
        )
        typer.echo(f"written: {out}")


@command()
def audit(
    units: LabelledUnits,
    query: Annotated[str, typer.Argument(help="Word or phrase, matched as whole words.")],
    labels: OfStore = None,
    guesses: Guesses = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Which units have a label that speaks of this, and what do they fire on?"""
    _check(units, labels)

    from vision_sae.descriptions.applications.audit import audit as run

    check_report(out, [units], overwrite=overwrite)
    found = _labelled(units, labels, guesses)
    findings = [
        finding
        for evidence in found.evidence.values()
        for finding in run(evidence, found.unit_set.units, query)
    ]
    for finding in findings:
        mark = "" if finding.judged_by else " (guess)"
        typer.echo(f"{finding.collection} {finding.index}: {finding.text}{mark}")
        typer.echo(f"    {'; '.join(finding.captions[:3])}")
    typer.echo(f"{len(findings)} of {len(found.unit_set.units)} labelled units")
    _report(findings, out)


@command()
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
    """Which kinds of unit does the model need? Switches each off, against random units."""
    from vision_sae.pictures.folder import image_folder
    from vision_sae.pictures.reading import Reading

    _check(units, labels)
    check_report(out, [units, images], overwrite=overwrite)
    reading = Reading(strict)
    folder = image_folder(images, reading)

    from vision_sae.activations.harvest import choose
    from vision_sae.descriptions.applications.analysis import analyse as run
    from vision_sae.evaluation.class_folders import class_names, classified

    found = _labelled(units, labels, guesses)
    pictures = choose(folder, limit)
    names = class_names(pictures)
    halves = pictures[::2], pictures[1::2]
    train, test = (classified(found.model, half, names, reading) for half in halves)
    tell(reading)
    made = run(found.model, _task(found.model, train), test, found.unit_set, draws=draws)
    typer.echo(f"accuracy {made.accuracy:.3f} on {made.pictures} pictures")
    for effect in made.effects:
        typer.echo(
            f"without {effect.units:5} units of {effect.kind:10}: {effect.accuracy:.3f}, "
            f"of {effect.random_units} random ones {effect.random_mean:.3f} "
            f"+- {effect.random_std:.3f}"
        )
    _report(made, out)


@command()
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
    seed: Annotated[int, typer.Option(help="Of the painted-on words and the groups.", min=0)] = 0,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Remove units by label, and test against words painted onto the pictures."""
    from vision_sae.pictures.folder import image_folder
    from vision_sae.pictures.reading import Reading

    _check(units, labels)
    check_report(out, [units, images], overwrite=overwrite)
    reading = Reading(strict)
    folder = image_folder(images, reading)

    from vision_sae.activations.harvest import choose
    from vision_sae.descriptions.applications.editing import TEXT_WORDS, units_that_say
    from vision_sae.descriptions.applications.editing import edit as run
    from vision_sae.evaluation.class_folders import class_names, classified, painted_over

    found = _labelled(units, labels, guesses)
    pictures = choose(folder, limit)
    chosen = units_that_say(found.unit_set.units, remove or TEXT_WORDS)
    names, test = class_names(pictures), pictures[1::2]
    train, plain = (classified(found.model, p, names, reading) for p in (pictures[::2], test))
    painted = painted_over(found.model, test, names, seed, reading)
    tell(reading)
    made = run(
        found.model,
        _task(found.model, train),
        plain,
        painted,
        found.unit_set,
        chosen,
        draws=draws,
        seed=seed,
    )
    for name, measured in (
        ("as it is", made.before),
        (f"without {made.units} units", made.after),
        (f"without {made.random_units} random ones", made.random),
    ):
        typer.echo(
            f"{name:24} plain {measured.plain:.3f}, painted on {measured.painted:.3f}, "
            f"misled by the word {measured.misled:.3f}"
        )
    typer.echo(f"recovered {made.recovered:.1%}, by random units {made.random_recovered:.1%}")
    _report(made, out)
