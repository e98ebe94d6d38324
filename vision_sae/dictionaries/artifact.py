"""A trained dictionary as a published directory: weights, and a manifest of what it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vision_sae.activations.store import ActivationStore
from vision_sae.artifacts import DICTIONARY
from vision_sae.config import TrainConfig
from vision_sae.dictionaries.architectures import checked, read_weights
from vision_sae.dictionaries.metrics import Metrics
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.files import published, publishing, verify_files
from vision_sae.version import CODE_VERSION

FORMAT, VERSION = DICTIONARY.format, DICTIONARY.version


def provenance(
    store: ActivationStore, site: str, training: TrainConfig | dict[str, Any]
) -> dict[str, Any]:
    """The manifest entries that say where a dictionary comes from: model, site, data, training.

    ``training`` is the configuration of a training on ``store``, or the known facts (JSON) about a
    training elsewhere. Raises `InvalidInputError` for settings that `checked` refuses.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "code_version": CODE_VERSION,
        "model": store.manifest["model"],
        "site": site,
        "data_sha256": store.manifest["data_sha256"],
        "training": (
            checked(training).model_dump(mode="json")
            if isinstance(training, TrainConfig)
            else training
        ),
    }


def save_dictionary(
    directory: Path,
    dictionary: Dictionary,
    belongs_to: dict[str, Any],
    metrics: dict[str, Metrics],
) -> None:
    """Publish a dictionary with its `provenance` and its metrics, by the name of the data set."""
    with publishing(directory) as (staging, manifest):
        manifest |= belongs_to
        manifest["dictionary"] = dictionary.save(staging)
        manifest["metrics"] = {name: m._asdict() for name, m in metrics.items()}


def read_dictionary_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a published dictionary; `vision_sae.artifacts` documents its errors."""
    return DICTIONARY.manifest(directory)


def load_dictionary(directory: Path) -> tuple[Dictionary, dict[str, Any]]:
    """Check the hashes of a published dictionary's files, and load (dictionary, manifest)."""
    manifest = read_dictionary_manifest(directory)
    place = published(directory)
    verify_files(place, manifest["files"])
    return read_weights(place, manifest["dictionary"]), manifest
