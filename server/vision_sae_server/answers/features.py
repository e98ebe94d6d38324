"""Features in the views of the contract, as messages of ``feature.proto``."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from cachetools import LRUCache, cached

from vision_sae.bundles.statistics import QUANTILE_LEVELS
from vision_sae.labels.entries import Entry
from vision_sae.tensors import to_proto
from vision_sae.v1 import (
    exemplar_pb2,
    feature_pb2,
    measure_pb2,
)
from vision_sae_server.answers.descriptions import description_message
from vision_sae_server.answers.exemplars import exemplars
from vision_sae_server.answers.relations import related_features
from vision_sae_server.served import Served, Units

_BASIC_FEATURES = 16_384
"""Size of the cache of features in the basic view, of about 2 KB each."""


def feature_messages(
    served: Units,
    indices: Sequence[int],
    view: feature_pb2.FeatureView.ValueType,
    options: exemplar_pb2.ExemplarOptions,
) -> list[feature_pb2.Feature]:
    """Features with their current descriptions, in a view of the contract."""
    entries = served.labels.currents(served.evidence.name, indices)
    if view != feature_pb2.FEATURE_VIEW_FULL:
        return [_basic_feature(served, index, entries.get(index)) for index in indices]
    messages = []
    for index in indices:
        message = _feature(served, index, full=True)
        entry = entries.get(index)
        if entry is not None:
            earlier = served.labels.history(entry.unit)
            message.description.CopyFrom(description_message(served, entry, options, earlier))
        message.exemplars.extend(exemplars(served, index, options))
        if isinstance(served, Served):
            message.related.extend(related_features(served, index))
            message.metrics.extend(_feature_metrics(served, index))
        messages.append(message)
    return messages


def _feature(served: Units, index: int, *, full: bool) -> feature_pb2.Feature:
    return feature_pb2.Feature(
        name=f"{served.resource}/features/{index}",
        index=index,
        statistics=_statistics(served, index, full=full),
    )


@cached(
    LRUCache(_BASIC_FEATURES),
    key=lambda served, index, entry: (
        served.resource,
        served.evidence.identity,
        index,
        entry and entry.etag,
    ),
    lock=threading.Lock(),
)
def _basic_feature(served: Units, index: int, entry: Entry | None) -> feature_pb2.Feature:
    """A feature in the basic view. The cached message is shared by many answers: do not change
    it."""
    message = _feature(served, index, full=False)
    if entry is not None:
        message.description.CopyFrom(description_message(served, entry))
    return message


def _statistics(units: Units, index: int, *, full: bool) -> feature_pb2.FeatureStatistics:
    figures: dict[str, Any] = units.figures(index)
    message = feature_pb2.FeatureStatistics(**figures)
    if full and isinstance(units, Served):
        bundle, stats = units.bundle, units.bundle.statistics
        message.quantiles.extend(
            feature_pb2.Quantile(level=level, value=float(value))
            for level, value in zip(QUANTILE_LEVELS, stats.quantiles[index], strict=True)
        )
        _, values = bundle.postings.row(index)
        counts, edges = np.histogram(np.asarray(values, dtype=np.float32), bins=20)
        message.histogram.edges.CopyFrom(to_proto(edges.astype(np.float32)))
        message.histogram.counts.CopyFrom(to_proto(counts.astype(np.int64)))
    return message


def _feature_metrics(served: Served, index: int) -> list[measure_pb2.Metric]:
    """Further metrics of a feature, each with its chance level."""
    measured = served.monosemanticity(index)
    if measured is None:
        return []
    floor = served.monosemanticity_floor
    return [
        measure_pb2.Metric(
            name="monosemanticity",
            value=measured.value,
            lower=measured.lower,
            upper=measured.upper,
            control=None if math.isnan(floor) else floor,
            count=measured.images,
        )
    ]
