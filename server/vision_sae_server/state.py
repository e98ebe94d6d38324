"""What a server holds: bundles, their models, the labels, and the lanes work runs in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from vision_sae.bundles.bundle import Bundle
from vision_sae.config import DescribeConfig, ServeConfig
from vision_sae.descriptions.database import MEMORY
from vision_sae.descriptions.describe import PROBES
from vision_sae.descriptions.evidence.bundle import BundleEvidence
from vision_sae.descriptions.evidence.neurons import Neurons
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.jobs.queue import LabelJobs
from vision_sae.descriptions.store import LabelStore
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError, MismatchError, NotFoundError
from vision_sae.models.bound import bound
from vision_sae.models.grid import Geometry
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.registry import load_model
from vision_sae.pictures.decode import decode_image, guarded
from vision_sae.resources import check_names, dictionary_of, dictionary_resource
from vision_sae_server.contrastive import contrastive_labelling
from vision_sae_server.labelling import Labelling, captions_alone
from vision_sae_server.lanes import Lane
from vision_sae_server.served import Served, ServedModel, ServedNeurons, Units

S = TypeVar("S")
U = TypeVar("U", bound=Units)

_SEARCH_THREADS = 2
_DECODE_THREADS = 2
_NAMED = 10
"""Names that a refusal offers at most."""


@dataclass(frozen=True)
class Picture:
    """An uploaded picture, made ready for a model. It lives in memory only."""

    pixels: Tensor
    """Model input (3, H, W)."""
    geometry: Geometry


@dataclass(frozen=True)
class State:
    """Everything the servicers share. While serving, nothing in it changes but the labels."""

    config: ServeConfig
    models: dict[str, ServedModel]
    """By resource name."""
    dictionaries: dict[str, Served]
    """By resource name."""
    labels: LabelStore
    labelling: Labelling
    jobs: LabelJobs
    decoding: Lane = field(default_factory=lambda: Lane("decode", _DECODE_THREADS))
    searching: Lane = field(default_factory=lambda: Lane("search", _SEARCH_THREADS))
    describing: Lane = field(default_factory=lambda: Lane("describe"))
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the server begins to drain: jobs pause, and watchers are sent elsewhere."""

    @property
    def device(self) -> str:
        """Where models compute: one device, or several with commas between them."""
        return ", ".join(sorted({str(model.model.device) for model in self.models.values()}))

    @property
    def generates(self) -> bool:
        """Whether one of the models makes pictures of prompts."""
        return any(isinstance(model.model, NoisedPictures) for model in self.models.values())

    def dictionary(self, name: str) -> Served:
        """The dictionary of a resource name."""
        if name in self.neurons:
            raise InvalidInputError(
                f"{name} is the evidence of raw neurons, which have features to look at, search by "
                "text and label; for this, serve a bundle of the architecture neurons",
                field="dictionary",
            )
        return _served(self.dictionaries, name, "dictionary")

    def model(self, name: str, field: str) -> ServedModel:
        """The model of a resource name, which ``field`` of a request holds."""
        return _served(self.models, name, field)

    def feature(self, name: str) -> tuple[Served, int]:
        """(dictionary, index) of a feature's resource name."""
        return _indexed(self.dictionary, name)

    @cached_property
    def neurons(self) -> dict[str, ServedNeurons]:
        """Raw neurons by the resource name of their dictionary."""
        found = (
            ServedNeurons(evidence, self.models[name.partition("/sites/")[0]], self.labels)
            for name, evidence in self.labelling.neurons.items()
        )
        return {neurons.resource: neurons for neurons in found}

    def units(self, name: str) -> Units:
        """The units of a dictionary's resource name: of a bundle's, or raw neurons."""
        return self.neurons[name] if name in self.neurons else self.dictionary(name)

    def unit(self, name: str) -> tuple[Units, int]:
        """(units, index) of a feature's resource name."""
        return _indexed(self.units, name)

    def evidence(self, parent: str) -> Evidence | None:
        """The evidence of the units of a dictionary or of a site's neurons; None without."""
        if parent in self.dictionaries:
            return self.dictionaries[parent].evidence
        return self.labelling.neurons.get(parent)

    async def picture(self, data: bytes, model: ServedModel) -> Picture:
        """Decode and preprocess an uploaded picture off the event loop."""

        def decode() -> Picture:
            image = decode_image(
                data,
                max_bytes=self.config.max_image_bytes,
                max_pixels=self.config.max_image_pixels,
            )
            geometry = model.model.preprocessing.geometry(image.width, image.height)
            with guarded():
                return Picture(model.model.preprocess(image), geometry)

        return await self.decoding.run(decode)

    def close(self) -> None:
        """Let every lane finish."""
        models = (model.lane for model in self.models.values())
        for lane in (self.decoding, *models, self.searching, self.describing):
            lane.close()
        self.labels.close()


def _served(everything: Mapping[str, S], name: str, field: str) -> S:
    """What has this resource name; raises `NotFoundError` with some of the names there are."""
    if name not in everything:
        names = sorted(everything)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise NotFoundError(
            f"{name} is not served; served are: {', '.join(names[:_NAMED])}{more}", field=field
        )
    return everything[name]


def _indexed(find: Callable[[str], U], name: str) -> tuple[U, int]:
    """(what ``find`` gives for its dictionary, index) of a feature's resource name."""
    dictionary, _, index = name.rpartition("/features/")
    units = find(dictionary)
    units.check(int(index))
    return units, int(index)


def _check_matches(dictionaries: Mapping[str, Served]) -> None:
    """Refuse counterparts in a dictionary that has changed since."""
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
    """The bundles, whose names must be unique."""
    check_names(paths)
    return [Bundle(path) for path in paths]


def load_state(
    bundles: Sequence[Path],
    config: ServeConfig,
    describe: DescribeConfig | None = None,
    labelling: Labelling | None = None,
    *,
    step: Callable[[str], object] = lambda _: None,
) -> State:
    """Open bundles, load their models, each once, and take over the bundles' descriptions.

    Labels are made as ``describe`` says, with the contrastive model of ``config``; without one, and
    without ``labelling``, from captions alone. Raises `MismatchError` when a model that answers to
    a bundle's name is not the one it was made from. ``step`` is told what begins.
    """
    describe = describe or DescribeConfig()
    labels = LabelStore(config.labels or MEMORY)
    step(f"reading and checking {', '.join(str(path) for path in bundles)}")
    opened = _opened(bundles)
    by_model: dict[str, list[Bundle]] = {}
    for bundle in opened:
        by_model.setdefault(bundle.manifest["model"]["name"], []).append(bundle)
    loaded: dict[str, ServedModel] = {}
    model_of: dict[str, ServedModel] = {}
    for name, group in by_model.items():
        step(f"loading the model {name}")
        model = load_model(name)
        as_bound = [bound(model, bundle.manifest["model"]) for bundle in group]
        found = [SiteDictionary(bundle.dictionary, bundle.site) for bundle in group]
        step(f"trying out how passes of {name} share the cores")
        loaded[name] = ServedModel.ready(model, found, config)
        for bundle, its_model in zip(group, as_bound, strict=True):
            model_of[bundle.name] = replace(loaded[name], model=its_model)
    dictionaries: dict[str, Served] = {}
    step("taking over the labels")
    for bundle in opened:
        entry = Served(bundle, model_of[bundle.name], labels, BundleEvidence(bundle))
        dictionaries[entry.resource] = entry
        labels.import_bundle(bundle)
    _check_matches(dictionaries)
    models: dict[str, ServedModel] = {}
    for name, ready in loaded.items():
        if other := models.get(ready.resource):
            raise InvalidInputError(
                f"the models {other.model.name!r} and {name!r} would both be {ready.resource}; "
                "serve them apart",
                field="bundle",
            )
        models[ready.resource] = ready
    if labelling is None and config.clip:
        probes = bundles[0].parent / PROBES
        by_name = {name: model.model for name, model in loaded.items()}
        labelling = contrastive_labelling(
            describe.model_copy(update={"clip": config.clip}), probes, labels, by_name
        )
    labelling = labelling or Labelling(captions_alone(describe.caption_pmi))
    neurons = {**labelling.neurons, **_neurons(config.neurons, models)}
    if taken := dictionaries.keys() & {dictionary_of(name) for name in neurons}:
        raise InvalidInputError(
            f"{min(taken)} is the name of raw neurons, too; rename the bundle's directory",
            field="bundle",
        )
    labelling = replace(labelling, neurons=neurons)
    return State(config, models, dictionaries, labels, labelling, LabelJobs(labels))


def _neurons(folders: Sequence[Path], models: Mapping[str, ServedModel]) -> dict[str, Evidence]:
    """{name: evidence} of raw neurons; raises `MismatchError` for those of another model."""
    found: dict[str, Evidence] = {}
    if not folders:
        return found  # what follows reads the weights of every model
    ours = {str(served.model.identity()["weights_sha256"]) for served in models.values()}
    for folder in folders:
        opened = Neurons(folder)
        if opened.manifest["model"]["weights_sha256"] not in ours:
            raise MismatchError(
                f"{folder} is of {opened.manifest['model']['name']}, which is not served; serve a "
                "bundle of that model, too",
                field="serve.neurons",
            )
        found |= {evidence.name: evidence for evidence in opened}
    return found
