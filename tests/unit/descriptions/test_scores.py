"""Scores of labels: hand-worked statistics, and a planted world whose right texts are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from tests.worlds.contrastive import PlantedClip, evidence_of, random_cells
from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.protocol import Score
from vision_sae.descriptions.scores import cosy, detection, simulation
from vision_sae.descriptions.scores.fuzzing import wrong_region
from vision_sae.descriptions.scores.intruder import CHANCE, SHOWN, intruder_detected
from vision_sae.descriptions.scoring import texts
from vision_sae.descriptions.scoring.many import control_texts, score_many
from vision_sae.descriptions.scoring.sampling import ScoringCase
from vision_sae.descriptions.scoring.scorer import (
    CONTROLS,
    FEWEST,
    METRICS,
    Scorer,
    abstain,
    other_texts,
)
from vision_sae.descriptions.scoring.texts import TextEmbeddings
from vision_sae.errors import FeatureNotFoundError, InvalidInputError, MismatchError
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.probe import EMBEDDINGS, PATCHES, WEIGHTS, WINDOWS, Probe
from vision_sae.evidence.probe import FORMAT as PROBE_FORMAT
from vision_sae.evidence.probe import VERSION as PROBE_VERSION
from vision_sae.evidence.probe_pass import make_probe, windows_of
from vision_sae.evidence.protocol import split
from vision_sae.evidence.sources import Sources
from vision_sae.files import publishing
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.statistics.bootstrap import interval, plain
from vision_sae.statistics.ranking import auc, balanced_accuracy

# Ranking and intervals


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_auc_by_hand() -> None:
    # Of six pairs 3 > 2, 3 > 1, 3 > 0, 1 > 0 are won, 1 = 1 is half, 1 < 2 is lost.
    positives, negatives = numbers(3, 1), numbers(2, 1, 0)
    assert plain(partial(auc, positives, negatives), [2, 3]) == pytest.approx(4.5 / 6)


def test_balanced_accuracy_by_hand() -> None:
    # "Above 2" tells 1 of 2 positives and all negatives right: 3/4. "At least 1": 2/2 and 1/3.
    positives, negatives = numbers(3, 1), numbers(2, 1, 0)
    assert plain(partial(balanced_accuracy, positives, negatives), [2, 3]) == pytest.approx(0.75)


def test_numbers_that_tell_nothing_apart() -> None:
    same = numbers(1, 1)
    assert plain(partial(auc, same, same), [2, 2]) == 0.5
    assert plain(partial(balanced_accuracy, same, same), [2, 2]) == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_ranking_is_that_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    positives, negatives = (random.integers(0, 6, n).astype(np.float32) for n in (9, 14))
    truth, values = np.repeat([1, 0], [9, 14]), np.concatenate([positives, negatives])
    assert plain(partial(auc, positives, negatives), [9, 14]) == pytest.approx(
        roc_auc_score(truth, values)
    )
    best = max(balanced_accuracy_score(truth, values >= t) for t in range(7))
    assert plain(partial(balanced_accuracy, positives, negatives), [9, 14]) == pytest.approx(best)


def test_resampled_ranking_is_that_of_the_drawn_numbers() -> None:
    random = np.random.default_rng(0)
    positives, negatives = numbers(0.1, 0.7, 0.4), numbers(0.5, 0.1)
    for statistic in (auc, balanced_accuracy):
        drawn = random.multinomial(3, [1 / 3] * 3, size=4).astype(np.float32)
        against = random.multinomial(2, [1 / 2] * 2, size=4).astype(np.float32)
        expected = [
            plain(partial(statistic, np.repeat(positives, d), np.repeat(negatives, a)), [3, 2])
            for d, a in zip(drawn.astype(int), against.astype(int), strict=True)
        ]
        assert statistic(positives, negatives, drawn, against) == pytest.approx(expected)


def test_interval_is_that_of_scipy() -> None:
    random = np.random.default_rng(0)
    positives, negatives = random.normal(1, 1, 30), random.normal(0, 1, 40)
    ours = interval(partial(auc, positives, negatives), [30, 40], seed=0)
    theirs = scipy_bootstrap(
        (positives, negatives),
        lambda p, n, axis: (p[..., :, None] > n[..., None, :]).mean((-2, -1)),
        method="percentile",
        n_resamples=2000,
        rng=0,
    ).confidence_interval
    assert ours == pytest.approx(theirs, abs=0.02)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    # Two normal distributions, one of them shifted by d: AUC = Phi(d / sqrt 2).
    truth, random, covered = norm.cdf(1 / np.sqrt(2)), np.random.default_rng(0), 0
    for seed in range(200):
        positives, negatives = random.normal(1, 1, 24), random.normal(0, 1, 50)
        found = interval(partial(auc, positives, negatives), [24, 50], seed=seed)
        assert found is not None
        covered += found.lower <= truth <= found.upper
    assert 0.89 <= covered / 200 <= 0.99


def test_intervals_repeat_for_their_seed() -> None:
    statistic = partial(auc, numbers(1, 3, 5, 2), numbers(4, 0, 2))
    assert interval(statistic, [4, 3], 7) == interval(statistic, [4, 3], 7)
    wide = partial(auc, np.arange(24.0) % 7, np.arange(50.0) % 5)
    assert interval(wide, [24, 50], 7) != interval(wide, [24, 50], 8)


# The parts of single scores


def test_wrong_region_has_as_many_patches_and_none_of_the_right_ones() -> None:
    mask = np.zeros((4, 5), dtype=np.bool_)
    mask[1:3, 2:4] = True
    wrong = wrong_region(mask, np.random.default_rng(0))
    assert wrong.sum() == 4
    assert not (wrong & mask).any()


def test_wrong_region_of_a_mask_that_meets_itself_wherever_it_is_moved() -> None:
    # A full row and a full column: any place they are moved to crosses them. 8 of 16 are outside.
    mask = np.zeros((4, 4), dtype=np.bool_)
    mask[0], mask[:, 0] = True, True
    wrong = wrong_region(mask, np.random.default_rng(0))
    assert wrong.sum() == 7
    assert not (wrong & mask).any()


def test_wrong_region_of_a_mask_that_leaves_too_little_room() -> None:
    mask = np.ones((2, 3), dtype=np.bool_)
    mask[1, 1:] = False
    wrong = wrong_region(mask, np.random.default_rng(0))
    assert wrong.sum() == 4
    assert wrong[~mask].all()


def test_odd_one_out_by_hand() -> None:
    east, north = [1.0, 0.0], [0.0, 1.0]
    told, missed = [*[east] * (SHOWN - 1), north], [north, *[east] * (SHOWN - 1)]
    undecided = [east] * SHOWN
    shown = np.array([told, missed, undecided], dtype=np.float32)
    assert intruder_detected(shown).tolist() == [True, False, False]


def test_pearson_of_pictures_drawn_again_is_that_of_numpy() -> None:
    random = np.random.default_rng(0)
    predicted, true = random.normal(size=(2, 3, 8))
    predicted[1, :2] = np.nan  # two patches that the model was not shown
    sums = np.stack([simulation._sums(p, t) for p, t in zip(predicted, true, strict=True)])
    drawn = [2, 1, 0]
    x, y = (np.repeat(a, drawn, axis=0).ravel() for a in (predicted, true))
    shown = ~np.isnan(x)
    expected = np.corrcoef(x[shown], y[shown])[0, 1]
    counts = np.array([drawn], dtype=np.float32)
    assert simulation._pearson(sums, counts) == pytest.approx([expected])


def test_pearson_of_a_constant_is_undefined() -> None:
    sums = np.stack([simulation._sums(np.ones(4), np.arange(4.0))])
    assert np.isnan(simulation._pearson(sums, np.ones((1, 1), dtype=np.float32))).all()


def test_cosy_by_hand() -> None:
    # The control is 0, 0, 2, 2 with mean 1 and deviation 1. A peak of 2 is above two and level
    # with two of them: 3/4; its distance from the mean is one deviation.
    found, control = numbers(2, 3), numbers(0, 0, 2, 2)
    assert cosy.contributions("cosy_auc", found, control).tolist() == [0.75, 1]
    assert cosy.contributions("cosy_mean_difference", found, control).tolist() == [1, 2]
    assert np.isnan(cosy.contributions("cosy_mean_difference", found, numbers(1, 1))).all()


def test_cosy_finds_the_best_picture_of_each_source() -> None:
    similarities, sources = numbers(0.1, 0.9, 0.8, 0.5), np.array([0, 1, 1, 2])
    assert cosy.retrieve(similarities, sources, 2).tolist() == [1, 3]


# A planted world: pictures of one of eight things, in pairs that resemble each other. Unit u fires
# where thing u is; unit 8 fires in three pictures only, unit 9 anywhere.

NAMES = ("wolf", "dog", "pear", "apple", "train", "tram", "oak", "beech")
PICTURES, SIDE, DIM = 400, 4, 32
GRID = PatchGrid(rows=SIDE, cols=SIDE, special=0, patch_height=8, patch_width=8)
PREPROCESSING = Preprocessing(height=32, width=32)


class FakeModel:
    """A text is the vector of the thing it names."""

    name = "fake"
    embedding_dim = DIM
    grid = GRID

    def __init__(self, things: np.ndarray) -> None:
        self._things = things
        self.embedded: list[str] = []

    def identity(self) -> dict[str, object]:
        return {
            "name": self.name,
            "grid": GRID.to_json(),
            "preprocessing": PREPROCESSING.to_json(),
        }

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        self.embedded += texts
        return torch.from_numpy(self._things[[NAMES.index(text) for text in texts]])


def unit_length(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


class World:
    def __init__(self, directory: Path, *, crops: int = 1, fine: bool = False) -> None:
        """``crops``: pictures of each source; ``fine``: the unit's model has twice the patches."""
        random = np.random.default_rng(0)
        directions = np.linalg.qr(random.normal(size=(DIM, 12)))[0].T
        self.things = unit_length(np.repeat(directions[:4], 2, axis=0) + 0.4 * directions[4:])
        self.shows = random.integers(0, 8, PICTURES // crops).repeat(crops)
        if crops > 1:  # the last crop of each source shows something else
            self.shows[crops - 1 :: crops] = random.integers(0, 8, PICTURES // crops)
        corners = random.integers(0, SIDE - 1, (PICTURES, 2))
        where = np.zeros((PICTURES, SIDE, SIDE), dtype=np.bool_)
        for picture, (row, col) in enumerate(corners):
            where[picture, row : row + 2, col : col + 2] = True
        patches = 0.15 * random.normal(size=(PICTURES, SIDE, SIDE, DIM))
        patches += where[..., None] * self.things[self.shows][:, None, None]
        patches = patches.reshape(PICTURES, -1, DIM)
        pooled = unit_length(patches.mean(1) + 0.02 * random.normal(size=(PICTURES, DIM)))
        self.model = FakeModel(self.things)
        self.probe = self._probe(directory, patches, pooled)
        self.evidence = self._evidence(where, pooled, random, crops, 2 if fine else 1)
        self.scorer = Scorer(self.model, self.probe)  # type: ignore[arg-type]

    def _probe(self, directory: Path, patches: np.ndarray, pooled: np.ndarray) -> Probe:
        with publishing(directory) as (staging, manifest):
            np.save(staging / EMBEDDINGS, pooled)
            np.save(staging / PATCHES, patches.astype(np.float16))
            np.save(staging / WINDOWS, np.float16(windows_of(patches, self.model.grid)))
            np.save(staging / WEIGHTS, np.full(patches.shape[:2], 1 / SIDE**2, np.float16))
            manifest |= {"format": PROBE_FORMAT, "version": PROBE_VERSION, "data_sha256": "d" * 64}
            manifest["model"] = self.model.identity()
        return Probe(directory)

    def _evidence(
        self, where: np.ndarray, pooled: np.ndarray, random: np.random.Generator, crops: int, f: int
    ) -> ArrayEvidence:
        strength = random.uniform(1, 2, PICTURES)
        fires = np.zeros((10, PICTURES), dtype=np.float32)
        fires[self.shows, np.arange(PICTURES)] = strength
        fires[8, :3] = 1
        fires[9] = strength * (random.random(PICTURES) < 0.2)
        images = np.argsort(-fires, axis=1, kind="stable")[:, :48]
        peaks = np.take_along_axis(fires, images, 1)
        images[peaks == 0] = -1
        maps = where.repeat(f, 1).repeat(f, 2).reshape(PICTURES, -1)[images] * peaks[..., None]
        grid = PatchGrid(SIDE * f, SIDE * f, 0, 8 // f, 8 // f)
        return ArrayEvidence(
            name="models/fake/sites/x",
            identity=f"{crops}{f}",
            data_sha256="d" * 64,
            site="x",
            images=[
                ImageRecord(f"{i}.png", 32, 32, "", (), f"photograph {i // crops}")
                for i in range(PICTURES)
            ],
            grid=grid,
            preprocessing=PREPROCESSING,
            thumbnails=[b""] * PICTURES,
            embeddings=pooled,
            all_peaks=fires,
            firing_images=images,
            maps=maps.astype(np.float32),
            thresholds=np.full(10, 0.5),
        )

    def value(self, unit: int, text: str, metric: str, negatives: str = "random") -> float:
        (score,) = self.scorer.score(
            self.evidence,
            unit,
            text,
            [metric],
            negatives=[negatives],  # type: ignore[list-item]
        )
        return score.value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world") / "probe")


def test_right_text_scores_high(world: World) -> None:
    assert world.value(0, "wolf", "detection_auc") > 0.95
    assert world.value(0, "wolf", "detection_balanced_accuracy") > 0.9
    assert world.value(0, "wolf", "fuzzing_auc") > 0.95
    assert world.value(0, "wolf", "simulation_pearson") > 0.8
    assert world.value(0, "wolf", "cosy_auc") > 0.7  # some are dogs
    assert world.value(0, "wolf", "cosy_mean_difference") > 1


@pytest.mark.parametrize(
    ("metric", "chance", "within"),
    [
        ("detection_auc", 0.5, 0.25),
        ("fuzzing_auc", 0.5, 0.25),
        ("simulation_pearson", 0, 0.25),
        ("cosy_auc", 0.5, 0.15),
        ("cosy_mean_difference", 0, 0.6),
    ],
)
def test_texts_of_other_things_score_at_chance(
    world: World, metric: str, chance: float, within: float
) -> None:
    wrong = [world.value(u, NAMES[(u + 3) % 8], metric) for u in range(8)]
    assert np.mean(wrong) == pytest.approx(chance, abs=within)
    right = [world.value(u, NAMES[u], metric) for u in range(8)]
    assert min(right) > np.mean(wrong) + 0.2


def test_intruder_is_found_among_pictures_of_one_thing_and_not_of_any(world: World) -> None:
    same = [world.value(u, "dog", "intruder_accuracy") for u in range(8)]
    assert min(same) > 0.7
    # Unit 9 fires at random: its pictures do not belong together.
    assert world.value(9, "dog", "intruder_accuracy") == pytest.approx(CHANCE, abs=0.15)


def test_hard_negatives_are_harder(world: World) -> None:
    for metric in ("detection_auc", "detection_balanced_accuracy", "intruder_accuracy"):
        random, hard = (
            np.mean([world.value(u, NAMES[u], metric, kind) for u in range(8)])
            for kind in ("random", "hard")
        )
        assert hard < random


def test_permuted_control_is_at_chance_and_the_interval_above_it(world: World) -> None:
    labels = dict(enumerate(NAMES))
    scored = score_many(world.scorer, world.evidence, labels, progress=False)
    assert scored.summary.permuted_auc == pytest.approx(0.5, abs=0.1)
    assert scored.summary.detection_auc_random == pytest.approx(1, abs=0.05)
    assert scored.summary.detection_auc_hard is not None
    assert scored.summary.detection_auc_hard < scored.summary.detection_auc_random
    assert (scored.summary.share_labelled, scored.abstained) == (1, {})
    for scores in scored.scores.values():
        for score in scores:
            assert score.lower is not None
            assert score.upper is not None
            assert score.lower <= score.value <= score.upper


def test_scores_of_a_list_are_those_of_each_label(world: World) -> None:
    labels = dict(enumerate(NAMES))
    scored = score_many(world.scorer, world.evidence, labels, METRICS, progress=False)
    controls = control_texts(labels)
    for unit in (5, 2):
        alone = world.scorer.score(
            world.evidence, unit, labels[unit], METRICS, control_texts=controls[unit]
        )
        assert alone == scored.scores[unit]


def test_wrong_labels_and_units_without_pictures_abstain(world: World) -> None:
    labels = {0: "wolf", 1: "oak", 8: "wolf", 9: "pear", 4: "train"}
    scored = score_many(world.scorer, world.evidence, labels, progress=False)
    assert scored.abstained == {
        1: "score interval covers the control",
        8: f"1 independent pictures to score it on, fewer than {FEWEST}",
        9: "score interval covers the control",
    }
    assert scored.summary.share_labelled == pytest.approx(2 / 5)


def test_abstention_by_hand() -> None:
    good = Score("detection_auc", 0.8, 9, 0.7, 0.9, 0.6, "random")
    hard = Score("detection_auc", 0.4, 9, 0.3, 0.5, 0.6, "hard")
    assert abstain([hard, good]) == ""
    assert "control" in abstain([Score("detection_auc", 0.8, 9, 0.5, 0.9, 0.6, "random")])
    # Eight AUCs of 9 against 9 pictures by chance: their mean errs by sqrt(19 / 972 / 8) = .0494.
    assert "control" in abstain([Score("detection_auc", 0.8, 9, 0.649, 0.9, 0.6, "random")])
    assert abstain([Score("detection_auc", 0.8, 9, 0.65, 0.9, 0.6, "random")]) == ""
    assert "chance" in abstain([Score("detection_auc", 0.6, 9, 0.4, 0.8, None, "random")])
    assert "chance" in abstain([Score("detection_auc", 0.6, 9, 0.5, 0.8, 0.4, "random")])
    # A control of .4 is there by luck; chance takes its place, with the control's error.
    assert "chance" in abstain([Score("detection_auc", 0.7, 9, 0.549, 0.8, 0.4, "random")])
    assert abstain([Score("detection_auc", 0.7, 9, 0.55, 0.8, 0.4, "random")]) == ""
    assert "control" in abstain([Score("detection_auc", 0.1, 9, 0.0, 0.2, 0.6, "random")])
    assert "4 independent" in abstain([Score("detection_auc", 1, 4, 1, 1, 0.5, "random")])
    assert "0 independent" in abstain([hard])


def test_scores_come_by_metric_and_then_by_negatives(world: World) -> None:
    metrics = ("fuzzing_auc", "intruder_accuracy", "detection_auc")
    scores = world.scorer.score(
        world.evidence, 0, "wolf", metrics, negatives=("hard", "random"), control_texts=("oak",)
    )
    assert [(s.metric, s.negatives) for s in scores] == [
        ("fuzzing_auc", ""),
        ("intruder_accuracy", "hard"),
        ("intruder_accuracy", "random"),
        ("detection_auc", "hard"),
        ("detection_auc", "random"),
    ]
    # The intruder needs no text, so that no other text can be its control.
    assert [s.control is None for s in scores] == [False, True, True, False, False]


def test_control_is_the_mean_over_the_control_texts(world: World) -> None:
    (score,) = world.scorer.score(
        world.evidence,
        0,
        "wolf",
        ["detection_auc"],
        negatives=["random"],
        control_texts=("oak", "tram"),
    )
    others = [world.value(0, text, "detection_auc") for text in ("oak", "tram")]
    assert score.control == pytest.approx(np.mean(others))


def test_answers_do_not_depend_on_the_order_of_calls(tmp_path: Path) -> None:
    asked = [(0, "wolf"), (3, "apple"), (0, "oak")]
    answers = []
    for number, order in enumerate(itertools.permutations(range(3))):
        world = World(tmp_path / str(number))
        found = {
            i: world.scorer.score(world.evidence, *asked[i], METRICS, control_texts=["tram"])
            for i in order
        }
        answers.append([found[i] for i in range(3)])
    assert all(answer == answers[0] for answer in answers)


def test_seed_draws_other_pictures(world: World) -> None:
    scores = [
        world.scorer.score(world.evidence, 9, "dog", ["detection_auc"], seed=seed)
        for seed in (0, 1)
    ]
    assert scores[0] != scores[1]


def test_texts_are_embedded_once(world: World) -> None:
    world.scorer.score(world.evidence, 0, "wolf", ["detection_auc"], control_texts=["oak"])
    before = len(world.model.embedded)
    world.scorer.score(world.evidence, 1, "oak", ["detection_auc"], control_texts=["wolf"])
    assert len(world.model.embedded) == before


def test_more_texts_than_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_KEPT", 2)
    embed = TextEmbeddings(world.model)  # type: ignore[arg-type]
    for asked in (["wolf", "dog", "oak"], ["oak", "wolf"], []):
        expected = world.things[[NAMES.index(text) for text in asked]]
        assert np.array_equal(embed(asked), expected)


def test_texts_have_the_same_bits_in_any_company(world: World) -> None:
    class Companionable:
        """As real text towers do, it rounds otherwise in a larger batch."""

        embedding_dim = world.model.embedding_dim

        def embed_texts(self, given: Sequence[str]) -> torch.Tensor:
            return world.model.embed_texts(given) * (1 + 1e-6 * len(given))

    alone = TextEmbeddings(Companionable())(["wolf"])  # type: ignore[arg-type]
    together = TextEmbeddings(Companionable())(["dog", "wolf", "oak"])  # type: ignore[arg-type]
    assert np.array_equal(together[1], alone[0])


@pytest.mark.parametrize("crops", [1, 4])
def test_no_picture_is_scored_on_that_shares_a_source_with_another_or_with_a_describer(
    tmp_path: Path, crops: int
) -> None:
    evidence = World(tmp_path / "probe", crops=crops).evidence
    sources = Sources(evidence)
    for unit in range(8):
        case = ScoringCase(evidence, sources, unit, sample=50, seed=0)
        described = {f.image // crops for f in split(evidence, unit).describe}
        positive = [image // crops for image in case.positives.tolist()]
        assert len(positive) == len(set(positive)) > 0
        assert not described & set(positive)
        for kind in ("random", "hard"):
            negative = [image // crops for image in case.negatives(kind).tolist()]
            assert len(negative) == len(set(negative)) > 0
            assert not set(negative) & (described | set(positive))
            assert (evidence.peaks(unit)[case.negatives(kind)] == 0).all()
            assert not sources.for_describing[case.negatives(kind)].any()
        assert not described & {image // crops for image in case.undescribed.tolist()}


def test_score_says_how_many_pictures_it_rests_on(world: World) -> None:
    (score,) = world.scorer.score(
        world.evidence, 0, "wolf", ["detection_auc"], negatives=["random"], sample=7
    )
    assert score.n == 7


def test_maps_are_compared_on_the_grid_of_the_units_own_model(tmp_path: Path) -> None:
    coarse, fine = (World(tmp_path / str(f), fine=f) for f in (False, True))
    assert fine.evidence.grid.patches == 4 * coarse.evidence.grid.patches
    for metric in ("fuzzing_auc", "simulation_pearson"):
        values = [w.value(0, "wolf", metric) for w in (coarse, fine)]
        assert values[0] == pytest.approx(values[1], abs=0.05)


def test_map_on_a_finer_grid_repeats_each_patch(tmp_path: Path) -> None:
    world = World(tmp_path / "probe", fine=True)
    maps = np.arange(32, dtype=np.float32).reshape(2, SIDE, SIDE)
    found = simulation.on_evidence_grid(maps, world.probe, world.evidence, 0)
    np.testing.assert_allclose(found, maps.repeat(2, 1).repeat(2, 2), atol=1e-5)


def test_detection_looks_at_the_whole_picture_and_at_the_place_that_fits_best(
    tmp_path: Path,
) -> None:
    # 4 x 4 patches; the text is the first axis. Windows are centred on patches 0 and 2 of each
    # side, and those at the border are cut off.
    nowhere = np.tile([0.0, 1.0], (16, 1))
    corner, middle = nowhere.copy(), nowhere.copy()
    corner[0] = middle[10] = [2.0, 0.0]
    patches = np.stack([corner, middle, nowhere])
    grid = PatchGrid(4, 4, 0, 8, 8)
    windows = windows_of(patches, grid)
    expected = np.zeros((3, 4))
    expected[0, 0] = 1 / 4  # one of the 2 x 2 patches of the corner's window
    expected[1, 3] = 1 / 9  # the middle of a whole window
    np.testing.assert_allclose(windows[:, :, 0], expected, atol=1e-6)
    probe = SimpleNamespace(
        embeddings=np.array([[0.0, 1.0], [0.6, 0.8], [0.1, 1.0]], np.float32),
        windows=windows.astype(np.float16),
    )
    text = np.array([[1.0, 0.0]], np.float32)
    numbers = [0 + 1 / 4, 0.6 + 1 / 9, 0.1 + 0]
    for firing, silent in itertools.permutations(range(3), 2):
        (score,) = detection.score(
            ["detection_auc"],
            probe,  # type: ignore[arg-type]
            text,
            np.array([firing]),
            np.array([silent]),
            "random",
            seed=0,
        )
        assert score.value == float(numbers[firing] > numbers[silent])


def test_pictures_as_a_model_sees_them(tmp_path: Path) -> None:
    # Pictures of 2 x 2 things out of twelve, through thumbnails and a probe made of them.
    things = [*("red apple", "green pear", "old oak", "young beech", "grey wolf", "brown dog")]
    things += [*("blue train", "white tram", "tall tower", "small hut", "wet road", "dry sand")]
    cells = random_cells(160, 12, cells=2)
    evidence = evidence_of(cells, [[thing] for thing in range(12)])
    model = PlantedClip(things, cells=2)
    scorer = Scorer(model, make_probe(model, evidence, tmp_path / "probe", progress=False))
    scored = score_many(scorer, evidence, dict(enumerate(things)), METRICS, progress=False)
    assert scored.abstained == {}
    for unit in range(12):
        found = {(s.metric, s.negatives): s for s in scored.scores[unit]}
        assert found["detection_auc", "random"].value > 0.99
        assert found["fuzzing_auc", ""].value == 1
        assert found["simulation_pearson", ""].value > 0.9
        assert found["cosy_auc", ""].value > 0.9
    wrong = {unit: things[(unit + 5) % 12] for unit in range(12)}
    assert len(score_many(scorer, evidence, wrong, progress=False).abstained) >= 11


def test_control_texts_are_others_and_never_ones_own() -> None:
    labels = {4: "a dog", 7: "A dog", 9: "a cat", 12: "a bus", 30: "a tree"}
    controls = control_texts(labels, count=3)
    assert list(controls) == [4, 7, 9, 12, 30]
    assert set(controls[4]) == set(controls[7]) == {"a cat", "a bus", "a tree"}
    assert all(len(set(texts)) == 3 and labels[u] not in texts for u, texts in controls.items())
    assert control_texts(dict(reversed(labels.items()))) == controls
    assert control_texts({1: "a dog"}) == {1: []}
    assert control_texts({}) == {}


def test_nothing_to_score(world: World) -> None:
    scored = score_many(world.scorer, world.evidence, {}, progress=False)
    assert scored.summary.detection_auc_random is None
    assert (scored.summary.labels, scored.summary.share_labelled) == (0, 0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text": " "}, "text"),
        ({"text": "x" * 501}, "text"),
        ({"control_texts": [""]}, "text"),
        ({"metrics": ["pmi"]}, "metrics"),
        ({"negatives": ["easy"]}, "negatives"),
        ({"negatives": []}, "negatives"),
        ({"sample": 0}, "sample"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_requests_are_refused(world: World, change: dict[str, object], field: str) -> None:
    asked = {"text": "wolf", "metrics": ["detection_auc"]} | change
    with pytest.raises(InvalidInputError) as refused:
        world.scorer.score(world.evidence, 0, **asked)  # type: ignore[arg-type]
    assert refused.value.field == field


def test_units_that_do_not_exist_are_refused(world: World) -> None:
    for unit in (-1, 10):
        with pytest.raises(FeatureNotFoundError, match="units 0 to 9"):
            world.scorer.score(world.evidence, unit, "wolf", ["detection_auc"])


def test_probe_of_other_pictures_is_refused(world: World) -> None:
    other = replace(world.evidence, identity="o", data_sha256="e" * 64)
    with pytest.raises(MismatchError, match="other pictures"):
        world.scorer.score(other, 0, "wolf", ["detection_auc"])


def test_words_that_are_embedded_already_cost_nothing(world: World) -> None:
    asked: list[str] = []

    class Counting:
        embedding_dim = world.model.embedding_dim

        def embed_texts(self, texts: list[str]) -> torch.Tensor:
            asked.extend(texts)
            return world.model.embed_texts(texts)

    vectors = world.model.embed_texts(["wolf", "oak"]).numpy()
    centre = vectors.mean(0)
    embed = TextEmbeddings(Counting(), centre, words=["wolf", "oak"], vectors=vectors)  # type: ignore[arg-type]
    plain = TextEmbeddings(world.model, centre)  # type: ignore[arg-type]
    assert np.array_equal(embed(["oak", "dog", "wolf"]), plain(["oak", "dog", "wolf"]))
    assert asked == ["dog"]


def test_controls_are_other_texts_of_other_units() -> None:
    few = {0: "cat", 1: "dog", 2: "dog", 3: "fox", 4: "cat"}
    assert sorted(other_texts(few, 0, "fox", seed=1)) == ["cat", "dog"]  # the cat of unit 4
    assert other_texts({0: "cat"}, 0, "fox", seed=1) == []
    many = {unit: f"text {unit}" for unit in range(40)}
    drawn = other_texts(many, 0, "fox", seed=1)
    assert len(set(drawn)) == CONTROLS
    assert drawn == other_texts(many, 0, "fox", seed=1) != other_texts(many, 0, "fox", seed=2)
