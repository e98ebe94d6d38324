"""A trained dictionary as a published directory: weights, and a manifest of what it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vision_sae
from vision_sae.activations.store import ActivationStore
from vision_sae.artifacts import DICTIONARY
from vision_sae.config import TrainConfig
from vision_sae.dictionaries.architectures import read_weights
from vision_sae.dictionaries.metrics import Metrics
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.files import published, publishing, verify_files

FORMAT, VERSION = DICTIONARY.format, DICTIONARY.version


def provenance(
    store: ActivationStore, site: str, training: TrainConfig | dict[str, Any]
) -> dict[str, Any]:
    """What a dictionary of ``store``'s model and site belongs to.

    ``training`` is the configuration it was trained with on ``store``, or what is known (JSON) of
    one that was trained elsewhere.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "code_version": vision_sae.__version__,
        "model": store.manifest["model"],
        "site": site,
        "data_sha256": store.manifest["data_sha256"],
        "training": (
            training.model_dump(mode="json") if isinstance(training, TrainConfig) else training
        ),
    }


def save_dictionary(
    directory: Path,
    dictionary: Dictionary,
    belongs_to: dict[str, Any],
    metrics: dict[str, Metrics],
) -> None:
    """Publish a dictionary with `provenance` and its metrics by data set name."""
    with publishing(directory) as (staging, manifest):
        manifest |= belongs_to
        manifest["dictionary"] = dictionary.save(staging)
        manifest["metrics"] = {name: m._asdict() for name, m in metrics.items()}


def read_dictionary_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a published dictionary; raises when there is none."""
    return DICTIONARY.manifest(directory)


def load_dictionary(directory: Path) -> tuple[Dictionary, dict[str, Any]]:
    """Load a published dictionary and its manifest, after checking every file's hash."""
    manifest = read_dictionary_manifest(directory)
    place = published(directory)
    verify_files(place, manifest["files"])
    return read_weights(place, manifest["dictionary"]), manifest
