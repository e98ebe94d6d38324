"""A text-to-image model as a model of pictures: its sites on a picture that is noised half way.

Features of a text-to-image model are active during denoising. A picture enters as in image-to-image
generation: the autoencoder's latents, noise of one seed added, one denoising step with the empty
prompt. Behind the `Model` protocol, everything that works on pictures works on generators too, and
a bundle of generated pictures is bound to this model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor

from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import GenerationSettings, Generator
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.hooks import Edit
from vision_sae.models.protocol import Model, ModelOutput, Site


@dataclass(frozen=True)
class Noising:
    """How a picture enters the model: noise is added, and one step with a prompt denoises it."""

    strength: float = 0.5
    """How much of the picture is replaced by noise, in (0, 1]."""
    prompt: str = ""
    seed: int = 0
    """Seed of the noise."""


HALF_WAY = Noising()


def generator_of(model: Model, name: str, field: str) -> Generator:
    """The text-to-image model behind ``model``.

    Raises `InvalidInputError`, which names ``field``, for any other model; ``name`` is the model or
    bundle that the caller named, for the message.
    """
    if not isinstance(model, NoisedPictures):
        raise InvalidInputError(
            f"{name} does not generate pictures; name a text-to-image model, or a bundle of one",
            field=field,
        )
    return model.generator


class NoisedPictures:
    """See `vision_sae.models.protocol.Model`; the embedding of a picture is the mean of the
    `Generator.deepest` site over its positions."""

    class_names: tuple[str, ...] = ()

    def __init__(
        self, generator: Generator, grid: PatchGrid | None = None, noising: Noising = HALF_WAY
    ) -> None:
        side = generator.usual_side
        self.generator, self._noising = generator, noising
        self.name, self.kind = generator.name, generator.kind
        self.device, self.dtype = generator.device, generator.dtype
        self.grid = grid or generator.grid(generator.deepest, side, side)
        self.preprocessing = Preprocessing(
            side, side, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        )

    @property
    def parameters(self) -> int:
        """Number of parameters of the generator."""
        return self.generator.parameters

    def embedding_width(self) -> int:
        """Length D of the vectors of the `Generator.deepest` site."""
        return self.generator.sites[self.generator.deepest].dim

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """None: every token of a generator has a place."""
        return ()

    def on(self, grid: PatchGrid) -> NoisedPictures:
        """This model with the sites of another grid."""
        return NoisedPictures(self.generator, grid, self._noising)

    def noised(self, noising: Noising) -> NoisedPictures:
        """This model for pictures that are noised in another way."""
        return NoisedPictures(self.generator, self.grid, noising)

    @property
    def sites(self) -> dict[str, Site]:
        """The generator's sites with this grid."""
        side = self.generator.usual_side
        return {
            name: site
            for name, site in self.generator.sites.items()
            if self.generator.grid(name, side, side) == self.grid
        }

    def preprocess(self, image: Image.Image) -> Float32[Tensor, "C H W"]:
        """An RGB picture as model input, from 0 to 1."""
        return self.preprocessing(image)

    def forward(self, images: Float[Tensor, "B C H W"]) -> ModelOutput:
        """The embeddings of pictures; no logits."""
        noising = self._noising
        plain = GenerationSettings(
            noising.prompt, seed=noising.seed, guidance_scale=0.0, strength=noising.strength
        )
        run = self.generator.start(*(replace(plain, image=image) for image in images))
        with self.generator.capture([self.generator.deepest]) as captured:
            run.advance()
        return ModelOutput(captured[self.generator.deepest].float().mean(1), None)

    def capture(
        self, sites: Sequence[str], *, stop: bool = False
    ) -> AbstractContextManager[dict[str, Tensor]]:
        """Collect sites during forwards in the body."""
        for site in sites:
            self._check(site)
        return self.generator.capture(sites, stop=stop)

    def replace(self, site: str, edit: Edit) -> AbstractContextManager[None]:
        """Pass a site through ``edit`` during forwards in the body."""
        self._check(site)
        return self.generator.replace(site, edit)

    def _check(self, site: str) -> None:
        if site in self.generator.sites and site not in self.sites:
            raise InvalidInputError(
                f"{site} has another grid than {self.grid.rows} x {self.grid.cols}; take sites of "
                f"one grid together: {', '.join(self.sites)}",
                field="sites",
            )

    def identity(self) -> dict[str, Any]:
        """What a manifest records to recognise this model."""
        return {
            **self.generator.identity(),
            "preprocessing": self.preprocessing.to_json(),
            "grid": self.grid.to_json(),
        }
