"""Pointwise mutual information: how much more probable is the text for the unit's exemplars?

The describers `caption-pmi`, `contrastive` and `milan` choose labels by pmi and report it in nats,
each by a different formula. It is measured on the exemplars that the label was made from.
"""

from __future__ import annotations

from vision_sae.descriptions.kinds import EXTRA, FailedChecks, MetricKind, ScoreKind, register_score

PMI = register_score(
    ScoreKind(
        "pmi",
        (
            MetricKind(
                "pmi",
                FailedChecks(
                    EXTRA,
                    "The weighted form adds up the strongest pictures and subtracts a weighted log "
                    "prior; at a hundredth of all pictures or less, a label twice as common loses "
                    "nothing. The describer also chose the label by this number.",
                ),
            ),
        ),
        __doc__,
    )
)
