"""Text-to-image pipelines with a conditional U-Net behind the `Generator` protocol: those of SDXL
and, with one text encoder, those of Stable Diffusion 1 and 2.

A `Denoising` is one request's way from noise to a picture, a step at a time: who drives it can
stop, look and interfere between steps, and as it owns its scheduler, its noise and its place, any
number of them can be under way on one pipeline. Step by step it does what the pipeline's own call
does, to the last bit.
"""

from __future__ import annotations

import copy
import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from vision_sae.models.generator import GenerationSettings, check_batch
from vision_sae.models.grid import PatchGrid
from vision_sae.models.hooks import Edit, Tap, adding_to_site, capturing, replacing_site
from vision_sae.models.pipeline_parity import check_pipeline
from vision_sae.models.precision import fastest_dtype
from vision_sae.models.protocol import Site
from vision_sae.models.reading import unread_by_pipeline, without_words_in_logs
from vision_sae.models.sources import check_weights, loading, numbers_in, read_config, said
from vision_sae.models.vit import Dtype

TURBO_BLOCKS = (
    "down_blocks.2.attentions.1",
    "mid_block.attentions.0",
    "up_blocks.0.attentions.0",
    "up_blocks.0.attentions.1",
)
"""The blocks of SDXL-Turbo's U-Net that are known to specialise (Surkov et al. 2024,
arXiv:2410.22366): composition; nothing known; local detail; colour, light and style."""


_OPTIONS: dict[str, dict[str, Any]] = {
    "StableDiffusionXLPipeline": {"add_watermarker": False},
    "StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False},
}
"""What pipelines of each class are loaded with: none may look at pictures, or change them."""
_NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that may be missing in a folder: nothing here runs them."""
_NOT_SCHEDULE = ("_use_default_values", "_diffusers_version")
"""Of a scheduler's configuration: where it came from."""


class SdxlModel:
    """A diffusers ``StableDiffusionXLPipeline`` or ``StableDiffusionPipeline``; see
    `vision_sae.models.generator.Generator`.

    Sites are the updates of the U-Net's attention blocks: ``down_blocks.2.attentions.1.update``.
    """

    kind = "sdxl"

    def __init__(self, name: str, pipeline: Any, *, dtype: Dtype = "auto", device: str = "cpu"):
        self.name = name
        self.device = torch.device(device)
        self.dtype = fastest_dtype(device) if dtype == "auto" else getattr(torch, dtype)
        # The U-Net takes nearly all the time; the decoder, whose rounding one would see, none.
        with _quiet_diffusers():
            self.pipeline = pipeline.to(self.device)
            self.pipeline.to(torch.float32)
            self.pipeline.unet.to(self.dtype).requires_grad_(False)
        self.pipeline.set_progress_bar_config(disable=True)
        self.tokenizing = threading.Lock()
        """Tokenizers keep their padding in themselves: one call at a time."""
        for library in (type(pipeline).__module__, "transformers.tokenization_utils_base"):
            without_words_in_logs(library)
        self._blocks = _attention_blocks(name, pipeline.unet)
        scheduler = pipeline.scheduler.config
        turbo = scheduler.get("timestep_spacing") == "trailing"
        self.usual_steps, self.usual_guidance = (4, 0.0) if turbo else _usual(pipeline)
        side = pipeline.unet.config.sample_size
        if not isinstance(side, int):
            raise InvalidInputError(
                f"the sample_size of {name}'s U-Net is {side}; supported is one number, for the "
                "square pictures that it usually makes",
                field="model",
            )
        self.usual_side = side * pipeline.vae_scale_factor

    @cached_property
    def sites(self) -> dict[str, Site]:
        """Every site by name, in the order in which they are computed."""
        order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
        paths = sorted(self._blocks, key=lambda path: order[path.partition(".")[0]])
        return {
            f"{path}.update": Site(f"{path}.update", "update", self._blocks[path].in_channels)  # type: ignore[arg-type]
            for path in paths
        }

    @property
    def deepest(self) -> str:
        """The middle block's, or that of the last block before it."""
        return [s for s in self.sites if not s.startswith("up_blocks")][-1]

    def _tap(self, site: str) -> Tap:
        if site not in self.sites:
            raise NotFoundError(
                f"{self.name} has no site {site!r}; its sites are {', '.join(self.sites)}",
                field="site",
            )
        return Tap(self._blocks[site.removesuffix(".update")], "update", maps=True)

    def grid(self, site: str, height: int, width: int) -> PatchGrid:
        """The positions of ``site`` in a picture of this size."""
        factor = self.pipeline.vae_scale_factor << self._halvings(site)
        rows, cols = math.ceil(height / factor), math.ceil(width / factor)
        return PatchGrid(rows, cols, 0, factor, factor)

    def _halvings(self, site: str) -> int:
        """How often a block's maps are half as wide as the latents."""
        levels = len(self.pipeline.unet.config.block_out_channels)
        part, _, rest = site.partition(".")
        if part == "mid_block":
            return levels - 1
        number = int(rest.partition(".")[0])
        return number if part == "down_blocks" else levels - 1 - number

    def capture(
        self, sites: Sequence[str], *, stop: bool = False
    ) -> AbstractContextManager[dict[str, Tensor]]:
        """Collect sites (B, T, D) during steps in the body; ``stop`` skips all blocks behind the
        last."""
        return capturing({site: self._tap(site) for site in sites}, stop=stop)

    def replace(self, site: str, edit: Edit) -> AbstractContextManager[None]:
        """Pass a site through ``edit`` during steps in the body."""
        return replacing_site(self._tap(site), edit)

    def add(self, site: str, addition: Callable[[], Tensor | None]) -> AbstractContextManager[None]:
        """Add to a site during steps in the body, without computing it."""
        return adding_to_site(self._tap(site), addition)

    def identity(self) -> dict[str, Any]:
        """What a manifest binds."""
        scheduler = self.pipeline.scheduler.config
        return {
            "name": self.name,
            "kind": self.kind,
            "weights_sha256": self._weights_sha256,
            "scheduler": {k: v for k, v in sorted(scheduler.items()) if k not in _NOT_SCHEDULE},
            "usual": [self.usual_side, self.usual_steps, self.usual_guidance],
        }

    def _parts(self) -> dict[str, nn.Module]:
        """The networks of the pipeline; the second text encoder is SDXL's alone."""
        names = ("unet", "vae", "text_encoder", "text_encoder_2")
        found = {name: getattr(self.pipeline, name, None) for name in names}
        return {name: module for name, module in found.items() if module}

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, of all its parts."""
        return sum(p.numel() for module in self._parts().values() for p in module.parameters())

    @cached_property
    def _weights_sha256(self) -> str:
        """Of the weights rounded to bfloat16: the same whatever precision they were loaded in."""
        digest = hashlib.sha256()
        for part, module in self._parts().items():
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(f"{part}.{name}{tuple(tensor.shape)}".encode())
                rounded = tensor.detach().cpu().to(torch.bfloat16).contiguous()
                digest.update(rounded.view(torch.int16).numpy().tobytes())
        return digest.hexdigest()

    def perceive(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) from 0 to 1 -> the maps (B, C, h, w) of each of the autoencoder's
        encoding blocks; of a tiny autoencoder, of each of its decoding layers."""
        vae, pixels = self.pipeline.vae, 2 * images.to(self.device) - 1
        with torch.inference_mode():
            if hasattr(vae.encoder, "down_blocks"):
                part, given = vae.encoder, pixels
                layers = list(vae.encoder.down_blocks)
            else:
                part, given = vae.decoder, vae.encode(pixels).latents
                layers = [layer for layer in vae.decoder.layers if hasattr(layer, "conv")]
            taps = {str(i): Tap(layer, "output") for i, layer in enumerate(layers)}
            with capturing(taps, stop=True) as captured:
                part(given)
        return list(captured.values())

    def unread_text(self, text: str) -> str:
        """See `Generator.unread_text`."""
        parts = self.pipeline.components
        found = [parts[name] for name in ("tokenizer", "tokenizer_2") if parts.get(name)]
        with self.tokenizing:
            return max((unread_by_pipeline(each, text) for each in found), key=len)

    def start(self, *batch: GenerationSettings) -> Denoising:
        """Begin a generation of one picture or several; see `Generator.start`."""
        return Denoising(self, batch)


def _attention_blocks(name: str, unet: nn.Module) -> dict[str, nn.Module]:
    """The blocks whose updates are sites, by their path."""
    found = {
        path: module
        for path, module in unet.named_modules()
        if ".attentions." in path and path.rpartition(".")[0].endswith("attentions")
    }
    other = [
        type(module).__name__ for module in found.values() if not hasattr(module, "in_channels")
    ]
    if other or not found:
        raise InvalidInputError(
            f"the attention blocks of {name}'s U-Net are {other[0] if other else 'missing'}; "
            "supported are those of Stable Diffusion 1, 2 and XL",
            field="model",
        )
    return found


class Denoising:
    """A batch of generations under way; see `vision_sae.models.generator.Denoising`."""

    def __init__(self, model: SdxlModel, batch: Sequence[GenerationSettings]) -> None:
        self.batch = tuple(self._filled(model, settings) for settings in batch)
        self._model = model
        settings, pipeline = self.batch[0], model.pipeline
        check_batch(self.batch)
        self._scheduler = copy.deepcopy(pipeline.scheduler)
        self._guidance = settings.guidance_scale or 0.0
        self.guided = self._guidance > 1
        """Whether each step runs on an unconditional half too, which comes first."""
        self.step = 0
        """Steps done."""
        with torch.inference_mode():
            self._timesteps = self._times()
            self._texts, self._added = self._conditions()
            # One stream of noise for each: none depends on who else is in the batch.
            self._noise = [torch.Generator().manual_seed(s.seed) for s in self.batch]
            self.latents = self._first_latents()
            self.noise_sha256 = tuple(map(_sha256, self.latents))
            self._clean = self.latents
        self._extra = pipeline.prepare_extra_step_kwargs(self._noise, 0.0)
        if settings.image is not None and hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(self._first_index)

    @staticmethod
    def _filled(model: SdxlModel, settings: GenerationSettings) -> GenerationSettings:
        """The settings with the model's usual values where there were none."""
        side, multiple = model.usual_side, model.pipeline.vae_scale_factor
        filled = settings.filled(
            steps=model.usual_steps, guidance_scale=model.usual_guidance, side=side
        )
        for field in ("width", "height"):
            value = getattr(filled, field)
            if value % multiple:
                raise InvalidInputError(
                    f"a {field} of {value} is not a multiple of {multiple}", field=field
                )
        return filled

    def _times(self) -> Tensor:
        settings, scheduler = self.batch[0], self._scheduler
        try:
            scheduler.set_timesteps(settings.steps, device=self._model.device)
        except (ValueError, IndexError) as error:
            raise InvalidInputError(
                f"{settings.steps} steps are none that {type(scheduler).__name__} can take "
                f"({said(error)}); ask for more or fewer",
                field="steps",
            ) from error
        self._first_index = (settings.steps - settings.steps_run) * scheduler.order
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
        """How many steps it takes in all."""
        return len(self._timesteps)

    def _conditions(self) -> tuple[Tensor, dict[str, Tensor]]:
        """What the U-Net is told of the prompts; of SDXL's also sizes and a pooled text."""
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
        clean = torch.cat([self._latents_of(s) for s in self.batch])
        noised: Tensor = self._scheduler.add_noise(clean, noise, self._timesteps[:1])
        return noised

    def _latents_of(self, settings: GenerationSettings) -> Tensor:
        """What the autoencoder makes of the picture to start from (1, C, h, w)."""
        pipeline = self._model.pipeline
        pixels = pipeline.image_processor.preprocess(
            settings.image, settings.height, settings.width
        )
        encoded = pipeline.vae.encode(pixels.to(self._model.device))
        # A tiny autoencoder gives latents, others their distribution.
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
                time,
                encoder_hidden_states=self._texts,
                added_cond_kwargs=self._added,
                return_dict=False,
            )[0].float()
            if self.guided:
                without, given = predicted.chunk(2)
                predicted = without + self._guidance * (given - without)
            (self.latents, *clean) = scheduler.step(
                predicted, time, self.latents, **self._extra, return_dict=False
            )
            self._clean = clean[0] if clean else self.latents
        self.step += 1

    def pictures(self) -> list[Image.Image]:
        """The latents as they stand, decoded."""
        return self._decoded(self.latents)

    def previews(self) -> list[Image.Image]:
        """What the last step takes the pictures for, with the noise gone."""
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
        made: list[Image.Image] = pipeline.image_processor.postprocess(decoded, output_type="pil")
        return made


def _spread_of(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and spread (1, C, 1, 1) of each channel of the latents, where the configuration of the
    autoencoder says them."""
    mean, spread = vae.get("latents_mean"), vae.get("latents_std")
    if mean is None or spread is None:
        return None
    first, second = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, spread))
    return first, second


def _usual(pipeline: Any) -> tuple[int, float]:
    """(steps, guidance scale) that a pipeline takes when its caller says nothing."""
    said = signature(pipeline.__call__).parameters
    return said["num_inference_steps"].default, said["guidance_scale"].default


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without its warnings, that an autoencoder may be a tiny one, and about parts that nobody
    keeps in float32; and without bars for the loading of each part."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    libraries: tuple[Any, Any] = (ours, theirs)
    before = [each.get_verbosity() for each in libraries]
    bars = [each for each in libraries if each.is_progress_bar_enabled()]
    for each in libraries:
        each.set_verbosity_error()
    for each in bars:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each, verbosity in zip(libraries, before, strict=True):
            each.set_verbosity(verbosity)
        for each in bars:
            each.enable_progress_bar()


def _sha256(values: Tensor) -> str:
    return hashlib.sha256(values.float().cpu().contiguous().numpy().tobytes()).hexdigest()


def load_sdxl(target: str, name: str, *, dtype: Dtype = "auto", device: str = "cpu") -> SdxlModel:
    """A pipeline of the hub, or the directory that ``save_pretrained`` wrote."""
    import diffusers

    folder = Path(target)
    index = folder / "model_index.json" if folder.is_dir() else None
    if index is not None:
        _check_parts(index)
    pipelines: Any = diffusers
    with loading(name, config=index), _quiet_diffusers():
        kind = pipelines.DiffusionPipeline.load_config(target)["_class_name"]
        if kind not in _OPTIONS:
            raise InvalidInputError(
                f"{target} is a {kind}; supported are {' and '.join(_OPTIONS)}", field="model"
            )
        options = _OPTIONS[kind] | {"use_safetensors": True}
        pipeline = getattr(pipelines, kind).from_pretrained(target, **options)
        if index is not None:
            _check_whole(folder, pipeline)
        model = SdxlModel(name, pipeline, dtype=dtype, device=device)
    check_pipeline(model)
    return model


def _check_parts(index: Path) -> None:
    """Raise unless the folder of a pipeline's ``index`` has every part, with whole weights."""
    for name, kind in read_config(index).items():
        part = index.parent / name
        if name in _NOT_NEEDED or not isinstance(kind, list) or kind[0] is None:
            continue
        if not part.is_dir():
            raise NotFoundError(f"{index} names {name}, but {part} is missing", field="model")
        if (part / "config.json").is_file():  # else it is a scheduler or a tokenizer
            read_config(part / "config.json")
            check_weights(part)


def _check_whole(folder: Path, pipeline: Any) -> None:
    """Raise if a part's files hold fewer numbers than it has: libraries make up the others."""
    for name, module in pipeline.components.items():
        if isinstance(module, nn.Module):
            needed = sum(parameter.numel() for parameter in module.parameters())
            if numbers_in(folder / name) < needed:
                raise CorruptArtifactError(
                    f"the weights in {folder / name} lack some of the {needed} numbers that its "
                    "config.json asks for; copy them anew",
                    field="model",
                )
