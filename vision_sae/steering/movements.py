"""How pictures move when features of a generator are raised, as a contrastive model sees them.

A feature's direction is added, everywhere and at every step, to the generations of some prompts;
what moves is the embedding of each picture. The control is a random feature of the same dictionary
that is raised by as much: directions are given unit length, so both additions have equal norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.models.generator import (
    Change,
    GenerationSettings,
    Generator,
    generate,
    raising,
)
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.models.similarity import embed_pictures

RANDOMS = 40
"""Random features that one is compared with."""


class Movements:
    """Of the pictures of P prompts, under features of one dictionary and R random ones."""

    def __init__(
        self,
        model: Generator,
        found: SiteDictionary,
        contrastive: ContrastiveModel,
        prompts: Sequence[GenerationSettings],
        *,
        amount: float,
        alive: NDArray[np.integer],
        randoms: int = RANDOMS,
        seed: int = 0,
    ) -> None:
        """``amount`` is added of each feature, in the units of the site; random features are drawn
        from ``alive``, others for each ``seed``: who judges what somebody chose takes another."""
        self._model, self._found, self._contrastive = model, found, contrastive
        self._prompts, self._amount = list(prompts), amount
        random = np.random.default_rng(seed)
        chosen = random.choice(alive, min(randoms, len(alive)), replace=False)
        self._randoms = [int(feature) for feature in chosen]
        # The random features, the one in question and the one before it.
        self.of = lru_cache(maxsize=len(self._randoms) + 2)(self._of)

    def _of(self, feature: int) -> NDArray[np.float32]:
        """How the embeddings of all prompts' pictures move under a feature (P, E)."""
        row = self._found.dictionary.decoder[feature]
        direction = self._amount * torch.nn.functional.normalize(row, dim=0)
        return self._embedded(raising(self._model, self._found.site, direction)) - self._plain

    def compares(self, feature: int) -> bool:
        """Whether there is a random feature beside this one: else it is compared with nothing."""
        return any(other != feature for other in self._randoms)

    def others(self, feature: int) -> NDArray[np.float32]:
        """The same under the random features but this one (R, P, E), of which there must be one."""
        return np.stack([self.of(other) for other in self._randoms if other != feature])

    def _embedded(self, change: Change) -> NDArray[np.float32]:
        made = generate(self._model, self._prompts, change)
        return np.asarray(embed_pictures(self._contrastive, made).numpy())

    @cached_property
    def _plain(self) -> NDArray[np.float32]:
        return self._embedded(nullcontext)
