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
from vision_sae.bundles.build import build, current_bundle
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.config import BuildConfig, DescribeConfig, HarvestConfig, TrainConfig
from vision_sae.descriptions.describe import describe_bundle, is_described
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.evaluation.generators import causal_scores, is_confirmed
from vision_sae.models.generator import GenerationSettings, Generator, generate
from vision_sae.models.loading import load_generator, load_model
from vision_sae.models.sdxl import TURBO_BLOCKS
from vision_sae.pictures.scenes import Attributes, random_attributes
from vision_sae.pictures.sheet import contact_sheet
from vision_sae.steering.bundles import open_bundles

MODEL = "demo:generator"
TRAIN_SEED, HELDOUT_SEED = 2001, 2002
"""Seeds of the scenes behind the prompts; the generator's training used another seed."""
SITES = tuple(f"{block}.update" for block in TURBO_BLOCKS)
SHORT = {site: site.removesuffix(".update").replace("_blocks", "") for site in SITES}
"""Short names of the sites: ``down.2.attentions.1``."""
SITE = f"{TURBO_BLOCKS[3]}.update"
"""The site of the demo's dictionary: the most important block of this generator."""
_PROMPTS, _HELDOUT = 200, 30
_STEPS, _K, _EXPANSION = 400, 10, 4
_JUDGED, _PROMPTS_TO_JUDGE = 12, 4
AMOUNT = 16.0
"""Amount of a feature to add, in mean activations of the usual feature."""
Stage = Callable[[str, str], AbstractContextManager[None]]


def scenes(count: int, seed: int) -> list[Attributes]:
    """Random attributes of ``count`` scenes, without painted words."""
    return [
        replace(random_attributes(np.random.default_rng([seed, i])), word=None)
        for i in range(count)
    ]


def prompts(count: int, seed: int) -> list[str]:
    """The captions of `scenes`."""
    return [attributes.caption for attributes in scenes(count, seed)]


def make_bundle(work: Path, stage: Stage, config: BuildConfig) -> Bundle:
    """Generate, train, build, describe and judge; finished stages are reused."""
    place, path = work / "generator", work / "demo-generator"
    settings = HarvestConfig(
        model=MODEL, sites=(SITE,), batch_size=50, shard_images=200, thumbnail=64
    )
    with stage("generate", f"{_PROMPTS} pictures, and the vectors at {SITE}"):
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
        bundle = current_bundle(path, store, place / "dictionary", config) or build(
            store, place / "dictionary", path, config, overwrite=True
        )
    describing = DescribeConfig(describer="scenes")
    with stage(
        "describe generator",
        "label every feature by the attributes of prompts, judge it, or abstain",
    ):
        if not is_described(bundle, describing):
            bundle = describe_bundle(path, describing, bundle=bundle)
        if not _is_judged(bundle):
            _judge(path)
            bundle = read_bundle(path)
        print(f"{bundle.manifest['describe']['labelled']} features labelled")
    return bundle


def _is_judged(bundle: Bundle) -> bool:
    """Whether any label has a causal score, or there is no label to judge."""
    labelled = [row for row in bundle.descriptions.values() if row["text"]]
    scores = (score for row in labelled for score in row["scores"])
    return not labelled or any(score["metric"] == "causal" for score in scores)


def _judge(path: Path) -> None:
    """Measure the effect of raising the best labelled features."""
    generator, (steered,) = open_bundles([path])
    texts = prompts(_PROMPTS_TO_JUDGE, HELDOUT_SEED)
    settings = [GenerationSettings(text, seed=i) for i, text in enumerate(texts)]
    judged = causal_scores(
        generator,
        steered,
        path,
        load_model("demo:clip"),
        settings,
        amount=AMOUNT,
        limit=_JUDGED,
        randoms=_JUDGED,
    )
    print(judged)


def shown_value(bundle: Bundle, feature: int) -> float:
    """`AMOUNT` in mean activations of this feature."""
    stats = bundle.statistics
    return AMOUNT * stats.usual_mean / float(stats.mean[feature])


def strongest_cause(bundle: Bundle) -> int:
    """The feature with the best causal score: a confirmed label beats a guess. Without scores, the
    first labelled feature; without labels, the most frequent feature."""

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
    pictures = generate(model, [GenerationSettings(text, seed=i) for i, text in enumerate(texts)])
    return contact_sheet(
        [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    )
