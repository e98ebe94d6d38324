"""Association between a unit's activation and the truth of a label over all pictures.

``activation`` is a unit's strongest value in each of N pictures, never negative, and 0 where the
unit is silent. ``truth`` is the degree, from 0 to 1, to which a label fits each picture; binary
statistics count a truth of `TRUE_FROM` or more as a yes. ``weights`` of the pictures are equal
when None; pictures of weight 0 are ignored. A statistic that is undefined for its arguments (a
constant truth, a label that fits no picture) is NaN.

Oikarinen et al., Evaluating Neuron Explanations (NeuronEval), ICML 2025, study which of these
statistics can tell true labels from false ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Integer, Shaped
from numpy.typing import NDArray
from scipy import sparse

PerPicture = Shaped[np.ndarray, " N"]
"""One number, or yes or no, for each of N pictures."""
Floats = NDArray[np.float64]

TRUE_FROM = 0.5
"""The least truth that counts as a yes."""
RESAMPLES = 1000
"""Number of resamples for an interval."""

_COVERAGE = (0.025, 0.975)
_UNKNOWN = (float("nan"), float("nan"))
"""The interval of an undefined statistic."""
_CONSTANT = 1e-12
"""A variance below this share of the mean square is rounding error: the numbers are constant."""
_ELEMENTS = 2**20
"""The most counts of resamples (8 bytes each) in memory at a time."""


# Statistics of the whole range of activations


def correlation(
    activation: PerPicture, truth: PerPicture, weights: PerPicture | None = None
) -> float:
    """Pearson's correlation of activation and truth, from -1 to 1; neither is thresholded.

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
    activations: sparse.csr_array, truths: Any, weights: PerPicture | None = None
) -> Float64[np.ndarray, "U T"]:
    """`correlation` of each of U units with each of T labels.

    ``activations`` (U, N) is a sparse matrix, which is not made dense; ``truths`` (T, N) is an
    array or a sparse matrix. The cost is one sparse product.
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
    """The variance from the mean and the mean square; NaN for constant numbers."""
    variance = mean_square - mean * mean
    return np.where(variance > _CONSTANT * mean_square, variance, np.nan)


def auprc(activation: PerPicture, truth: PerPicture, weights: PerPicture | None = None) -> float:
    """Average precision, from 0 to 1, of the activation as a ranking of the true pictures.

    The sum over distinct activations, from the largest, of the gain in recall times the precision
    so far; pictures of equal activation enter together, as in scikit-learn's
    ``average_precision_score``. Compare the result with `base_rate`, which a label without relation
    to the unit reaches; a label that fits every picture reaches 1. NaN when the label fits no
    picture. Source: Oikarinen et al. 2025.
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
    """Average precisions (B) from the weights of true pictures and of all pictures above each
    threshold (K, B); the last threshold admits all pictures."""
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    gains = np.diff(hits, axis=0, prepend=0)
    total = np.where(hits[-1] > 0, hits[-1], np.nan)
    return np.asarray((gains * precision).sum(0) / total)


# Statistics of firing or not


def firing_threshold(activation: PerPicture) -> float:
    """Median of the non-zero activations. Half of the pictures with a non-zero activation lie above
    the threshold, so faint activations do not count as firing. NaN, which no activation exceeds,
    for a unit that is silent everywhere."""
    values = np.asarray(activation)[np.asarray(activation) != 0]
    return float(np.median(values)) if len(values) else float("nan")


def f1(
    activation: PerPicture,
    truth: PerPicture,
    threshold: float,
    weights: PerPicture | None = None,
) -> float:
    """Harmonic mean of the precision and the recall of "the activation exceeds ``threshold``" as a
    prediction of the truth; NaN when no activation exceeds it and the label fits no picture."""
    fires, true, both = _overlap(activation, truth, threshold, weights)
    return 2 * both / (fires + true) if fires + true > 0 else float("nan")


def iou(
    activation: PerPicture,
    truth: PerPicture,
    threshold: float,
    weights: PerPicture | None = None,
) -> float:
    """Intersection over union of the pictures whose activation exceeds ``threshold`` and the
    pictures that the label fits; NaN when both sets are empty. Source: Bau et al., Network
    Dissection, CVPR 2017; Mu and Andreas 2020."""
    fires, true, both = _overlap(activation, truth, threshold, weights)
    return both / (fires + true - both) if fires + true > 0 else float("nan")


def _overlap(
    activation: PerPicture, truth: PerPicture, threshold: float, weights: PerPicture | None
) -> tuple[float, float, float]:
    """Weights of the pictures that fire the unit, that the label fits, and with both properties."""
    w, true = _weights(weights, len(activation)), _is_true(truth)
    fires = np.asarray(activation) > threshold
    return float(w[fires].sum()), float(w[true].sum()), float(w[fires & true].sum())


def precision_of_strongest(
    activation: PerPicture,
    truth: PerPicture,
    sources: Integer[np.ndarray, " N"],
    count: int = 20,
) -> tuple[float, int]:
    """(share that the label fits, number) of the ``count`` pictures with the largest activation,
    one of each source. Silent pictures are never among them; (NaN, 0) when all are silent."""
    a = np.asarray(activation)
    firing = np.flatnonzero(a > 0)
    ranked = firing[np.argsort(-a[firing], kind="stable")]
    _, first = np.unique(np.asarray(sources)[ranked], return_index=True)
    chosen = ranked[np.sort(first)[:count]]
    share = float(_is_true(truth)[chosen].mean()) if len(chosen) else float("nan")
    return share, len(chosen)


def base_rate(truth: PerPicture, weights: PerPicture | None = None) -> float:
    """Share of all pictures that the label fits: the value of `precision_of_strongest` and `auprc`
    for a label without relation to the unit."""
    return _share(_is_true(truth), _weights(weights, len(truth)))


def silent_share(
    activation: PerPicture, truth: PerPicture, weights: PerPicture | None = None
) -> float:
    """Among the pictures that the label fits, the share in which the unit is silent; lower is
    better. One minus this share is the recall of firing at all. NaN when the label fits no
    picture."""
    w, true = _weights(weights, len(activation)), _is_true(truth)
    return _share(np.asarray(activation)[true] == 0, w[true])


def _share(holds: NDArray[np.bool_], weights: Floats) -> float:
    total = weights.sum()
    return float(weights[holds].sum() / total) if total > 0 else float("nan")


def _is_true(truth: PerPicture) -> NDArray[np.bool_]:
    return np.asarray(truth) >= TRUE_FROM


def _weights(weights: PerPicture | None, count: int) -> Floats:
    return np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)


# Intervals over sources


def source_weights(sources: Integer[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    """Weights of pictures: the pictures of each source share a weight of 1, because crops of one
    photograph are one piece of evidence."""
    return _of_sources(sources)[1]


def bootstrap_by_source(
    statistic: Callable[[Floats], float],
    sources: Integer[np.ndarray, " N"],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """(lower, upper) of the 95 % percentile interval of ``statistic``, a function of weights (N).

    Each resample draws all S sources S times with replacement; the weight of a source is the number
    of times that it was drawn, and its pictures share that weight. The point estimate for the
    interval is therefore ``statistic(source_weights(sources))``. Resamples where the statistic is
    NaN are left out; both ends are NaN when all resamples are. The same seed draws the same
    resamples. Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13;
    clusters as in Davison and Hinkley 1997, section 3.8.
    """
    if not len(sources):
        return _UNKNOWN
    of_picture, weights = _of_sources(sources)
    drawn = _draws(int(of_picture.max()) + 1, resamples, seed)
    return _percentiles(np.array([statistic(weights * counts[of_picture]) for counts in drawn.T]))


def correlation_interval(
    activation: PerPicture,
    truth: PerPicture,
    sources: Integer[np.ndarray, " N"],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """`bootstrap_by_source` of `correlation`, with the same resamples, some hundred times faster.

    A correlation depends on five sums. A source whose pictures are all silent and false contributes
    0 to each sum, so the cost depends only on the other sources.
    """
    if not len(sources):
        return _UNKNOWN
    a, t = (np.asarray(x, dtype=np.float64) for x in (activation, truth))
    of_picture, weights = _of_sources(sources)
    count = int(of_picture.max()) + 1
    (nonzero,) = np.nonzero((a != 0) | (t != 0))
    a, t, source = a[nonzero], t[nonzero], of_picture[nonzero]
    terms = weights[nonzero] / count * np.stack([a, t, a * a, t * t, a * t])
    sums = np.stack([np.bincount(source, term, minlength=count) for term in terms])
    drawn, means = _draws(count, resamples, seed), np.zeros((len(terms), resamples))
    rows = np.unique(source)
    for block in np.array_split(rows, len(rows) * resamples // _ELEMENTS + 1):
        means += sums[:, block] @ drawn[block].astype(np.float64)
    return _percentiles(_pearson(*means))


class Sums(NamedTuple):
    """Sums over the patches of each of N pictures, for a correlation over all patches."""

    patches: PerPicture
    """Numbers of patches."""
    a: PerPicture
    """Sums of the activations."""
    t: PerPicture
    """Sums of the truths."""
    aa: PerPicture
    """Sums of the squared activations."""
    tt: PerPicture
    """Sums of the squared truths."""
    at: PerPicture
    """Sums of activation times truth."""


def patch_correlation(
    sums: Sums, sources: Integer[np.ndarray, " N"], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """(correlation over the patches of all pictures, lower, upper end of its interval).

    The patches of a picture share the picture's weight; resamples draw sources of pictures, as in
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


def auprc_of_firing(
    activation: Shaped[np.ndarray, " K"], truth: Shaped[np.ndarray, " K"], true: float, total: float
) -> float:
    """`auprc` from the K items that fire, with activations > 0, and the totals of all items: the
    label fits ``true`` of ``total`` items, including silent ones."""
    order = np.argsort(-np.asarray(activation), kind="stable")
    ends = np.append(np.diff(np.asarray(activation)[order]) != 0, True)[: len(order)]
    hits = np.cumsum(_is_true(truth)[order].astype(np.float64))[ends]
    seen = np.cumsum(np.ones(len(order)))[ends]
    hits, seen = np.append(hits, true)[:, None], np.append(seen, total)[:, None]
    return float(_average_precision(hits, seen)[0])


def _of_sources(sources: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], Floats]:
    """(sources of pictures, renumbered from 0 without gaps; weights of pictures), both (N)."""
    _, of_picture, sizes = np.unique(sources, return_inverse=True, return_counts=True)
    return of_picture, 1 / sizes[of_picture]


@lru_cache(maxsize=4)
def _draws(sources: int, resamples: int, seed: int) -> NDArray[np.uint8]:
    """How often each of S sources was drawn in each of B resamples (S, B).

    The array is stored source by source, so that the draws of a few sources are read fast.
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
