"""Editing: what removing units by their labels gives back of what painted-on words take.

``python -m tests.benchmarks.editing`` prints JSON. The demo's CLIP names pictures of drawn things,
plain and with the name of a wrong thing painted over. Its MLP neurons are labelled from other
pictures of the same things, every second one with a word painted over; those whose labels speak of
words are removed, and as many random ones for comparison. Only the later half of the blocks is
labelled: neurons of the first ones that fire on letters fire on every edge.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks._device import report
from tools.demo import clip_evaluation
from tools.demo.corpus_drawn import read_concepts
from tools.demo.make_corpus import CONCEPTS
from vision_sae.applications.editing import TEXT_WORDS, edit, units_that_say
from vision_sae.applications.sources import labelled_model
from vision_sae.config import Config, DescribeConfig, NeuronConfig
from vision_sae.demo import CORPUS
from vision_sae.evaluation.class_folders import class_names, classified, painted_over
from vision_sae.evaluation.painted_words import paint_word
from vision_sae.evaluation.tasks import ZeroShot
from vision_sae.evidence.neuron_pass import collect_neurons
from vision_sae.labels.batch import EvidenceFolder, label_all
from vision_sae.labels.store import LabelStore
from vision_sae.models.loading import load_model
from vision_sae.pictures.folder import Picture, image_folder
from vision_sae.pictures.views import with_views

_TEMPLATE = "a {}"
_SITES = tuple(f"blocks.{block}.mlp" for block in range(6, 12))


def drawings(classes: int) -> dict[str, Picture]:
    """{name: a drawing of it}, of things that the demo's contrastive model may have seen."""
    phrases = {c.code.lower(): c.phrase for c in read_concepts(CONCEPTS)}
    unseen = {picture.name for picture in clip_evaluation.held_out_pictures()}
    named = {
        phrases.get(Path(p.id).stem.rpartition("-")[0], ""): p
        for p in image_folder(CORPUS / "train")
        if p.id.startswith("drawn/")
    }
    known = sorted(name for name in named if name and name not in unseen)
    return {name: named[name] for name in known[:: len(known) // classes][:classes]}


def write_pictures(things: dict[str, Picture], root: Path, views: int) -> None:
    """Crops of every drawing: half of them for the test in ``test/NAME``, half as evidence in
    ``evidence``, where every second one has a word painted over and says so in its caption."""
    lines, words = [], sorted(things)
    random = np.random.default_rng(0)
    for name, drawing in things.items():
        (root / "test" / name).mkdir(parents=True)
        (root / "evidence").mkdir(exist_ok=True)
        for number, crop in enumerate(with_views([drawing], 2 * views)):
            picture, file = crop.load(), f"{name}-{number}.png"
            if number % 2 == 0:
                picture.save(root / "test" / name / file)
                continue
            caption = f"a {name}"
            if number % 4 == 1:
                word = words[int(random.integers(len(words)))]
                picture, caption = (
                    paint_word(picture, word, number),
                    f'{caption} and the word "{word}"',
                )
            picture.save(root / "evidence" / file)
            lines.append(json.dumps({"file": file, "caption": caption}))
    (root / "evidence" / "captions.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Label, remove, measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="demo:clip")
    parser.add_argument("--site", action="append", help="default: blocks 6 to 11")
    parser.add_argument("--describer", default=DescribeConfig().describer)
    parser.add_argument("--remove", action="append", help="words; default: those of `edit`")
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--views", type=int, default=8, help="test pictures of a class")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where to keep pictures and labels")
    report(parser, measure)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """`run` in the folder of the arguments, or else in one that is removed."""
    with tempfile.TemporaryDirectory() as temporary:
        return run(arguments, arguments.work or Path(temporary))


def run(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """What the edit did, and how long labelling took."""
    if not (root / "test").is_dir():
        write_pictures(drawings(arguments.classes), root, arguments.views)
    config = Config(
        neurons=NeuronConfig(sites=tuple(arguments.site or _SITES)),
        describe=DescribeConfig(describer=arguments.describer, clip=arguments.model),
    )
    model = load_model(arguments.model)
    begin = time.perf_counter()
    evidence = image_folder(root / "evidence")
    collect_neurons(model, evidence, root / "neurons", config.neurons)
    folder, store = EvidenceFolder.at(root / "neurons"), str(root / "labels.sqlite")
    job = label_all(store, folder, config.describe, root / "probes", workers=arguments.workers)
    seconds = time.perf_counter() - begin
    found = labelled_model(folder, LabelStore(store), guesses=True)
    pictures = image_folder(root / "test")
    names = class_names(pictures)
    chosen = units_that_say(found.unit_set.units, arguments.remove or TEXT_WORDS)
    made = edit(
        found.model,
        ZeroShot(found.model, names, _TEMPLATE),  # type: ignore[arg-type]
        classified(found.model, pictures, names),
        painted_over(found.model, pictures, names, seed=1),
        found.unit_set,
        chosen,
        draws=arguments.draws,
    )
    by_site = {unit.site: 0 for unit in chosen}
    for unit in chosen:
        by_site[unit.site] += 1
    return {
        "pictures": len(pictures),
        "units": job.total,
        "labelled": job.labelled,
        "labelling_seconds": round(seconds, 1),
        **asdict(made),
        "removed_by_site": by_site,
        "recovered": round(made.recovered, 4),
        "random_recovered": round(made.random_recovered, 4),
    }


if __name__ == "__main__":
    main()
