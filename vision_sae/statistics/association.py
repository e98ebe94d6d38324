"""How well a unit's activation and the truth of a label go together over all pictures.

An activation (N) is a unit's strongest value in each of N pictures, 0 where the unit is silent and
never negative. A truth (N) says how far a label fits each picture, from 0 to 1; figures that need a
yes or a no take `TRUE_FROM` and more for a yes. A weight (N) says how much each picture counts, all
the same where it is None; pictures of weight 0 are not looked at. A figure that is not defined for
what it is given (a constant truth, a label that fits nothing) is NaN.

Which of these figures can tell a true label from a false one: Oikarinen et al., Evaluating Neuron
Explanations (NeuronEval), ICML 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Numbers = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]

TRUE_FROM = 0.5
"""The least truth that counts as a yes."""
RESAMPLES = 1000
"""Resamples that an interval is made of."""

_COVERAGE = (0.025, 0.975)
_UNKNOWN = (float("nan"), float("nan"))
"""The interval of what is undefined."""
_CONSTANT = 1e-12
"""A variance below this share of the mean square is rounding: the numbers are constant."""
_ELEMENTS = 2**20
"""Numbers of resamples (8 bytes each) that are worked on at a time."""


# Figures of the whole range


def correlation(activation: Numbers, truth: Numbers, weights: Numbers | None = None) -> float:
    """Pearson's correlation of activation (N) and truth (N), both as they are, from -1 to 1.

    NaN when either is constant. Source: Oikarinen and Weng, Linear Explanations for Individual
    Neurons, ICML 2024, who correlate simulated with true activations; Oikarinen et al. 2025.
    """
    w = _weights(weights, len(activation))
    counted = w > 0
    a, t, w = (np.asarray(x, dtype=np.float64)[counted] for x in (activation, truth, w))
    if not len(w) or np.ptp(a) == 0 or np.ptp(t) == 0:
        return float("nan")
    w = w / w.sum()
    a, t = a - w @ a, t - w @ t
    return float(np.clip((w * a) @ t / np.sqrt(((w * a) @ a) * ((w * t) @ t)), -1, 1))


def correlations(
    activations: sparse.csr_array, truths: Any, weights: Numbers | None = None
) -> Floats:
    """`correlation` of each of U units with each of T labels, (U, T), float64.

    ``activations`` (U, N) is a sparse matrix and is not made dense; ``truths`` (T, N) is an array
    or a sparse matrix. The cost is one sparse product.
    """
    a = sparse.csr_array(activations, dtype=np.float64)
    w = _weights(weights, a.shape[1])
    w = w / w.sum()
    if sparse.issparse(truths):
        t = sparse.csr_array(truths, dtype=np.float64)
        cross = (a @ (t * w).T.tocsr()).toarray()
        square = t * t
    else:
        t = np.asarray(truths, dtype=np.float64)
        cross = a @ np.ascontiguousarray((t * w).T)
        square = t * t
    return _pearson((a @ w)[:, None], t @ w, ((a * a) @ w)[:, None], square @ w, cross)


def _pearson(a: Floats, t: Floats, aa: Floats, tt: Floats, at: Floats) -> Floats:
    """Correlations from the means of activation, truth, their squares and their product."""
    of_a, of_t = _variance(a, aa), _variance(t, tt)
    return np.asarray(np.clip((at - a * t) / np.sqrt(of_a) / np.sqrt(of_t), -1, 1))


def _variance(mean: Floats, mean_square: Floats) -> Floats:
    """NaN for what is constant."""
    variance = mean_square - mean * mean
    return np.where(variance > _CONSTANT * mean_square, variance, np.nan)


def auprc(activation: Numbers, truth: Numbers, weights: Numbers | None = None) -> float:
    """Average precision, from 0 to 1: the ACTIVATION (N) ranks the pictures that the label fits.

    The sum over distinct activations, from the largest, of the gain in recall times the precision
    so far; pictures of equal activation enter together, as in scikit-learn's
    ``average_precision_score``. A label that has nothing to do with the unit reaches `base_rate`,
    and one that fits every picture reaches 1: read the figure against that rate. NaN when the label
    fits no picture. Source: Oikarinen et al. 2025.
    """
    if not len(activation):
        return float("nan")
    w, true = _weights(weights, len(activation)), _is_true(truth)
    order = np.argsort(-np.asarray(activation), kind="stable")
    ranked = np.asarray(activation)[order]
    last_of_ties = np.append(np.diff(ranked) != 0, True)
    hits = np.cumsum((w * true)[order])[last_of_ties]
    seen = np.cumsum(w[order])[last_of_ties]
    if not len(hits) or hits[-1] == 0:
        return float("nan")
    return float(_average_precision(hits[:, None], seen[:, None])[0])


def _average_precision(hits: Floats, seen: Floats) -> Floats:
    """From the weights of true and of all pictures down to each threshold (K, B), the last being
    all pictures: average precisions (B)."""
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    gains = np.diff(hits, axis=0, prepend=0)
    total = np.where(hits[-1] > 0, hits[-1], np.nan)
    return np.asarray((gains * precision).sum(0) / total)


# Figures of firing or not


def firing_threshold(activation: Numbers) -> float:
    """Median of the non-zero activations (N): half of the pictures that fire a unit at all lie
    above, so that faint traces do not count as firing. NaN, which nothing exceeds, for a unit that
    is silent everywhere."""
    values = np.asarray(activation)[np.asarray(activation) != 0]
    return float(np.median(values)) if len(values) else float("nan")


def f1(
    activation: Numbers, truth: Numbers, threshold: float, weights: Numbers | None = None
) -> float:
    """Harmonic mean of the precision and the recall of "the activation (N) exceeds ``threshold``"
    as a prediction of the truth; NaN when nothing exceeds it and nothing is true."""
    fires, true, both = _overlap(activation, truth, threshold, weights)
    return 2 * both / (fires + true) if fires + true > 0 else float("nan")


def iou(
    activation: Numbers, truth: Numbers, threshold: float, weights: Numbers | None = None
) -> float:
    """Intersection over union of the pictures whose activation (N) exceeds ``threshold`` and those
    that the label fits; NaN when there are neither. Source: Bau et al., Network Dissection, CVPR
    2017; Mu and Andreas 2020."""
    fires, true, both = _overlap(activation, truth, threshold, weights)
    return both / (fires + true - both) if fires + true > 0 else float("nan")


def _overlap(
    activation: Numbers, truth: Numbers, threshold: float, weights: Numbers | None
) -> tuple[float, float, float]:
    """Weights of the pictures that fire, that the label fits, and of which both hold."""
    w, true = _weights(weights, len(activation)), _is_true(truth)
    fires = np.asarray(activation) > threshold
    return float(w[fires].sum()), float(w[true].sum()), float(w[fires & true].sum())


def precision_of_strongest(
    activation: Numbers, truth: Numbers, sources: NDArray[np.integer[Any]], count: int = 20
) -> tuple[float, int]:
    """(share that the label fits, number) of the ``count`` pictures of largest activation (N), each
    of another source (N). Silent pictures are never among them; NaN and 0 when all are silent."""
    a = np.asarray(activation)
    firing = np.flatnonzero(a > 0)
    ranked = firing[np.argsort(-a[firing], kind="stable")]
    _, first = np.unique(np.asarray(sources)[ranked], return_index=True)
    chosen = ranked[np.sort(first)[:count]]
    share = float(_is_true(truth)[chosen].mean()) if len(chosen) else float("nan")
    return share, len(chosen)


def base_rate(truth: Numbers, weights: Numbers | None = None) -> float:
    """Share of all pictures (N) that the label fits: what `precision_of_strongest` and `auprc` come
    to for a label that has nothing to do with the unit."""
    return _share(_is_true(truth), _weights(weights, len(truth)))


def silent_share(activation: Numbers, truth: Numbers, weights: Numbers | None = None) -> float:
    """Share of the pictures that the label fits in which the activation (N) is 0; lower is better.
    One minus this share is the recall of firing at all. NaN when the label fits no picture."""
    w, true = _weights(weights, len(activation)), _is_true(truth)
    return _share(np.asarray(activation)[true] == 0, w[true])


def _share(holds: NDArray[np.bool_], weights: Floats) -> float:
    total = weights.sum()
    return float(weights[holds].sum() / total) if total > 0 else float("nan")


def _is_true(truth: Numbers) -> NDArray[np.bool_]:
    return np.asarray(truth) >= TRUE_FROM


def _weights(weights: Numbers | None, count: int) -> Floats:
    return np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)


# Intervals over sources


def source_weights(sources: NDArray[np.integer[Any]]) -> Floats:
    """Weights (N) of pictures by their sources (N): each source weighs one and its pictures share
    it, because crops of one photograph are one piece of evidence."""
    return _of_sources(sources)[1]


def bootstrap_by_source(
    statistic: Callable[[Floats], float],
    sources: NDArray[np.integer[Any]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """(lower, upper) of the 95 % percentile interval of ``statistic``, which takes weights (N).

    Each resample draws as many sources as there are, with replacement; the pictures of a source
    share the number of times that it was drawn. The value that belongs to the interval is thus
    ``statistic(source_weights(sources))``. Resamples where the statistic is NaN are left out; both
    ends are NaN when it always is. The same seed draws the same resamples. Source: Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; clusters as in Davison and
    Hinkley 1997, section 3.8.
    """
    if not len(sources):
        return _UNKNOWN
    of_picture, weights = _of_sources(sources)
    drawn = _draws(int(of_picture.max()) + 1, resamples, seed)
    return _percentiles(np.array([statistic(weights * counts[of_picture]) for counts in drawn.T]))


def correlation_interval(
    activation: Numbers,
    truth: Numbers,
    sources: NDArray[np.integer[Any]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """`bootstrap_by_source` of `correlation`, with the same resamples, some hundred times faster.

    A correlation is made of five sums. A source whose pictures are all silent and false adds to
    none, so the cost is that of the sources that have something to say.
    """
    if not len(sources):
        return _UNKNOWN
    a, t = (np.asarray(x, dtype=np.float64) for x in (activation, truth))
    of_picture, weights = _of_sources(sources)
    count = int(of_picture.max()) + 1
    (told,) = np.nonzero((a != 0) | (t != 0))
    a, t, source = a[told], t[told], of_picture[told]
    terms = weights[told] / count * np.stack([a, t, a * a, t * t, a * t])
    sums = np.stack([np.bincount(source, term, minlength=count) for term in terms])
    drawn, means = _draws(count, resamples, seed), np.zeros((len(terms), resamples))
    rows = np.unique(source)
    for block in np.array_split(rows, len(rows) * resamples // _ELEMENTS + 1):
        means += sums[:, block] @ drawn[block].astype(np.float64)
    return _percentiles(_pearson(*means))


class Sums(NamedTuple):
    """Of the patches of each picture (N): what a correlation over patches is made of."""

    patches: Floats
    """How many there are."""
    a: Floats
    """Sum of the activations."""
    t: Floats
    """Sum of the truths."""
    aa: Floats
    tt: Floats
    at: Floats
    """Sums of squares and products."""


def patch_correlation(
    sums: Sums, sources: NDArray[np.integer[Any]], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """(correlation over the patches of all pictures, lower, upper end of its interval).

    A picture's patches share its weight; pictures are drawn by their sources, as in
    `bootstrap_by_source`. NaN where activation or truth is constant.
    """
    of_picture, weights = _of_sources(sources)
    count = int(of_picture.max()) + 1
    each = np.maximum(sums.patches, 1)
    terms = [weights / count * np.asarray(x) / each for x in sums[1:]]
    by_source = np.stack([np.bincount(of_picture, term, minlength=count) for term in terms])
    a, t, aa, tt, at = by_source.sum(1)
    value = float(_pearson(a, t, aa, tt, at))
    drawn, means = _draws(count, resamples, seed), np.zeros((5, resamples))
    for block in np.array_split(np.arange(count), count * resamples // _ELEMENTS + 1):
        means += by_source[:, block] @ drawn[block].astype(np.float64)
    return value, *_percentiles(_pearson(*means))


def auprc_of_firing(activation: Numbers, truth: Numbers, true: float, total: float) -> float:
    """`auprc` where only what fires is listed: activations > 0 (K) and their truth (K), beside
    ``true`` of ``total`` items in all, the silent ones among them."""
    order = np.argsort(-np.asarray(activation), kind="stable")
    ends = np.append(np.diff(np.asarray(activation)[order]) != 0, True)[: len(order)]
    hits = np.cumsum(_is_true(truth)[order].astype(np.float64))[ends]
    seen = np.cumsum(np.ones(len(order)))[ends]
    hits, seen = np.append(hits, true)[:, None], np.append(seen, total)[:, None]
    return float(_average_precision(hits, seen)[0])


def auprc_interval(
    activation: Numbers,
    truth: Numbers,
    sources: NDArray[np.integer[Any]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """`bootstrap_by_source` of `auprc`, with the same resamples, many times faster.

    Silent pictures are tied for the last place: only their true weight is needed, by source.
    """
    if not len(sources):
        return _UNKNOWN
    a, true = np.asarray(activation), _is_true(truth)
    of_picture, weights = _of_sources(sources)
    count = int(of_picture.max()) + 1
    (firing,) = np.nonzero(a > 0)
    ranked = firing[np.argsort(-a[firing], kind="stable")]
    ends = np.flatnonzero(np.append(np.diff(a[ranked]) != 0, True)[: len(ranked)])
    true_of_source = np.bincount(of_picture[true], weights[true], minlength=count)
    rows = np.flatnonzero(true_of_source)
    drawn = _draws(count, resamples, seed)
    values = []
    width = max(len(ranked), len(rows), 1)
    for part in np.array_split(drawn, width * resamples // _ELEMENTS + 1, axis=1):
        weight = part[of_picture[ranked]] * weights[ranked, None]
        hits = np.cumsum(weight * true[ranked, None], axis=0)[ends]
        seen = np.cumsum(weight, axis=0)[ends]
        all_true = true_of_source[rows] @ part[rows].astype(np.float64)
        # Both sums of all true pictures are rounded: no gain may become negative.
        all_true = np.maximum(all_true, hits[-1]) if len(hits) else all_true
        everything = np.full(part.shape[1], float(count))
        values.append(
            _average_precision(np.vstack([hits, all_true]), np.vstack([seen, everything]))
        )
    return _percentiles(np.concatenate(values))


def _of_sources(sources: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], Floats]:
    """The sources of pictures (N), numbered from 0 without gaps, and the weights of pictures."""
    _, of_picture, sizes = np.unique(sources, return_inverse=True, return_counts=True)
    return of_picture, 1 / sizes[of_picture]


@lru_cache(maxsize=4)
def _draws(sources: int, resamples: int, seed: int) -> NDArray[np.uint8]:
    """How often each of S sources was drawn in each of B resamples (S, B).

    Stored by source, so that the draws of a few sources are read without the others'.
    """
    random = np.random.default_rng([seed, sources])
    drawn = np.empty((resamples, sources), dtype=np.uint8)
    for row in drawn:
        row[:] = np.bincount(random.integers(sources, size=sources), minlength=sources)
    drawn = np.ascontiguousarray(drawn.T)
    drawn.setflags(write=False)
    return drawn


def _percentiles(values: Floats) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    lower, upper = np.quantile(values, _COVERAGE)
    return float(lower), float(upper)
