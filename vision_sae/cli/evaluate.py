"""Commands that measure: evaluate dictionary, labels, attribution, blocks, causal, edits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vision_sae.cli.command import Overwrite, check_report, command, evaluations
from vision_sae.cli.pictures import Strict, tell
from vision_sae.places import check_output_folder

Bundles = Annotated[list[Path], typer.Argument(help="Bundles of one text-to-image model.")]
Prompts = Annotated[Path, typer.Option(help="Text file of prompts, one a line.")]
Amount = Annotated[
    float,
    typer.Option(
        help="Amount to add, in mean activations of the usual feature.", min=-1e6, max=1e6
    ),
]


@command("dictionary", evaluations, computes=True)
def evaluate_dictionary(
    dictionary: Annotated[Path, typer.Argument(help="Dictionary or bundle to measure.")],
    store: Annotated[Path, typer.Option(help="ActivationStore to measure on, held out.")],
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of pictures to run the model on; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Use only this many pictures.", min=1)] = 256,
    name: Annotated[
        str, typer.Option(help="Name of these metrics in a bundle's manifest.")
    ] = "heldout",
    against: Annotated[
        Path | None, typer.Option(help="Dictionary or bundle to match the features with.")
    ] = None,
    strict: Strict = False,
) -> None:
    """Measure a dictionary on held-out data; a bundle is published again with the figures."""
    from vision_sae.artifacts import STORE
    from vision_sae.cli.checks import check_measured
    from vision_sae.pictures.folder import image_folder
    from vision_sae.pictures.reading import Reading

    for path in (dictionary, *([against] if against else [])):
        check_measured(path)
    STORE.manifest(store)
    reading = Reading(strict)
    pictures = [picture for folder in images or [] for picture in image_folder(folder, reading)]

    from vision_sae.activations.harvest import choose
    from vision_sae.activations.store import ActivationStore
    from vision_sae.evaluation.report import evaluate as run
    from vision_sae.evaluation.report import lines, match_published

    matching = match_published(dictionary, against) if against else None
    chosen = choose(pictures, limit)
    report = run(dictionary, ActivationStore(store), chosen, name=name, reading=reading)
    for line in lines(report, matching):
        typer.echo(line)
    if images:
        tell(reading)


@command("labels", evaluations, computes=True)
def evaluate_labels(
    labels: Annotated[Path, typer.Argument(help="Table in the format of `export-labels --milan`.")],
    annotations: Annotated[
        Path, typer.Argument(help="Texts by people: a CSV with columns layer, unit, summary.")
    ],
    encoder: Annotated[
        str, typer.Option(help="Text encoder: demo:minilm, a directory or a hub name.")
    ] = "demo:minilm",
) -> None:
    """Compare labels with texts by people for the same units: BERTScore, layer by layer."""
    from vision_sae.errors import InvalidInputError, shortened
    from vision_sae.labels.files.annotations import read_annotations

    ours, theirs = read_annotations(labels), read_annotations(annotations)
    common = [layer for layer in ours if layer in theirs]
    if not common:
        raise InvalidInputError(
            f"{labels} and {annotations} have no layer in common", field="annotations"
        )

    for path, table in ((labels, ours), (annotations, theirs)):
        if others := sorted(table.keys() - common):
            text = f"{path}: {len(others)} layers have no counterpart: {shortened(str(others))}"
            typer.secho(text, fg="yellow", err=True)

    from vision_sae.descriptions.scoring.agreement import agreement, text_encoder

    encode = text_encoder(encoder)
    for layer in common:
        result = agreement((ours[layer] or [{}])[0], theirs[layer], encode)
        typer.echo(
            f"{layer}: {result.units} units, BERTScore F1 {result.f1:.3f}, of labels of other "
            f"units {result.permuted_f1:.3f}"
        )


@command("attribution", evaluations, computes=True)
def evaluate_attribution(
    bundle: Annotated[Path, typer.Argument(help="Bundle of a ViT or CLIP.")],
    images: Annotated[list[Path], typer.Option(help="Folder of pictures; may be repeated.")],
    limit: Annotated[int, typer.Option(help="Use only this many pictures.", min=2)] = 200,
    tested: Annotated[
        int, typer.Option(help="Number of these pictures to measure faithfulness on.", min=2)
    ] = 40,
    scenes: Annotated[
        int, typer.Option(help="Composed scenes for the pointing test; 0 for none.", min=0)
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure attributions: sums, ablation, deletion, sensitivity, pointing."""
    from vision_sae.cli.checks import check_bundles
    from vision_sae.files import write_json
    from vision_sae.pictures.folder import image_folder
    from vision_sae.pictures.reading import Reading

    check_bundles([bundle])
    check_report(out, [bundle, *images], overwrite=overwrite)
    reading = Reading(strict)
    pictures = [picture for folder in images for picture in image_folder(folder, reading)]

    from vision_sae.evaluation.attribution import attribution_report

    report = attribution_report(
        bundle, pictures, limit=limit, tested=tested, scenes=scenes, reading=reading
    )
    for line in report.lines():
        typer.echo(line)
    tell(reading)
    if out is not None:
        write_json(out, report.to_json())


@command("blocks", evaluations, computes=True)
def evaluate_blocks(
    bundles: Bundles,
    prompts: Prompts,
    pictures: Annotated[int, typer.Option(help="Use only this many prompts.", min=2)] = 32,
    features: Annotated[int, typer.Option(help="Features to boost in each block.", min=1)] = 8,
    amount: Amount = 16.0,
    out: Annotated[Path, typer.Option(help="Directory of the table and the picture.")] = Path(
        "blocks"
    ),
    overwrite: Overwrite = False,
) -> None:
    """Measure the role of each block: ablate it and boost its features, against random features."""
    from vision_sae.cli.checks import check_bundles, check_exists

    check_bundles(bundles)
    check_exists(prompts, "file of prompts", field="prompts")

    from vision_sae.evaluation.generators import BLOCK_FILES, block_report
    from vision_sae.steering.bundles import open_bundles

    check_output_folder(out, BLOCK_FILES, inputs=[*bundles, prompts], overwrite=overwrite)
    generator, dictionaries = open_bundles(bundles)
    report = block_report(
        generator,
        dictionaries,
        _settings(prompts, pictures),
        out,
        features=features,
        amount=amount,
        overwrite=overwrite,
    )
    typer.echo(report)


@command("causal", evaluations, computes=True)
def evaluate_causal(
    bundle: Annotated[Path, typer.Argument(help="Labelled bundle of a text-to-image model.")],
    prompts: Prompts,
    pictures: Annotated[int, typer.Option(help="Use only this many prompts.", min=2)] = 8,
    limit: Annotated[
        int | None, typer.Option(help="Score only this many labels, the best first.", min=1)
    ] = None,
    amount: Amount = 16.0,
    clip: Annotated[str, typer.Option(help="Contrastive model that judges.")] = "demo:clip",
) -> None:
    """Score labels causally: does raising a feature move pictures toward its label?"""
    from vision_sae.cli.checks import check_bundles, check_exists
    from vision_sae.models.names import check_contrastive

    check_bundles([bundle])
    check_exists(prompts, "file of prompts", field="prompts")
    check_contrastive(clip)

    from vision_sae.evaluation.generators import causal_scores
    from vision_sae.models.loading import load_model
    from vision_sae.steering.bundles import open_bundles

    generator, (dictionary,) = open_bundles([bundle])
    judged = causal_scores(
        generator,
        dictionary,
        bundle,
        load_model(clip),
        _settings(prompts, pictures),
        amount=amount,
        limit=limit,
    )
    typer.echo(judged)


@command("edits", evaluations, computes=True)
def evaluate_edits(
    bundles: Bundles,
    out: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare edits of the demo generator's scenes by features, neurons, directions and prompts."""
    from vision_sae.cli.checks import check_bundles

    check_bundles(bundles)

    from vision_sae.devices import recorded
    from vision_sae.evaluation.edit_cases import evaluate_edits as run
    from vision_sae.evaluation.edit_cases import lines, read_cases, to_json
    from vision_sae.evaluation.scene_attributes import train_classifier
    from vision_sae.files import write_json
    from vision_sae.steering.bundles import open_bundles

    check_report(out, bundles, overwrite=overwrite)
    generator, steered = open_bundles(bundles)
    dictionaries = {f.bundle.name: f.dictionary for f in steered}
    results = run(generator, dictionaries, read_cases(), train_classifier())
    for line in lines(results):
        typer.echo(line)
    if out is not None:
        computed = recorded(generator.device, generator.dtype)
        write_json(out, to_json(results) | {"computed": computed})


def _settings(prompts: Path, count: int) -> list[Any]:
    """Settings of one generation for each of the first ``count`` prompts, with distinct seeds."""
    from vision_sae.activations.generations import prompted, read_prompts
    from vision_sae.models.generator import GenerationSettings

    items = prompted(read_prompts(prompts)[:count], 1)
    return [GenerationSettings(item.prompt, seed=item.seed) for item in items]
