"""Formats a server, its models and its label jobs."""

from __future__ import annotations

from collections.abc import Sequence

from vision_sae.v1.catalog_service_pb2 import GetServerInfoResponse
from vision_sae.v1.dictionary_pb2 import Dictionary
from vision_sae.v1.label_job_service_pb2 import (
    LabelJob,
    LabelJobState,
    WatchLabelJobResponse,
)
from vision_sae.v1.measure_pb2 import UnreadText
from vision_sae.v1.model_pb2 import Model
from vision_sae_client.report.features import label


def unread(text: UnreadText) -> str:
    """A warning about the end of a text that the model did not read, in one line."""
    return f"the model does not read the end of {text.field}: {text.unread!r}; shorten it"


def server(
    info: GetServerInfoResponse, models: Sequence[Model], dictionaries: Sequence[Dictionary]
) -> str:
    """A server with its models and dictionaries."""
    devices = [f"{name} ({product})" for name, product in sorted(info.device_names.items())]
    where = ", ".join(devices) or info.device  # a server of an earlier release sends no products
    lines = [f"vision_sae {info.version}, API {info.api_version}, on {where}"]
    lines += map(_model, models)
    for dictionary in dictionaries:
        labelled = dictionary.descriptions
        lines.append(
            f"  {dictionary.name}: {dictionary.width} features of {dictionary.site}, "
            f"{labelled.described} labelled, {labelled.confirmed} of them confirmed, "
            f"{labelled.abstained} abstained, "
            f"{dictionary.patch_index.size} patches indexed"
        )
    unserved = [
        f"{item.service.rpartition('.')[2]}.{item.rpc}"
        for item in info.capabilities
        if not item.served
    ]
    if unserved:
        lines.append(f"  not served here: {', '.join(unserved)}")
    return "\n".join(lines)


def _model(model: Model) -> str:
    line = f"  {model.name}: {model.source}, {model.parameters:,} parameters"
    return f"{line}, {len(model.sites)} sites"


def model(shown: Model) -> str:
    """One model with its preprocessing and the names of its classes."""
    size = shown.preprocessing
    lines = [
        _model(shown).strip(),
        f"  pictures of {size.width} x {size.height} pixels: {size.resize}",
        f"  embeddings of {shown.embedding_width} numbers",
    ]
    names = list(shown.class_names)
    lines += [f"  class {index}: {name}" for index, name in enumerate(names)]
    return "\n".join(lines if names else [*lines, "  no classes with names"])


def job(shown: LabelJob) -> str:
    """A label job in one line: its units, its describer and its progress."""
    about = shown.features.dictionary or f"{shown.neurons.model} {' '.join(shown.neurons.sites)}"
    state = LabelJobState.Name(shown.state).removeprefix("LABEL_JOB_STATE_").lower()
    progress = shown.progress
    line = (
        f"{shown.name} {state}, {about} by {shown.describer}: {progress.done} of {progress.total}, "
        f"{progress.labelled} labelled, {progress.abstained} abstained, {progress.failed} failed"
    )
    if progress.rate:
        line += f", {progress.rate:.1f} a second"
    if progress.HasField("remaining"):
        line += f", {progress.remaining.ToTimedelta().total_seconds():.0f} s left"
    if shown.creator:
        line += f", for {shown.creator}"
    return line + (f"; {shown.error.message}" if shown.error.message else "")


def news(message: WatchLabelJobResponse) -> str:
    """An event of a label job: a finished unit, or the progress."""
    if message.WhichOneof("content") == "label_job":
        return job(message.label_job)
    if message.unit.HasField("error"):
        return f"{message.unit.feature}: failed: {message.unit.error.message}"
    return f"{message.unit.feature}: {label(message.unit.description)}"
