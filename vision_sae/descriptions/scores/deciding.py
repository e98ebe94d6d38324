"""Which scores may decide whether a label is given, and why the others only inform.

A score that judges a label must fall when the label's truth is damaged. Two checks ask for it, at
every firing rate from .0001 to .5: *missing*, where half of the pictures that the label fits are
said not to fit, and *extra*, where as many pictures again, that it does not fit, are said to fit. A
score that fails the first lets a label pass that is too narrow (a child's name for its parent); one
that fails the second, a label that is too wide ("object"). To fall means to lose a tenth at least
of the distance between the right label and one dealt out at random. A score that cannot be computed
of a damaged truth has fallen: no label is given without a score.

Source: Oikarinen et al., Evaluating Neuron Explanations: A Unified Framework with Sanity Checks
(NeuronEval), ICML 2025. The checks are run on this library's own scores, in the way that they are
computed here, by ``tests/unit/statistics/test_sanity_checks.py``, which asserts this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from vision_sae.descriptions.protocol import Metric

Check = Literal["missing", "extra"]
"""What was done to the truth of the right label."""


class Failure(NamedTuple):
    """Why a score decides nothing."""

    checks: frozenset[Check]
    """The checks that it fails at one firing rate or more."""
    because: str
    """How it fails them, for people to read."""


_MISSING: frozenset[Check] = frozenset({"missing"})
_EXTRA: frozenset[Check] = frozenset({"extra"})

DECIDES: frozenset[Metric] = frozenset({"correlation", "auprc", "f1", "iou"})
"""Scores that pass both checks at every rate. Average precision decides by what it has above its
control, the base rate: by itself it calls a label that fits every picture perfect."""

_DETECTION = Failure(
    _EXTRA,
    "It compares the strongest pictures with as many silent ones. Where a unit fires in a "
    "hundredth of all pictures or less, the pictures that a too wide label also fits are hardly "
    "ever drawn.",
)
_COSY = Failure(
    _MISSING,
    "It looks at the few pictures that the label finds first. A label that misses half of what the "
    "unit fires on still finds enough of it.",
)
INFORMS: Mapping[Metric, Failure] = MappingProxyType(
    {
        "pmi": Failure(
            _EXTRA,
            "The weighted form adds up the strongest pictures and subtracts how common the label "
            "is; at a hundredth of all pictures or less, a label twice as common costs nothing. It "
            "is also what its describer chose the label by.",
        ),
        "detection_auc": _DETECTION,
        "detection_balanced_accuracy": _DETECTION,
        "fuzzing_auc": Failure(
            _EXTRA,
            "It compares places of the pictures that fire the unit. What else the label fits in "
            "silent pictures is never looked at.",
        ),
        "simulation_pearson": Failure(
            _EXTRA,
            "It correlates patches of the pictures that fire the unit. What else the label fits in "
            "silent pictures is never looked at.",
        ),
        "intruder_accuracy": Failure(
            _MISSING | _EXTRA,
            "It takes no label: it says whether a unit's pictures belong together.",
        ),
        "cosy_auc": _COSY,
        "cosy_mean_difference": _COSY,
        "causal": Failure(
            _EXTRA,
            "It counts the random features that move a picture toward the label less. Where these "
            "are many, the few that a too wide label also fits hardly change the count.",
        ),
        "precision": Failure(
            _EXTRA,
            "It is the share of the strongest pictures that the label fits, less that of all "
            "pictures. A label of twice as many pictures fits the strongest as well, and where it "
            "is rare, its base rate is next to nothing either way.",
        ),
        "lift": Failure(
            _MISSING,
            "A label that misses half of what the unit fires on is half as common: the share of "
            "the strongest pictures and the base rate fall alike.",
        ),
        "silent_share": Failure(
            _MISSING,
            "It looks only at pictures that the label fits. What the unit fires on beside them is "
            "never looked at.",
        ),
    }
)
"""All other scores: they may be shown and decide nothing."""
