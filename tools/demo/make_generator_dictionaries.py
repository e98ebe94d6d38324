"""Make the released dictionaries of the demo generator's four blocks, and their labels.

    python -m tools.demo.make_generator_dictionaries --out OUT

Several thousand pictures are generated once, and the vectors at the four blocks are stored
(``OUT/store``, and ``OUT/heldout`` for held-out prompts). Each block then gets a dictionary, labels
by the attributes of scenes, and causal scores by steering for the labels of the most frequent
features:

    OUT/BLOCK/dictionary            a published dictionary
    OUT/BLOCK/descriptions.jsonl    a description of each feature
    OUT/BLOCK/figures.json          the measured truth of the labels

Finished steps are reused; an interrupted step is resumed or repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from vision_sae.activations.generations import harvest_generations
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.codes import CodesBuilder, by_feature
from vision_sae.bundles.statistics import Statistics, statistics
from vision_sae.config import HarvestConfig, TrainConfig
from vision_sae.demo import generations
from vision_sae.descriptions.describers.scenes import ScenesDescriber
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.dictionaries.protocol import Dictionary, SiteDictionary
from vision_sae.evaluation.scene_attributes import AttributeClassifier, train_classifier
from vision_sae.evaluation.scene_labels import figures, most_frequent
from vision_sae.evaluation.scene_steering import SteeringJudgement, judged_by_steering
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.protocol import FIRINGS
from vision_sae.files import write_json
from vision_sae.models.generator import Generator
from vision_sae.models.loading import load_generator

PROMPTS, HELDOUT = 4000, 1000
JUDGING_SEED = 2003
"""Seed of the scenes for steering; no dictionary and no label was made from these scenes."""
TRAINING = TrainConfig(expansion=16, k=10, steps=1500, dead_after=200_000)
STEERING = SteeringJudgement(amount=24.0, adding=48.0)
_BATCH = 1024


def main() -> None:
    """Read the command line and do the unfinished steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of all that is made")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="pictures to train on")
    parser.add_argument("--heldout", type=int, default=HELDOUT, help="pictures to measure on")
    parser.add_argument("--blocks", nargs="+", default=list(generations.SHORT.values()))
    arguments = parser.parse_args()
    out: Path = arguments.out
    model = load_generator(generations.MODEL)
    store, held = (
        harvest_generations(model, generations.prompts(count, seed), out / name, _harvest())
        for name, count, seed in (
            ("store", arguments.prompts, generations.TRAIN_SEED),
            ("heldout", arguments.heldout, generations.HELDOUT_SEED),
        )
    )
    classifier = kept_classifier(out / "classifier.safetensors")
    for site, short in generations.SHORT.items():
        if short in arguments.blocks:
            make_block(out / short, model, site, store, held, classifier)


def _harvest() -> HarvestConfig:
    return HarvestConfig(
        model=generations.MODEL,
        sites=generations.SITES,
        batch_size=50,
        shard_images=200,
        thumbnail=64,
    )


def kept_classifier(path: Path) -> AttributeClassifier:
    """The classifier of scenes with weights at ``path``, trained if the file is missing."""
    if not path.is_file():
        save_file(train_classifier().state_dict(), path)
    classifier = AttributeClassifier()
    classifier.load_state_dict(load_file(path))
    return classifier.eval()


def make_block(
    folder: Path,
    model: Generator,
    site: str,
    store: ActivationStore,
    held: ActivationStore,
    classifier: AttributeClassifier,
    *,
    training: TrainConfig = TRAINING,
    steering: SteeringJudgement = STEERING,
) -> None:
    """Make the dictionary of one block, its descriptions, and their figures."""
    training = training.model_copy(update={"site": site})
    measured = train_dictionary(
        store, folder / "dictionary", training, {"heldout": held}, overwrite=True
    )
    dictionary, _ = load_dictionary(folder / "dictionary")
    evidence, counted = evidence_of(store, site, dictionary)
    frequent = most_frequent(counted.count)
    described = folder / "described.jsonl"
    if not described.is_file():
        made = ScenesDescriber().describe(evidence, range(dictionary.width))
        _write(described, (asdict(d) for d in tqdm(made, total=dictionary.width, desc=site)))
    rows = _read(described)
    judged = folder / "descriptions.jsonl"
    if not judged.is_file():
        scenes = generations.scenes(4 * steering.prompts, JUDGING_SEED)
        often = set(frequent)
        found = judged_by_steering(
            model,
            SiteDictionary(dictionary, site),
            classifier,
            [row for row in rows if row["feature"] in often],
            scenes,
            counted.usual_mean,
            steering,
        )
        by_feature_number = {row["feature"]: row for row in found}
        _write(judged, (by_feature_number.get(row["feature"], row) for row in rows))
    report = figures(evidence, {row["feature"]: row for row in _read(judged)}, frequent)
    report["explained_variance"] = measured["heldout"]["explained_variance"]
    write_json(folder / "figures.json", report)
    print(folder.name, json.dumps(report))


def evidence_of(
    store: ActivationStore, site: str, dictionary: Dictionary
) -> tuple[ArrayEvidence, Statistics]:
    """Evidence of a dictionary's features over a store."""
    builder = CodesBuilder()
    with torch.inference_mode():
        for vectors in tqdm(store.batches(site, _BATCH), total=store.rows // _BATCH, desc="encode"):
            builder.add(dictionary.encode(vectors))
    postings = by_feature(builder.by_patch(), dictionary.width)
    pictures, patches = len(store.images), store.grid.patches
    peaks = np.zeros((dictionary.width, pictures), dtype=np.float16)
    firing = np.full((dictionary.width, FIRINGS), -1, dtype=np.int64)
    maps = np.zeros((dictionary.width, FIRINGS, patches), dtype=np.float16)
    for feature in range(dictionary.width):
        rows, values = postings.row(feature)
        images, positions = np.divmod(rows.astype(np.int64), patches)
        np.maximum.at(peaks[feature], images, values)
        _, first = np.unique(images, return_index=True)  # they descend: a picture's strongest
        strongest = images[np.sort(first)[:FIRINGS]]
        firing[feature, : len(strongest)] = strongest
        slots = np.full(pictures, -1)
        slots[strongest] = np.arange(len(strongest))
        kept = slots[images] >= 0
        maps[feature, slots[images[kept]], positions[kept]] = values[kept]
    evidence = ArrayEvidence(
        name=f"models/{store.manifest['model']['name']}/sites/{site}",
        identity=site,
        data_sha256=store.manifest["data_sha256"],
        site=site,
        images=store.images,
        grid=store.grid,
        preprocessing=store.preprocessing,
        thumbnails=(),
        embeddings=store.embeddings,
        all_peaks=peaks,
        firing_images=firing,
        maps=maps,
        thresholds=np.zeros(dictionary.width),
    )
    return evidence, statistics(postings)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, atomically."""
    staging = path.with_name(f".{path.name}")
    staging.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), "utf-8")
    staging.replace(path)


def _read(path: Path) -> Sequence[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


if __name__ == "__main__":
    main()
