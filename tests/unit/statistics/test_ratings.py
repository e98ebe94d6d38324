"""What people's ratings amount to, on populations whose truth is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from vision_sae.statistics.proportions import wilson
from vision_sae.statistics.ratings import (
    ABSENT,
    Rated,
    assisted_correlation,
    assisted_estimate,
    correlation_of_ratings,
    importance,
    joint_correlation,
    median,
    proposal,
    rates,
    share_that_holds,
    truths,
)

PICTURES = 400


class Population(NamedTuple):
    """One label over all pictures."""

    activations: NDArray[np.float64]
    """Standardised."""
    fires: NDArray[np.bool_]
    holds: NDArray[np.bool_]
    chances: NDArray[np.float64]

    @property
    def correlation(self) -> float:
        return float(np.corrcoef(self.activations, self.holds)[0, 1])


def population(random: np.random.Generator, share: float = 0.05) -> Population:
    """A unit that fires in ``share`` of pictures, and a label that holds for strong ones mostly."""
    fires = np.arange(PICTURES) < share * PICTURES
    activations = np.where(fires, random.gamma(2, 1, PICTURES), 0)
    likely = np.where(fires, np.minimum(0.3 + 0.2 * activations, 1), 0.05)
    holds = random.random(PICTURES) < likely
    guesses = np.where(random.random(PICTURES) < 0.1, ~holds, holds) * 0.6 + 0.2
    chances = proposal(activations, guesses)
    standardised = (activations - activations.mean()) / activations.std()
    return Population(standardised, fires, holds, chances)


def drawn(
    label: Population, count: int, random: np.random.Generator
) -> tuple[Rated, NDArray[np.float64], NDArray[np.bool_]]:
    """(ratings of so many pictures, their truths, whether the unit fires there); two cells: silent
    pictures and others."""
    at = random.choice(PICTURES, count, p=label.chances)
    cells = label.fires.astype(np.int64)
    rated = Rated(
        label.activations[at],
        importance(label.chances[at], PICTURES),
        cells[at],
        np.bincount(cells, minlength=2) / PICTURES,
        np.bincount(cells, label.activations, 2) / PICTURES,
    )
    return rated, label.holds[at].astype(float), label.fires[at]


def test_pictures_are_drawn_by_distance_and_doubt() -> None:
    # Means 1 and .5. |a - 1| = 1, 1, 1, 3 and sqrt(p(1-p) + (p-.5)^2) = .5 for every p: shares 1/6,
    # 1/6, 1/6 and 1/2 of .9, and .1 / 4 each.
    chances = proposal(np.array([0.0, 0, 0, 4]), np.array([0.2, 0.8, 0.5, 0.5]))
    assert chances == pytest.approx([0.175, 0.175, 0.175, 0.475])


def test_pictures_of_a_constant_unit_are_drawn_alike() -> None:
    assert proposal(np.ones(4), np.full(4, 0.5)).tolist() == [0.25] * 4


def test_a_rating_weighs_the_less_the_likelier_its_picture_was() -> None:
    assert importance(np.array([0.25, 0.5]), 4).tolist() == [1, 0.5]


def test_the_estimate_of_one_label_is_unbiased_with_many_ratings() -> None:
    random = np.random.default_rng(0)
    label = population(random)
    found = [correlation_of_ratings(*drawn(label, 400, random)[:2]) for _ in range(200)]
    assert np.mean(found) == pytest.approx(label.correlation, abs=0.015)
    plain = [label.holds[at].mean() for at in random.choice(PICTURES, (200, 400), p=label.chances)]
    assert np.mean(plain) > label.holds.mean() + 0.1  # without weights it would not be


def test_all_labels_together_are_unbiased_with_few_ratings() -> None:
    # Each label centred: covariances and variances are averaged over labels.
    random = np.random.default_rng(1)
    labels = [population(random, share) for share in np.geomspace(0.01, 0.3, 60)]
    covariance = np.mean([(a.activations * a.holds).mean() for a in labels])
    truth = covariance / np.sqrt(np.mean([a.holds.var() for a in labels]))
    found, covered = [], []
    for _ in range(40):
        rated, holds, _ = zip(*(drawn(label, 6, random) for label in labels), strict=True)
        estimate = joint_correlation(rated, holds)
        found.append(estimate.value)
        covered.append(estimate.lower <= truth <= estimate.upper)
    assert np.mean(found) == pytest.approx(truth, abs=0.025)
    assert np.mean(covered) >= 0.85


def test_labels_lend_each_other_what_few_ratings_miss() -> None:
    random = np.random.default_rng(2)
    labels = [population(random, share) for share in np.geomspace(0.01, 0.1, 100)]
    truth = np.array([label.correlation for label in labels])
    rated, holds, _ = zip(*(drawn(label, 10, random) for label in labels), strict=True)
    usual = rates(rated, holds)
    assisted = np.array(
        [assisted_correlation(r, h, usual) for r, h in zip(rated, holds, strict=True)]
    )
    alone = np.array([correlation_of_ratings(r, h) for r, h in zip(rated, holds, strict=True)])
    assert np.median(alone) > np.median(truth) + 0.1
    assert np.median(assisted) == pytest.approx(np.median(truth), abs=0.1)
    assert np.square(assisted - truth).mean() < 0.7 * np.square(alone - truth).mean()


def test_the_interval_of_a_label_narrows_with_its_ratings() -> None:
    random = np.random.default_rng(3)
    label = population(random, 0.2)
    widths = []
    for count in (20, 320):
        rated, holds, _ = drawn(label, count, random)
        samples = np.tile(holds.astype(bool), (200, 1))
        estimate = assisted_estimate(rated, holds, samples, rates([rated], [holds]))
        widths.append(estimate.upper - estimate.lower)
        assert estimate.lower < label.correlation < estimate.upper
    assert widths[1] < widths[0] / 2


def test_the_share_that_holds_is_of_pictures_that_fire_a_unit() -> None:
    random = np.random.default_rng(4)
    labels = [population(random, 0.2) for _ in range(60)]
    truth = np.mean([label.holds[label.fires].mean() for label in labels])
    rated, holds, fires = zip(*(drawn(label, 40, random) for label in labels), strict=True)
    estimate = share_that_holds(rated, holds, fires)
    assert estimate.value == pytest.approx(truth, abs=0.03)
    assert estimate.lower < truth < estimate.upper


def test_a_constant_truth_correlates_with_nothing() -> None:
    rated, holds, _ = drawn(population(np.random.default_rng(5)), 20, np.random.default_rng(5))
    assert correlation_of_ratings(rated, np.ones_like(holds)) == 0
    assert assisted_correlation(rated, np.zeros_like(holds), np.zeros(2)) == 0


def rate(
    holds: NDArray[np.bool_], errors: list[list[float]], random: np.random.Generator
) -> NDArray[np.int64]:
    """The answers of a rater who says no, partly and yes with these probabilities by truth."""
    cumulative = np.cumsum(errors, axis=1)[holds.astype(int)]
    return np.asarray((random.random((len(holds), 1)) > cumulative).sum(1), dtype=np.int64)


CAREFUL = [[0.9, 0.05, 0.05], [0.02, 0.08, 0.9]]
SLOPPY = [[0.6, 0.1, 0.3], [0.1, 0.3, 0.6]]


def test_the_errors_of_two_raters_are_found() -> None:
    random = np.random.default_rng(0)
    holds = random.random(3000) < 0.4
    prior = np.where(random.random(3000) < 0.2, ~holds, holds) * 0.6 + 0.2
    answers = np.stack([rate(holds, errors, random) for errors in (CAREFUL, SLOPPY)])
    found = truths(prior, answers)
    assert found.errors.mean(0) == pytest.approx(np.array([CAREFUL, SLOPPY]), abs=0.05)
    # Their probabilities are calibrated, and better than the careful one's word alone.
    sure = found.mean > 0.9
    assert holds[sure].mean() == pytest.approx(found.mean[sure].mean(), abs=0.03)
    assert ((found.mean > 0.5) == holds).mean() > ((answers[0] == 2) == holds).mean()


def test_a_question_that_one_rater_skipped_rests_on_the_other() -> None:
    answers = np.array([[2, ABSENT, 0], [2, 2, ABSENT]])
    both, one, neither = truths(np.full(3, 0.5), answers).mean
    assert both > one > 0.5 > neither


def test_a_question_that_nobody_answered_keeps_its_prior() -> None:
    found = truths(np.array([0.3, 0.5]), np.array([[ABSENT, 2]]))
    assert found.mean[0] == pytest.approx(0.3, abs=0.05)


def test_a_bad_guess_is_not_held_against_raters() -> None:
    # Labels hold for half of the pictures, whatever was guessed.
    random = np.random.default_rng(1)
    holds = random.random(400) < 0.5
    prior = random.choice([0.2, 0.5], 400)
    answers = np.stack([rate(holds, errors, random) for errors in (CAREFUL, CAREFUL)])
    found = truths(prior, answers)
    assert found.errors.mean(0)[:, [0, 1], [0, 2]].min() > 0.8
    assert found.mean[holds].mean() > 0.9


def test_the_share_of_right_answers_has_an_interval() -> None:
    # Wilson 1927 with 8 of 10: .4902 to .9433.
    assert wilson(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 5).lower == 0
    assert wilson(5, 5).upper == 1


def test_a_median_has_the_interval_of_its_labels() -> None:
    assert median([0.2, 0.2, 0.2]) == (0.2, 0.2, 0.2)
    found = median(np.linspace(0, 1, 101).tolist())
    assert found.value == 0.5
    assert 0.3 < found.lower < 0.45 < 0.55 < found.upper < 0.7
