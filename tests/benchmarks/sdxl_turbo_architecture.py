"""The true U-Net of SDXL-Turbo, with random weights, on this machine: capture and edits at work.

``python -m tests.benchmarks.sdxl_turbo_architecture`` prints JSON. The configuration is that of
``stabilityai/sdxl-turbo``; its weights cannot be had without the hub, and shapes need none. Text
and autoencoder are small stand-ins of the right widths. The weights are kept in bfloat16; a
processor that has no products in it computes each layer in float32.
"""

from __future__ import annotations

import argparse
import resource
import time
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from tests.benchmarks._device import report, wait
from vision_sae import devices
from vision_sae.models.sdxl import TURBO_BLOCKS

UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
    "norm_num_groups": 32,
}
"""As in the model's ``unet/config.json``."""
_TEXT_TOKENS = 77


def turbo_unet(device: str) -> Any:
    """The U-Net in bfloat16, filled with small random numbers."""
    import diffusers as untyped

    diffusers: Any = untyped
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**UNET)
    unet = unet.to(torch.bfloat16).to_empty(device=device).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        if parameter.dim() > 1:
            # A short pattern repeated: filling 2.6 billion numbers one by one takes minutes.
            fan_in = parameter[0].numel()
            pattern = torch.randn(65537, generator=random) / fan_in**0.5
            times = -(-parameter.numel() // len(pattern))
            values = pattern.bfloat16().repeat(times)[: parameter.numel()]
            parameter.data.copy_(values.view_as(parameter))
        else:
            nn.init.constant_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0)
    return unet


def compute_in(unet: Any, dtype: torch.dtype) -> None:
    """Leave the weights in bfloat16 and have each layer compute in ``dtype``."""
    from diffusers.hooks import apply_layerwise_casting

    for module in unet.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            module.to(dtype)
    apply_layerwise_casting(
        unet, storage_dtype=torch.bfloat16, compute_dtype=dtype, skip_modules_pattern=("norm",)
    )


class _Model:
    """Just what `SdxlModel`'s sites and hooks need of a pipeline."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self.vae_scale_factor = 8
        self.scheduler = type("Scheduler", (), {"config": {"timestep_spacing": "trailing"}})()

    def to(self, *_: Any) -> _Model:
        """Leaves everything where it is."""
        return self

    def set_progress_bar_config(self, **_: Any) -> None:
        """There is none."""


def measure(_: argparse.Namespace) -> dict[str, Any]:
    """One plain step, and one with capture and edits at the four blocks."""
    from vision_sae.models.precision import fastest_dtype
    from vision_sae.models.sdxl import SdxlModel

    device, begun = devices.chosen(), time.perf_counter()
    unet = turbo_unet(device)
    filled = time.perf_counter() - begun
    model = SdxlModel("sdxl-turbo", _Model(unet), dtype="bfloat16", device=device)
    sites = [f"{block}.update" for block in TURBO_BLOCKS]
    random = torch.Generator().manual_seed(1)
    computed = fastest_dtype(device)
    if computed != torch.bfloat16:  # emulated, a step takes minutes
        compute_in(unet, computed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(device, computed)

    inputs = {
        "sample": noise(1, 4, 64, 64),
        "timestep": torch.tensor(999, device=device),
        "encoder_hidden_states": noise(1, _TEXT_TOKENS, 2048),
        "added_cond_kwargs": {
            "text_embeds": noise(1, 1280),
            "time_ids": torch.tensor([[512.0, 512, 0, 0, 512, 512]]).to(device, computed),
        },
    }

    def step() -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = unet(**inputs).sample
        wait(device)
        return result

    begun = time.perf_counter()
    plain = step()
    alone = time.perf_counter() - begun
    directions = torch.randn(4, 1280, generator=random).to(device)
    directions = torch.nn.functional.normalize(directions, dim=1)
    begun = time.perf_counter()
    with model.capture(sites) as before:
        again = step()
    captured = time.perf_counter() - begun
    begun = time.perf_counter()
    with ExitStack() as stack:
        unedited = stack.enter_context(model.capture(sites))  # sees each site before its edit
        for site, direction in zip(sites, directions, strict=True):
            addition = (20 * direction)[None, None]
            stack.enter_context(model.add(site, lambda a=addition: a))  # type: ignore[misc]
        after = stack.enter_context(model.capture(sites))
        edited = step()
    steered = time.perf_counter() - begun
    moved = torch.cat([(after[s].float() - unedited[s].float()).mean(1) for s in sites])
    toward = torch.nn.functional.cosine_similarity(moved, directions, dim=1).min()
    return {
        "parameters": sum(p.numel() for p in unet.parameters()),
        "sites": {site: list(vectors.shape) for site, vectors in before.items()},
        "grid": [model.grid(sites[0], 512, 512).rows, model.grid(sites[0], 512, 512).cols],
        "same_with_capture": torch.equal(plain, again),
        "finite": bool(torch.isfinite(edited).all()),
        "changed": not torch.equal(plain, edited),
        "toward": float(toward),
        "computed_in": str(computed).removeprefix("torch."),
        "fill_s": round(filled, 1),
        "step_s": round(alone, 2),
        "capture_s": round(captured, 2),
        "edit_s": round(steered, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


if __name__ == "__main__":
    report(argparse.ArgumentParser(), measure, indent=1)
