"""Text-to-image pipelines with a conditional U-Net behind the `Generator` protocol: those of SDXL
and, with one text encoder, those of Stable Diffusion 1 and 2.

`vision_sae.models.sdxl_denoising` has the denoising itself.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vision_sae.devices import Dtype
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.context import unread_by_pipeline, without_words_in_logs
from vision_sae.models.generator import GenerationSettings
from vision_sae.models.grid import PatchGrid
from vision_sae.models.hooks import Edit, Tap, adding_to_site, capturing, replacing_site
from vision_sae.models.precision import computing_dtype
from vision_sae.models.protocol import Site
from vision_sae.models.sdxl_denoising import SdxlDenoising

TURBO_BLOCKS = (
    "down_blocks.2.attentions.1",
    "mid_block.attentions.0",
    "up_blocks.0.attentions.0",
    "up_blocks.0.attentions.1",
)
"""The blocks of SDXL-Turbo's U-Net that are known to specialise (Surkov et al. 2024,
arXiv:2410.22366): composition; nothing known; local detail; colour, light and style."""
_NOT_SCHEDULE = ("_use_default_values", "_diffusers_version")
"""Keys of a scheduler's configuration that say where it came from, not what it does."""


class SdxlModel:
    """A diffusers ``StableDiffusionXLPipeline`` or ``StableDiffusionPipeline``; see
    `vision_sae.models.generator.Generator`.

    Sites are the updates of the U-Net's attention blocks: ``down_blocks.2.attentions.1.update``.
    """

    kind = "sdxl"

    def __init__(self, name: str, pipeline: Any, *, dtype: Dtype = "auto", device: str = "cpu"):
        self.name = name
        self.device = torch.device(device)
        self.dtype = computing_dtype(dtype, device)
        # The U-Net needs nearly all the time. The other parts stay float32: the decoder needs
        # little time, and its rounding would be visible.
        with quiet_diffusers():
            self.pipeline = pipeline.to(self.device)
            self.pipeline.to(torch.float32)
            self.pipeline.unet.to(self.dtype).requires_grad_(False)
        self.pipeline.set_progress_bar_config(disable=True)
        self.tokenizing = threading.Lock()
        """A tokenizer keeps its padding as state, so one call at a time."""
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
        """The site of the middle block, or else of the last block before the middle."""
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
        """What a manifest records to recognise this model."""
        scheduler = self.pipeline.scheduler.config
        return {
            "name": self.name,
            "kind": self.kind,
            "weights_sha256": self._weights_sha256,
            "scheduler": {k: v for k, v in sorted(scheduler.items()) if k not in _NOT_SCHEDULE},
            "usual": [self.usual_side, self.usual_steps, self.usual_guidance],
        }

    def _parts(self) -> dict[str, nn.Module]:
        """The networks of the pipeline; only SDXL has a second text encoder."""
        names = ("unet", "vae", "text_encoder", "text_encoder_2")
        modules = {name: getattr(self.pipeline, name, None) for name in names}
        return {name: module for name, module in modules.items() if module}

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, of all its parts."""
        return sum(p.numel() for module in self._parts().values() for p in module.parameters())

    @cached_property
    def _weights_sha256(self) -> str:
        """SHA-256 of the weights rounded to bfloat16, whatever precision they are loaded in."""
        digest = hashlib.sha256()
        for part, module in self._parts().items():
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(f"{part}.{name}{tuple(tensor.shape)}".encode())
                rounded = tensor.detach().cpu().to(torch.bfloat16).contiguous()
                digest.update(rounded.view(torch.int16).numpy().tobytes())
        return digest.hexdigest()

    def perceive(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps (B, C, h, w) of each encoding block of the autoencoder for pictures from 0 to 1;
        of a tiny autoencoder, the maps of each decoding layer."""
        vae, pixels = self.pipeline.vae, 2 * images.to(self.device) - 1
        with torch.inference_mode():
            if hasattr(vae.encoder, "down_blocks"):
                part, part_input = vae.encoder, pixels
                layers = list(vae.encoder.down_blocks)
            else:
                part, part_input = vae.decoder, vae.encode(pixels).latents
                layers = [layer for layer in vae.decoder.layers if hasattr(layer, "conv")]
            taps = {str(i): Tap(layer, "output") for i, layer in enumerate(layers)}
            with capturing(taps, stop=True) as captured:
                part(part_input)
        return list(captured.values())

    def unread_text(self, text: str) -> str:
        """See `Generator.unread_text`."""
        parts = self.pipeline.components
        tokenizers = [parts[name] for name in ("tokenizer", "tokenizer_2") if parts.get(name)]
        with self.tokenizing:
            return max((unread_by_pipeline(each, text) for each in tokenizers), key=len)

    def start(self, *batch: GenerationSettings) -> SdxlDenoising:
        """Begin a generation of one picture or several; see `Generator.start`."""
        return SdxlDenoising(self, batch)


def _attention_blocks(name: str, unet: nn.Module) -> dict[str, nn.Module]:
    """The blocks whose updates are sites, by their path."""
    blocks = {
        path: module
        for path, module in unet.named_modules()
        if ".attentions." in path and path.rpartition(".")[0].endswith("attentions")
    }
    other = [
        type(module).__name__ for module in blocks.values() if not hasattr(module, "in_channels")
    ]
    if other or not blocks:
        raise InvalidInputError(
            f"the attention blocks of {name}'s U-Net are {other[0] if other else 'missing'}; "
            "supported are those of Stable Diffusion 1, 2 and XL",
            field="model",
        )
    return blocks


def _usual(pipeline: Any) -> tuple[int, float]:
    """(steps, guidance scale) that a pipeline takes when its caller says nothing."""
    said = signature(pipeline.__call__).parameters
    return said["num_inference_steps"].default, said["guidance_scale"].default


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Silence diffusers and transformers in the body: no warnings about tiny autoencoders and
    float32 parts, and no progress bar for each part."""
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
