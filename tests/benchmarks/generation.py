"""The demo generator, its dictionaries, and steering: how good, and at what cost.

``python -m tests.benchmarks.generation --work DIR`` prints JSON. Stores, dictionaries and bundles
of the four blocks are made in DIR and used again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.benchmarks._device import report
from tests.worlds.generations import tensors_alive
from vision_sae.activations.generations import harvest_generations
from vision_sae.bundles.build import build, current_bundle
from vision_sae.bundles.read import read_bundle
from vision_sae.config import BuildConfig, DescribeConfig, HarvestConfig, TrainConfig
from vision_sae.demo import generations
from vision_sae.descriptions.describe import PROBES, describe_bundle, is_described
from vision_sae.descriptions.describers.effects import EffectsConfig
from vision_sae.descriptions.scores.causal import CausalScorer
from vision_sae.descriptions.toolbox import Toolbox
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.evaluation.blocks import evaluate_blocks
from vision_sae.evaluation.edit_cases import evaluate_edits, patches_of, read_cases, to_json
from vision_sae.evaluation.generators import best_labelled, features_to_boost, label_directions
from vision_sae.evaluation.scene_attributes import AttributeClassifier, train_classifier
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.models.generator import GenerationSettings, Generator, generate
from vision_sae.models.loading import load_generator, load_model
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.models.similarity import similarities
from vision_sae.pictures.scenes import draw
from vision_sae.steering import effects
from vision_sae.steering.bundles import SteeringBundle, open_bundles
from vision_sae.steering.edits import FeatureEdit
from vision_sae.steering.generation import Changes, SteeredGeneration
from vision_sae.steering.generation import generate as steered

_TRAIN_PROMPTS, _HELDOUT_PROMPTS, _RANKED = 1000, 1000, 300
_TRAINED = {"k10": (4, 10), "k20": (4, 20), "k20_wide": (16, 20)}
"""Dictionaries of each block by name: (features a dimension, k)."""
_STEPS, _DEAD_AFTER = 1000, 200_000
_DESCRIBING = DescribeConfig(describer="caption-pmi")
_AMOUNT = 48.0
_LABELS, _JUDGED = 50, 8
_BY_EFFECTS = DescribeConfig(describer="effects", effects=EffectsConfig(prompts=8, amount=_AMOUNT))
_DESCRIBED = 128
"""Features of a block, of those that fire most often, that are described by their effects."""


def made(model: Generator, prompts: list[str], first_seed: int) -> list[Image.Image]:
    """A picture of each prompt."""
    settings = [GenerationSettings(text, seed=first_seed + i) for i, text in enumerate(prompts)]
    return generate(model, settings)


def own_prompt(
    contrastive: ContrastiveModel, pictures: list[Image.Image], prompts: list[str]
) -> float:
    """Share of pictures that rank their own prompt in the first ten of all."""
    found = similarities(contrastive, pictures, prompts)
    ranks = (found > np.diag(found)[:, None]).sum(1)
    return float((ranks < 10).mean())


def attributes(
    classifier: AttributeClassifier, pictures: list[Image.Image], seed: int
) -> dict[str, float]:
    """Share of pictures whose attributes are what the prompt says."""
    shown = [a.numbers for a in generations.scenes(len(pictures), seed)]
    return classifier.accuracy(pictures, shown)


def overhead(dictionaries: dict[str, SteeringBundle]) -> dict[str, float]:
    """Time of a generation with capture, and with four edits, over the plain pipeline's call.

    In float32: the plain call cannot do with a U-Net in another precision than the texts'.
    """
    model = load_generator(generations.MODEL, dtype="float32")
    sites = list(generations.SITES)
    pipeline: Any = model.pipeline  # type: ignore[attr-defined]
    settings = [GenerationSettings("a large red star", seed=1)] * 2

    def plain() -> None:
        noise = [torch.Generator().manual_seed(1) for _ in settings]
        with torch.inference_mode():
            pipeline(
                ["a large red star"] * 2,
                num_inference_steps=model.usual_steps,
                guidance_scale=0.0,
                generator=noise,
                height=model.usual_side,
                width=model.usual_side,
                output_type="pil",
            )

    def captured() -> None:
        generate(model, settings, lambda _: model.capture(sites))

    edits = [
        FeatureEdit(name, int(found.alive[0]), "add", 1.0) for name, found in dictionaries.items()
    ]
    changes = Changes(edits, (), {name: d.dictionary for name, d in dictionaries.items()})

    def edited() -> None:
        steered(model, settings[0], changes)

    times: dict[str, list[float]] = {"plain": [], "capture": [], "edit": []}
    for _ in range(40):
        for name, run in (("plain", plain), ("capture", captured), ("edit", edited)):
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    usual = {name: float(np.median(values[5:])) for name, values in times.items()}
    return {
        "plain_ms": round(1000 * usual["plain"], 2),
        "capture_overhead": round(usual["capture"] / usual["plain"] - 1, 4),
        "edit_overhead": round(usual["edit"] / usual["plain"] - 1, 4),
        **memory(model, changes),
    }


def memory(model: Generator, changes: Changes) -> dict[str, float]:
    """Megabytes of tensors before a second generation is under way, which it adds, and of these its
    latents."""
    under_way = []
    held = []
    for seed in (1, 2):
        under_way.append(SteeredGeneration(model, GenerationSettings("a star", seed=seed), changes))
        under_way[-1].advance()
        held.append(sum(tensors_alive().values()) / 1e6)
    latents = under_way[-1].run.latents  # type: ignore[attr-defined]
    return {
        "held_mb": round(held[0], 2),
        "second_request_mb": round(held[1] - held[0], 3),
        "latents_mb": round(latents.nbytes / 1e6, 3),
    }


def bundles(work: Path) -> tuple[dict[str, Path], dict[str, dict[str, float]]]:
    """({site: labelled bundle of k = 20}, {site: held-out metrics of every dictionary})"""
    model = load_generator(generations.MODEL)
    config = HarvestConfig(
        model=generations.MODEL,
        sites=generations.SITES,
        batch_size=50,
        shard_images=200,
        thumbnail=64,
    )
    stores = [
        harvest_generations(model, generations.prompts(count, seed), work / name, config)
        for name, count, seed in (
            ("store", _TRAIN_PROMPTS, generations.TRAIN_SEED),
            ("heldout", _HELDOUT_PROMPTS, generations.HELDOUT_SEED),
        )
    ]
    paths, metrics = {}, {}
    for site in generations.SITES:
        short, metrics[site] = generations.SHORT[site], {}
        for name, (expansion, k) in _TRAINED.items():
            training = TrainConfig(
                site=site, expansion=expansion, k=k, steps=_STEPS, dead_after=_DEAD_AFTER
            )
            place = work / f"{short}-{name}"
            found = train_dictionary(stores[0], place, training, {"heldout": stores[1]})
            metrics[site][f"ev_{name}"] = round(found["heldout"]["explained_variance"], 4)
            metrics[site][f"dead_{name}"] = round(1 - found["heldout"]["frac_alive"], 4)
        path = work / f"demo-generator-{short}"
        trained = work / f"{short}-k20"
        if not current_bundle(path, stores[0], trained, BuildConfig()):
            build(stores[0], trained, path, BuildConfig())
        if not is_described(read_bundle(path), _DESCRIBING):
            describe_bundle(path, _DESCRIBING)
        paths[site] = path
        alive = read_bundle(path).statistics.count > 0
        metrics[site]["dead"] = round(float(1 - alive.mean()), 4)
        metrics[site]["labelled"] = read_bundle(path).manifest["describe"]["labelled"]
    return paths, metrics


def causal(
    model: Generator, found: SteeringBundle, contrastive: ContrastiveModel, work: Path
) -> dict[str, float]:
    """Of the best labels by effects: the share that beats 95 % of random features in pictures of
    prompts that no label was made by, and the mean score; the same of labels by captions."""
    texts = generations.prompts(_JUDGED, generations.HELDOUT_SEED)
    prompts = [GenerationSettings(text, seed=i) for i, text in enumerate(texts)]
    movements = found.movements(model, contrastive, prompts, amount=_AMOUNT)
    by_captions = list(found.bundle.descriptions.values())
    evidence = BundleEvidence(found.bundle)
    labeller = Toolbox(_BY_EFFECTS, work / PROBES, progress=False).labeller(evidence)
    by_effects = [asdict(made) for made in labeller.label(evidence, found.spread(_DESCRIBED))]
    figures: dict[str, float] = {"causal_described": len(by_effects)}
    for suffix, rows in (("", by_effects), ("_by_captions", by_captions)):
        labelled = best_labelled(rows, _LABELS)
        scorer = CausalScorer(movements, label_directions(contrastive, best_labelled(rows)))
        judged = [(scorer.beats_random(*found), scorer.score(*found)) for found in labelled]
        scores = [score.value for _, score in judged if score is not None]
        figures |= {
            f"causal_share{suffix}": round(float(np.mean([beats for beats, _ in judged])), 3),
            f"causal_score{suffix}": round(float(np.mean(scores)), 3),
            f"causal_labels{suffix}": len(labelled),
        }
    return figures


def specificity(model: Generator, found: SteeringBundle) -> float:
    """Median change inside of a mask over that outside, of features added where the object of a
    scene is."""
    cases = [case for case in read_cases() if case.attribute != "background"]
    grid, ratios = model.grid(found.bundle.site, model.usual_side, model.usual_side), []
    for case, feature in zip(cases, found.spread(len(cases)), strict=False):
        weights = patches_of(case.region(), grid.rows, grid.cols).float()
        mask = weights.view(grid.rows, grid.cols).numpy() > 0
        region = effects.pixels_of(mask, model.usual_side, model.usual_side)
        edit = FeatureEdit("d", feature, "add", _AMOUNT * found.usual_mean, weights=weights)
        changes = Changes([edit], (), {"d": found.dictionary})
        picture, twin, _ = steered(
            model, GenerationSettings(case.before.caption, seed=case.seed), changes
        )
        change = effects.change(effects.difference(picture, twin), region)
        if change.inside is not None and change.outside is not None:
            ratios.append(change.inside / max(change.outside, 1e-4))
    return round(float(np.median(ratios)), 2)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of the demo generator."""
    work: Path = arguments.work
    paths, metrics = bundles(work)
    model, found = open_bundles(list(paths.values()))
    by_site = {f.bundle.site: f for f in found}
    contrastive = load_model("demo:clip")
    assert isinstance(contrastive, ContrastiveModel)
    prompts = generations.prompts(_RANKED, generations.HELDOUT_SEED)
    pictures = made(model, prompts, 10_000)
    classifier = train_classifier()
    real = generations.scenes(_RANKED, generations.HELDOUT_SEED)
    drawn = [draw(scene, side=64, seed=i).image for i, scene in enumerate(real)]
    settings = [GenerationSettings(p, seed=i) for i, p in enumerate(prompts[:32])]
    blocks = evaluate_blocks(model, features_to_boost(found, 8, _AMOUNT), settings)
    return {
        **overhead({f.bundle.name: f for f in found}),
        "own_prompt_top10": round(own_prompt(contrastive, pictures, prompts), 3),
        "own_prompt_top10_real": round(own_prompt(contrastive, drawn, prompts), 3),
        "attributes": attributes(classifier, pictures, generations.HELDOUT_SEED),
        "attributes_real": attributes(classifier, drawn, generations.HELDOUT_SEED),
        "blocks": {
            block.site: metrics[block.site]
            | causal(model, by_site[block.site], contrastive, work)
            | {"specificity": specificity(model, by_site[block.site])}
            | {"roles": block.to_json()}
            for block in blocks
        },
        "edits": to_json(
            evaluate_edits(
                model,
                {f.bundle.name: f.dictionary for f in found},
                read_cases(),
                classifier,
            )
        ),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/generation"))
    report(parser, measure, indent=1)


if __name__ == "__main__":
    main()
