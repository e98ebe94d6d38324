"""The effect of each block of a generator on the picture.

Over many prompts, a block is switched off (its update becomes zero), and its features are boosted.
Pictures are compared with their twins from the same noise. Four effects are measured separately,
with Y the luma and C the two chroma channels of YCbCr, from 0 to 1, and B a blur whose standard
deviation is a sixteenth of the picture's side:

- light: ``|mean Y - mean Y'|``
- layout: ``mean |B(Y - mean Y) - B(Y' - mean Y')|``, the coarse structure
- detail: ``mean |(Y - B Y) - (Y' - B Y')|``, what the blur takes away
- colour: ``mean |B C - B C'|``

Each effect is divided by the same difference between pictures of different prompts and seeds, so 1
means "as different as another picture". The control is a random direction, with the norm of the
block's update at each position, or the norm of the feature's addition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from tqdm import tqdm

from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import (
    Change,
    GenerationSettings,
    Generator,
    generate,
    raising,
)

_BLUR = 1 / 16
_BATCH = 16
_SEED = 3


class Roles(NamedTuple):
    """The effect of a change on each part; 1 means as much as another picture."""

    layout: float
    detail: float
    colour: float
    light: float


@dataclass(frozen=True)
class BoostedFeatures:
    """The features of one block to boost."""

    dictionary: Dictionary
    features: Sequence[int]
    amount: float
    """The multiple of each feature's direction that is added, in the units of the site."""


@dataclass(frozen=True)
class BlockEffects:
    """The measured effects of one block."""

    site: str
    ablated: Roles
    ablated_random: Roles
    """The control: a random direction of the update's norm is added at each position."""
    boosted: Roles
    """The mean over its features."""
    boosted_random: Roles

    @property
    def role(self) -> str:
        """The part that boosting the features moves most, relative to random directions."""
        ratios = {
            name: getattr(self.boosted, name) / max(getattr(self.boosted_random, name), 1e-6)
            for name in Roles._fields
        }
        return max(ratios, key=ratios.__getitem__)

    def to_json(self) -> dict[str, Any]:
        """All figures as plain JSON."""
        measured = {
            name: getattr(self, name)._asdict()
            for name in ("ablated", "ablated_random", "boosted", "boosted_random")
        }
        return {"site": self.site, "role": self.role, **measured}


class _Parts(NamedTuple):
    """The parts of a picture that the roles compare."""

    layout: NDArray[np.float32]
    detail: NDArray[np.float32]
    colour: NDArray[np.float32]
    light: NDArray[np.float32]


def _parts(picture: Image.Image) -> _Parts:
    pixels = np.asarray(picture.convert("YCbCr"), dtype=np.float32) / np.float32(255)
    sigma = _BLUR * max(picture.size)
    y, chroma = pixels[..., 0], pixels[..., 1:]
    coarse = gaussian_filter(y, sigma, mode="nearest")
    smooth = gaussian_filter(chroma, (sigma, sigma, 0), mode="nearest")
    return _Parts(coarse - y.mean(), y - coarse, smooth, np.asarray(y.mean(keepdims=True)))


def difference(one: Image.Image, other: Image.Image) -> Roles:
    """How two pictures of one size differ, before any normalisation."""
    pairs = zip(_parts(one), _parts(other), strict=True)
    return Roles(*(float(np.abs(a - b).mean()) for a, b in pairs))


def _mean(differences: Sequence[Roles]) -> NDArray[np.float64]:
    return np.asarray(np.mean(np.array(differences), axis=0))


class _Pictures:
    """The pictures of some prompts, plain and under changes of one site."""

    def __init__(self, model: Generator, prompts: Sequence[GenerationSettings]) -> None:
        self._model, self._prompts = model, prompts
        self.plain = self.drawn()
        shifted = self.plain[1:] + self.plain[:1]
        others = [difference(a, b) for a, b in zip(self.plain, shifted, strict=True)]
        self._unit = np.maximum(_mean(others), 1e-9)

    def drawn(self, change: Change = nullcontext) -> list[Image.Image]:
        """The pictures with ``change`` in force."""
        return generate(self._model, self._prompts, change, at_once=_BATCH)

    def moved(self, change: Change) -> Roles:
        """How far ``change`` moves the pictures."""
        pairs = zip(self.drawn(change), self.plain, strict=True)
        return Roles(*(_mean([difference(*pair) for pair in pairs]) / self._unit).tolist())


def _unit_rows(shape: Sequence[int], random: torch.Generator) -> Tensor:
    rows: Tensor = torch.nn.functional.normalize(torch.randn(*shape, generator=random), dim=-1)
    return rows


def evaluate_blocks(
    model: Generator,
    blocks: Mapping[str, BoostedFeatures],
    prompts: Sequence[GenerationSettings],
    *,
    progress: bool = True,
) -> list[BlockEffects]:
    """Measure the blocks of these sites over ``prompts``; the module's text defines the figures.

    Raises `InvalidInputError` for fewer than two prompts: changes are measured in differences
    between prompts.
    """
    if len(prompts) < 2:
        raise InvalidInputError(
            f"{len(prompts)} prompts do not differ from each other; give two or more",
            field="prompts",
        )
    pictures = _Pictures(model, prompts)
    return [
        _evaluate(model, site, boosted, pictures)
        for site, boosted in tqdm(blocks.items(), desc="blocks", disable=not progress)
    ]


def _evaluate(
    model: Generator, site: str, boosted: BoostedFeatures, pictures: _Pictures
) -> BlockEffects:
    random = torch.Generator().manual_seed(_SEED)

    def nothing(vectors: Tensor) -> Tensor:
        return torch.zeros_like(vectors)

    def aside(vectors: Tensor) -> Tensor:
        norms: Tensor = vectors.float().norm(dim=-1, keepdim=True)
        # One generator in host memory, so that every device adds the same directions.
        rows = _unit_rows(vectors.shape, random).to(vectors.device)
        moved: Tensor = vectors + (norms * rows).to(vectors.dtype)
        return moved

    def adding(directions: Tensor) -> Iterator[Roles]:
        for direction in directions:
            yield pictures.moved(raising(model, site, boosted.amount * direction))

    features = boosted.dictionary.decoder[list(boosted.features)]
    random_directions = features.norm(dim=1, keepdim=True) * _unit_rows(features.shape, random)
    return BlockEffects(
        site,
        pictures.moved(lambda _: model.replace(site, nothing)),
        pictures.moved(lambda _: model.replace(site, aside)),
        Roles(*_mean(list(adding(features))).tolist()),
        Roles(*_mean(list(adding(random_directions))).tolist()),
    )


def _switched_off(model: Generator, site: str) -> Change:
    """The change that sets the update of a block to zero."""
    return lambda _: model.replace(site, torch.zeros_like)


def examples(
    model: Generator, blocks: Mapping[str, BoostedFeatures], prompts: Sequence[GenerationSettings]
) -> list[list[Image.Image]]:
    """Rows of example pictures: plain ones, then for each block a row with the block off and a row
    with its first feature boosted."""
    pictures = _Pictures(model, prompts)
    rows = [pictures.plain]
    for site, boosted in blocks.items():
        rows.append(pictures.drawn(_switched_off(model, site)))
        addition = boosted.amount * boosted.dictionary.decoder[boosted.features[0]]
        rows.append(pictures.drawn(raising(model, site, addition)))
    return rows
