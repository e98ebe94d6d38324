"""What a server holds: bundles, their models, the labels, and the lanes work runs in."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from vision_sae.bundles.bundle import Bundle
from vision_sae.config import ServeConfig
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
from vision_sae.models.generator import Generator
from vision_sae.models.grid import Geometry
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import Model
from vision_sae.models.registry import load_model
from vision_sae.pictures.decode import decode_image
from vision_sae.resources import dictionary_resource, model_resource
from vision_sae_server.contrastive import contrastive_labelling
from vision_sae_server.labelling import Labelling
from vision_sae_server.lanes import Lane, ModelLane
from vision_sae_server.sharing import sharing

_SEARCH_THREADS = 2
_DECODE_THREADS = 2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Picture:
    """An uploaded picture, made ready for a model. It lives in memory only."""

    pixels: Tensor
    """Model input (3, H, W)."""
    geometry: Geometry


@dataclass(frozen=True)
class ServedModel:
    """A model and the lane that runs it."""

    model: Model
    lane: ModelLane
    at_once: int
    """Pictures that may be in one pass."""

    @classmethod
    def ready(
        cls, model: Model, dictionaries: Sequence[SiteDictionary], config: ServeConfig
    ) -> ServedModel:
        """A model with a lane as wide as it and its dictionaries allow; see `sharing`."""
        found = sharing(model, dictionaries, config.max_batch)
        return cls(model, ModelLane(found.side_by_side), found.at_once)

    @property
    def generator(self) -> Generator:
        """The model as a generator; raises `InvalidInputError` when it is none."""
        if not isinstance(self.model, NoisedPictures):
            raise InvalidInputError(
                f"models/{self.name} does not generate; name a text-to-image model", field="model"
            )
        return self.model.generator

    @property
    def name(self) -> str:
        """The last part of its resource name: ``demo:dinov2-s`` is ``models/demo-dinov2-s``."""
        return model_resource(self.model.name).removeprefix("models/")


@dataclass(frozen=True)
class Served:
    """A bundle with its model, and the store that holds its labels."""

    bundle: Bundle
    model: ServedModel
    labels: LabelStore
    evidence: BundleEvidence

    @property
    def resource(self) -> str:
        """``dictionaries/{dictionary}``."""
        return dictionary_resource(self.bundle.name)


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
    def generates(self) -> bool:
        """Whether one of the models makes pictures of prompts."""
        return any(isinstance(model.model, NoisedPictures) for model in self.models.values())

    def dictionary(self, name: str) -> Served:
        """The dictionary of a resource name."""
        if name not in self.dictionaries:
            raise NotFoundError(
                f"{name} is not served; served are: {', '.join(self.dictionaries)}",
                field="dictionary",
            )
        return self.dictionaries[name]

    def feature(self, name: str) -> tuple[Served, int]:
        """(dictionary, index) of a feature's resource name."""
        dictionary, _, index = name.rpartition("/features/")
        served = self.dictionary(dictionary)
        served.bundle.check_feature(int(index))
        return served, int(index)

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
            return Picture(model.model.preprocess(image), geometry)

        return await self.decoding.run(decode)

    def close(self) -> None:
        """Let every lane finish."""
        models = (model.lane for model in self.models.values())
        for lane in (self.decoding, *models, self.searching, self.describing):
            lane.close()
        self.labels.close()


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
    found: dict[str, Bundle] = {}
    for path in paths:
        bundle = Bundle(path)
        if not _NAME.fullmatch(bundle.name) or bundle.name in found:
            raise InvalidInputError(
                f"the directory name {bundle.name!r} names the dictionary: it must be unique and "
                "of letters, digits, '.', '_' and '-'",
                field="bundle",
            )
        found[bundle.name] = bundle
    return list(found.values())


def load_state(
    bundles: Sequence[Path], config: ServeConfig, labelling: Labelling | None = None
) -> State:
    """Open bundles, load their models, each once, and take over the bundles' descriptions.

    Without ``labelling`` and without a contrastive model in ``config`` the server describes from
    captions alone. Raises `MismatchError` when a model that answers to a bundle's name is not the
    one it was made from.
    """
    labels = LabelStore(config.labels or MEMORY)
    opened = _opened(bundles)
    by_model: dict[str, list[Bundle]] = {}
    for bundle in opened:
        by_model.setdefault(bundle.manifest["model"]["name"], []).append(bundle)
    loaded: dict[str, ServedModel] = {}
    model_of: dict[str, ServedModel] = {}
    for name, group in by_model.items():
        model = load_model(name)
        as_bound = [bound(model, bundle.manifest["model"]) for bundle in group]
        found = [SiteDictionary(bundle.dictionary, bundle.site) for bundle in group]
        loaded[name] = ServedModel.ready(model, found, config)
        for bundle, its_model in zip(group, as_bound, strict=True):
            model_of[bundle.name] = replace(loaded[name], model=its_model)
    dictionaries: dict[str, Served] = {}
    for bundle in opened:
        entry = Served(bundle, model_of[bundle.name], labels, BundleEvidence(bundle))
        dictionaries[entry.resource] = entry
        labels.import_bundle(bundle)
    _check_matches(dictionaries)
    models = {f"models/{model.name}": model for model in loaded.values()}
    if labelling is None and config.clip:
        evidence = {name: served.evidence for name, served in dictionaries.items()}
        probes = bundles[0].parent / PROBES
        by_name = {name: model.model for name, model in loaded.items()}
        labelling = contrastive_labelling(config.clip, probes, evidence, labels, by_name)
    labelling = labelling or Labelling()
    neurons = {**labelling.neurons, **_neurons(config.neurons, models)}
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
