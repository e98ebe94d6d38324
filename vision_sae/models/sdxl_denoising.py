"""A batch of generations on one pipeline with a conditional U-Net, a denoising step at a time.

Between steps the caller can stop the generation, look at it and interfere. An `SdxlDenoising` owns
its scheduler, its noise and its place, so any number of them can be under way on one pipeline. Its
steps equal those of the pipeline's own call to the last bit.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import GenerationSettings, check_batch
from vision_sae.models.sources import said

if TYPE_CHECKING:
    from vision_sae.models.sdxl import SdxlModel


class SdxlDenoising:
    """A batch of generations under way; see `vision_sae.models.generator.Denoising`."""

    def __init__(self, model: SdxlModel, batch: Sequence[GenerationSettings]) -> None:
        self.batch = tuple(self._filled(model, settings) for settings in batch)
        self._model = model
        settings, pipeline = self.batch[0], model.pipeline
        check_batch(self.batch)
        self._scheduler = copy.deepcopy(pipeline.scheduler)
        self._guidance = settings.guidance_scale or 0.0
        self.guided = self._guidance > 1
        """Whether the batch of each step begins with an unconditional half."""
        self.step = 0
        """The number of steps done."""
        with torch.inference_mode():
            # The scheduler reads its times on the host, where no step waits for the device.
            self._timesteps = self._times()
            self._model_times = self._timesteps.to(model.device)
            self._texts, self._added = self._conditions()
            # A noise generator for each picture: no picture depends on the others of its batch.
            self._noise = [torch.Generator().manual_seed(s.seed) for s in self.batch]
            self._first = self.latents = self._first_latents()
            self._clean = self.latents
        self._extra = pipeline.prepare_extra_step_kwargs(self._noise, 0.0)
        if settings.image is not None and hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(self._first_index)

    @staticmethod
    def _filled(model: SdxlModel, settings: GenerationSettings) -> GenerationSettings:
        """The settings, with the model's usual values where a value is missing."""
        multiple, filled = model.pipeline.vae_scale_factor, settings.filled(model)
        for field in ("width", "height"):
            value = getattr(filled, field)
            if value % multiple:
                raise InvalidInputError(
                    f"a {field} of {value} is not a multiple of {multiple}", field=field
                )
        return filled

    @cached_property
    def noise_sha256(self) -> tuple[str, ...]:
        """See `Denoising.noise_sha256`."""
        return tuple(map(_sha256, self._first.float().cpu()))

    def _times(self) -> Tensor:
        settings, scheduler = self.batch[0], self._scheduler
        try:
            scheduler.set_timesteps(settings.steps, device="cpu")
        except (ValueError, IndexError) as error:
            raise InvalidInputError(
                f"{settings.steps} steps are none that {type(scheduler).__name__} can take "
                f"({said(error)}); ask for more or fewer",
                field="steps",
            ) from error
        self._first_index: int = (settings.steps - settings.steps_run) * scheduler.order
        times: Tensor = scheduler.timesteps[self._first_index :]
        if not len(times):
            raise InvalidInputError(
                f"a strength of {settings.strength} leaves none of {settings.steps} steps; raise "
                "either",
                field="strength",
            )
        return times

    @property
    def steps(self) -> int:
        """The number of steps in all."""
        return len(self._timesteps)

    def _conditions(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The embeddings of the prompts, and for SDXL also sizes and a pooled text."""
        settings, pipeline = self.batch[0], self._model.pipeline
        negatives = [s.negative_prompt for s in self.batch]
        with self._model.tokenizing:
            prompt, negative, *rest = pipeline.encode_prompt(
                prompt=[s.prompt for s in self.batch],
                device=self._model.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=self.guided,
                negative_prompt=negatives if any(negatives) else None,
            )
        kind = self._model.dtype
        if self.guided:
            prompt = torch.cat([negative, prompt])
        if not rest:
            return prompt.to(kind), {}
        pooled, negative_pooled = rest
        if self.guided:
            pooled = torch.cat([negative_pooled, pooled])
        size = (settings.height, settings.width)
        times = pipeline._get_add_time_ids(
            size,
            (0, 0),
            size,
            dtype=prompt.dtype,
            text_encoder_projection_dim=pipeline.text_encoder_2.config.projection_dim,
        ).to(self._model.device)
        return prompt.to(kind), {
            "text_embeds": pooled.to(kind),
            "time_ids": times.repeat(len(prompt), 1),
        }

    def _first_latents(self) -> Tensor:
        from diffusers.utils.torch_utils import randn_tensor

        settings, pipeline = self.batch[0], self._model.pipeline
        factor = pipeline.vae_scale_factor
        shape = (
            len(self.batch),
            pipeline.unet.config.in_channels,
            settings.height // factor,
            settings.width // factor,
        )
        noise: Tensor = randn_tensor(
            shape, generator=self._noise, device=self._model.device, dtype=torch.float32
        )
        if settings.image is None:
            scale: float = self._scheduler.init_noise_sigma
            return noise * scale
        pixels = torch.cat([self._pixels_of(s) for s in self.batch]).to(self._model.device)
        # Encoded one by one: the latents of a picture must not depend on the others.
        clean = torch.cat([self._latents_of(picture) for picture in pixels.split(1)])
        noised: Tensor = self._scheduler.add_noise(clean, noise, self._timesteps[:1])
        return noised

    def _pixels_of(self, settings: GenerationSettings) -> Tensor:
        """The picture to start from as the autoencoder's input (1, 3, H, W)."""
        pixels: Tensor = self._model.pipeline.image_processor.preprocess(
            settings.image, settings.height, settings.width
        )
        return pixels

    def _latents_of(self, pixels: Tensor) -> Tensor:
        """The autoencoder's latents (1, C, h, w) of a picture (1, 3, H, W)."""
        pipeline = self._model.pipeline
        encoded = pipeline.vae.encode(pixels)
        # A tiny autoencoder gives latents; other autoencoders give a distribution of latents.
        mean = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        config = pipeline.vae.config
        if (spread := _spread_of(config, mean)) is not None:
            mean = (mean - spread[0]) / spread[1]
        scaled: Tensor = mean * config.scaling_factor
        return scaled

    def advance(self) -> None:
        """One denoising step."""
        unet, scheduler = self._model.pipeline.unet, self._scheduler
        time = self._timesteps[self.step]
        with torch.inference_mode():
            both = torch.cat([self.latents] * 2) if self.guided else self.latents
            predicted = unet(
                scheduler.scale_model_input(both, time).to(self._model.dtype),
                self._model_times[self.step],
                encoder_hidden_states=self._texts,
                added_cond_kwargs=self._added,
                return_dict=False,
            )[0].float()
            if self.guided:
                unconditional, conditional = predicted.chunk(2)
                predicted = unconditional + self._guidance * (conditional - unconditional)
            (self.latents, *clean) = scheduler.step(
                predicted, time, self.latents, **self._extra, return_dict=False
            )
            self._clean = clean[0] if clean else self.latents
        self.step += 1

    def pictures(self) -> list[Image.Image]:
        """The current latents, decoded."""
        return self._decoded(self.latents)

    def previews(self) -> list[Image.Image]:
        """The pictures without noise that the last step predicts, decoded."""
        return self._decoded(self._clean)

    def _decoded(self, latents: Tensor) -> list[Image.Image]:
        pipeline = self._model.pipeline
        config = pipeline.vae.config
        with torch.inference_mode():
            if (spread := _spread_of(config, latents)) is None:
                latents = latents / config.scaling_factor
            else:
                latents = latents * spread[1] / config.scaling_factor + spread[0]
            decoded = pipeline.vae.decode(latents, return_dict=False)[0]
        pictures: list[Image.Image] = pipeline.image_processor.postprocess(
            decoded, output_type="pil"
        )
        return pictures


def _spread_of(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation (1, C, 1, 1) of each channel of the latents; None where the
    autoencoder's configuration has none."""
    mean, spread = vae.get("latents_mean"), vae.get("latents_std")
    if mean is None or spread is None:
        return None
    first, second = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, spread))
    return first, second


def _sha256(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()
