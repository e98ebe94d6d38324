"""The protocol of text-to-image models, and the settings of a generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vision_sae.errors import InvalidInputError
from vision_sae.models.grid import PatchGrid
from vision_sae.models.hooks import Edit
from vision_sae.models.protocol import Site
from vision_sae.transfers import Placed


@dataclass(frozen=True)
class GenerationSettings:
    """What to generate. A number of 0 or None stands for the model's usual number."""

    prompt: str = ""
    negative_prompt: str = ""
    """Used only with guidance."""
    seed: int = 0
    steps: int = 0
    guidance_scale: float | None = None
    """Of classifier-free guidance; at most 1 means none."""
    width: int = 0
    height: int = 0
    image: Image.Image | Tensor | None = None
    """A picture to start from; as a tensor (3, H, W), from 0 to 1."""
    strength: float = 0.5
    """How much of the picture is replaced by noise, in (0, 1]."""

    @property
    def steps_run(self) -> int:
        """Steps that run: a generation from a picture runs only the last steps."""
        share = 1.0 if self.image is None else self.strength
        return min(self.steps, int(self.steps * share))

    def filled(self, model: Generator) -> GenerationSettings:
        """These settings, with the model's usual numbers where a number is missing."""
        usual, guidance = model.usual_side, self.guidance_scale
        return replace(
            self,
            steps=self.steps or model.usual_steps,
            guidance_scale=model.usual_guidance if guidance is None else guidance,
            width=self.width or usual,
            height=self.height or usual,
        )

    def check_negative_prompt(self, field: str) -> None:
        """Raise `InvalidInputError`, which names ``field``, for complete settings whose negative
        prompt would not be used."""
        if self.negative_prompt and (self.guidance_scale or 0) <= 1:
            raise InvalidInputError("a negative prompt needs a guidance_scale above 1", field=field)


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
    """The settings of each picture, with every number filled in."""
    step: int
    """The number of steps done."""
    guided: bool
    """Whether a step's batch holds an unconditional half in front of the conditional one."""

    @property
    def noise_sha256(self) -> tuple[str, ...]:
        """SHA-256 of the first latents of each picture of the batch."""
        ...

    @property
    def steps(self) -> int:
        """The number of steps in all."""
        ...

    def advance(self) -> None:
        """One denoising step."""
        ...

    def pictures(self) -> list[Image.Image]:
        """The current latents as pictures, one for each of the batch."""
        ...

    def previews(self) -> list[Image.Image]:
        """The pictures without noise that the last step predicts."""
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
        """The site in the middle, which has the fewest positions and stands for a whole picture."""
        ...

    def grid(self, site: str, height: int, width: int) -> PatchGrid:
        """The positions of a site in a picture of this size."""
        ...

    def unread_text(self, text: str) -> str:
        """The end of a prompt that is too long for a text encoder; "" where all is read.

        With several encoders, the one that reads least counts.
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

    def perceive(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Maps (B, C, h, w) of a few depths for pictures from 0 to 1, to compare their looks."""
        ...

    def identity(self) -> dict[str, Any]:
        """What a manifest records to recognise this model."""
        ...


_AT_ONCE = 50

Change = Callable[[Denoising], AbstractContextManager[object]]
"""Makes a context in which the next step of a batch is changed."""


def raising(model: Generator, site: str, direction: Float[Tensor, " D"]) -> Change:
    """The change that adds ``direction`` at every position of a site.

    With guidance, it is added only to the half of the batch that sees the prompt, as an edit is.
    """

    placed = Placed(direction)

    def change(run: Denoising) -> AbstractContextManager[None]:
        shape = 1 + run.guided, len(run.batch), 1, len(direction)
        halves = torch.zeros(*shape, device=model.device)
        halves[-1] = placed.at(model.device)
        addition = halves.flatten(0, 1)
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
