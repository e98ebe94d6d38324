"""Requests about the descriptions of features."""

from __future__ import annotations

from collections.abc import Sequence

from vision_sae.v1 import description_service_pb2 as pb
from vision_sae.v1.description_pb2 import Description, ScoreMetric, ScoreNegatives
from vision_sae.v1.exemplar_pb2 import ExemplarOptions
from vision_sae_client.requests.names import view
from vision_sae_client.values import sendable


@sendable
def describe_feature(
    name: str,
    *,
    describer: str = "",
    force: bool = False,
    metrics: Sequence[ScoreMetric.ValueType] = (),
    full: bool = False,
    exemplars: ExemplarOptions | None = None,
    request_id: str = "",
) -> pb.DescribeFeatureRequest:
    """The description of a feature."""
    return pb.DescribeFeatureRequest(
        feature=name,
        describer=describer,
        force=force,
        metrics=metrics,
        view=view(full),
        exemplars=exemplars,
        request_id=request_id,
    )


@sendable
def score_description(
    name: str,
    text: str,
    *,
    metrics: Sequence[ScoreMetric.ValueType] = (),
    negatives: Sequence[ScoreNegatives.ValueType] = (),
    sample_size: int = 0,
    seed: int = 0,
) -> pb.ScoreDescriptionRequest:
    """How well a text describes a feature."""
    return pb.ScoreDescriptionRequest(
        feature=name,
        text=text,
        metrics=metrics,
        negatives=negatives,
        sample_size=sample_size,
        seed=seed,
    )


@sendable
def update_description(
    name: str, text: str | None, *, reason: str = "", etag: str = "", request_id: str = ""
) -> pb.UpdateDescriptionRequest:
    """A person's description of a feature; a text of None, with a ``reason``, abstains."""
    description = Description(
        name=f"{name}/description",
        text=text,
        abstained=text is None,
        abstention_reason=reason,
        etag=etag,
    )
    return pb.UpdateDescriptionRequest(description=description, request_id=request_id)
