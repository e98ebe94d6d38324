"""Formats answers as plain, aligned text for a terminal; names are never shortened."""

from vision_sae_client.report.changes import generation, generation_progress, intervention
from vision_sae_client.report.features import (
    attribution,
    check_sum,
    description,
    encoding,
    faithfulness,
    features,
    is_guess,
    label,
    patches,
    score,
    statistics,
)
from vision_sae_client.report.service import job, model, news, server, unread

__all__ = [
    "attribution",
    "check_sum",
    "description",
    "encoding",
    "faithfulness",
    "features",
    "generation",
    "generation_progress",
    "intervention",
    "is_guess",
    "job",
    "label",
    "model",
    "news",
    "patches",
    "score",
    "server",
    "statistics",
    "unread",
]
