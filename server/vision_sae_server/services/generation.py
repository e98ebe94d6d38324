"""GenerationService: pictures with features turned up or down, and their unedited twins.

A generation occupies its model's lane for one denoising step at a time: concurrent calls take
turns, and a cancelled call ends after its current step.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc
import numpy as np
from PIL import Image

from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import GenerationSettings
from vision_sae.pictures.decode import decode_image
from vision_sae.steering import effects
from vision_sae.steering.generation import PICTURE, SteeredGeneration, SteeredPictures
from vision_sae.tensors import to_proto
from vision_sae.v1 import generation_service_pb2 as pb
from vision_sae.v1 import generation_service_pb2_grpc, image_pb2
from vision_sae.v1.measure_pb2 import UnreadText
from vision_sae_server.answers import recipes
from vision_sae_server.answers.generations import (
    SteeredCodes,
    effect_message,
    encoded_image,
    progress_message,
    steered_encoding,
)
from vision_sae_server.requests.edits import Translated, translate
from vision_sae_server.requests.unread import unread_texts
from vision_sae_server.served import Served, ServedModel
from vision_sae_server.state import State

_LOG = logging.getLogger("vision_sae_server")
_DEFAULT_PREVIEW = 128
_MOST_EFFECT_TEXTS = 16
_MULTIPLE = 8
"""Width and height of a picture are multiples of it."""


class _Prepared(NamedTuple):
    """A generation that is ready to run."""

    settings: pb.GenerationSettings
    """The settings of the request, with all defaults filled in."""
    recipe: pb.Recipe
    translated: Translated
    generation: SteeredGeneration
    encode: Sequence[Served]
    """Dictionaries that encode the steered generation."""


class GenerationServicer(generation_service_pb2_grpc.GenerationServiceServicer):
    """See ``generation_service.proto``."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GenerateResponse]:
        """The progress at each step, and finally the picture with its measurements."""
        begun = time.monotonic()
        if request.request_id:
            _LOG.info("Generate, request %s", request.request_id)
        repeated = request.WhichOneof("content") == "recipe"
        requested = request.recipe.settings if repeated else request.settings
        model = self._generator(requested.model)
        initial = await self._initial(requested)
        settings = self._settings(requested, model, initial)
        yield progress_message(0, settings.steps_run, begun, queue=model.lane.waiting)
        prepared = await model.lane.run(lambda: self._prepare(request, requested, model, settings))
        generation, collected = prepared.generation, SteeredCodes(prepared.encode)
        while not generation.done:
            preview = await model.lane.run(lambda: _step(generation, collected, request))
            run = generation.run
            yield progress_message(run.step, run.steps, begun, preview=preview)
        steered = await model.lane.run(generation.result)
        result = await self._result(request, model, prepared, steered, collected)
        if repeated:
            expected = request.recipe.picture_sha256
            result.reproduced = result.recipe.picture_sha256 == expected
        yield pb.GenerateResponse(result=result)

    def _generator(self, name: str) -> ServedModel:
        """The text-to-image model with a resource name, on the replica that will generate."""
        model = self._state.model(name, "model")
        _ = model.generator  # raises for a model that cannot generate
        return model.free()

    async def _initial(self, requested: pb.GenerationSettings) -> Image.Image | None:
        if not requested.HasField("initial_image"):
            return None
        config = self._state.config
        return await self._state.decoding.run(
            lambda: decode_image(
                requested.initial_image.image.data,
                max_bytes=config.max_image_bytes,
                max_pixels=config.max_image_pixels,
            )
        )

    def _settings(
        self, requested: pb.GenerationSettings, model: ServedModel, initial: Image.Image | None
    ) -> GenerationSettings:
        """The library's settings, with the model's usual values as defaults."""
        longest = self._state.config.max_generated_pixels
        for field in ("width", "height"):
            side = getattr(requested, field)
            if side > longest:
                raise InvalidInputError(
                    f"a {field} of {side} pixels is more than the {longest} that "
                    "this server generates",
                    field=f"settings.{field}",
                )
            if side % _MULTIPLE:
                raise InvalidInputError(
                    f"a {field} of {side} pixels is no multiple of {_MULTIPLE}",
                    field=f"settings.{field}",
                )
        settings = GenerationSettings(
            requested.prompt,
            requested.negative_prompt,
            requested.seed if requested.HasField("seed") else secrets.randbits(32),
            requested.steps,
            requested.guidance_scale if requested.HasField("guidance_scale") else None,
            requested.width,
            requested.height,
            initial,
            requested.initial_image.strength
            if requested.initial_image.HasField("strength")
            else GenerationSettings.strength,
        ).filled(model.generator)
        settings.check_negative_prompt("settings.negative_prompt")
        return settings

    def _prepare(
        self,
        request: pb.GenerateRequest,
        requested: pb.GenerationSettings,
        model: ServedModel,
        settings: GenerationSettings,
    ) -> _Prepared:
        """Translate the edits and draw the noise."""
        filled = recipes.filled_settings(requested, settings)
        recipe = recipes.recipe(self._state, model, filled)
        if request.WhichOneof("content") == "recipe" and not request.allow_drift:
            recipes.check_same(request.recipe, recipe)
        translated = translate(self._state, model, filled, settings)
        encode = [self._state.dictionary(name) for name in request.encode_dictionaries]
        for served in encode:
            if served.model.resource != model.resource:
                raise InvalidInputError(
                    f"{served.resource} is not of {requested.model}", field="encode_dictionaries"
                )
        generation = SteeredGeneration(model.generator, settings, translated.changes)
        recipe.noise_sha256 = generation.run.noise_sha256[PICTURE]
        return _Prepared(filled, recipe, translated, generation, encode)

    async def _result(
        self,
        request: pb.GenerateRequest,
        model: ServedModel,
        prepared: _Prepared,
        steered: SteeredPictures,
        collected: SteeredCodes,
    ) -> pb.GenerationResult:
        format_ = request.format or image_pb2.IMAGE_FORMAT_PNG
        prepared.recipe.picture_sha256 = recipes.picture_sha256(steered.picture)
        result = pb.GenerationResult(
            picture=encoded_image(steered.picture, format_), recipe=prepared.recipe
        )
        if not request.omit_twin:
            result.twin.CopyFrom(encoded_image(steered.twin, format_))
            reached = prepared.generation.reached()
            effect = await model.lane.run(
                lambda: effects.effect(model.generator, steered.picture, steered.twin, reached)
            )
            levels = np.round(effect.difference * 255).astype(np.uint8)
            result.difference_map.CopyFrom(to_proto(levels, scale=1 / 255))
            result.effect.CopyFrom(effect_message(effect))
            result.effect.texts.extend(await self._texts(request, prepared, steered))
        result.unread_texts.extend(
            await self._state.describing.run(lambda: self._unread(request, model, prepared))
        )
        for served in prepared.encode:
            codes = await model.lane.run(partial(collected.codes, served))
            result.encodings.append(
                await self._state.searching.run(partial(steered_encoding, served, steered, codes))
            )
        return result

    def _unread(
        self, request: pb.GenerateRequest, model: ServedModel, prepared: _Prepared
    ) -> list[UnreadText]:
        """The ends of prompts and texts that the text encoders did not read."""
        settings = prepared.settings
        place = "recipe.settings" if request.HasField("recipe") else "settings"
        prompts = [
            (f"{place}.prompt", settings.prompt),
            (f"{place}.negative_prompt", settings.negative_prompt),
        ]
        prompts += [
            (f"{place}.transports[{i}].source_prompt", transport.source_prompt)
            for i, transport in enumerate(settings.transports)
        ]
        measured = [] if request.omit_twin else request.effect_texts
        texts = [(f"effect_texts[{i}]", text) for i, text in enumerate(measured)]
        unread = unread_texts(model.generator.unread_text, prompts)
        return unread + unread_texts(self._state.labelling.unread_text, texts)

    async def _texts(
        self, request: pb.GenerateRequest, prepared: _Prepared, steered: SteeredPictures
    ) -> list[pb.TextEffect]:
        """How the picture's similarity to texts changed. The texts are those of the request, or
        else the confirmed labels of the edited features."""
        similarities, labels = self._state.labelling.similarities, self._state.labels
        texts = list(request.effect_texts)
        if not texts:
            for served, feature in prepared.translated.features:
                entry = labels.currents(served.resource, [feature]).get(feature)
                described = entry.description if entry else None
                if described is not None and described.text and described.judged_by:
                    texts.append(described.text)
        texts = list(dict.fromkeys(texts))[:_MOST_EFFECT_TEXTS]
        if similarities is None or not texts:
            return []
        after, before = await self._state.describing.run(
            lambda: similarities([steered.picture, steered.twin], texts)
        )
        return [
            pb.TextEffect(text=text, before=float(b), after=float(a))
            for text, b, a in zip(texts, before, after, strict=True)
        ]


def _step(
    generation: SteeredGeneration, collected: SteeredCodes, request: pb.GenerateRequest
) -> image_pb2.EncodedImage | None:
    """Run one denoising step; returns a preview at the steps that have one."""
    collected.add(generation.advance(collected.sites))
    if not request.preview_interval or generation.run.step % request.preview_interval:
        return None
    picture = generation.run.previews()[PICTURE]
    scale = (request.preview_pixels or _DEFAULT_PREVIEW) / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return encoded_image(picture.resize((width, height)), image_pb2.IMAGE_FORMAT_WEBP)
