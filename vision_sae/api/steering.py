"""Steering: pictures of a text-to-image model with edits of features, and their unedited twins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image
from tqdm import tqdm

from vision_sae.api.edits import Edit, translated
from vision_sae.api.pictures import PictureLike, to_pil
from vision_sae.api.showing import Row, Table, cell, html_table, img, paragraph
from vision_sae.api.subjects import AnyDictionary, AnyModel, Subject, as_subject
from vision_sae.models.generator import GenerationSettings, Generator
from vision_sae.models.grid import Geometry
from vision_sae.models.noised import generator_of
from vision_sae.pictures.sheet import contact_sheet
from vision_sae.steering import effects
from vision_sae.steering.generation import Changes, SteeredGeneration


@dataclass(frozen=True, eq=False, repr=False)
class Generation(Table):
    """A steered picture, its unedited twin from the same noise, and their differences."""

    picture: Image.Image = field(repr=False)
    twin: Image.Image = field(repr=False)
    dictionary: str
    edits: tuple[Edit, ...]
    settings: GenerationSettings
    """The settings of the generation, with all defaults filled in."""
    pixel: effects.MeanChange
    """Mean absolute difference of the pictures, from 0 to 1: everywhere, inside the edited region
    and outside that region (None without a region)."""
    perceptual: effects.MeanChange
    """The perceptual difference in the same three places; see `effects.perceptual_difference`."""
    difference: Float32[np.ndarray, "H W"] = field(repr=False)
    """Absolute difference at each pixel (H, W), mean over colours, from 0 to 1."""

    @property
    def changed_share(self) -> float:
        """Share of the pixels that changed."""
        return effects.changed_share(self.difference)

    def rows(self) -> list[Row]:
        """The effect as rows of a table."""
        return [
            {"change": name, "everywhere": c.everywhere, "inside": c.inside, "outside": c.outside}
            for name, c in (("pixels", self.pixel), ("perceptual", self.perceptual))
        ]

    def to_pil(self) -> Image.Image:
        """The twin, the steered picture and their difference, side by side."""
        levels = np.round(self.difference * 255).astype(np.uint8)
        return contact_sheet([[self.twin, self.picture, Image.fromarray(levels).convert("RGB")]])

    def numpy(self) -> UInt8[np.ndarray, "H W 3"]:
        """The steered picture (H, W, 3), uint8."""
        return np.asarray(self.picture)

    def _heading(self) -> str:
        edits = ", ".join(f"{e.operation} {e.feature} {cell(e.value)}" for e in self.edits)
        return (
            f"{self.settings.prompt!r}, seed {self.settings.seed}, {self.settings.steps_run} "
            f"steps; {edits or 'no edit'} of {self.dictionary}: {self.changed_share:.1%} of the "
            "pixels change"
        )

    def _repr_html_(self) -> str:
        shown = img(self.to_pil(), "twin, steered, difference")
        return paragraph(self._heading()) + shown + html_table(self.rows())


@overload
def steer(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
    prompts: str,
    dictionary: AnyDictionary,
    edits: Edit | Sequence[Edit],
    *,
    model: AnyModel | None = None,
    seed: int = 0,
    steps: int = 0,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    width: int = 0,
    height: int = 0,
    picture: PictureLike | None = None,
    strength: float = 0.5,
    progress: bool = False,
) -> Generation: ...
@overload
def steer(
    prompts: Sequence[str],
    dictionary: AnyDictionary,
    edits: Edit | Sequence[Edit],
    *,
    model: AnyModel | None = None,
    seed: int = 0,
    steps: int = 0,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    width: int = 0,
    height: int = 0,
    picture: PictureLike | None = None,
    strength: float = 0.5,
    progress: bool = False,
) -> list[Generation]: ...
def steer(
    prompts: str | Sequence[str],
    dictionary: AnyDictionary,
    edits: Edit | Sequence[Edit],
    *,
    model: AnyModel | None = None,
    seed: int = 0,
    steps: int = 0,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    width: int = 0,
    height: int = 0,
    picture: PictureLike | None = None,
    strength: float = 0.5,
    progress: bool = False,
) -> Generation | list[Generation]:
    """Generate the picture of one prompt, or of each of several, with features edited, and its twin
    from the same noise without the edits.

    ``dictionary`` is a bundle (or a dictionary) of a text-to-image model. ``steps``, ``width``,
    ``height`` (pixels) of 0 and a ``guidance_scale`` of None are the model's usual ones. With a
    ``picture`` to start from, ``strength`` in (0, 1] is how much of it is noised away. Pictures
    have the shape (H, W, 3); equal arguments give equal pictures.

    Raises `InvalidInputError` for a model that does not generate and for settings that cannot be
    met, and `FeatureNotFoundError`.
    """
    subject = as_subject(dictionary, model)
    generator = generator_of(subject.model, subject.name, "dictionary")
    wanted = (edits,) if isinstance(edits, Edit) else tuple(edits)
    initial = None if picture is None else to_pil(picture)
    several = [prompts] if isinstance(prompts, str) else prompts
    results = []
    for prompt in tqdm(several, desc="steer", disable=not progress):
        settings = GenerationSettings(
            prompt, negative_prompt, seed, steps, guidance_scale, width, height, initial, strength
        ).filled(generator)
        settings.check_negative_prompt("negative_prompt")
        results.append(_generated(subject, generator, settings, wanted))
    return results[0] if isinstance(prompts, str) else results


def _generated(
    subject: Subject, generator: Generator, settings: GenerationSettings, edits: tuple[Edit, ...]
) -> Generation:
    grid = generator.grid(subject.site, settings.height, settings.width)
    ready = translated(edits, subject, grid, Geometry.whole(settings.width, settings.height))
    changes = Changes(ready, (), {subject.name: subject.at_site})
    generation = SteeredGeneration(generator, settings, changes)
    while not generation.done:
        generation.advance()
    steered = generation.result()
    effect = effects.effect(generator, steered.picture, steered.twin, generation.reached())
    return Generation(
        picture=steered.picture,
        twin=steered.twin,
        dictionary=subject.name,
        edits=edits,
        settings=steered.settings,
        pixel=effect.pixel,
        perceptual=effect.perceptual,
        difference=effect.difference,
    )
