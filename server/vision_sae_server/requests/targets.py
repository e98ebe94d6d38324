"""Translates the targets of requests to the library's."""

from __future__ import annotations

import torch
from torch import Tensor

from vision_sae.attribution import targets
from vision_sae.attribution.targets import Pooling, Target
from vision_sae.errors import InvalidInputError, NotServedError
from vision_sae.models.classes import class_index
from vision_sae.models.grid import Geometry
from vision_sae.models.vit import VitModel
from vision_sae.tensors import read_floats
from vision_sae.v1 import target_pb2
from vision_sae.v1.measure_pb2 import UnreadText
from vision_sae_server.requests.regions import region_mask
from vision_sae_server.requests.unread import unread_texts
from vision_sae_server.served import Served, ServedModel
from vision_sae_server.state import State

_POOLINGS: dict[int, Pooling] = {
    target_pb2.POOLING_UNSPECIFIED: "mean",
    target_pb2.POOLING_MEAN: "mean",
    target_pb2.POOLING_MAX: "max",
    target_pb2.POOLING_SUM: "sum",
}


class Targets:
    """Translates the targets of one request, for one model."""

    def __init__(self, state: State, model: ServedModel, first: Served) -> None:
        """``first`` is the dictionary over whose pictures a mean-embedding target takes the
        mean."""
        self._state, self._model, self._first = state, model, first
        self._embedded: dict[bytes, Tensor] = {}
        self._unread: dict[str, UnreadText] = {}

    @property
    def unread(self) -> list[UnreadText]:
        """The ends of the texts so far that the model's text encoder does not read."""
        return list(self._unread.values())

    async def target(
        self,
        message: target_pb2.Target,
        geometry: Geometry,
        after: tuple[str, ...] = (),
        field: str = "target",
    ) -> Target:
        """The library's target; ``geometry`` is that of the picture, for targets with a region.

        The feature of a feature target must be at a site that is computed after the sites
        ``after``. ``field`` is the path of the target in the request.
        """
        match message.WhichOneof("kind"):
            case "class_logit":
                return targets.class_logit(self._class(message.class_logit))
            case "text" | "image" as kind:
                key = message.SerializeToString()  # embedded once for all pictures
                if key not in self._embedded:
                    embed = self._text if kind == "text" else self._image
                    self._embedded[key] = await embed(message, field)
                return targets.similarity(self._embedded[key])
            case "mean_embedding":
                return targets.similarity_to_data(self._first.bundle)
            case "feature":
                return self._feature(message.feature, geometry, after)
            case "region":
                return self._region(message.region, geometry)
            case "probe":
                weight = torch.from_numpy(
                    read_floats(message.probe.weight, field="target.probe.weight")
                )
                return targets.probe(weight, message.probe.bias)
            case _:
                contrast, beneath = message.contrast, f"{field}.contrast"
                return targets.contrast(
                    await self.target(contrast.positive, geometry, after, f"{beneath}.positive"),
                    await self.target(contrast.negative, geometry, after, f"{beneath}.negative"),
                )

    def _class(self, target: target_pb2.ClassTarget) -> int:
        if target.WhichOneof("class") == "label":
            return class_index(
                self._model.model.class_names,
                target.label,
                model=self._model.resource,
                field="target.class_logit.label",
            )
        return target.index

    async def _image(self, target: target_pb2.Target, field: str) -> Tensor:
        picture = await self._state.picture(target.image.image.data, self._model)
        return await self._model.lane.run(
            lambda: targets.embedding_of(self._model.model, picture.pixels)
        )

    async def _text(self, target: target_pb2.Target, field: str) -> Tensor:
        text = target.text.text
        model = targets.contrastive_model(self._model.model, self._model.resource, "target.text")

        def embed() -> tuple[Tensor, list[UnreadText]]:
            unread = unread_texts(model.unread_text, [(f"{field}.text.text", text)])
            return model.embed_texts([text])[0], unread

        embedded, unread = await self._model.lane.run(embed)
        self._unread |= {end.field: end for end in unread}
        return embedded

    def _feature(
        self, target: target_pb2.FeatureTarget, geometry: Geometry, after: tuple[str, ...]
    ) -> Target:
        served, index = self._state.feature(target.feature)
        if served.model.resource != self._model.resource:
            raise InvalidInputError(
                f"{served.resource} is of {served.model.resource}, not of {self._model.resource}",
                field="target.feature.feature",
            )
        site = served.bundle.site
        targets.check_later(self._model.model, site, after, "target.feature.feature")
        patches = None
        if target.HasField("region"):
            grid, field = served.bundle.grid, "target.feature.region"
            patches = torch.from_numpy(region_mask(target.region, grid, geometry, field))
        return targets.feature(
            served.bundle.dictionary,
            site,
            index,
            special=served.bundle.grid.special,
            pooling=_POOLINGS[target.pooling],
            patches=patches,
        )

    def _region(self, target: target_pb2.RegionTarget, geometry: Geometry) -> Target:
        model = self._model.model
        if not isinstance(model, VitModel):
            raise NotServedError(
                f"{self._model.resource} cannot classify a region", field="target.region"
            )
        mask = region_mask(target.region, model.grid, geometry, "target.region.region")
        patches = torch.from_numpy(mask)
        return targets.region_class(model, patches, self._class(target.class_logit))
