"""Reports about a generator's dictionaries: effects of blocks, and causal scores of labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vision_sae.bundles.layout import FORMAT
from vision_sae.bundles.publish import add_descriptions
from vision_sae.descriptions.protocol import JUDGED_BY, Score
from vision_sae.descriptions.scores.causal import CausalScorer
from vision_sae.descriptions.scoring.texts import TextEmbeddings
from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.blocks import (
    BlockEffects,
    BoostedFeatures,
    Roles,
    evaluate_blocks,
    examples,
)
from vision_sae.files import replacing, write_json
from vision_sae.models.generator import GenerationSettings, Generator
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.pictures.sheet import contact_sheet
from vision_sae.places import check_output, check_output_folder
from vision_sae.steering.bundles import SteeringBundle
from vision_sae.steering.movements import RANDOMS

BLOCK_FILES = ("blocks.json", "blocks.png")
"""The files that `block_report` writes."""
_SHOWN = 8
"""Prompts in the picture of the blocks."""


def features_to_boost(
    bundles: Sequence[SteeringBundle], features: int, amount: float
) -> dict[str, BoostedFeatures]:
    """{site: features to boost, and by how much}

    Raises `InvalidInputError` for a bundle in which no feature fires.
    """
    for bundle in bundles:
        if not len(bundle.alive):
            raise InvalidInputError(
                f"no feature of {bundle.bundle.name} fires in its pictures, so there is none to "
                "boost; name another bundle",
                field="bundle",
            )
    return {
        bundle.bundle.site: BoostedFeatures(
            bundle.dictionary.dictionary, bundle.spread(features), amount * bundle.usual_mean
        )
        for bundle in bundles
    }


def block_report(
    model: Generator,
    bundles: Sequence[SteeringBundle],
    prompts: Sequence[GenerationSettings],
    out: Path,
    *,
    features: int,
    amount: float,
    progress: bool = True,
    overwrite: bool = False,
) -> str:
    """Measure the blocks; write ``blocks.json`` and ``blocks.png``; returns the table as text.

    Existing files are replaced only with ``overwrite``.

    The picture has a row of plain generations, and for each block one with the block off and one
    with a feature of it boosted.
    """
    check_output_folder(out, BLOCK_FILES, overwrite=overwrite)
    blocks = features_to_boost(bundles, features, amount)
    effects = evaluate_blocks(model, blocks, prompts, progress=progress)
    table_file, picture_file = (out / name for name in BLOCK_FILES)
    write_json(table_file, [effect.to_json() for effect in effects])
    with replacing(picture_file) as temporary:
        contact_sheet(examples(model, blocks, prompts[:_SHOWN]), gap=2).save(temporary, "PNG")
    return "\n".join(table(effects))


def table(effects: Sequence[BlockEffects]) -> list[str]:
    """The figures as lines of a table; 1 means as different as another picture."""
    rows = [f"{'':36}" + "".join(f"{name:>9}" for name in Roles._fields)]
    for effect in effects:
        rows.append(f"{effect.site}: {effect.role}")
        for name in ("ablated", "ablated_random", "boosted", "boosted_random"):
            said = name.replace("_random", ", in a random direction")
            values = "".join(f"{value:9.3f}" for value in getattr(effect, name))
            rows.append(f"  {said:34}{values}")
    return rows


def label_directions(
    contrastive: ContrastiveModel, labels: Iterable[tuple[int, str]]
) -> TextEmbeddings:
    """Embeddings of texts as directions from the mean embedding of these labels."""
    texts = sorted({text for _, text in labels})
    vectors = contrastive.embed_texts(texts).float().cpu().numpy()
    return TextEmbeddings(contrastive, vectors.mean(0))


def is_confirmed(row: Mapping[str, Any]) -> bool:
    """Whether the text of a bundle's description has been confirmed by a judge."""
    return bool(row["text"] and row["details"].get(JUDGED_BY))


def best_labelled(
    rows: Iterable[Mapping[str, Any]], limit: int | None = None
) -> list[tuple[int, str]]:
    """(feature, label) of descriptions: labels that a judge has confirmed before guesses, then by
    the first score, then by the objective that chose the label."""

    def worth(row: Mapping[str, Any]) -> tuple[bool, float, float]:
        score = row["scores"][0]["value"] if row["scores"] else 0.0
        objective = row["candidates"][0][1] if row["candidates"] else 0.0
        return is_confirmed(row), score, objective

    labelled = sorted((row for row in rows if row["text"]), key=worth, reverse=True)
    return [(row["feature"], row["text"]) for row in labelled[:limit]]


def causal_scores(
    model: Generator,
    steering_bundle: SteeringBundle,
    path: Path,
    contrastive: Model,
    prompts: Sequence[GenerationSettings],
    *,
    amount: float,
    limit: int | None = None,
    randoms: int = RANDOMS,
    progress: bool = True,
) -> str:
    """Measure the causal score of labels, and publish the bundle at ``path`` again with the scores;
    returns a summary as text.

    Raises `InvalidInputError` for a bundle without labels or a model without texts.
    """
    if not isinstance(contrastive, ContrastiveModel):
        raise InvalidInputError(f"{contrastive.name} has no texts", field="clip")
    check_output(path, FORMAT, field="bundle")
    rows = steering_bundle.bundle.descriptions.values()
    labelled = best_labelled(rows, limit)
    if not labelled:
        raise InvalidInputError(
            f"{path} has no labels; run `vision-sae describe` first", field="bundle"
        )
    scorer = CausalScorer(
        steering_bundle.movements(model, contrastive, prompts, amount=amount, randoms=randoms),
        label_directions(contrastive, best_labelled(rows)),
    )
    measured: dict[int, Score] = {}
    beating = 0
    for feature, text in tqdm(labelled, desc="causal", disable=not progress):
        score = scorer.score(feature, text)
        if score is not None:
            measured[feature] = score
        beating += scorer.beats_random(feature, text)
    if not measured:
        raise InvalidInputError(
            f"no other feature of {path} fires that those with labels could be compared with",
            field="bundle",
        )
    add_descriptions(steering_bundle.bundle, path, [_with_score(row, measured) for row in rows], {})
    values = [score.value for score in measured.values()]
    confirmed = sum(
        is_confirmed(steering_bundle.bundle.descriptions[feature]) for feature, _ in labelled
    )
    return (
        f"{path}: {len(values)} labels ({confirmed} confirmed by a judge before, the others "
        f"guesses), causal score {np.mean(values):.3f} on average (chance .5); "
        f"{beating / len(labelled):.1%} move pictures further than 95 % of random features"
    )


def _with_score(row: dict[str, Any], measured: Mapping[int, Score]) -> dict[str, Any]:
    if row["feature"] not in measured:
        return row
    kept = [score for score in row["scores"] if score["metric"] != "causal"]
    return row | {"scores": [*kept, asdict(measured[row["feature"]])]}
