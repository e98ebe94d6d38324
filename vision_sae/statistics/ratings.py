"""People's ratings: which pictures to ask about, how far to believe raters, what it amounts to.

Let a be a unit's activation on each of N pictures and c, 0 or 1, the truth of its label there. Few
pictures can be rated, so they are drawn with replacement by importance (`proposal`), and each
rating weighs 1 / (N q) in every moment (`importance`). Raters err: what they say together, and how
often each of them errs, is found by Gibbs sampling (`truths`).

Three estimates of the correlation between a and c are built on the weighted moments:

- `correlation_of_ratings` of one label uses its own ratings and nothing else. It is consistent, but
  flatters with fewer than some 60 ratings a label: a label that holds for one silent picture in
  fifty mostly has no such picture among a few ratings, and seems to hold only where it should.
- `assisted_correlation` of one label borrows from the ratings of all labels how often a label
  holds for pictures of each cell (cells: what was guessed, and whether the unit fires). The
  ratings of the label itself correct what was borrowed.
- `joint_correlation` is of all labels together. Its moments are unbiased for any number of
  ratings, two at least for each label.

On simulated labels (100 labels, 10 ratings each, true median .48) the medians were .68 and .43 for
the first two; for the third, .44 stood against a truth of .44.

Sources: Dawid & Skene, Maximum Likelihood Estimation of Observer Error-Rates Using the EM
Algorithm, 1979 (the model of raters); Paun et al., Comparing Bayesian Models of Annotation, 2018
(its Bayesian form); Beyond Top Activations, CVPR 2026 (the proposal); Särndal,
Swensson & Wretman, Model Assisted Survey Sampling, 1992 (the correction of what is borrowed).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from vision_sae.statistics.proportions import Estimate

Numbers = NDArray[np.float64]

Rating = Literal["no", "partly", "yes"]
RATINGS: tuple[Rating, ...] = get_args(Rating)
"""What a rater may say; answers are numbers of this list."""
ABSENT = -1
"""The answer of a rater who was not asked."""

_UNIFORM = 0.1
"""Share of the proposal that asks about any picture alike."""
_ERRORS = np.array([[8.5, 1.0, 0.5], [0.5, 1.0, 8.5]])
"""Pseudo-counts of (truth, answer) of every rater before the first answer: a Beta prior with a
third answer (a Dirichlet prior) that expects 85 % of answers to be plainly right, 5 % wrong."""
_BINS = 10
"""Guesses are calibrated in so many bins of equal width."""
_TRUST = 4.0
"""How many known truths a guess counts for in its bin: a Beta prior of how often labels hold."""
_BURN_IN = 100
_SWEEPS = 400
_BORROWED = 3.0
"""How many ratings of the usual weight the rate of all labels counts for in each cell."""
_LEAST_VARIANCE = 1e-9
"""Variance of a truth below which it counts as constant, and as uncorrelated with anything."""
_LEAST = 1e-12
"""Added to drawn probabilities, whose logarithms are taken."""
_RESAMPLES = 2000
_COVERAGE = (0.025, 0.975)


def proposal(activations: NDArray[Any], guesses: NDArray[Any]) -> Numbers:
    """The probability (N) with which each picture is drawn: high where the activation is far from
    its mean and the truth uncertain or unusual.

    ``guesses`` (N) are calibrated guesses that the label holds, made without the unit.
    """
    far = np.abs(activations - activations.mean())
    matters = far * np.sqrt(guesses * (1 - guesses) + (guesses - guesses.mean()) ** 2)
    uniform, total = np.full(len(matters), 1 / len(matters)), matters.sum()
    return uniform if total == 0 else _UNIFORM * uniform + (1 - _UNIFORM) * matters / total


def importance(probabilities: NDArray[Any], pictures: int) -> Numbers:
    """The weight of each rating, from the probability of its picture and the number of all."""
    return np.asarray(1 / (pictures * np.asarray(probabilities, dtype=np.float64)))


class Truths(NamedTuple):
    """What raters say together of n questions, and how they err; S samples of the posterior."""

    mean: Numbers
    """Probability that the label holds (n)."""
    samples: NDArray[np.bool_]
    """Whether it holds, in each sample (S, n)."""
    errors: Numbers
    """Probability of each answer of each rater, by truth (S, raters, 2, answers): the second row
    is of labels that hold."""


def truths(prior: NDArray[Any], answers: NDArray[np.integer], *, seed: int = 0) -> Truths:
    """Combine raters by Bayes.

    ``prior`` (n) is the probability, in (0, 1), that the label holds before anybody answered; it is
    calibrated on the way, in bins of similar guesses, by what raters say: where a guess of .2 is
    mostly wrong, raters are not taken to err. ``answers`` (raters, n) are numbers of `RATINGS`, or
    `ABSENT`.
    """
    random = np.random.default_rng(seed)
    said = np.stack([answers == number for number in range(len(RATINGS))], axis=2).astype(float)
    bins = np.minimum((np.asarray(prior) * _BINS).astype(np.int64), _BINS - 1)
    believed = _TRUST * np.array([_by_bin(bins, 1 - prior), _by_bin(bins, prior)])
    believed /= np.maximum(np.bincount(bins, minlength=_BINS), 1)
    answered = (answers != ABSENT).any(0)
    rate = np.asarray(prior, dtype=np.float64)
    errors = np.broadcast_to(_normalised(_ERRORS), (len(answers), *_ERRORS.shape))
    mean, samples, kept = np.zeros(len(rate)), [], []
    for sweep in range(_BURN_IN + _SWEEPS):
        evidence = np.log(errors[:, 1]) - np.log(errors[:, 0])
        odds = np.log(rate) - np.log1p(-rate) + np.einsum("rna,ra->n", said, evidence)
        probability = 1 / (1 + np.exp(-odds))
        holds = random.random(len(rate)) < probability
        by_truth = np.stack([~holds, holds]).astype(np.float64)
        errors = _drawn(random, np.einsum("rna,tn->rta", said, by_truth) + _ERRORS)
        known = np.array([_by_bin(bins, each * answered) for each in by_truth])
        rate = _drawn(random, (known + believed).T)[bins, 1]
        if sweep >= _BURN_IN:
            mean += probability / _SWEEPS
            samples.append(holds)
            kept.append(errors)
    return Truths(mean, np.stack(samples), np.stack(kept))


def _by_bin(bins: NDArray[np.int64], values: NDArray[Any]) -> Numbers:
    return np.asarray(np.bincount(bins, values, _BINS), dtype=np.float64)


def _drawn(random: np.random.Generator, counts: Numbers) -> Numbers:
    """Probabilities drawn from Dirichlet distributions, one in each row; none of them is 0."""
    return _normalised(random.standard_gamma(counts) + _LEAST)


def _normalised(rows: Numbers) -> Numbers:
    return np.asarray(rows / rows.sum(-1, keepdims=True))


class Rated(NamedTuple):
    """The pictures that were drawn for one label; n drawn of N, K cells."""

    activations: Numbers
    """Of the pictures drawn (n), in standard deviations from the mean over all pictures."""
    weights: Numbers
    """Of their ratings (n); see `importance`."""
    cells: NDArray[np.int64]
    """The cell of each (n)."""
    shares: Numbers
    """Share of all pictures that lie in each cell (K)."""
    moments: Numbers
    """Sum of the standardised activations in each cell, over N (K)."""


def correlation_of_ratings(rated: Rated, holds: Numbers) -> float:
    """The correlation of activation and truth by the ratings of one label alone: Pearson's, with
    weights. ``holds`` (n) are probabilities of the truth: the mean square of the truth, 0 or 1, is
    its mean. 0 where either is constant."""
    weights = rated.weights / rated.weights.sum()
    far = rated.activations - weights @ rated.activations
    share = float(weights @ holds)
    variance = share * (1 - share) * float(weights @ far**2)
    if variance < _LEAST_VARIANCE:
        return 0.0
    return float(np.clip(weights @ (far * holds) / np.sqrt(variance), -1, 1))


def rates(labels: Sequence[Rated], holds: Sequence[Numbers]) -> Numbers:
    """How often a label holds for the pictures of each cell (K), over the ratings of all labels; a
    cell without a rating has the rate of all cells together."""
    weights, cells, truth = (
        np.concatenate(parts)
        for parts in ([r.weights for r in labels], [r.cells for r in labels], holds)
    )
    count = len(labels[0].shares)
    total = np.bincount(cells, weights, count)
    true = np.bincount(cells, weights * truth, count)
    overall = true.sum() / total.sum()
    return np.where(total > 0, true / np.where(total > 0, total, 1), overall)


def assisted_correlation(
    rated: Rated, holds: NDArray[Any], usual: Numbers, chosen: NDArray[np.integer] | None = None
) -> Numbers:
    """The correlation of activation and truth of one label, with the help of `rates`.

    ``holds`` (..., n) are truths; ``chosen`` (..., n), the numbers of ratings in resamples, belongs
    to the same ratings. Gives one value for each leading index.
    """
    chosen = np.arange(len(rated.weights)) if chosen is None else chosen
    weights, activations = rated.weights[chosen], rated.activations[chosen]
    inside = np.eye(len(rated.shares))[rated.cells[chosen]]
    total, squares, true = (
        np.einsum("...n,...nk->...k", each, inside)
        for each in (weights, weights**2, weights * holds)
    )
    borrowed = _BORROWED * np.where(total > 0, squares / np.where(total > 0, total, 1), 1)
    rate = (true + borrowed * usual) / (total + borrowed)
    surprise = holds - np.einsum("...nk,...k->...n", inside, rate)
    covariance = rate @ rated.moments + (weights * activations * surprise).mean(-1)
    share = rate @ rated.shares
    return _ratio(covariance, share * (1 - share))


def _ratio(covariance: Numbers, variance: Numbers) -> Numbers:
    defined = variance >= _LEAST_VARIANCE
    value = covariance / np.sqrt(np.where(defined, variance, 1))
    return np.where(defined, np.clip(value, -1, 1), 0.0)


def assisted_estimate(
    rated: Rated, holds: Numbers, samples: NDArray[np.bool_], usual: Numbers, *, seed: int = 0
) -> Estimate:
    """`assisted_correlation` with an interval from resamples of the ratings, each with another
    sample of the truth: it covers the draw of the pictures and the doubt about the raters.

    ``holds`` (n) are probabilities of the truth and ``samples`` (S, n) samples of it.
    """
    chosen = np.random.default_rng(seed).integers(0, samples.shape[1], samples.shape)
    resampled = np.take_along_axis(samples, chosen, axis=1).astype(np.float64)
    value = float(assisted_correlation(rated, holds, usual))
    return _summary(assisted_correlation(rated, resampled, usual, chosen), value)


def joint_correlation(
    labels: Sequence[Rated], holds: Sequence[Numbers], *, seed: int = 0
) -> Estimate:
    """The correlation of activation and truth over the pictures of all labels together, each label
    centred; with an interval from resamples of the labels. Labels have two ratings at least."""
    moments = np.array([_moments(r, h) for r, h in zip(labels, holds, strict=True)])
    means = np.array([moments.mean(0), *_resampled(moments, seed)])
    values = _ratio(means[:, 0], means[:, 1])
    return _summary(values[1:], float(values[0]))


def _moments(rated: Rated, holds: Numbers) -> tuple[float, float]:
    """Unbiased (covariance with the standardised activation, variance of the truth)."""
    weighted = rated.weights * holds
    pairs = weighted.sum() ** 2 - (weighted**2).sum()
    squared_mean = pairs / (len(holds) * (len(holds) - 1))
    return float((weighted * rated.activations).mean()), float(weighted.mean() - squared_mean)


def share_that_holds(
    labels: Sequence[Rated],
    holds: Sequence[Numbers],
    fires: Sequence[NDArray[np.bool_]],
    *,
    seed: int = 0,
) -> Estimate:
    """In what share of the pictures that fire a unit its label holds, over all labels together;
    ``fires`` are as ``holds`` are. With an interval from resamples of the labels."""
    sums = np.array(
        [
            ((r.weights * h * f).mean(), (r.weights * f).mean())
            for r, h, f in zip(labels, holds, fires, strict=True)
        ]
    )
    means = np.array([sums.mean(0), *_resampled(sums, seed)])
    values = means[:, 0] / np.where(means[:, 1] > 0, means[:, 1], 1)
    return _summary(values[1:], float(values[0]))


def median(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The median of labels' figures, with an interval from resamples of the labels; NaN of none."""
    rows = np.asarray(values, dtype=np.float64)
    if not len(rows):
        return Estimate(float("nan"), float("nan"), float("nan"))
    chosen = np.random.default_rng(seed).integers(0, len(rows), (_RESAMPLES, len(rows)))
    return _summary(np.median(rows[chosen], axis=1), float(np.median(rows)))


def _resampled(rows: Numbers, seed: int) -> Numbers:
    """Means of resamples of the rows."""
    counts = np.random.default_rng(seed).multinomial(
        len(rows), np.full(len(rows), 1 / len(rows)), size=_RESAMPLES
    )
    return np.asarray(counts @ rows / len(rows))


def _summary(resamples: Numbers, value: float) -> Estimate:
    lower, upper = np.quantile(resamples, _COVERAGE)
    return Estimate(value, float(lower), float(upper))
