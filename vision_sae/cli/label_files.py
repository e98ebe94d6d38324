"""Commands that exchange labels with the world: score, export-labels, export-exemplars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vision_sae.cli.command import Configuration, Overwrite, check_report, command
from vision_sae.cli.labels import Clip
from vision_sae.places import check_collection

if TYPE_CHECKING:
    from vision_sae.descriptions.scores.many import Summary


@command()
def score(
    units: Annotated[
        Path,
        typer.Argument(
            help="Bundle, folder of neurons that `label` made, or exemplars in MILAN's layout."
        ),
    ],
    labels: Annotated[
        Path, typer.Argument(help="CSV with columns layer, unit, description; layer is the site.")
    ],
    clip: Clip = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the scores of every label here: .csv, .jsonl or .parquet."),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Where probes are kept; beside UNITS when absent.")
    ] = None,
    overwrite: Overwrite = False,
    config: Configuration = None,
) -> None:
    """Score anybody's labels: do they tell the unit's pictures from others?"""
    from vision_sae.cli.checks import check_units
    from vision_sae.config import load_config
    from vision_sae.descriptions.files.annotations import lists_of, read_annotations
    from vision_sae.descriptions.files.formats import check_format
    from vision_sae.models.names import check_contrastive

    if out is not None:
        check_format(out)
    settings = load_config(config, describe={"clip": clip}).describe
    check_units(units)
    check_report(out, [units, labels], overwrite=overwrite)
    given = read_annotations(labels)
    check_contrastive(settings.clip, field="clip")

    from vision_sae.descriptions.batch import EvidenceFolder
    from vision_sae.descriptions.describe import PROBES
    from vision_sae.descriptions.files.export import Row, export, scored_rows
    from vision_sae.descriptions.scores.many import score_many
    from vision_sae.descriptions.toolbox import Toolbox
    from vision_sae.errors import shortened

    rows: list[Row] = []
    toolbox = Toolbox(settings, work or units.parent / PROBES)
    layers: set[str] = set()
    for evidence in EvidenceFolder.at(units, settings.clip).open().values():
        lists = lists_of(given, evidence.site, evidence.name)
        if not lists:
            typer.secho(f"{labels} has no label for {evidence.site}", fg="yellow", err=True)
        for number, texts in enumerate(lists, start=1):
            scored = score_many(toolbox.scorer(evidence), evidence, texts, settings.metrics)
            rows += scored_rows(evidence.name, texts, scored)
            name = evidence.name + (f", text {number} of a unit" if len(lists) > 1 else "")
            typer.echo(f"{name}: {_shown(scored.summary)}")
        layers |= {evidence.site, evidence.name.rpartition("/")[2]}
    if others := sorted(given.keys() - layers):
        text = f"{labels}: {len(others)} layers are none of these units: {shortened(str(others))}"
        typer.secho(text, fg="yellow", err=True)
    if out is not None:
        typer.echo(f"{out}: {export(out, rows, overwrite=overwrite)} labels")


def _shown(summary: Summary) -> str:
    medians = ", ".join(
        f"{name} {value:.3f}"
        for name, value in (
            ("against random pictures", summary.detection_auc_random),
            ("against look-alikes", summary.detection_auc_hard),
            ("of other units' labels", summary.permuted_auc),
        )
        if value is not None
    )
    return (
        f"{summary.labels} labels, {summary.share_labelled:.1%} better than chance; median "
        f"detection AUC {medians}"
    )


@command("export-labels")
def export_labels(
    labels: Annotated[str, typer.Argument(help="Label store: a file, or a postgresql:// URL.")],
    out: Annotated[Path, typer.Argument(help="File to write: .csv, .jsonl or .parquet.")],
    milan: Annotated[
        bool,
        typer.Option("--milan", help="Write MILAN's table instead: layer, unit, description."),
    ] = False,
    units: Annotated[
        list[str] | None,
        typer.Option(help="dictionaries/NAME or models/NAME/sites/SITE; all when absent."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the current label of every unit, with its scores and who made it."""
    from dataclasses import asdict

    from vision_sae.cli.checks import check_labels
    from vision_sae.descriptions.files.formats import check_format

    if not milan:
        check_format(out)
    check_labels(labels)

    from vision_sae.descriptions.files.annotations import write_descriptions
    from vision_sae.descriptions.files.export import export
    from vision_sae.descriptions.store import LabelStore
    from vision_sae.errors import InvalidInputError

    check_report(out, [] if "://" in labels else [Path(labels)], overwrite=overwrite)
    store = LabelStore(labels)
    if milan:
        parents = units or store.parents()
        layers = [parent.rpartition("/")[2] for parent in parents]
        if twice := {layer for layer in layers if layers.count(layer) > 1}:
            raise InvalidInputError(
                f"several of these are called {min(twice)!r}, which is all that MILAN's table says "
                "of a layer; name one with --units",
                field="units",
            )
        texts = [
            (layer, unit, text)
            for layer, parent in zip(layers, parents, strict=True)
            for unit, text in sorted(store.texts(parent).items())
        ]
        write_descriptions(out, texts, overwrite=overwrite)
        typer.echo(f"{out}: {len(texts)} labels")
        return
    rows = (
        (
            entry.unit.resource,
            asdict(entry.description)
            | {"origin": entry.origin, "author": entry.author, "create_time": entry.created},
        )
        for parent in units or store.parents()
        for _, entry in sorted(store.currents(parent).items())
    )
    typer.echo(f"{out}: {export(out, rows, overwrite=overwrite)} labels")


@command("export-exemplars")
def export_exemplars(
    units: Annotated[Path, typer.Argument(help="Bundle, or folder of neurons that `label` made.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; a folder a site is made in it.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the exemplars of every unit that fires, in MILAN's layout."""
    from vision_sae.cli.checks import check_units

    check_units(units)

    from vision_sae.descriptions.batch import EvidenceFolder
    from vision_sae.descriptions.files.milan import FORMAT, write_exemplars

    check_collection(out, FORMAT, inputs=[units])
    for evidence in EvidenceFolder.at(units).open().values():
        firing = [unit for unit in range(evidence.width) if evidence.peaks(unit).any()]
        written = write_exemplars(evidence, out, firing, overwrite=overwrite)
        typer.echo(f"{written}: {len(firing)} units")
