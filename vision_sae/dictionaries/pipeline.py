"""Store -> trained, measured and published dictionary: what ``vision-sae train`` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vision_sae.activations.store import ActivationStore
from vision_sae.config import TrainConfig
from vision_sae.dictionaries.artifact import (
    provenance,
    read_dictionary_manifest,
    save_dictionary,
)
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.dictionaries.training import train
from vision_sae.errors import NotFoundError
from vision_sae.files import sha256_json

_EVALUATION_ROWS = 4096


def train_dictionary(
    store: ActivationStore,
    directory: Path,
    config: TrainConfig,
    evaluation: Mapping[str, ActivationStore],
    *,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Train on ``store``, measure on every store of ``evaluation``, publish at ``directory``.

    Returns the metrics by name. A dictionary that is already there with the same provenance is
    kept. The checkpoint of an interrupted run lies beside ``directory`` under a name that holds
    the hash of its provenance, so that another configuration never resumes from it.
    """
    site = store.site(config.site)
    belongs_to = provenance(store, site, config)
    try:
        found = read_dictionary_manifest(directory)
        if all(found[key] == value for key, value in belongs_to.items()):
            return dict(found["metrics"])
    except NotFoundError:
        pass
    directory.parent.mkdir(parents=True, exist_ok=True)
    run = sha256_json(belongs_to)[:12]
    checkpoint = directory.with_name(f".{directory.name}.{run}.checkpoint.safetensors")
    dictionary = train(store, config, checkpoint=checkpoint, progress=progress)
    metrics = {
        name: evaluate(dictionary, held.batches(site, _EVALUATION_ROWS))
        for name, held in evaluation.items()
    }
    save_dictionary(directory, dictionary, belongs_to, metrics)
    checkpoint.unlink(missing_ok=True)
    saved: dict[str, dict[str, Any]] = read_dictionary_manifest(directory)["metrics"]
    return saved
