"""The causal score of a label: does raising the feature move pictures toward what it says?

A feature's direction is added, everywhere and at every step, to the generations of some prompts. A
trial compares how far one picture moves toward the text, as a contrastive model sees it, with how
far it moves under a random feature of the same dictionary that is raised by as much: decoder rows
have unit length, so both additions have equal norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vision_sae.descriptions.protocol import Score
from vision_sae.descriptions.scores.bootstrap import Counts, scored
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.models.generator import GenerationSettings, Generator, generate
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.models.similarity import embed_pictures

_RANDOM_SEED = 7
_PERCENTILE = 0.95

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


def raised(
    model: Generator,
    found: SiteDictionary,
    direction: torch.Tensor,
    prompts: Sequence[GenerationSettings],
) -> list[Image.Image]:
    """Pictures of ``prompts`` with ``direction`` (D) added everywhere at every step."""
    return generate(model, prompts, lambda: model.add(found.site, lambda: direction[None, None]))


class CausalScorer:
    """Scores of labels of one dictionary of a generator. P prompts, R random features."""

    def __init__(
        self,
        model: Generator,
        found: SiteDictionary,
        contrastive: ContrastiveModel,
        prompts: Sequence[GenerationSettings],
        *,
        amount: float,
        alive: NDArray[np.integer],
        embed: Embed,
        randoms: int = 40,
    ) -> None:
        """``amount`` is added of each feature, in the units of the site; random features are drawn
        from ``alive``; ``embed`` gives texts as unit vectors (T, E)."""
        self._model, self._found, self._contrastive = model, found, contrastive
        self._prompts, self._amount, self._embed = list(prompts), amount, embed
        random = np.random.default_rng(_RANDOM_SEED)
        chosen = random.choice(alive, min(randoms, len(alive)), replace=False)
        self._randoms = [int(feature) for feature in chosen]
        self._kept: dict[int, NDArray[np.float32]] = {}

    def _moved(self, feature: int) -> NDArray[np.float32]:
        """How the embeddings of all prompts' pictures move (P, E)."""
        if feature not in self._kept:
            direction = self._amount * self._found.dictionary.decoder[feature]
            self._kept[feature] = self._pictures(direction) - self._plain
        return self._kept[feature]

    def _pictures(self, direction: torch.Tensor) -> NDArray[np.float32]:
        made = raised(self._model, self._found, direction, self._prompts)
        return np.asarray(embed_pictures(self._contrastive, made).numpy())

    @cached_property
    def _plain(self) -> NDArray[np.float32]:
        return self._pictures(torch.zeros(self._found.dictionary.dim))

    def _effects(self, feature: int, text: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """How far pictures move toward the text under the feature (P) and random ones (R, P)."""
        (direction,) = self._embed([text])
        others = np.stack([self._moved(other) for other in self._randoms if other != feature])
        return self._moved(feature) @ direction, others @ direction

    def score(self, feature: int, text: str, *, seed: int = 0) -> Score | None:
        """The share of trials that the feature wins, chance .5, with an interval over prompts."""
        ours, others = self._effects(feature, text)
        wins = (ours > others).mean(0) + 0.5 * (ours == others).mean(0)

        def share(counts: Counts) -> NDArray[np.float64]:
            return np.asarray(counts @ wins / counts.sum(1))

        return scored("causal", [share], [len(wins)], seed)

    def beats_random(self, feature: int, text: str) -> bool:
        """Whether its mean movement exceeds the 95th percentile of those of random features."""
        ours, others = self._effects(feature, text)
        return bool(ours.mean() > np.quantile(others.mean(1), _PERCENTILE))
