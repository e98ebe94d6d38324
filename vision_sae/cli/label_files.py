"""Commands that read and write files of labels: score, export-labels, export-exemplars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vision_sae.cli.command import Configuration, Overwrite, check_report, command
from vision_sae.cli.labels import Clip
from vision_sae.places import check_collection

if TYPE_CHECKING:
    from vision_sae.descriptions.scoring.many import LabelsSummary


@command(computes=True)
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
        Path | None, typer.Option(help="Folder that keeps probes; beside UNITS by default.")
    ] = None,
    overwrite: Overwrite = False,
    config: Configuration = None,
) -> None:
    """Score labels from any source: do they separate the unit's pictures from other pictures?"""
    from vision_sae.cli.checks import check_units
    from vision_sae.config import load_config
    from vision_sae.labels.files.annotations import lists_of, read_annotations
    from vision_sae.labels.files.formats import check_format
    from vision_sae.models.names import check_contrastive

    if out is not None:
        check_format(out)
    settings = load_config(config, describe={"clip": clip}).describe
    check_units(units)
    check_report(out, [units, labels], overwrite=overwrite)
    tables = read_annotations(labels)
    check_contrastive(settings.clip, field="clip")

    from vision_sae.descriptions.describe import PROBES
    from vision_sae.descriptions.scoring.many import score_many
    from vision_sae.descriptions.scoring.scorer import METRICS
    from vision_sae.descriptions.toolbox import Toolbox
    from vision_sae.errors import shortened
    from vision_sae.labels.batch import EvidenceFolder
    from vision_sae.labels.files.export import Row, export, scored_rows

    rows: list[Row] = []
    metrics = [m for name in settings.metrics for m in METRICS if m == name]
    toolbox = Toolbox(settings, work or units.parent / PROBES)
    layers: set[str] = set()
    for evidence in EvidenceFolder.at(units, settings.clip).open().values():
        lists = lists_of(tables, evidence.site, evidence.name)
        if not lists:
            typer.secho(f"{labels} has no label for {evidence.site}", fg="yellow", err=True)
        for number, texts in enumerate(lists, start=1):
            scored = score_many(toolbox.scorer(evidence), evidence, texts, metrics)
            rows += scored_rows(evidence.name, texts, scored)
            name = evidence.name + (f", text {number} of a unit" if len(lists) > 1 else "")
            typer.echo(f"{name}: {_shown(scored.summary)}")
        layers |= {evidence.site, evidence.name.rpartition("/")[2]}
    if others := sorted(tables.keys() - layers):
        text = f"{labels}: {len(others)} layers match none of these units: {shortened(str(others))}"
        typer.secho(text, fg="yellow", err=True)
    if out is not None:
        typer.echo(f"{out}: {export(out, rows, overwrite=overwrite)} labels")


def _shown(summary: LabelsSummary) -> str:
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
        typer.Option(help="dictionaries/NAME or models/NAME/sites/SITE; all by default."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the current label of every unit, with its scores and author."""
    from dataclasses import asdict

    from vision_sae.cli.checks import check_labels
    from vision_sae.labels.files.formats import check_format

    if not milan:
        check_format(out)
    check_labels(labels)

    from vision_sae.errors import InvalidInputError
    from vision_sae.labels.files.annotations import write_descriptions
    from vision_sae.labels.files.export import export
    from vision_sae.labels.store import LabelStore

    check_report(out, [] if "://" in labels else [Path(labels)], overwrite=overwrite)
    with LabelStore(labels) as store:
        if milan:
            parents = units or store.parents()
            layers = [parent.rpartition("/")[2] for parent in parents]
            if twice := {layer for layer in layers if layers.count(layer) > 1}:
                raise InvalidInputError(
                    f"several parents are called {min(twice)!r}, and MILAN's table has only names; "
                    "name one parent with --units",
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
    out: Annotated[Path, typer.Argument(help="Folder to write; gets one folder per site.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the exemplars of every unit that fires, in MILAN's layout."""
    from vision_sae.cli.checks import check_units

    check_units(units)

    from vision_sae.labels.batch import EvidenceFolder
    from vision_sae.labels.files.milan import FORMAT, write_exemplars

    check_collection(out, FORMAT, inputs=[units])
    for evidence in EvidenceFolder.at(units).open().values():
        firing = [unit for unit in range(evidence.width) if evidence.peaks(unit).any()]
        written = write_exemplars(evidence, out, firing, overwrite=overwrite)
        typer.echo(f"{written}: {len(firing)} units")
