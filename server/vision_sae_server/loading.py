"""Loads bundles, models and labels into the `State` of a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vision_sae import devices
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.config import DescribeConfig, ServeConfig
from vision_sae.descriptions.describe import PROBES
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError, MismatchError
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.neurons import Neurons
from vision_sae.evidence.protocol import Evidence
from vision_sae.labels.database import MEMORY
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.store import LabelStore
from vision_sae.models.bound import bound
from vision_sae.models.loading import load_model
from vision_sae.resources import check_names, dictionary_of, dictionary_resource
from vision_sae_server.labelling import Labelling, captions_alone, contrastive_labelling
from vision_sae_server.runtime.lanes import ModelLane
from vision_sae_server.served import Served, ServedModel
from vision_sae_server.state import State


def load_state(
    bundles: Sequence[Path],
    config: ServeConfig,
    describe: DescribeConfig | None = None,
    labelling: Labelling | None = None,
    *,
    step: Callable[[str], object] = lambda _: None,
) -> State:
    """Open the bundles, load each of their models once, and import the bundles' labels.

    New labels follow ``describe`` and use the contrastive model of ``config``; without this model,
    and without ``labelling``, labels come from captions alone. ``step`` is called with the name of
    each step of loading. Raises `MismatchError` when a model's weights are not those that the
    bundle was made from.
    """
    describe = describe or DescribeConfig()
    labels = LabelStore(config.labels or MEMORY)
    step(f"reading and checking {', '.join(str(path) for path in bundles)}")
    opened = _opened(bundles)
    loaded, model_of = _models(opened, config, step)
    step("taking over the labels")
    dictionaries: dict[str, Served] = {}
    for bundle in opened:
        served = Served(bundle, model_of[bundle.name], labels, BundleEvidence(bundle))
        device = str(served.model.model.device)
        if bundle.patch_index.use_gpu(bundle.manifest["patch_index"]["type"], device):
            step(f"the patches of {bundle.name} are searched on {device}")
        dictionaries[served.resource] = served
        labels.import_bundle(bundle)
    _check_matches(dictionaries)
    models = _by_resource(loaded)
    if labelling is None and config.clip:
        probes = bundles[0].parent / PROBES
        by_name = {name: model.model for name, model in loaded.items()}
        labelling = contrastive_labelling(
            describe.model_copy(update={"clip": config.clip}),
            probes,
            labels,
            by_name,
            device=devices.several(config.devices.get(config.clip, "auto"))[0],
        )
    labelling = labelling or Labelling(captions_alone(describe))
    neurons = {**labelling.neurons, **_neurons(config.neurons, models)}
    if taken := dictionaries.keys() & {dictionary_of(name) for name in neurons}:
        raise InvalidInputError(
            f"{min(taken)} is also the name of raw neurons; rename the bundle's directory",
            field="bundle",
        )
    labelling = replace(labelling, neurons=neurons)
    return State(config, models, dictionaries, labels, labelling, LabelJobs(labels))


def _models(
    bundles: Sequence[Bundle], config: ServeConfig, step: Callable[[str], object]
) -> tuple[dict[str, ServedModel], dict[str, ServedModel]]:
    """({model name: model}, {bundle name: the bundle's model, bound to the bundle})"""
    by_model: dict[str, list[Bundle]] = {}
    for bundle in bundles:
        by_model.setdefault(bundle.manifest["model"]["name"], []).append(bundle)
    loaded: dict[str, ServedModel] = {}
    lanes: dict[torch.device, ModelLane] = {}
    model_of: dict[str, ServedModel] = {}
    for name, group in by_model.items():
        step(f"loading the model {name}")
        places = devices.several(config.devices.get(name, "auto"))
        models = [load_model(name, device=place) for place in places]
        as_bound = [[bound(m, bundle.manifest["model"]) for m in models] for bundle in group]
        dictionaries = [SiteDictionary(bundle.dictionary, bundle.site) for bundle in group]
        step(f"measuring how passes of {name} share the cores")
        model, *replicas = models
        loaded[name] = ServedModel.ready(model, dictionaries, config, lanes, replicas=replicas)
        for bundle, its_models in zip(group, as_bound, strict=True):
            model_of[bundle.name] = loaded[name].of(its_models)
    return loaded, model_of


def _by_resource(loaded: Mapping[str, ServedModel]) -> dict[str, ServedModel]:
    """{resource name: model}; raises `InvalidInputError` for two models of one resource name."""
    models: dict[str, ServedModel] = {}
    for name, ready in loaded.items():
        if other := models.get(ready.resource):
            raise InvalidInputError(
                f"the models {other.model.name!r} and {name!r} would both be {ready.resource}; "
                "serve them apart",
                field="bundle",
            )
        models[ready.resource] = ready
    return models


def _check_matches(dictionaries: Mapping[str, Served]) -> None:
    """Raise `MismatchError` for a bundle matched with a dictionary that has changed since."""
    for served in dictionaries.values():
        for name, entry in served.bundle.manifest.get("matches", {}).items():
            other = dictionaries.get(dictionary_resource(name))
            if other and other.bundle.dictionary_sha256 != entry["dictionary_sha256"]:
                raise MismatchError(
                    f"{served.bundle.name} was matched with another dictionary {name} than the one "
                    "that is served; run `vision-sae match` again",
                    field="bundle",
                )


def _opened(paths: Sequence[Path]) -> list[Bundle]:
    """The opened bundles; their names must be unique."""
    check_names(paths)
    return [read_bundle(path) for path in paths]


def _neurons(folders: Sequence[Path], models: Mapping[str, ServedModel]) -> dict[str, Evidence]:
    """{name: evidence} of raw neurons; raises `MismatchError` where their model is not served."""
    evidences: dict[str, Evidence] = {}
    if not folders:
        return evidences  # the code below hashes the weights of every model
    weights = {str(served.model.identity()["weights_sha256"]) for served in models.values()}
    for folder in folders:
        opened = Neurons(folder)
        if opened.manifest["model"]["weights_sha256"] not in weights:
            raise MismatchError(
                f"{folder} is of {opened.manifest['model']['name']}, which is not served; serve a "
                "bundle of that model, too",
                field="serve.neurons",
            )
        evidences |= {evidence.name: evidence for evidence in opened}
    return evidences
