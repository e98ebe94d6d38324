"""Two sanity checks on every score: does it fall when the truth of the right label is damaged?

A concept is planted at a known rate, and a unit that fires on nine tenths of it and, at half the
strength, on a tenth as many other pictures. Then half of the true entries are set to 0 (missing) or
as many false ones to 1 (extra). Scores are computed by the library's own functions on the pictures
that the library would give them: all, the strongest, or the strongest and random silent ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch

from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.kinds import Check
from vision_sae.descriptions.protocol import Metric
from vision_sae.descriptions.scores import cosy, detection, fuzzing, intruder, simulation
from vision_sae.descriptions.scores.causal import CausalScorer
from vision_sae.descriptions.scoring.deciding import DECIDES, INFORMS
from vision_sae.descriptions.words.wpmi import soft_wpmi
from vision_sae.evidence.probe import Probe
from vision_sae.evidence.protocol import FIRINGS, Firing
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.statistics import association

RATES = (1e-4, 1e-3, 1e-2, 0.1, 0.5)
SEEDS = range(3)
MARGIN = 0.1
"""Of the distance between the right label and one dealt out at random."""
CHECKS: tuple[Check, ...] = get_args(Check)
TRUE = 48
"""Pictures with the concept, at least: half of them are as many as CoSy finds, and more."""

GRID = PatchGrid(4, 4, 1, 4, 4)
PREPROCESSING = Preprocessing(16, 16)
TEXT = np.array([[1, 0]], dtype=np.float32)


def damaged(truth: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
    """The right truth, the same with missing and with extra entries, and one dealt out anew."""
    flat = truth.reshape(-1)
    true, false = np.flatnonzero(flat), np.flatnonzero(~flat)
    missing, extra = flat.copy(), flat.copy()
    missing[random.permutation(true)[: len(true) // 2]] = False
    extra[random.permutation(false)[: len(true)]] = True
    versions = {
        "right": flat,
        "missing": missing,
        "extra": extra,
        "shuffled": random.permutation(flat),
    }
    return {name: version.reshape(truth.shape) for name, version in versions.items()}


class Pictures(NamedTuple):
    """A unit over N pictures."""

    activation: np.ndarray
    """(N)"""
    strongest: np.ndarray
    """Numbers of the pictures that its labels are scored on, as many as evidence keeps for it."""
    silent: np.ndarray
    """As many silent pictures."""
    truths: dict[str, np.ndarray]
    """Versions of the truth, each (N)."""


def some_of(items: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    return random.permutation(items)[: round(share * len(items))]


@cache
def pictures(rate: float, seed: int) -> Pictures:
    random = np.random.default_rng(seed)
    count = max(2000, round(TRUE / rate))
    truth = np.zeros(count, dtype=np.bool_)
    truth[random.permutation(count)[: round(rate * count)]] = True
    with_concept, without = np.flatnonzero(truth), np.flatnonzero(~truth)
    activation = np.zeros(count, dtype=np.float32)
    fires = some_of(with_concept, 0.9, random)
    stray = random.permutation(without)[: len(with_concept) // 10]
    activation[fires] = random.lognormal(0, 0.5, len(fires))
    activation[stray] = random.lognormal(0, 0.5, len(stray)) / 2
    strongest = np.argsort(-activation, kind="stable")[: FIRINGS // 2]
    silent = random.permutation(np.flatnonzero(activation == 0))[: FIRINGS // 2]
    return Pictures(activation, strongest, silent, damaged(truth, random))


class Patches(NamedTuple):
    """The same unit over the P patches of its n strongest pictures."""

    firings: list[Firing]
    truths: dict[str, np.ndarray]
    """Versions of the truth, each (n, P)."""


@cache
def patches(rate: float, seed: int) -> Patches:
    """A square of two by two patches fires the unit, and is what a label of the picture fits."""
    (activation, strongest, _, truths), random = pictures(rate, seed), np.random.default_rng(seed)
    squares = np.zeros((len(strongest), GRID.rows, GRID.cols), dtype=np.bool_)
    for square, (row, col) in zip(squares, random.integers(0, 3, (len(squares), 2)), strict=True):
        square[row : row + 2, col : col + 2] = True
    firings = [
        Firing(number, 0, float(peak), np.where(square, peak, 0), square)
        for number, (peak, square) in enumerate(zip(activation[strongest], squares, strict=True))
    ]
    flat = squares.reshape(len(squares), -1)
    return Patches(firings, {name: flat & t[strongest, None] for name, t in truths.items()})


class TruthAsCosine(Probe):
    """A probe of a contrastive model that is never wrong: the cosine of `TEXT` with a picture, a
    window or a patch is the truth there."""

    def __init__(self, *, pictures: np.ndarray | None = None, patches: np.ndarray | None = None):
        self.grid, self.preprocessing = GRID, PREPROCESSING
        if pictures is not None:
            self.embeddings = np.stack([pictures, ~pictures], axis=-1).astype(np.float32)
            self.windows = self.embeddings[:, None]
        if patches is not None:
            self.patches = np.stack([patches, ~patches], axis=-1).astype(np.float16)
            self.weights = np.ones(patches.shape, dtype=np.float16)


def evidence(count: int) -> Any:
    return SimpleNamespace(
        grid=GRID,
        images=[ImageRecord(str(n), 16, 16, "", ()) for n in range(count)],
        geometry=lambda image: PREPROCESSING.geometry(16, 16),
    )


# Each score of a damaged truth, where more is better


def of_all(figure: Callable[[np.ndarray, np.ndarray], float]) -> Callable[..., float]:
    """A figure of all pictures: activation and truth."""

    def score(rate: float, seed: int, version: str) -> float:
        world = pictures(rate, seed)
        return figure(world.activation, world.truths[version].astype(np.float32))

    return score


def f1(activation: np.ndarray, truth: np.ndarray) -> float:
    return association.f1(activation, truth, association.firing_threshold(activation))


def iou(activation: np.ndarray, truth: np.ndarray) -> float:
    return association.iou(activation, truth, association.firing_threshold(activation))


def precision(activation: np.ndarray, truth: np.ndarray) -> float:
    return association.precision_of_strongest(activation, truth, np.arange(len(truth)))[0]


def lift(activation: np.ndarray, truth: np.ndarray) -> float:
    return precision(activation, truth) / association.base_rate(truth)


def recall(activation: np.ndarray, truth: np.ndarray) -> float:
    return 1 - association.silent_share(activation, truth)


def wpmi(activation: np.ndarray, truth: np.ndarray) -> float:
    shown = torch.from_numpy(truth[np.argsort(-activation, kind="stable")[: FIRINGS // 2]])
    return float(soft_wpmi(shown[:, None], torch.tensor([truth.mean()])))


def detected(metric: Metric) -> Callable[..., float]:
    def score(rate: float, seed: int, version: str) -> float:
        world = pictures(rate, seed)
        probe = TruthAsCosine(pictures=world.truths[version])
        (found,) = detection.score(
            [metric], probe, TEXT, world.strongest, world.silent, "random", seed=0
        )
        return found.value

    return score


@cache
def found(rate: float, seed: int, version: str) -> dict[Metric, float]:
    activation, _, _, truths = pictures(rate, seed)
    probe, every = TruthAsCosine(pictures=truths[version]), np.arange(len(activation))
    scores = cosy.score(
        [metric.name for metric in cosy.COSY.metrics],
        probe,
        TEXT,
        activation,
        every,
        every // 4,
        seed=0,
    )
    return {score.metric: score.value for score in scores}


def simulated(rate: float, seed: int, version: str) -> float:
    firings, truths = patches(rate, seed)
    probe = TruthAsCosine(patches=truths[version])
    found = simulation.score(probe, evidence(len(firings)), TEXT, firings, seed=0)
    return 0.0 if found is None else found.value  # a label that fits no patch predicts none


def fuzzed(rate: float, seed: int, version: str) -> float:
    firings, truths = patches(rate, seed)
    probe, random = TruthAsCosine(patches=truths[version]), np.random.default_rng(seed)
    found = fuzzing.score(probe, evidence(len(firings)), TEXT, firings, random=random, seed=0)
    return float("nan") if found is None else found.value


def caused(rate: float, seed: int, version: str) -> float:
    """Pictures (1 + R, TRUE) of which the first row was drawn with the feature raised, and shows
    the concept, and the others with random features: the rate is 1 / (1 + R)."""
    random = np.random.default_rng(seed)
    truth = np.zeros((round(1 / rate), TRUE), dtype=np.bool_)
    truth[0, : round(0.9 * TRUE)] = True
    moved = damaged(truth, random)[version].astype(np.float32)[..., None]
    movements: Any = SimpleNamespace(
        compares=lambda _: True, of=lambda _: moved[0], others=lambda _: moved[1:]
    )
    found = CausalScorer(movements, lambda _: np.ones((1, 1), dtype=np.float32)).score(0, "concept")
    return float("nan") if found is None else found.value


SCORES: Mapping[Metric, Callable[..., float]] = {
    "pmi": of_all(wpmi),
    "detection_auc": detected("detection_auc"),
    "detection_balanced_accuracy": detected("detection_balanced_accuracy"),
    "fuzzing_auc": fuzzed,
    "simulation_pearson": simulated,
    "cosy_auc": lambda *case: found(*case)["cosy_auc"],
    "cosy_mean_difference": lambda *case: found(*case)["cosy_mean_difference"],
    "causal": caused,
    "correlation": of_all(association.correlation),
    "auprc": of_all(lambda a, t: association.auprc(a, t) - association.base_rate(t)),
    "f1": of_all(f1),
    "iou": of_all(iou),
    "precision": of_all(lambda a, t: precision(a, t) - association.base_rate(t)),
    "lift": of_all(lift),
    "silent_share": of_all(recall),
}


@cache
def mean(score: Callable[..., float], rate: float, version: str) -> float:
    return float(np.mean([score(rate, seed, version) for seed in SEEDS]))


def fall(score: Callable[..., float], check: Check, rate: float) -> float:
    """How far a damaged truth's score lies on the way from the right one's (0) to that of a truth
    dealt out at random (1); 1 where it is not defined."""
    right, found, chance = (mean(score, rate, version) for version in ("right", check, "shuffled"))
    return 1.0 if np.isnan(found) else (right - found) / (right - chance)


def failed(score: Callable[..., float]) -> set[Check]:
    """The checks that a score fails at one rate or more."""
    return {check for check in CHECKS if min(fall(score, check, r) for r in RATES) < MARGIN}


@pytest.mark.parametrize("metric", SCORES)
def test_table_says_what_the_checks_find(metric: Metric) -> None:
    assert failed(SCORES[metric]) == (INFORMS[metric].checks if metric in INFORMS else set())


def test_every_score_is_checked_and_either_decides_or_informs() -> None:
    metrics = set(get_args(Metric))
    assert metrics == {*SCORES, "intruder_accuracy"}
    assert metrics == DECIDES | set(INFORMS)
    assert not DECIDES & set(INFORMS)


def test_intruders_are_told_apart_without_a_label() -> None:
    # Whatever is done to a label's truth, the score stays: it fails both checks.
    assert "texts" not in inspect.signature(intruder.score).parameters
    assert INFORMS["intruder_accuracy"].checks == set(CHECKS)


def test_average_precision_decides_only_by_what_it_has_above_the_base_rate() -> None:
    # Of a concept in half of all pictures, as many false entries make a label that fits everything.
    assert failed(of_all(association.auprc)) == {"extra"}
    assert mean(of_all(association.auprc), 0.5, "extra") == 1
