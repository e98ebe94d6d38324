"""The command review, with which people judge labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vision_sae.cli.command import Overwrite, command
from vision_sae.places import check_output_folder


@command()
def review(
    bundle: Annotated[Path, typer.Argument(help="Bundle whose features are reviewed.")],
    out: Annotated[Path, typer.Option(help="Directory of the sheet, the quiz and its answers.")],
    features: Annotated[int, typer.Option(help="How many features to review.", min=1)] = 100,
    feature: Annotated[
        list[int] | None,
        typer.Option(help="Review this feature instead; may be repeated.", show_default=False),
    ] = None,
    ratings: Annotated[
        int, typer.Option(help="Pictures drawn for each label, to rate it on.", min=2)
    ] = 10,
    seed: Annotated[int, typer.Option(help="Random seed of all draws.", min=0)] = 0,
    labelled_only: Annotated[
        bool, typer.Option("--labelled-only", help="Leave out features without a label.")
    ] = False,
    answers: Annotated[
        list[Path] | None,
        typer.Option(
            help="Summarise answers instead: a file downloaded from the quiz; may be repeated.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Show features on a contact sheet and ask people about their labels in a blind quiz.

    With --answers, stores answers beside the quiz and prints a summary of all answers.
    """
    from vision_sae.artifacts import BUNDLE
    from vision_sae.cli.checks import check_exists

    BUNDLE.manifest(bundle)
    for path in answers or []:
        check_exists(path, "file of answers", field="answers")

    from vision_sae.bundles.read import read_bundle
    from vision_sae.evidence.bundle import BundleEvidence
    from vision_sae.labels.review.quiz import FILES, PAGE, write_quiz
    from vision_sae.labels.review.ratings import SUMMARY, lines, take_answers
    from vision_sae.labels.review.sample import sample
    from vision_sae.labels.review.sheet import write_sheet

    opened = read_bundle(bundle)
    if answers:
        for line in lines(take_answers(out, BundleEvidence(opened).identity, answers)):
            typer.echo(line)
        typer.echo(f"all figures: {out / SUMMARY}")
        return
    check_output_folder(out, FILES, inputs=[bundle], overwrite=True)
    chosen = sample(opened, features, named=feature or (), seed=seed, labelled_only=labelled_only)
    numbers = write_quiz(opened, out, chosen, ratings=ratings, seed=seed, overwrite=overwrite)
    typer.echo(f"{write_sheet(opened, out, chosen)}: {len(chosen.units)} features")
    typer.echo(
        f"{out / PAGE}: {numbers['intruder']} intruders, {numbers['label']} choices of a label, "
        f"{numbers['rating']} ratings"
    )
