"""Reports about a generator's dictionaries: what its blocks do, and what its labels cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vision_sae.bundles.bundle import add_descriptions
from vision_sae.descriptions.protocol import Score
from vision_sae.descriptions.scores.texts import TextEmbeddings
from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.blocks import BlockEffects, Boosted, Roles, evaluate_blocks, examples
from vision_sae.files import write_json
from vision_sae.models.generator import GenerationSettings, Generator
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.pictures.sheet import contact_sheet
from vision_sae.steering.bundles import SteeringBundle
from vision_sae.steering.causal import CausalScorer

_SHOWN = 8
"""Prompts in the picture of the blocks."""


def boosted(found: Sequence[SteeringBundle], features: int, amount: float) -> dict[str, Boosted]:
    """{site: which of its features are boosted, and by how much}"""
    return {
        f.bundle.site: Boosted(f.dictionary.dictionary, f.spread(features), amount * f.usual_mean)
        for f in found
    }


def block_report(
    model: Generator,
    found: Sequence[SteeringBundle],
    prompts: Sequence[GenerationSettings],
    out: Path,
    *,
    features: int,
    amount: float,
    progress: bool = True,
) -> str:
    """Measure the blocks; write ``blocks.json`` and ``blocks.png``; gives the table in words.

    The picture has a row of plain generations, and for each block one with the block off and one
    with a feature of it boosted.
    """
    blocks = boosted(found, features, amount)
    effects = evaluate_blocks(model, blocks, prompts, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "blocks.json", [effect.to_json() for effect in effects])
    contact_sheet(examples(model, blocks, prompts[:_SHOWN])).save(out / "blocks.png")
    return "\n".join(table(effects))


def table(effects: Sequence[BlockEffects]) -> list[str]:
    """The figures for people: 1 is as different as another picture."""
    rows = [f"{'':36}" + "".join(f"{name:>9}" for name in Roles._fields)]
    for effect in effects:
        rows.append(f"{effect.site}: {effect.role}")
        for name in ("ablated", "ablated_random", "boosted", "boosted_random"):
            said = name.replace("_random", ", in a random direction")
            values = "".join(f"{value:9.3f}" for value in getattr(effect, name))
            rows.append(f"  {said:34}{values}")
    return rows


def causal_scorer(
    model: Generator,
    found: SteeringBundle,
    contrastive: ContrastiveModel,
    prompts: Sequence[GenerationSettings],
    *,
    amount: float,
    randoms: int = 40,
) -> CausalScorer:
    """The scorer of one bundle's labels. Texts are directions from the mean of all its labels."""
    labels = [row["text"] for row in found.bundle.descriptions.values() if row["text"]]
    vectors = contrastive.embed_texts(sorted(set(labels))).float().cpu().numpy()
    return CausalScorer(
        model,
        found.dictionary,
        contrastive,
        prompts,
        amount=amount * found.usual_mean,
        alive=found.alive,
        embed=TextEmbeddings(contrastive, vectors.mean(0)),
        randoms=randoms,
    )


def best_labelled(found: SteeringBundle, limit: int | None) -> list[tuple[int, str]]:
    """(feature, label), those with the best first scores first."""
    labelled = [row for row in found.bundle.descriptions.values() if row["text"]]
    labelled.sort(key=lambda row: -(row["scores"][0]["value"] if row["scores"] else 0.0))
    return [(row["feature"], row["text"]) for row in labelled[:limit]]


def causal_scores(
    model: Generator,
    found: SteeringBundle,
    path: Path,
    contrastive: Model,
    prompts: Sequence[GenerationSettings],
    *,
    amount: float,
    limit: int | None = None,
    randoms: int = 40,
    progress: bool = True,
) -> str:
    """Measure the causal score of labels and publish the bundle at ``path`` anew with them; gives
    a summary in words.

    Raises `InvalidInputError` for a bundle without labels or a model without texts.
    """
    if not isinstance(contrastive, ContrastiveModel):
        raise InvalidInputError(f"{contrastive.name} has no texts", field="clip")
    labelled = best_labelled(found, limit)
    if not labelled:
        raise InvalidInputError(
            f"{path} has no labels; run `vision-sae describe` first", field="bundle"
        )
    scorer = causal_scorer(model, found, contrastive, prompts, amount=amount, randoms=randoms)
    measured: dict[int, Score] = {}
    beating = 0
    for feature, text in tqdm(labelled, desc="causal", disable=not progress):
        score = scorer.score(feature, text)
        if score is not None:
            measured[feature] = score
        beating += scorer.beats_random(feature, text)
    rows = [_with_score(row, measured) for row in found.bundle.descriptions.values()]
    add_descriptions(found.bundle, path, rows, {})
    values = [score.value for score in measured.values()]
    return (
        f"{path}: {len(values)} labels, causal score {np.mean(values):.3f} on average (chance "
        f".5); {beating / len(labelled):.1%} move pictures further than 95 % of random features"
    )


def _with_score(row: dict[str, object], measured: dict[int, Score]) -> dict[str, object]:
    feature = int(str(row["feature"]))
    if feature not in measured:
        return row
    before: list[dict[str, object]] = list(row["scores"])  # type: ignore[call-overload]
    kept = [score for score in before if score["metric"] != "causal"]
    return row | {"scores": [*kept, asdict(measured[feature])]}
