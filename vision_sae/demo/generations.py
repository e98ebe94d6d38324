"""The demo's text-to-image part: prompts, a dictionary of one block, and a steered picture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vision_sae.activations.generations import harvest_generations
from vision_sae.bundles.build import build, is_current
from vision_sae.bundles.bundle import Bundle
from vision_sae.config import BuildConfig, DescribeConfig, HarvestConfig, TrainConfig
from vision_sae.descriptions.describe import describe_bundle, is_described
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.evaluation.generators import causal_scores, is_confirmed
from vision_sae.evaluation.planted_scenes import Attributes, random_attributes
from vision_sae.models.generator import GenerationSettings, Generator, generate
from vision_sae.models.registry import load_generator, load_model
from vision_sae.models.sdxl import TURBO_BLOCKS
from vision_sae.pictures.sheet import contact_sheet
from vision_sae.steering.bundles import opened

MODEL = "demo:generator"
TRAIN_SEED, HELDOUT_SEED = 2001, 2002
"""Seeds of scenes that prompts are captions of; the generator's training has another."""
SITES = tuple(f"{block}.update" for block in TURBO_BLOCKS)
SHORT = {site: site.removesuffix(".update").replace("_blocks", "") for site in SITES}
"""Short names of the sites: ``down.2.attentions.1``."""
SITE = f"{TURBO_BLOCKS[3]}.update"
"""The block that the demo makes a dictionary of: of this generator the one that does most."""
_PROMPTS, _HELDOUT = 200, 30
_STEPS, _K, _EXPANSION = 400, 10, 4
_JUDGED, _PROMPTS_TO_JUDGE = 12, 4
AMOUNT = 16.0
"""What is added of a feature, in mean activations of the usual feature."""
Stage = Callable[[str, str], AbstractContextManager[None]]


def scenes(count: int, seed: int) -> list[Attributes]:
    """What ``count`` prompts ask for, every attribute at random; without painted words."""
    return [
        replace(random_attributes(np.random.default_rng([seed, i])), word=None)
        for i in range(count)
    ]


def prompts(count: int, seed: int) -> list[str]:
    """The captions of `scenes`."""
    return [attributes.caption for attributes in scenes(count, seed)]


def make_bundle(work: Path, stage: Stage, config: BuildConfig) -> Bundle:
    """Generate, train, build, describe and judge; whatever is there already is kept."""
    place, path = work / "generator", work / "demo-generator"
    settings = HarvestConfig(
        model=MODEL, sites=(SITE,), batch_size=50, shard_images=200, thumbnail=64
    )
    with stage("generate", f"{_PROMPTS} pictures, and what happens at {SITE}"):
        model = load_generator(MODEL)
        store, held = (
            harvest_generations(model, prompts(count, seed), place / name, settings, overwrite=True)
            for name, count, seed in (
                ("store", _PROMPTS, TRAIN_SEED),
                ("heldout", _HELDOUT, HELDOUT_SEED),
            )
        )
    with stage("train generator", f"TopK SAE of the generator's block, k = {_K}"):
        training = TrainConfig(steps=_STEPS, expansion=_EXPANSION, k=_K)
        metrics = train_dictionary(
            store, place / "dictionary", training, {"heldout": held}, overwrite=True
        )
        print(f"held-out prompts: EV {metrics['heldout']['explained_variance']:.3f}")
    with stage("build generator", "codes, statistics, exemplars and the patch index"):
        if not is_current(path, store, place / "dictionary", config):
            build(store, place / "dictionary", path, config, overwrite=True)
    describing = DescribeConfig(describer="scenes")
    with stage(
        "describe generator", "label every feature by what prompts ask for, judge it, or abstain"
    ):
        bundle = Bundle(path)
        if not is_described(bundle, describing):
            bundle = describe_bundle(path, describing)
        if not _is_judged(bundle):
            _judge(path)
        print(f"{bundle.manifest['describe']['labelled']} features labelled")
    return Bundle(path)


def _is_judged(bundle: Bundle) -> bool:
    """Whether some label has a causal score; there is nothing to judge where none is labelled."""
    labelled = [row for row in bundle.descriptions.values() if row["text"]]
    scores = (score for row in labelled for score in row["scores"])
    return not labelled or any(score["metric"] == "causal" for score in scores)


def _judge(path: Path) -> None:
    """Measure what raising the best labelled features causes."""
    generator, (found,) = opened([path])
    texts = prompts(_PROMPTS_TO_JUDGE, HELDOUT_SEED)
    settings = [GenerationSettings(text, seed=i) for i, text in enumerate(texts)]
    judged = causal_scores(
        generator,
        found,
        path,
        load_model("demo:clip"),
        settings,
        amount=AMOUNT,
        limit=_JUDGED,
        randoms=_JUDGED,
    )
    print(judged)


def shown_value(bundle: Bundle, feature: int) -> float:
    """`AMOUNT`, as it was judged, in mean activations of this feature."""
    stats = bundle.statistics
    return AMOUNT * stats.usual_mean / float(stats.mean[feature])


def strongest_cause(bundle: Bundle) -> int:
    """The feature whose label has the best causal score, among those whose label a judge has
    confirmed, or else among the guesses; without scores, the first that is labelled, and without
    labels the most frequent."""

    def score(row: dict[str, Any]) -> tuple[bool, float]:
        values = [float(s["value"]) for s in row["scores"] if s["metric"] == "causal"]
        return is_confirmed(row), values[0] if values else -1.0

    labelled = [row for row in bundle.descriptions.values() if row["text"]]
    if not labelled:
        return int(bundle.statistics.count.argmax())
    return int(max(labelled, key=score)["feature"])


def heldout_pictures(model: Generator, columns: int = 8, rows: int = 8) -> Image.Image:
    """Pictures of held-out prompts, side by side."""
    texts = prompts(columns * rows, HELDOUT_SEED)
    made = generate(model, [GenerationSettings(text, seed=i) for i, text in enumerate(texts)])
    return contact_sheet([made[start : start + columns] for start in range(0, len(made), columns)])
