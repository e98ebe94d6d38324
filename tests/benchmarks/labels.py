"""Labels: how good the contrastive model is that finds them, how good they are, and how fast.

``python -m tests.benchmarks.labels`` prints JSON. Bundles, those that ``make demo`` makes or others
(``--bundle BUNDLE``), are labelled anew and scored: every feature by the usual describer, and some
by each of those that are compared, from the same pictures. The other figures need no bundle.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from tests.benchmarks._device import report
from tests.benchmarks._generator_labels import generator_figures
from tests.planted.labels import planted_accuracy
from tests.planted.predicates import World, accuracy, units
from tests.planted.predicates import evidence as planted_evidence
from tools.demo import clip_evaluation
from tools.demo.corpus_drawn import read_concepts
from tools.demo.make_corpus import CONCEPTS
from tools.demo.make_generator_dictionaries import STEERING
from vision_sae.bundles.read import read_bundle
from vision_sae.config import DescribeConfig
from vision_sae.demo import CORPUS
from vision_sae.demo.run import RELEASED, WORK, bundle_path
from vision_sae.descriptions.describers.contrastive import ContrastiveDescriber
from vision_sae.descriptions.describers.grounded import GroundedDescriber
from vision_sae.descriptions.grounding import Grounding
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.protocol import Description
from vision_sae.descriptions.toolbox import Toolbox
from vision_sae.descriptions.words.vocabulary import Vocabulary
from vision_sae.descriptions.words.wpmi import top_words
from vision_sae.evaluation.label_truth import agreement_of_halves, label_truth
from vision_sae.evaluation.tasks import embeddings
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.probe_pass import make_probe
from vision_sae.evidence.protocol import FIRINGS, spaced
from vision_sae.labels.entries import description_from_json
from vision_sae.models.loading import load_model
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.pictures.folder import Picture, data_sha256, image_folder
from vision_sae.pictures.views import with_views
from vision_sae.vectors import normalised

_CLASSES, _VIEWS = 60, 24
_SPEED = {"images": 2000, "concepts": 3000, "units": 6144}
_LARGE = {"images": 2000, "concepts": 20_000, "units": 65_536}
_EXEMPLARS = 100


def last_layer(model: ContrastiveModel, directory: Path) -> dict[str, float]:
    """Share of the units of a linear classifier that get the name of their class.

    The classes are drawings of the demo's corpus in random crops: half of the crops train the
    classifier, on the model's embeddings; the others are the data its units are labelled from, by
    search among the names of the classes (the check that CLIP-Dissect is published with; Oikarinen
    and Weng 2023, arXiv:2204.10965), and among the names of all concepts of the corpus, many of
    which mean nearly the same. Concepts that the demo's contrastive model never saw are no classes
    here: `clip_evaluation` asks about them.
    """
    phrases = {c.code.lower(): c.phrase for c in read_concepts(CONCEPTS)}
    unseen = {picture.name for picture in clip_evaluation.held_out_pictures()}
    drawings = [
        p
        for p in image_folder(CORPUS / "train")
        if p.id.startswith("drawn/")
        and phrases.get(Path(p.id).stem.rpartition("-")[0], "") not in {"", *unseen}
    ]
    chosen = drawings[:: len(drawings) // _CLASSES][:_CLASSES]
    names = [phrases[Path(p.id).stem.rpartition("-")[0]] for p in chosen]
    crops = with_views(chosen, _VIEWS)
    train, probe = ([c for i, c in enumerate(crops) if i % _VIEWS % 2 == side] for side in range(2))
    classes = np.repeat(np.arange(_CLASSES), _VIEWS // 2)
    classifier = LogisticRegression(max_iter=2000).fit(_embeddings(model, train), classes)
    embeddings = _embeddings(model, probe)
    evidence = _classifier_evidence(model, probe, embeddings, classifier.decision_function)
    made = make_probe(model, evidence, directory / "probe", progress=False)
    shares = {}
    for name, candidates in (
        ("last_layer_top1", set(names)),
        ("last_layer_top1_of_all_concepts", set(phrases.values())),
    ):
        vocabulary = Vocabulary(tuple(sorted(candidates)))
        describer = ContrastiveDescriber(model, made, vocabulary, directory, beam=0)
        labels = list(describer.describe(evidence, range(_CLASSES)))
        shares[name] = float(np.mean([d.text == names[d.feature] for d in labels]))
    return shares


def _embeddings(model: ContrastiveModel, pictures: list[Picture]) -> NDArray[np.float32]:
    inputs = torch.stack([model.preprocess(picture.load()) for picture in pictures])
    return normalised(embeddings(model, inputs).numpy())


def _classifier_evidence(
    model: ContrastiveModel, pictures: list[Picture], embeddings: NDArray[np.float32], logits: Any
) -> ArrayEvidence:
    """Each class is a unit that fires, all over a picture, with the logit above the median."""
    from vision_sae.activations.decoding import Decoded, decode

    values = logits(embeddings)
    peaks = np.maximum(values - np.median(values, axis=0), 0).T.astype(np.float32)
    order = np.argsort(-peaks, axis=1, kind="stable")[:, : min(FIRINGS, _VIEWS // 2)]
    heights = np.take_along_axis(peaks, order, axis=1)
    decoded = [decode(picture, model, 224) for picture in pictures]
    ready = [d for d in decoded if isinstance(d, Decoded)]
    return ArrayEvidence(
        name="models/classifier/sites/logits",
        identity=data_sha256(pictures),
        data_sha256=data_sha256(pictures),
        site="logits",
        # Every crop counts as a picture of its own here: the classes have but one drawing each.
        images=[d.record._replace(source=d.record.id) for d in ready],
        grid=model.grid,
        preprocessing=model.preprocessing,
        thumbnails=[d.thumbnail for d in ready],
        embeddings=embeddings,
        all_peaks=peaks,
        firing_images=order,
        maps=np.repeat(heights[:, :, None], model.grid.patches, axis=2),
        thresholds=np.zeros(len(peaks)),
    )


def labelled(path: Path, describer: str, directory: Path, count: int) -> dict[str, Any]:
    """One bundle's labels by one describer: their number, their scores and their speed.

    Of the bundle's features ``count`` are labelled, evenly spaced over all.
    """
    config = DescribeConfig.model_validate({"describer": describer})
    evidence = BundleEvidence(read_bundle(path))
    labeller = Toolbox(config, directory, progress=False).labeller(evidence)
    next(iter(labeller.label(evidence, [0])))  # probe, prior and pool of controls are made once
    begin = time.perf_counter()
    made = list(labeller.label(evidence, spaced(evidence.width, count).tolist()))
    seconds = time.perf_counter() - begin
    alive = [d for d in made if len(evidence.firings(d.feature))]
    kept = [d for d in made if d.text is not None]

    def median(metric: str, kind: str, field: str = "value") -> float | None:
        judged = made if field == "control" else kept  # labels are kept for a low control
        measured = [
            getattr(s, field)
            for d in judged
            for s in d.scores
            if (s.metric, s.negatives) == (metric, kind)
        ]
        found = [value for value in measured if value is not None]
        return round(float(np.median(found)), 4) if found else None

    facts = _facts(evidence, directory)
    return {
        "truth": label_truth(evidence, facts, made),
        "units": len(made),
        "share_labelled": round(len(kept) / len(made), 4),
        "share_of_alive_labelled": round(len(kept) / max(1, len(alive)), 4),
        "detection_auc_random": median("detection_auc", "random"),
        "detection_auc_hard": median("detection_auc", "hard"),
        "permuted_auc": median("detection_auc", "random", "control"),
        "fuzzing_auc": median("fuzzing_auc", ""),
        "labels_per_s": round(len(made) / seconds, 1),
    }


def truth(path: Path, directory: Path, count: int) -> dict[str, Any]:
    """How true the confirmed labels are that a bundle carries, on pictures whose sources neither
    chose nor judged any; how far labels agree that are made on two halves of the sources; and how
    share and truth trade against each other."""
    bundle = read_bundle(path)
    evidence = BundleEvidence(bundle)
    facts = _facts(evidence, directory)
    rows = [description_from_json(row) for row in bundle.descriptions.values()]
    made = [replace(d, text=None) if d.is_guess else d for d in rows]
    chosen = spaced(evidence.width, count).tolist()
    halves = [
        list(GroundedDescriber(facts, side=facts.side(*sides)).describe(evidence, chosen))
        for sides in (("choose",), ("judge", "audit"))
    ]
    return {
        **label_truth(evidence, facts, made),
        "agreement_of_halves": agreement_of_halves(*halves),
        "agreement_of_halves_labels": sum(d.text is not None for d in halves[0]),
        "curve": curve(evidence, facts, made),
    }


def curve(
    evidence: BundleEvidence, facts: Facts, made: list[Description]
) -> list[dict[str, float | None]]:
    """The figures of those labels alone whose correlation, as judged, is at least so high."""
    points: list[dict[str, float | None]] = []
    for least in (0.2, 0.25, 0.3, 0.4, 0.5):
        kept = [
            d
            if any(s.metric == "correlation" and s.value >= least for s in d.scores)
            else replace(d, text=None)
            for d in made
        ]
        found = label_truth(evidence, facts, kept)
        keys = (
            "labelled_share_of_features_with_10_pictures",
            "noun_holds_for_half",
            "measured_right",
            "correlation_median",
        )
        points.append({"judged_correlation": least} | {key: found[key] for key in keys})
    return points


def _facts(evidence: BundleEvidence, directory: Path) -> Facts:
    return Facts(evidence, directory)


_PLANTED_SEEDS = (11, 12)
"""Worlds that the describer was not developed on, unlike that of its tests."""


def planted_predicates() -> dict[str, float]:
    """Share of planted units that get what was planted, in worlds of captioned pictures."""
    shares = []
    for seed in _PLANTED_SEEDS:
        planted = units(40, 100 + seed)
        found = planted_evidence(World.random(2000, seed), planted, seed)
        made = list(Grounding(Facts(found)).label(found, range(len(planted))))
        shares.append(accuracy(planted, made))
    return {name: round(float(np.mean([s[name] for s in shares])), 4) for name in shares[0]}


def clip_dissect(similarities: torch.Tensor, activations: torch.Tensor, top: int) -> torch.Tensor:
    """Soft-WPMI as it is published: every unit against every concept, p(d) their average."""
    posterior = torch.softmax(10 * similarities, dim=1)
    strongest = activations.topk(top, dim=0).indices
    belief = torch.linspace(0.998, 0.97, top)[:, None]
    log_given = torch.stack(
        [
            torch.log(1 + belief * (posterior[strongest[:, unit]] - 1) + 1e-7).sum(0)
            for unit in range(activations.shape[1])
        ]
    )
    log_prior = torch.logsumexp(log_given, dim=0) - np.log(len(log_given))
    best: torch.Tensor = (log_given - log_prior).argmax(1)
    return best


def large() -> dict[str, float]:
    """Labels a second for a large dictionary and a large vocabulary, and what they take in memory
    beside their input: the similarities of pictures and words, and each unit's exemplars."""
    random = np.random.default_rng(0)
    shape = _LARGE["images"], _LARGE["concepts"]
    similarities = random.standard_normal(shape, dtype=np.float32)
    similarities /= 10  # in place: what is freed before the peak would hide in it
    exemplars = random.integers(0, _LARGE["images"], (_LARGE["units"], _EXEMPLARS))
    before, begin = _peak_mb(), time.perf_counter()
    top_words(similarities, exemplars, count=10)
    rate = _LARGE["units"] / (time.perf_counter() - begin)
    return {
        "units": _LARGE["units"],
        "words": _LARGE["concepts"],
        "labels_per_s": round(rate, 1),
        "beside_input_mb": _peak_mb() - before,
    }


def _peak_mb() -> int:
    """Of this process since it began; ``getrusage`` says that of its parent where that is more."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) // 1024


def speed() -> dict[str, float]:
    """Labels a second of ours and of CLIP-Dissect's scoring, on the same matrices."""
    random = torch.Generator().manual_seed(0)
    similarities = torch.randn(_SPEED["images"], _SPEED["concepts"], generator=random) / 10
    activations = torch.rand(_SPEED["images"], _SPEED["units"], generator=random)

    def ours() -> None:
        strongest = activations.topk(_EXEMPLARS, dim=0).indices.T.contiguous()
        top_words(similarities.numpy(), strongest.numpy(), count=10)

    def theirs() -> None:
        clip_dissect(similarities, activations, _EXEMPLARS)

    rates = {}
    for name, run in (("labels_per_s", ours), ("clip_dissect_labels_per_s", theirs)):
        begin = time.perf_counter()
        run()
        rates[name] = round(_SPEED["units"] / (time.perf_counter() - begin), 1)
    return rates


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything."""
    names = (*(bundle_path(*name.rsplit("/", 1)) for name in RELEASED), WORK / "my-dictionary")
    demo = [path for path in names if path.exists()]
    generated = [path for path in arguments.generator or [WORK / "demo-generator"] if path.exists()]
    model = load_model(arguments.clip)
    assert isinstance(model, ContrastiveModel)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        of_many = alone.submit(large).result()  # its peak is its own
    planted = planted_accuracy()
    describers = arguments.describer or ["grounded", "caption-pmi", "contrastive", "milan"]
    usual = DescribeConfig().describer
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        return {
            "clip": clip_evaluation.evaluate(model),
            "planted_accuracy": planted.soft_wpmi,
            "planted_accuracy_cosine": planted.cosine,
            "planted": planted_predicates(),
            "truth": {
                path.name: truth(path, directory, arguments.halves)
                for path in arguments.bundle or demo
            },
            "generator": generator_figures(generated, STEERING) if generated else {},
            **last_layer(model, directory),
            "dictionaries": {
                path.name: {
                    **labelled(path, usual, directory, arguments.units),
                    "compared": {
                        d: labelled(path, d, directory, arguments.compared) for d in describers
                    },
                }
                for path in arguments.bundle or demo
            },
            **speed(),
            "large": of_many,
            "peak_mb": _peak_mb(),
        }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, action="append", help="default: the demo's")
    parser.add_argument("--generator", type=Path, action="append", help="default: the demo's")
    parser.add_argument("--clip", default="demo:clip")
    parser.add_argument("--describer", action="append", help="to compare; default: three")
    parser.add_argument("--units", type=int, default=65536, help="at most so many of a bundle")
    parser.add_argument("--halves", type=int, default=1024, help="units described by both halves")
    parser.add_argument("--compared", type=int, default=96, help="units of a bundle for each")
    report(parser, measure)


if __name__ == "__main__":
    main()
