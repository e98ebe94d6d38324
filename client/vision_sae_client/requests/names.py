"""Resource names from whole or short names, and the views of features."""

from __future__ import annotations

from vision_sae.v1.feature_pb2 import FEATURE_VIEW_BASIC, FEATURE_VIEW_FULL, FeatureView


def dictionary_name(name: str) -> str:
    """``dictionaries/{dictionary}``, from the whole name or its last part."""
    return name if name.startswith("dictionaries/") else f"dictionaries/{name}"


def model_name(name: str) -> str:
    """``models/{model}``, from the whole name or its last part."""
    return name if name.startswith("models/") else f"models/{name}"


def job_name(name: str) -> str:
    """``labelJobs/{label_job}``, from the whole name or its last part."""
    return name if name.startswith("labelJobs/") else f"labelJobs/{name}"


def view(full: bool) -> FeatureView.ValueType:
    """The view of a feature: a ``full`` view has exemplars."""
    return FEATURE_VIEW_FULL if full else FEATURE_VIEW_BASIC
