"""A check of every text-to-image model that is loaded: it must take its pipeline's own steps.

There are too many kinds of schedulers, autoencoders, guidance and conditions of a U-Net for a list
of the supported ones. So the pipeline's own call and our steps generate one small picture each. A
stand-in takes the place of the U-Net, which would need nearly all the time. Both must give the
stand-in the same inputs, to the last bit, and make the same picture. The U-Net itself runs one
step, to check the shapes of its sites.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import GenerationSettings, generate
from vision_sae.models.sources import said

if TYPE_CHECKING:
    from vision_sae.models.sdxl import SdxlModel

UnetInputs = dict[str, Any]
"""What the U-Net is given for one step, by name."""


def check_pipeline(model: SdxlModel) -> None:
    """Raise `InvalidInputError`, with the reason, unless a model that was just loaded does what its
    pipeline does. Leaves both, and all random numbers, as they were."""
    unet = model.pipeline.unet
    if unet.config.get("time_cond_proj_dim"):
        raise _refusal(model, "its U-Net is told the guidance (time_cond_proj_dim)")
    # The smallest picture whose deepest maps have more than one position.
    side = 2 * model.pipeline.vae_scale_factor << (len(unet.config.block_out_channels) - 1)
    settings = GenerationSettings(
        "a small red star", "grey", steps=model.usual_steps, guidance_scale=3.0
    )
    settings = replace(settings, height=side, width=2 * side)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        _check_steps(model, settings)
        _check_sites(model, settings)


def _refusal(model: SdxlModel, reason: str) -> InvalidInputError:
    scheduler = type(model.pipeline.scheduler).__name__
    return InvalidInputError(
        f"{model.name}, a {type(model.pipeline).__name__} with {scheduler}, is not supported: "
        f"{reason}",
        field="model",
    )


def _check_steps(model: SdxlModel, settings: GenerationSettings) -> None:
    own = copy.copy(model.pipeline)
    own.scheduler = copy.deepcopy(model.pipeline.scheduler)
    with _refusing(model, "its pipeline's own call"), _stand_in(model) as theirs:
        picture: Image.Image = own(
            settings.prompt,
            negative_prompt=settings.negative_prompt,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            height=settings.height,
            width=settings.width,
            generator=torch.Generator().manual_seed(settings.seed),
        ).images[0]
    with _refusing(model, "a generation"), _stand_in(model) as ours:
        (ours_drawn,) = generate(model, [settings])
    if len(ours) != len(theirs):
        raise _refusal(model, f"its pipeline takes {len(theirs)} steps where {len(ours)} are known")
    for step, (actual, expected) in enumerate(zip(ours, theirs, strict=True)):
        for name in sorted(actual.keys() | expected.keys()):
            if not _same(actual.get(name), expected.get(name)):
                raise _refusal(model, f"in step {step} its pipeline tells the U-Net another {name}")
    if not np.array_equal(np.asarray(ours_drawn), np.asarray(picture)):
        raise _refusal(model, "its pipeline makes another picture of the last latents")


@contextmanager
def _refusing(model: SdxlModel, what: str) -> Iterator[None]:
    """Refuse the model when anything in the body fails."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _refusal(model, f"{what} fails ({said(error)})") from error


@contextmanager
def _stand_in(model: SdxlModel) -> Iterator[list[UnetInputs]]:
    """Record the inputs of the U-Net in the body, and answer with simple sums of them.

    Both sides compute in float32, as a pipeline does: the rounding of our inputs to the precision
    of the U-Net is no difference.
    """
    recorded: list[UnetInputs] = []

    def answer(sample: Tensor, time: Tensor, encoder_hidden_states: Tensor, **options: Any) -> Any:
        added = options.pop("added_cond_kwargs", None) or {}
        options |= {"latents": sample, "timestep": time, "texts": encoder_hidden_states} | added
        recorded.append({name: value for name, value in options.items() if name != "return_dict"})
        texts = encoder_hidden_states.mean(dim=(1, 2))[:, None, None, None]
        return (0.5 * sample.roll(1, -1) + texts,)

    unet, dtype = model.pipeline.unet, model.dtype
    unet.forward, model.dtype = answer, torch.float32
    try:
        yield recorded
    finally:
        model.dtype = dtype
        del unet.forward


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one.cpu(), other.cpu())
    return bool(one == other)


def _check_sites(model: SdxlModel, settings: GenerationSettings) -> None:
    """One step of the U-Net itself gives every site a vector for each position of its grid."""
    with _refusing(model, "a step"):
        run = model.start(settings)
        with model.capture(list(model.sites)) as captured:
            run.advance()
    if captured.keys() != model.sites.keys():
        raise _refusal(model, "its U-Net leaves out some of its attention blocks")
    for name, site in model.sites.items():
        grid = model.grid(name, settings.height, settings.width)
        expected = (2, grid.patches, site.dim)  # without and with the prompt
        if not torch.isfinite(captured[name]).all():
            raise _refusal(model, f"its {name} is not finite; look for NaN in its weights")
        if tuple(captured[name].shape) != expected:
            raise _refusal(
                model, f"its {name} has not one vector of {site.dim} numbers for each position"
            )
