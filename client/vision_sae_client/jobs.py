"""Builds label jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from vision_sae.errors import InvalidInputError
from vision_sae.v1.description_pb2 import ScoreMetric
from vision_sae.v1.label_job_service_pb2 import FeatureUnits, LabelJob, NeuronUnits
from vision_sae_client.requests.names import dictionary_name, model_name
from vision_sae_client.values import seconds, sendable


@sendable
def label_job(
    *,
    dictionary: str | None = None,
    filter: str = "",
    indices: Sequence[int] = (),
    model: str | None = None,
    sites: Sequence[str] = (),
    describer: str = "",
    force: bool = False,
    metrics: Sequence[ScoreMetric.ValueType] = (),
    max_units: int = 0,
    max_seconds: float = 0.0,
) -> LabelJob:
    """A job for features of a ``dictionary``, or for the neurons of ``sites`` of a ``model``.

    A job for a dictionary labels the features that pass ``filter`` and are among ``indices``, where
    these are given; without both, all features that fire. With ``force`` features get new labels
    even if the describer has labelled them before. A limit of 0 means no limit. Raises
    `InvalidInputError`.
    """
    if (dictionary is None) == (model is None):
        raise InvalidInputError("give either a dictionary or a model to label", field="units")
    job = LabelJob(describer=describer, force=force, metrics=metrics)
    if dictionary is not None:
        name = dictionary_name(dictionary)
        job.features.CopyFrom(FeatureUnits(dictionary=name, filter=filter, indices=indices))
    if model is not None:
        job.neurons.CopyFrom(NeuronUnits(model=model_name(model), sites=sites))
    if max_units:
        job.budget.max_units = max_units
    if max_seconds:
        limit = timedelta(seconds=seconds(max_seconds, "max_seconds"))
        job.budget.max_duration.FromTimedelta(limit)
    return job
