"""Targets of requests -> those of the library."""

from __future__ import annotations

import torch
from torch import Tensor

from vision_sae.attribution import targets
from vision_sae.attribution.targets import Pooling, Target
from vision_sae.errors import InvalidInputError, NotServedError
from vision_sae.models.classes import class_index
from vision_sae.models.grid import Geometry
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.models.vit import VitModel
from vision_sae.tensors import read_floats
from vision_sae.v1 import target_pb2
from vision_sae.v1.measure_pb2 import UnreadText
from vision_sae_server.regions import region_mask
from vision_sae_server.served import Served, ServedModel
from vision_sae_server.state import State
from vision_sae_server.unread import unread_texts

_POOLINGS: dict[int, Pooling] = {
    target_pb2.POOLING_UNSPECIFIED: "mean",
    target_pb2.POOLING_MEAN: "mean",
    target_pb2.POOLING_MAX: "max",
    target_pb2.POOLING_SUM: "sum",
}


def check_has_targets(model: ServedModel, name: str, field: str) -> None:
    """Refuse a text-to-image model, whose output is a picture."""
    if isinstance(model.model, NoisedPictures):
        raise NotServedError(
            f"{name} is of a text-to-image model, whose output is a picture and has no target; use "
            "Encode, or steer it with Generate",
            field=field,
        )


class Targets:
    """What targets of one request mean for one model and one picture."""

    def __init__(self, state: State, model: ServedModel, first: Served) -> None:
        """``first`` is the dictionary whose pictures have the mean embedding."""
        self._state, self._model, self._first = state, model, first
        self._embedded: dict[bytes, Tensor] = {}
        self._unread: dict[str, UnreadText] = {}

    @property
    def unread(self) -> list[UnreadText]:
        """The ends of the texts so far that the model does not read."""
        return list(self._unread.values())

    async def target(
        self,
        asked: target_pb2.Target,
        geometry: Geometry,
        after: tuple[str, ...] = (),
        field: str = "target",
    ) -> Target:
        """The scalar to measure; ``geometry`` is the picture's, for targets with a region.

        A target's feature must be at a site that is computed after those of ``after``; ``field`` is
        where the request has it.
        """
        match asked.WhichOneof("kind"):
            case "class_logit":
                return targets.class_logit(self._class(asked.class_logit))
            case "text" | "image" as kind:
                key = asked.SerializeToString()  # asked for once, whatever the pictures
                if key not in self._embedded:
                    embed = self._text if kind == "text" else self._image
                    self._embedded[key] = await embed(asked, field)
                return targets.similarity(self._embedded[key])
            case "mean_embedding":
                mean = self._first.bundle.embeddings.mean(axis=0)
                return targets.similarity(torch.from_numpy(mean))
            case "feature":
                return self._feature(asked.feature, geometry, after)
            case "region":
                return self._region(asked.region, geometry)
            case "probe":
                weight = torch.from_numpy(
                    read_floats(asked.probe.weight, field="target.probe.weight")
                )
                return targets.probe(weight, asked.probe.bias)
            case _:
                contrast, beneath = asked.contrast, f"{field}.contrast"
                return targets.contrast(
                    await self.target(contrast.positive, geometry, after, f"{beneath}.positive"),
                    await self.target(contrast.negative, geometry, after, f"{beneath}.negative"),
                )

    def _class(self, asked: target_pb2.ClassTarget) -> int:
        if asked.WhichOneof("class") == "label":
            return class_index(
                self._model.model.class_names,
                asked.label,
                model=self._model.resource,
                field="target.class_logit.label",
            )
        return asked.index

    async def _image(self, asked: target_pb2.Target, field: str) -> Tensor:
        picture = await self._state.picture(asked.image.image.data, self._model)
        return await self._model.lane.run(lambda: _embedding(self._model.model, picture.pixels))

    async def _text(self, asked: target_pb2.Target, field: str) -> Tensor:
        model, text = self._model.model, asked.text.text
        if not isinstance(model, ContrastiveModel):
            raise InvalidInputError(
                f"{self._model.resource} has no texts; choose a class, a picture or a probe",
                field="target.text",
            )

        def embed() -> tuple[Tensor, list[UnreadText]]:
            unread = unread_texts(model.unread_text, [(f"{field}.text.text", text)])
            return model.embed_texts([text])[0], unread

        embedded, unread = await self._model.lane.run(embed)
        self._unread |= {end.field: end for end in unread}
        return embedded

    def _feature(
        self, asked: target_pb2.FeatureTarget, geometry: Geometry, after: tuple[str, ...]
    ) -> Target:
        served, index = self._state.feature(asked.feature)
        if served.model.resource != self._model.resource:
            raise InvalidInputError(
                f"{served.resource} is of {served.model.resource}, not of {self._model.resource}",
                field="target.feature.feature",
            )
        site, order = served.bundle.site, list(self._model.model.sites)
        for before in after:
            if order.index(site) <= order.index(before):
                raise InvalidInputError(
                    f"a feature at {site} does not depend on {before}, which is computed later or "
                    "is the same; choose a feature of a later site",
                    field="target.feature.feature",
                )
        patches = None
        if asked.HasField("region"):
            grid, field = served.bundle.grid, "target.feature.region"
            patches = torch.from_numpy(region_mask(asked.region, grid, geometry, field))
        return targets.feature(
            served.bundle.dictionary,
            site,
            index,
            special=served.bundle.grid.special,
            pooling=_POOLINGS[asked.pooling],
            patches=patches,
        )

    def _region(self, asked: target_pb2.RegionTarget, geometry: Geometry) -> Target:
        model = self._model.model
        if not isinstance(model, VitModel):
            raise NotServedError(
                f"{self._model.resource} cannot classify a region", field="target.region"
            )
        mask = region_mask(asked.region, model.grid, geometry, "target.region.region")
        patches = torch.from_numpy(mask)
        return targets.region_class(model, patches, self._class(asked.class_logit))


def _embedding(model: Model, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.forward(pixels[None]).embedding[0]
