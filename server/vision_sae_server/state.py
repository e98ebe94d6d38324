"""The state of a server: bundles, their models, labels, and the lanes in which work runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from vision_sae.config import ServeConfig
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.evidence.protocol import Evidence
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.store import LabelStore
from vision_sae.models.grid import Geometry
from vision_sae.models.noised import NoisedPictures
from vision_sae.pictures.decode import decode_image, guarded
from vision_sae_server.labelling import Labelling
from vision_sae_server.runtime.lanes import Lane
from vision_sae_server.served import Served, ServedModel, ServedNeurons, Units

S = TypeVar("S")
U = TypeVar("U", bound=Units)

_SEARCH_THREADS = 2
_DECODE_THREADS = 2
_NAMED = 10
"""The most names that an error message lists."""


@dataclass(frozen=True)
class PreparedPicture:
    """An uploaded picture, preprocessed for a model. It is kept in memory only."""

    pixels: Tensor
    """Model input (3, H, W)."""
    geometry: Geometry


@dataclass(frozen=True)
class State:
    """The state that all servicers share. Only the labels change while the server runs."""

    config: ServeConfig
    models: dict[str, ServedModel]
    """{resource name: model}"""
    dictionaries: dict[str, Served]
    """{resource name: dictionary}"""
    labels: LabelStore
    labelling: Labelling
    jobs: LabelJobs
    decoding: Lane = field(default_factory=lambda: Lane("decode", _DECODE_THREADS))
    searching: Lane = field(default_factory=lambda: Lane("search", _SEARCH_THREADS))
    describing: Lane = field(default_factory=lambda: Lane("describe"))
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the server begins to drain: label jobs pause, and watchers must reconnect."""

    @property
    def devices(self) -> list[str]:
        """The devices that models compute on, by name."""
        return sorted({name for model in self.models.values() for name in model.devices})

    @property
    def generates(self) -> bool:
        """Whether one of the models is a text-to-image model."""
        return any(isinstance(model.model, NoisedPictures) for model in self.models.values())

    def dictionary(self, name: str) -> Served:
        """The dictionary with a resource name; raises `NotFoundError`."""
        if name in self.neurons:
            raise InvalidInputError(
                f"{name} is the evidence of raw neurons, which have features to look at, search by "
                "text and label; for this, serve a bundle of the architecture neurons",
                field="dictionary",
            )
        return _served(self.dictionaries, name, "dictionary")

    def model(self, name: str, field: str) -> ServedModel:
        """The model with a resource name; an error names ``field`` of the request."""
        return _served(self.models, name, field)

    def feature(self, name: str) -> tuple[Served, int]:
        """(dictionary, index) of a feature's resource name."""
        return _indexed(self.dictionary, name)

    @cached_property
    def neurons(self) -> dict[str, ServedNeurons]:
        """{resource name of the dictionary: raw neurons}"""
        neurons = (
            ServedNeurons(evidence, self.models[name.partition("/sites/")[0]], self.labels)
            for name, evidence in self.labelling.neurons.items()
        )
        return {each.resource: each for each in neurons}

    def units(self, name: str) -> Units:
        """The units of a dictionary with a resource name: features of a bundle, or raw neurons."""
        return self.neurons[name] if name in self.neurons else self.dictionary(name)

    def unit(self, name: str) -> tuple[Units, int]:
        """(units, index) of a feature's resource name."""
        return _indexed(self.units, name)

    def evidence(self, parent: str) -> Evidence | None:
        """The evidence of a dictionary's features or of a site's neurons; None if not served."""
        if parent in self.dictionaries:
            return self.dictionaries[parent].evidence
        return self.labelling.neurons.get(parent)

    async def picture(self, data: bytes, model: ServedModel) -> PreparedPicture:
        """Decode and preprocess an uploaded picture in a thread of the lane ``decoding``."""

        def decode() -> PreparedPicture:
            image = decode_image(
                data,
                max_bytes=self.config.max_image_bytes,
                max_pixels=self.config.max_image_pixels,
            )
            geometry = model.model.preprocessing.geometry(image.width, image.height)
            with guarded():
                return PreparedPicture(model.model.preprocess(image), geometry)

        return await self.decoding.run(decode)

    def close(self) -> None:
        """Close the lanes, which finish their current work, and the label store."""
        models = (each.lane for model in self.models.values() for each in model.everywhere)
        for lane in (self.decoding, *models, self.searching, self.describing):
            lane.close()
        self.labels.close()


def _served(everything: Mapping[str, S], name: str, field: str) -> S:
    """The entry with a resource name; raises `NotFoundError`, which lists some known names."""
    if name not in everything:
        names = sorted(everything)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise NotFoundError(
            f"{name} is not served; served are: {', '.join(names[:_NAMED])}{more}", field=field
        )
    return everything[name]


def _indexed(find: Callable[[str], U], name: str) -> tuple[U, int]:
    """(result of ``find`` for the dictionary, index) of a feature's resource name."""
    dictionary, _, index = name.rpartition("/features/")
    units = find(dictionary)
    units.check(int(index))
    return units, int(index)
