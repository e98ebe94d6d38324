"""Store -> trained, measured and published dictionary, as ``vision-sae train`` makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_sae import devices
from vision_sae.activations.store import ActivationStore
from vision_sae.config import TrainConfig
from vision_sae.dictionaries.architectures import ARCHITECTURES, checked, settings_of
from vision_sae.dictionaries.artifact import (
    FORMAT,
    load_dictionary,
    provenance,
    read_dictionary_manifest,
    save_dictionary,
)
from vision_sae.dictionaries.ensemble import Bagging, Boosting, residual_after
from vision_sae.dictionaries.factorise import factorise
from vision_sae.dictionaries.metrics import Metrics, evaluate
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.resident import resident
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.choice import choosing_dtype
from vision_sae.dictionaries.training.distributed import Group, join_group, own_device
from vision_sae.dictionaries.training.end_to_end import k_sparse, train_end_to_end
from vision_sae.dictionaries.training.loop import train, train_together
from vision_sae.dictionaries.training.scaling import input_scaling
from vision_sae.dictionaries.training.sparse import SparseLearner
from vision_sae.errors import InvalidInputError
from vision_sae.files import sha256_json
from vision_sae.models.precision import training_dtype
from vision_sae.models.protocol import Model
from vision_sae.pictures.reading import Reading
from vision_sae.places import check_collection, check_output, check_replaceable

_EVALUATION_ROWS = 4096


class Spliced(NamedTuple):
    """The input of end-to-end training: a model, and pictures preprocessed for the model."""

    model: Model
    pictures: Sequence[Tensor]
    """Preprocessed pictures (3, H, W) each."""


def splice(store: ActivationStore, images: Path, reading: Reading | None = None) -> Spliced:
    """The model of ``store`` and the pictures below ``images``, ready for end-to-end training.

    ``reading`` records files that cannot be read, which are left out. Without ``reading`` such a
    file is an error. Raises `MismatchError` if the model of that name has other weights now.
    """
    from vision_sae.models.bound import load_bound_model
    from vision_sae.pictures.folder import image_folder

    account = Reading(strict=True) if reading is None else reading
    pictures = image_folder(images, reading)
    model = load_bound_model(store.manifest["model"])
    return Spliced(model, account.all(pictures, model.preprocess))


def _boost(
    store: ActivationStore,
    members: Sequence[TrainConfig],
    checkpoints: Path,
    *,
    progress: bool,
    device: str,
) -> Boosting:
    """Train each member on the residual of the members before."""
    done: list[Dictionary] = []
    for number, config in enumerate(members):
        stage = train_together(
            store,
            [config],
            checkpoint=checkpoints / f"stage-{number}.safetensors",
            progress=progress,
            transform=partial(residual_after, tuple(done)) if done else None,
            device=device,
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
    device: str = "auto",
) -> Dictionary:
    """Train or fit the dictionary that ``config`` describes.

    Training resumes from checkpoints in the folder ``checkpoints``, and computes on ``device``
    (`devices.chosen`); a fit computes on the CPU. The dictionary is on the CPU.
    """
    device = devices.chosen(device)
    site, config = store.site(config.site), checked(config)
    architecture = ARCHITECTURES[config.architecture]
    if architecture.fit is not None:
        return factorise(
            store,
            config.architecture,
            site=site,
            k=config.k,
            seed=config.seed,
            settings=settings_of(config, architecture.settings),
            progress=progress,
        )
    members = [
        config.model_copy(update={"seed": config.seed + i, "members": 1, "ensemble": "none"})
        for i in range(config.members)
    ]
    checkpoint = checkpoints / "training.safetensors"
    if config.ensemble == "boosting":
        return _boost(store, members, checkpoints, progress=progress, device=device)
    if config.ensemble == "bagging":
        training = train_together(
            store, members, checkpoint=checkpoint, progress=progress, device=device
        )
        return Bagging(training.dictionaries)
    if not config.end_to_end.steps:
        return train(store, config, checkpoint=checkpoint, progress=progress, device=device)
    if spliced is None:
        raise InvalidInputError(
            "end-to-end training needs the model's pictures; give their folder (--images)",
            field="end_to_end",
        )
    k_sparse(config)
    dictionary = train(store, config, checkpoint=checkpoint, progress=progress, device=device)
    assert isinstance(dictionary, Sae)  # every k-sparse learner trains an Sae
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
    """The manifest of the dictionary at ``directory``, if its provenance equals ``belongs_to``.

    Returns None if a dictionary may be written there. Raises `AlreadyExistsError` for a dictionary
    of another provenance, unless ``overwrite`` is true, and for anything but a dictionary.
    """
    manifest = check_output(directory, FORMAT, inputs=inputs, field="dictionary")
    if manifest is not None and all(manifest.get(k) == v for k, v in belongs_to.items()):
        return manifest
    check_replaceable(directory, manifest, overwrite=overwrite, field="dictionary")
    return None


def _inputs(store: ActivationStore, evaluation: Mapping[str, ActivationStore]) -> list[Path]:
    return [store.path, *(held.path for held in evaluation.values())]


def _discard(checkpoints: Path) -> None:
    """Delete the checkpoints of a finished training, and their folder."""
    for path in checkpoints.glob("*.safetensors"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder holds a file of somebody else
        checkpoints.rmdir()


def _measured(
    dictionary: Dictionary, site: str, evaluation: Mapping[str, ActivationStore], device: str
) -> dict[str, Metrics]:
    there = resident(dictionary, torch.device(device))
    return {
        name: evaluate(there, (v.to(device) for v in held.batches(site, _EVALUATION_ROWS)))
        for name, held in evaluation.items()
    }


def _computed(config: TrainConfig, device: str) -> dict[str, str]:
    """What a manifest says of the computation of a dictionary: a fit computes on the CPU, in the
    precision of the store."""
    architecture = ARCHITECTURES[config.architecture]
    if architecture.fit is not None:
        return devices.recorded("cpu", "float32")
    learner = architecture.learner
    if device == "cpu" and learner is not None and issubclass(learner, SparseLearner):
        return devices.recorded(device, choosing_dtype() or "float32")
    return devices.recorded(device, training_dtype(device))


def train_dictionary(
    store: ActivationStore,
    directory: Path,
    config: TrainConfig,
    evaluation: Mapping[str, ActivationStore],
    *,
    spliced: Spliced | None = None,
    progress: bool = True,
    overwrite: bool = False,
    device: str = "auto",
) -> dict[str, dict[str, float]]:
    """Train on ``store``, measure on every store of ``evaluation``, publish at ``directory``.

    Returns {store's name: metrics}. An existing dictionary of the same provenance is kept, and
    measured again only if the stores of ``evaluation`` differ. A dictionary of another provenance
    is replaced only with ``overwrite``. The folder of checkpoints lies beside ``directory``, and
    its name has the hash of the provenance, so that another configuration never resumes from it.
    Under torchrun every process trains, and the first process publishes. ``device`` is read by
    `devices.chosen`; the manifest records it.
    """
    device = own_device(devices.chosen(device))
    computed, group = _computed(config, device), join_group()
    site = store.site(config.site)
    belongs_to = provenance(store, site, config)
    measured_on = {name: held.manifest["data_sha256"] for name, held in evaluation.items()}
    existing = _published(directory, belongs_to, _inputs(store, evaluation), overwrite)
    group.wait()  # all processes must look before the leading one publishes
    if existing is None or existing.get("measured_on") != measured_on:
        for held in evaluation.values():
            held.check_varies(site)
        directory.parent.mkdir(parents=True, exist_ok=True)
        run = sha256_json(belongs_to)[:12]
        checkpoints = directory.with_name(f".{directory.name}.{run}.checkpoints")
        if existing is None:
            checkpoints.mkdir(exist_ok=True)
            dictionary = make_dictionary(
                store, config, checkpoints, spliced=spliced, progress=progress, device=device
            )
        else:
            dictionary, _ = load_dictionary(directory)
            computed = existing.get("computed", computed)  # it is only measured again
        entries = belongs_to | {"computed": computed, "measured_on": measured_on}
        _publish(group, directory, dictionary, entries, evaluation, device)
        if group.leads:
            _discard(checkpoints)
        group.wait()
    saved: dict[str, dict[str, Any]] = read_dictionary_manifest(directory)["metrics"]
    return saved


def _publish(
    group: Group,
    directory: Path,
    dictionary: Dictionary,
    entries: dict[str, Any],
    evaluation: Mapping[str, ActivationStore],
    device: str,
) -> None:
    """Measure the dictionary and publish it with these entries, in the leading process alone."""
    if group.leads:
        metrics = _measured(dictionary, entries["site"], evaluation, device)
        save_dictionary(directory, dictionary, entries, metrics)


def sweep(
    store: ActivationStore,
    directory: Path,
    configs: Mapping[str, TrainConfig],
    evaluation: Mapping[str, ActivationStore],
    *,
    progress: bool = True,
    overwrite: bool = False,
    device: str = "auto",
) -> dict[str, dict[str, dict[str, float]]]:
    """Train a dictionary for each of ``configs`` on ONE pass, and publish ``directory/NAME``.

    Returns {name: {store's name: metrics}}. Each dictionary equals, up to rounding, the one that
    `train_dictionary` makes alone. Existing dictionaries of the same provenance are kept; other
    dictionaries of these names are replaced only with ``overwrite``.
    """
    device = own_device(devices.chosen(device))
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
        training = train_together(
            store,
            [configs[name] for name in todo],
            checkpoint=checkpoint,
            progress=progress,
            device=device,
        )
        measured_on = {name: held.manifest["data_sha256"] for name, held in evaluation.items()}
        for name, dictionary in zip(todo, training.dictionaries, strict=True):
            entries = belonging[name] | {
                "computed": _computed(configs[name], device),
                "measured_on": measured_on,
            }
            _publish(group, directory / name, dictionary, entries, evaluation, device)
        if group.leads:
            checkpoint.unlink(missing_ok=True)
        group.wait()
    return {name: read_dictionary_manifest(directory / name)["metrics"] for name in configs}
