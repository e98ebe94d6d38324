"""The scores that may decide about a label, and the scores that only inform, with the reason.

A score that decides must fall when the label's truth is damaged. Two checks test this at every
firing rate from .0001 to .5. In *missing*, half of the pictures that the label fits are marked as
not fitting. In *extra*, equally many pictures that the label does not fit are marked as fitting. A
score that fails *missing* accepts too narrow labels (a hyponym); a score that fails *extra*
accepts too wide labels ("object"). A score falls when it loses at least a tenth of the
distance between the right label and a random label. A score that is undefined for a damaged truth
has fallen: without a score there is no label.

Source: Oikarinen et al., Evaluating Neuron Explanations: A Unified Framework with Sanity Checks
(NeuronEval), ICML 2025. ``tests/unit/statistics/test_sanity_checks.py`` runs the checks on the
scores of this library, as this library computes them, and compares the results with the failures
that `vision_sae.descriptions.scores` declares.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vision_sae.descriptions.kinds import FailedChecks, score_kinds
from vision_sae.descriptions.protocol import Metric

_METRICS = [metric for kind in score_kinds() for metric in kind.metrics]

DECIDES: frozenset[Metric] = frozenset(m.name for m in _METRICS if m.failure is None)
"""Metrics that pass both checks at every rate. Average precision decides by its difference from the
control, the base rate: the plain value is perfect for a label that fits every picture."""

INFORMS: Mapping[Metric, FailedChecks] = MappingProxyType(
    {m.name: m.failure for m in _METRICS if m.failure is not None}
)
"""All other metrics: these inform and decide nothing."""
