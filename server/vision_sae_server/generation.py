"""GenerationService: pictures with features turned up and down, and their twins without.

A generation takes the lane of its model a denoising step at a time: calls that are under way
together take turns, and one that is cancelled ends with the step it is in.
"""

from __future__ import annotations

import io
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
import torch
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray
from PIL import Image

from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import GenerationSettings
from vision_sae.models.grid import Geometry
from vision_sae.pictures.decode import decode_image
from vision_sae.steering import effects
from vision_sae.steering.generation import PICTURE, Generation, Steered
from vision_sae.tensors import to_proto
from vision_sae.v1 import attribution_service_pb2, generation_service_pb2_grpc, image_pb2
from vision_sae.v1 import generation_service_pb2 as pb
from vision_sae.v1.measure_pb2 import UnreadText
from vision_sae_server import recipes
from vision_sae_server.edits import Translated, regions_in_pixels, translate
from vision_sae_server.encodings import Encoded, encode_response, explained
from vision_sae_server.served import Served, ServedModel
from vision_sae_server.state import Picture, State
from vision_sae_server.unread import unread_texts

_LOG = logging.getLogger("vision_sae_server")
_DEFAULT_PREVIEW = 128
_MOST_EFFECT_TEXTS = 16
_MULTIPLE = 8
"""Of which width and height are."""
_SAVED: dict[int, tuple[str, dict[str, Any]]] = {
    image_pb2.IMAGE_FORMAT_PNG: ("PNG", {}),
    image_pb2.IMAGE_FORMAT_JPEG: ("JPEG", {"quality": 90}),
    image_pb2.IMAGE_FORMAT_WEBP: ("WEBP", {"quality": 85}),
}


class _Prepared(NamedTuple):
    """A generation ready to run."""

    settings: pb.GenerationSettings
    """With every default filled in."""
    recipe: pb.Recipe
    translated: Translated
    generation: Generation
    encode: Sequence[Served]
    """Dictionaries that the steered generation is encoded with."""

    def regions(self) -> list[NDArray[np.bool_] | None]:
        """For each edit and transport the patches (rows, cols) that it could reach; None for all.
        Those where a feature fires by itself are known at the end only."""
        changes, found = self.translated.changes, list(self.translated.regions)
        for place, edit in enumerate(changes.edits):
            if edit in self.generation.fired:
                site = changes.dictionaries[edit.dictionary].site
                found[place] = self.generation.map_of(site, self.generation.fired[edit])
        return found


class GenerationServicer(generation_service_pb2_grpc.GenerationServiceServicer):
    """See ``generation_service.proto``."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Progress step by step, and then the picture with everything about it."""
        begun = time.monotonic()
        if request.request_id:
            _LOG.info("Generate, request %s", request.request_id)
        repeated = request.WhichOneof("content") == "recipe"
        asked = request.recipe.settings if repeated else request.settings
        model = self._generator(asked.model)
        initial = await self._initial(asked)
        settings = self._settings(asked, model, initial)
        yield _progress(0, settings.steps_run, begun, queue=model.lane.waiting)
        prepared = await model.lane.run(lambda: self._prepare(request, asked, model, settings))
        generation, collected = prepared.generation, _Collected(prepared.encode)
        while not generation.done:
            preview = await model.lane.run(lambda: _step(generation, collected, request))
            run = generation.run
            yield _progress(run.step, run.steps, begun, preview=preview)
        steered = await model.lane.run(generation.result)
        result = await self._result(request, model, prepared, steered, collected)
        if repeated:
            same = result.recipe.picture_sha256 == request.recipe.picture_sha256
            result.reproduced = same
        yield pb.GenerateResponse(result=result)

    def _generator(self, name: str) -> ServedModel:
        """The text-to-image model of a resource name."""
        model = self._state.model(name, "model")
        _ = model.generator  # refuses a model that cannot generate
        return model

    async def _initial(self, asked: pb.GenerationSettings) -> Image.Image | None:
        if not asked.HasField("initial_image"):
            return None
        config = self._state.config
        return await self._state.decoding.run(
            lambda: decode_image(
                asked.initial_image.image.data,
                max_bytes=config.max_image_bytes,
                max_pixels=config.max_image_pixels,
            )
        )

    def _settings(
        self, asked: pb.GenerationSettings, model: ServedModel, initial: Image.Image | None
    ) -> GenerationSettings:
        """What is asked for, with the usual where it does not say."""
        longest = self._state.config.max_generated_pixels
        for field in ("width", "height"):
            if getattr(asked, field) > longest:
                raise InvalidInputError(
                    f"a {field} of {getattr(asked, field)} pixels is more than the {longest} that "
                    "this server generates",
                    field=f"settings.{field}",
                )
            if getattr(asked, field) % _MULTIPLE:
                raise InvalidInputError(
                    f"a {field} of {getattr(asked, field)} pixels is no multiple of {_MULTIPLE}",
                    field=f"settings.{field}",
                )
        generator = model.generator
        settings = GenerationSettings(
            asked.prompt,
            asked.negative_prompt,
            asked.seed if asked.HasField("seed") else secrets.randbits(32),
            asked.steps,
            asked.guidance_scale if asked.HasField("guidance_scale") else None,
            asked.width,
            asked.height,
            initial,
            asked.initial_image.strength if asked.initial_image.HasField("strength") else 0.5,
        ).filled(
            steps=generator.usual_steps,
            guidance_scale=generator.usual_guidance,
            side=generator.usual_side,
        )
        if asked.negative_prompt and (settings.guidance_scale or 0) <= 1:
            raise InvalidInputError(
                "a negative prompt needs a guidance_scale above 1", field="settings.negative_prompt"
            )
        return settings

    def _prepare(
        self,
        request: pb.GenerateRequest,
        asked: pb.GenerationSettings,
        model: ServedModel,
        settings: GenerationSettings,
    ) -> _Prepared:
        """Translate the edits, and draw the noise."""
        filled = recipes.filled_settings(asked, settings)
        recipe = recipes.recipe(self._state, model, filled)
        if request.WhichOneof("content") == "recipe" and not request.allow_drift:
            recipes.check_same(request.recipe, recipe)
        translated = translate(self._state, model, filled, settings)
        encode = [self._state.dictionary(name) for name in request.encode_dictionaries]
        for served in encode:
            if served.model.resource != model.resource:
                raise InvalidInputError(
                    f"{served.resource} is not of {asked.model}", field="encode_dictionaries"
                )
        generation = Generation(model.generator, settings, translated.changes)
        recipe.noise_sha256 = generation.run.noise_sha256[PICTURE]
        return _Prepared(filled, recipe, translated, generation, encode)

    async def _result(
        self,
        request: pb.GenerateRequest,
        model: ServedModel,
        prepared: _Prepared,
        steered: Steered,
        collected: _Collected,
    ) -> pb.GenerationResult:
        format_ = request.format or image_pb2.IMAGE_FORMAT_PNG
        prepared.recipe.picture_sha256 = recipes.picture_sha256(steered.picture)
        result = pb.GenerationResult(
            picture=encoded(steered.picture, format_), recipe=prepared.recipe
        )
        if not request.omit_twin:
            result.twin.CopyFrom(encoded(steered.twin, format_))
            moved = effects.difference(steered.picture, steered.twin)
            levels = np.round(moved * 255).astype(np.uint8)
            result.difference_map.CopyFrom(to_proto(levels, scale=1 / 255))
            height, width = moved.shape
            region = effects.union(regions_in_pixels(prepared.regions(), height, width))
            perceived = await model.lane.run(
                lambda: effects.perceptual_difference(
                    model.generator, steered.picture, steered.twin
                )
            )
            result.effect.CopyFrom(_effect(moved, perceived, region))
            changed = effects.changed_share(moved)
            result.effect.metrics.add(name="changed_share", value=changed, count=moved.size)
            result.effect.texts.extend(await self._texts(request, prepared, steered))
        result.unread_texts.extend(
            await self._state.describing.run(lambda: self._unread(request, model, prepared))
        )
        for served in prepared.encode:
            codes = collected.codes(served)
            result.encodings.append(
                await self._state.searching.run(lambda: _encoding(served, steered, codes))  # noqa: B023
            )
        return result

    def _unread(
        self, request: pb.GenerateRequest, model: ServedModel, prepared: _Prepared
    ) -> list[UnreadText]:
        """The ends of prompts and texts that nothing read."""
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
        self, request: pb.GenerateRequest, prepared: _Prepared, steered: Steered
    ) -> list[pb.TextEffect]:
        """How the picture moved toward texts: those asked for, or the labels of the features that
        a judge has confirmed."""
        similarities, labels = self._state.labelling.similarities, self._state.labels
        texts = list(request.effect_texts)
        if not texts:
            for served, feature in prepared.translated.features:
                entry = labels.currents(served.resource, [feature]).get(feature)
                made = entry.description if entry else None
                if made is not None and made.text and made.judged_by:
                    texts.append(made.text)
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


class _Collected:
    """Site vectors of the steered picture, step by step, for the dictionaries to encode."""

    def __init__(self, dictionaries: Sequence[Served]) -> None:
        self.sites = list(dict.fromkeys(served.bundle.site for served in dictionaries))
        self._steps: list[dict[str, torch.Tensor]] = []

    def add(self, vectors: dict[str, torch.Tensor]) -> None:
        """The vectors (P, D) of one step."""
        self._steps.append({site: v.float().cpu() for site, v in vectors.items()})

    def codes(self, served: Served) -> Encoded:
        """The codes (P, steps * k), averaged over the steps, which are explained together."""
        every = [step[served.bundle.site] for step in self._steps]
        coded = [served.bundle.dictionary.encode(vectors) for vectors in every]
        indices = torch.cat([codes.indices for codes in coded], dim=1)
        values = torch.cat([codes.values for codes in coded], dim=1) / len(coded)
        decoded = torch.cat([served.bundle.dictionary.decode(codes) for codes in coded])
        return Encoded(Codes(indices, values), explained(served, torch.cat(every), decoded))


def _encoding(
    served: Served, steered: Steered, codes: Encoded
) -> attribution_service_pb2.EncodeResponse:
    """Which features fired in a generated picture."""
    width, height = steered.picture.size
    grid = served.model.generator.grid(served.bundle.site, height, width)
    shown = Picture(torch.empty(0), Geometry(width, height, 1, 1, 0, 0))
    everywhere = np.ones(grid.patches, dtype=np.bool_)
    request = attribution_service_pb2.EncodeRequest()
    return encode_response(served, shown, request, codes, everywhere, grid)


def encoded(picture: Image.Image, format_: int) -> image_pb2.EncodedImage:
    """A picture as a file of this format."""
    kind, options = _SAVED[format_]
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return image_pb2.EncodedImage(
        data=buffer.getvalue(),
        format=image_pb2.ImageFormat.Name(format_),  # type: ignore[arg-type]  # a name serves too
        width=picture.width,
        height=picture.height,
    )


def _step(
    generation: Generation, collected: _Collected, request: pb.GenerateRequest
) -> image_pb2.EncodedImage | None:
    """One denoising step, and a preview where one was asked for."""
    collected.add(generation.advance(collected.sites))
    if not request.preview_interval or generation.run.step % request.preview_interval:
        return None
    picture = generation.run.previews()[PICTURE]
    scale = (request.preview_pixels or _DEFAULT_PREVIEW) / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return encoded(picture.resize((width, height)), image_pb2.IMAGE_FORMAT_WEBP)


def _progress(
    step: int,
    steps: int,
    begun: float,
    *,
    queue: int = 0,
    preview: image_pb2.EncodedImage | None = None,
) -> pb.GenerateResponse:
    elapsed = Duration()
    elapsed.FromMicroseconds(round((time.monotonic() - begun) * 1e6))
    return pb.GenerateResponse(
        progress=pb.GenerationProgress(
            step=step, steps=steps, preview=preview, queue_position=queue, elapsed=elapsed
        )
    )


def _effect(
    moved: NDArray[np.float32], perceived: NDArray[np.float32], region: NDArray[np.bool_] | None
) -> pb.GenerationEffect:
    pixel, perceptual = effects.change(moved, region), effects.change(perceived, region)
    return pb.GenerationEffect(
        pixel_change=pixel.everywhere,
        pixel_change_inside=pixel.inside,
        pixel_change_outside=pixel.outside,
        perceptual_change=perceptual.everywhere,
        perceptual_change_inside=perceptual.inside,
        perceptual_change_outside=perceptual.outside,
    )
