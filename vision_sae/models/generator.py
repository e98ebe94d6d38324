"""What every text-to-image model can do, and what it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from vision_sae.errors import InvalidInputError
from vision_sae.models.grid import PatchGrid
from vision_sae.models.hooks import Edit
from vision_sae.models.protocol import Site


@dataclass(frozen=True)
class GenerationSettings:
    """What to generate. Numbers that are 0 or None mean the model's usual ones."""

    prompt: str = ""
    negative_prompt: str = ""
    """Only with guidance."""
    seed: int = 0
    steps: int = 0
    guidance_scale: float | None = None
    """Of classifier-free guidance; at most 1 means none."""
    width: int = 0
    height: int = 0
    image: Image.Image | Tensor | None = None
    """A picture to start from; as a tensor (3, H, W), from 0 to 1."""
    strength: float = 0.5
    """How much of it is noised away, in (0, 1]."""

    @property
    def steps_run(self) -> int:
        """Steps that are taken: with a picture to start from only the last of them."""
        share = 1.0 if self.image is None else self.strength
        return min(self.steps, int(self.steps * share))

    def filled(self, *, steps: int, guidance_scale: float, side: int) -> GenerationSettings:
        """With these in the place of what is missing."""
        return replace(
            self,
            steps=self.steps or steps,
            guidance_scale=(guidance_scale if self.guidance_scale is None else self.guidance_scale),
            width=self.width or side,
            height=self.height or side,
        )


_ALIKE = ("steps", "guidance_scale", "width", "height")


def check_batch(batch: Sequence[GenerationSettings]) -> None:
    """Refuse settings that cannot go through the same steps."""
    for name in (*_ALIKE, "strength"):
        if name == "strength" and all(s.image is None for s in batch):
            continue
        if len({getattr(settings, name) for settings in batch}) > 1:
            raise InvalidInputError(
                f"generations of one batch must share {name}; run them apart", field=name
            )
    if len({settings.image is None for settings in batch}) > 1:
        raise InvalidInputError(
            "of one batch all generations start from a picture, or none does", field="image"
        )


class Denoising(Protocol):
    """A batch of generations under way, a step at a time."""

    batch: tuple[GenerationSettings, ...]
    """One for each picture; nothing is missing in them any more."""
    step: int
    """Steps done."""
    noise_sha256: tuple[str, ...]
    """Of the latents that each of the batch began from."""
    guided: bool
    """Whether a step's batch holds an unconditional half in front of the conditional one."""

    @property
    def steps(self) -> int:
        """How many steps it takes in all."""
        ...

    def advance(self) -> None:
        """One denoising step."""
        ...

    def pictures(self) -> list[Image.Image]:
        """What it has come to, a picture for each of the batch."""
        ...

    def previews(self) -> list[Image.Image]:
        """What the last step takes the pictures for, with the noise gone."""
        ...


@runtime_checkable
class Generator(Protocol):
    """A frozen text-to-image model. Its sites exist once a denoising step."""

    name: str
    kind: str
    device: torch.device
    dtype: torch.dtype
    usual_side: int
    """Side in pixels of the pictures it usually makes."""
    usual_steps: int
    usual_guidance: float

    @property
    def parameters(self) -> int:
        """Number of parameters, of all its parts."""
        ...

    @property
    def sites(self) -> dict[str, Site]:
        """Every site by name, in the order in which they are computed."""
        ...

    @property
    def deepest(self) -> str:
        """The site in the middle, whose positions are fewest: what stands for a whole picture."""
        ...

    def grid(self, site: str, height: int, width: int) -> PatchGrid:
        """The positions of a site in a picture of this size."""
        ...

    def unread_text(self, text: str) -> str:
        """The end of a prompt that is too long, which a text encoder never sees; "" else.

        Of several encoders the one that reads least counts.
        """
        ...

    def start(self, *batch: GenerationSettings) -> Denoising:
        """Begin a generation of a picture for each of ``batch``.

        Equal settings give equal pictures. Raises `InvalidInputError` for settings that cannot be
        met, or not together: all of a batch go through the same steps.
        """
        ...

    def capture(
        self, sites: Sequence[str], *, stop: bool = False
    ) -> AbstractContextManager[dict[str, Tensor]]:
        """Collect sites (B, T, D) during steps in the body."""
        ...

    def replace(self, site: str, edit: Edit) -> AbstractContextManager[None]:
        """Pass a site through ``edit`` during steps in the body."""
        ...

    def add(self, site: str, addition: Callable[[], Tensor | None]) -> AbstractContextManager[None]:
        """Add to a site during steps in the body, without computing it."""
        ...

    def perceive(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) from 0 to 1 -> maps (B, C, h, w) of a few depths, for comparing what
        pictures look like."""
        ...

    def identity(self) -> dict[str, Any]:
        """What a manifest binds."""
        ...


_AT_ONCE = 50

Change = Callable[[Denoising], AbstractContextManager[object]]
"""Makes a context in which the next step of a batch is done otherwise."""


def raising(model: Generator, site: str, direction: Tensor) -> Change:
    """The change that adds ``direction`` (D) at every position of a site, as an edit does: with
    guidance to the half that sees the prompt."""

    def change(run: Denoising) -> AbstractContextManager[None]:
        halves = torch.zeros(1 + run.guided, len(run.batch), 1, len(direction))
        halves[-1] = direction
        addition = halves.flatten(0, 1).to(model.device)
        return model.add(site, lambda: addition)

    return change


def finish(run: Denoising, change: Change = nullcontext) -> list[Image.Image]:
    """The pictures of ``run``, whose remaining steps are done with ``change`` in force."""
    while run.step < run.steps:
        with change(run):
            run.advance()
    return run.pictures()


def generate(
    model: Generator,
    wanted: Sequence[GenerationSettings],
    change: Change = nullcontext,
    *,
    at_once: int = _AT_ONCE,
) -> list[Image.Image]:
    """A picture of each of ``wanted``, which go through the same steps, ``at_once`` in a batch."""
    return [
        picture
        for start in range(0, len(wanted), at_once)
        for picture in finish(model.start(*wanted[start : start + at_once]), change)
    ]
