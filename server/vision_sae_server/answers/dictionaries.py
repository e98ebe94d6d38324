"""Dictionaries with their metrics, as messages of ``dictionary.proto``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_sae.dictionaries.kinds.neurons import NeuronBasis
from vision_sae.resources import site_resource
from vision_sae.v1 import (
    dictionary_pb2,
    measure_pb2,
)
from vision_sae_server.served import Served, Units

_OF_OUTPUTS = ("kl_div", "cosine_distance", "ce_loss")
"""Prefixes of the metrics that compare the model's outputs; see `Downstream.metrics`."""


def dictionary_message(units: Units) -> dictionary_pb2.Dictionary:
    """A dictionary with a summary of its descriptions; for a bundle, also metrics and index."""
    message = _of_bundle(units) if isinstance(units, Served) else _of_neurons(units)
    message.name = units.resource
    message.display_name = units.resource.removeprefix("dictionaries/")
    message.model = units.model.resource
    message.site = site_resource(units.model.model.name, units.evidence.site)
    labelled = units.labels.summary(units.evidence.name)
    if labelled.described or labelled.abstained:
        message.descriptions.CopyFrom(
            dictionary_pb2.DescriptionSummary(
                described=labelled.described,
                confirmed=labelled.confirmed,
                abstained=labelled.abstained,
                by_people=labelled.by_people,
                describers=labelled.describers,
            )
        )
    return message


def _of_neurons(units: Units) -> dictionary_pb2.Dictionary:
    """The dictionary of a site's raw neurons, which has no bundle."""
    width = units.evidence.width
    return dictionary_pb2.Dictionary(
        architecture=NeuronBasis.architecture, width=width, input_width=width
    )


def _of_bundle(served: Served) -> dictionary_pb2.Dictionary:
    """The dictionary of a bundle, filled from the bundle's manifest."""
    manifest = served.bundle.manifest
    index = manifest["patch_index"]
    size = sum(
        entry["bytes"] for path, entry in manifest["files"].items() if path.startswith("patches/")
    )
    message = dictionary_pb2.Dictionary(
        architecture=manifest["dictionary"]["architecture"],
        width=manifest["dictionary"]["width"],
        input_width=manifest["dictionary"]["dim"],
        k=manifest["dictionary"].get("k"),
        metrics=_metrics(manifest),
        patch_index=dictionary_pb2.PatchIndex(
            type=index["type"],
            size=index["rows"],
            recall_at_10=index["recall_at_10"],
            bytes_per_vector=size / max(index["rows"], 1),
            data_sets=sorted(set(served.bundle.data_sets.tolist()) - {""}),
        ),
        manifest_sha256=served.bundle.manifest_sha256,
    )
    message.create_time.FromDatetime(served.bundle.published_at)
    return message


def _metrics(manifest: Mapping[str, Any]) -> list[measure_pb2.Metric]:
    """The metrics of a dictionary on each data set, each with its chance level."""
    return [
        measure_pb2.Metric(
            name=f"{data}.{name}",
            value=value,
            control=_by_chance(name, values, manifest),
            count=_count(name, data, manifest),
        )
        for data, values in manifest["metrics"].items()
        for name, value in values.items()
        if name != "rows"
    ]


def _by_chance(name: str, values: Mapping[str, float], manifest: Mapping[str, Any]) -> float | None:
    """The chance level of a metric; None where it is not known."""
    if name == "monosemanticity":
        return values.get("monosemanticity_floor")
    return manifest["nearest_floor"] if name == "average_max_decoder_cosine_sim" else None


def _count(name: str, data: str, manifest: Mapping[str, Any]) -> int:
    """The number of patches, features or pictures that a metric was measured on."""
    evaluated = manifest.get("evaluations", {}).get(data, {})
    if name == "average_max_decoder_cosine_sim":
        return int(manifest["dictionary"]["width"])
    if name == "monosemanticity":
        return int(evaluated.get("monosemanticity_features", 0))
    if name == "monosemanticity_floor":
        return int(evaluated.get("images", 0))
    if name.startswith(_OF_OUTPUTS):
        return int(evaluated.get("downstream_images", 0))
    return int(manifest["metrics"][data]["rows"])
