"""Store -> trained, measured and published dictionary: what ``vision-sae train`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vision_sae.activations.store import ActivationStore
from vision_sae.config import TrainConfig
from vision_sae.dictionaries.artifact import (
    FORMAT,
    load_dictionary,
    provenance,
    read_dictionary_manifest,
    save_dictionary,
)
from vision_sae.dictionaries.ensemble import Bagging, Boosting, residual_after
from vision_sae.dictionaries.factorise import FACTORISATIONS, factorise
from vision_sae.dictionaries.metrics import Metrics, evaluate
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.distributed import Group, join_group
from vision_sae.dictionaries.training.end_to_end import train_end_to_end
from vision_sae.dictionaries.training.loop import train, train_together
from vision_sae.dictionaries.training.scaling import input_scaling
from vision_sae.errors import InvalidInputError
from vision_sae.files import sha256_json
from vision_sae.models.protocol import Model
from vision_sae.pictures.reading import Reading
from vision_sae.places import check_collection, check_output, check_replaceable

_EVALUATION_ROWS = 4096


class Spliced(NamedTuple):
    """What end-to-end training runs: a model, and pictures made ready for it."""

    model: Model
    pictures: Sequence[Tensor]
    """(3, H, W) each."""


def splice(store: ActivationStore, images: Path, reading: Reading | None = None) -> Spliced:
    """The model of ``store`` and the pictures below ``images``, ready for end-to-end training.

    Files that cannot be read are left out and told to ``reading``; without one they are refused.
    Raises `MismatchError` when the model that answers to the store's name has other weights.
    """
    from vision_sae.models.bound import load_bound_model
    from vision_sae.pictures.folder import image_folder

    account = Reading(strict=True) if reading is None else reading
    found = image_folder(images, reading)
    model = load_bound_model(store.manifest["model"])
    return Spliced(model, account.all(found, model.preprocess))


def _boost(
    store: ActivationStore, members: Sequence[TrainConfig], checkpoints: Path, progress: bool
) -> Boosting:
    """Train each member on what those before it leave over."""
    done: list[Dictionary] = []
    for number, config in enumerate(members):
        stage = train_together(
            store,
            [config],
            checkpoint=checkpoints / f"stage-{number}.safetensors",
            progress=progress,
            transform=partial(residual_after, tuple(done)) if done else None,
        )
        done += stage.dictionaries
    return Boosting(done)


def make_dictionary(
    store: ActivationStore,
    config: TrainConfig,
    checkpoints: Path,
    *,
    spliced: Spliced | None = None,
    progress: bool = True,
) -> Dictionary:
    """Train or fit what ``config`` describes; unfinished work lies in ``checkpoints``."""
    site = store.site(config.site)
    if config.architecture in FACTORISATIONS:
        return factorise(
            store, config.architecture, site=site, k=config.k, seed=config.seed, progress=progress
        )
    members = [
        config.model_copy(update={"seed": config.seed + i, "members": 1, "ensemble": "none"})
        for i in range(config.members)
    ]
    checkpoint = checkpoints / "training.safetensors"
    if config.ensemble == "boosting":
        return _boost(store, members, checkpoints, progress)
    if config.ensemble == "bagging":
        made = train_together(store, members, checkpoint=checkpoint, progress=progress)
        return Bagging(made.dictionaries)
    dictionary = train(store, config, checkpoint=checkpoint, progress=progress)
    if not config.end_to_end.steps:
        return dictionary
    if spliced is None or not isinstance(dictionary, Sae):
        raise InvalidInputError(
            "end-to-end training needs the model's pictures (--images) and a k-sparse architecture",
            field="end_to_end",
        )
    return train_end_to_end(
        spliced.model,
        site,
        spliced.pictures,
        dictionary,
        input_scaling(store, site),
        config,
        checkpoint=checkpoints / "end-to-end.safetensors",
        progress=progress,
    )


def _published(
    directory: Path, belongs_to: Mapping[str, Any], inputs: Sequence[Path], overwrite: bool
) -> dict[str, Any] | None:
    """The manifest of the dictionary that is there, if it has just this provenance.

    Raises `AlreadyExistsError` for another one, unless ``overwrite`` lets it be replaced, and for
    anything else that is there.
    """
    found = check_output(directory, FORMAT, inputs=inputs, field="dictionary")
    if found is not None and all(found.get(k) == v for k, v in belongs_to.items()):
        return found
    check_replaceable(directory, found, overwrite=overwrite, field="dictionary")
    return None


def _inputs(store: ActivationStore, evaluation: Mapping[str, ActivationStore]) -> list[Path]:
    return [store.path, *(held.path for held in evaluation.values())]


def _discard(checkpoints: Path) -> None:
    """Delete the checkpoints of a training that is done, and their folder."""
    for path in checkpoints.glob("*.safetensors"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody's file is in it
        checkpoints.rmdir()


def _measured(
    dictionary: Dictionary, site: str, evaluation: Mapping[str, ActivationStore]
) -> dict[str, Metrics]:
    return {
        name: evaluate(dictionary, held.batches(site, _EVALUATION_ROWS))
        for name, held in evaluation.items()
    }


def train_dictionary(
    store: ActivationStore,
    directory: Path,
    config: TrainConfig,
    evaluation: Mapping[str, ActivationStore],
    *,
    spliced: Spliced | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> dict[str, dict[str, float]]:
    """Train on ``store``, measure on every store of ``evaluation``, publish at ``directory``.

    Returns the metrics by name. A dictionary that is already there with the same provenance is
    kept, and measured again only if the stores of ``evaluation`` are others; one of another
    provenance is replaced only with ``overwrite``. The checkpoints of an
    interrupted run lie beside ``directory`` under a name that holds the hash of its provenance, so
    that another configuration never resumes from them. Under torchrun every process trains and the
    first one publishes.
    """
    group = join_group()
    site = store.site(config.site)
    belongs_to = provenance(store, site, config)
    measured_on = {name: held.manifest["data_sha256"] for name, held in evaluation.items()}
    found = _published(directory, belongs_to, _inputs(store, evaluation), overwrite)
    group.wait()  # until all have looked: the first to finish publishes
    if found is None or found.get("measured_on") != measured_on:
        for held in evaluation.values():
            held.check_varies(site)
        directory.parent.mkdir(parents=True, exist_ok=True)
        run = sha256_json(belongs_to)[:12]
        checkpoints = directory.with_name(f".{directory.name}.{run}.checkpoints")
        if found is None:
            checkpoints.mkdir(exist_ok=True)
            dictionary = make_dictionary(
                store, config, checkpoints, spliced=spliced, progress=progress
            )
        else:
            dictionary, _ = load_dictionary(directory)
        _publish(group, directory, dictionary, belongs_to, measured_on, evaluation, site)
        if group.leads:
            _discard(checkpoints)
        group.wait()
    saved: dict[str, dict[str, Any]] = read_dictionary_manifest(directory)["metrics"]
    return saved


def _publish(
    group: Group,
    directory: Path,
    dictionary: Dictionary,
    belongs_to: dict[str, Any],
    measured_on: dict[str, str],
    evaluation: Mapping[str, ActivationStore],
    site: str,
) -> None:
    """Measure and publish, in the process that leads."""
    if group.leads:
        metrics = _measured(dictionary, site, evaluation)
        save_dictionary(directory, dictionary, belongs_to | {"measured_on": measured_on}, metrics)


def sweep(
    store: ActivationStore,
    directory: Path,
    configs: Mapping[str, TrainConfig],
    evaluation: Mapping[str, ActivationStore],
    *,
    progress: bool = True,
    overwrite: bool = False,
) -> dict[str, dict[str, dict[str, float]]]:
    """Train a dictionary for each of ``configs`` on ONE pass, and publish ``directory/name``.

    Returns {name: metrics}. Each comes out as it would alone with `train_dictionary`, up to
    rounding. Those that are there already with the same provenance are kept; others of these names
    are replaced only with ``overwrite``.
    """
    group = join_group()
    site = store.site(next(iter(configs.values())).site)
    belonging = {name: provenance(store, site, config) for name, config in configs.items()}
    inputs = _inputs(store, evaluation)
    check_collection(directory, FORMAT, inputs=inputs)
    todo = [
        name
        for name in configs
        if _published(directory / name, belonging[name], inputs, overwrite) is None
    ]
    if todo:
        for held in evaluation.values():
            held.check_varies(site)
        run = sha256_json([belonging[name] for name in todo])[:12]
        checkpoint = directory / f".sweep.{run}.checkpoint.safetensors"
        directory.mkdir(parents=True, exist_ok=True)
        made = train_together(
            store, [configs[name] for name in todo], checkpoint=checkpoint, progress=progress
        )
        on = {name: held.manifest["data_sha256"] for name, held in evaluation.items()}
        for name, dictionary in zip(todo, made.dictionaries, strict=True):
            _publish(group, directory / name, dictionary, belonging[name], on, evaluation, site)
        if group.leads:
            checkpoint.unlink(missing_ok=True)
        group.wait()
    return {name: read_dictionary_manifest(directory / name)["metrics"] for name in configs}
