"""Detection: does the text rank pictures that fire the unit before pictures that do not?

The value of a picture is the cosine of the text with the whole picture, plus the cosine with the
best window of the picture: some units fire on scenes, others on small things in large pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from jaxtyping import Float, Int64

from vision_sae.descriptions.kinds import (
    EXTRA,
    FailedChecks,
    MetricKind,
    ScoreKind,
    ScoreRequest,
    register_score,
)
from vision_sae.descriptions.protocol import Metric, Negatives, Score
from vision_sae.descriptions.scoring.scored import scored
from vision_sae.descriptions.scoring.similarity import (
    best_window_similarities,
    picture_similarities,
)
from vision_sae.evidence.probe import Probe
from vision_sae.statistics.ranking import auc, balanced_accuracy

_STATISTICS = {"detection_auc": auc, "detection_balanced_accuracy": balanced_accuracy}


def score(
    metrics: Iterable[Metric],
    probe: Probe,
    texts: Float[np.ndarray, "T E"],
    firing: Int64[np.ndarray, n],
    silent: Int64[np.ndarray, m],
    negatives: Negatives,
    *,
    seed: int,
) -> list[Score]:
    """Scores of the first of ``texts``; the other texts are the control.

    ``firing`` and ``silent`` are numbers of pictures. No scores when either is empty.
    """
    strata = (len(firing), len(silent))
    if 0 in strata:
        return []
    pictures = np.concatenate([firing, silent])
    values = picture_similarities(probe, pictures, texts)
    values += best_window_similarities(probe, pictures, texts)
    positive, negative = np.split(values, [len(firing)], axis=1)
    scores = []
    for metric in metrics:
        statistics = [
            partial(_STATISTICS[metric], p, n) for p, n in zip(positive, negative, strict=True)
        ]
        scores.append(scored(metric, statistics, strata, seed, negatives=negatives))
    return [s for s in scores if s is not None]


def _measure(request: ScoreRequest) -> list[Score]:
    """One comparison for each kind of silent pictures."""
    case = request.case
    return [
        result
        for kind in request.negatives
        for result in score(
            request.metrics,
            request.probe,
            request.texts,
            case.positives,
            case.negatives(kind),
            kind,
            seed=request.seed,
        )
    ]


_FAILURE = FailedChecks(
    EXTRA,
    "It compares the strongest pictures with as many silent pictures. When a unit fires in a "
    "hundredth of all pictures or less, the silent pictures that a too wide label fits are hardly "
    "ever drawn.",
)
DETECTION = register_score(
    ScoreKind(
        "detection",
        (
            MetricKind("detection_auc", _FAILURE),
            MetricKind("detection_balanced_accuracy", _FAILURE),
        ),
        __doc__,
        _measure,
        needs_negatives=True,
    )
)
