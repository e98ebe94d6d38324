"""How the embeddings of generated pictures move when a feature of the generator is raised.

A feature's direction is added, everywhere and at every step, to the generations of some prompts. A
contrastive model embeds the pictures. The control is a random feature of the same dictionary that
is raised by as much: directions are scaled to unit length, so both additions have equal norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Float32
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
"""The number of random features that a feature is compared with."""


class Movements:
    """Movements of the pictures of P prompts, under features of a dictionary and R random ones."""

    def __init__(
        self,
        model: Generator,
        site_dictionary: SiteDictionary,
        contrastive: ContrastiveModel,
        prompts: Sequence[GenerationSettings],
        *,
        amount: float,
        alive: NDArray[np.integer],
        randoms: int = RANDOMS,
        seed: int = 0,
    ) -> None:
        """``amount`` is the norm of each addition, in the units of the site. Random features are
        drawn from ``alive`` by ``seed``; to judge a choice, use another seed than the choice
        used."""
        self._model, self._site_dictionary, self._contrastive = model, site_dictionary, contrastive
        self._prompts, self._amount = list(prompts), amount
        random = np.random.default_rng(seed)
        chosen = random.choice(alive, min(randoms, len(alive)), replace=False)
        self._randoms = [int(feature) for feature in chosen]
        # Room for the random features, the current feature and the previous one.
        self.of = lru_cache(maxsize=len(self._randoms) + 2)(self._of)

    def _of(self, feature: int) -> NDArray[np.float32]:
        """How the embeddings of all prompts' pictures move under a feature (P, E)."""
        row = self._site_dictionary.dictionary.decoder[feature]
        direction = self._amount * torch.nn.functional.normalize(row, dim=0)
        return (
            self._embedded(raising(self._model, self._site_dictionary.site, direction))
            - self._plain
        )

    def compares(self, feature: int) -> bool:
        """Whether a random feature other than this one exists to compare it with."""
        return any(other != feature for other in self._randoms)

    def others(self, feature: int) -> Float32[np.ndarray, "R P E"]:
        """The movements under the random features other than this one; see `compares`."""
        return np.stack([self.of(other) for other in self._randoms if other != feature])

    def _embedded(self, change: Change) -> NDArray[np.float32]:
        pictures = generate(self._model, self._prompts, change)
        return np.asarray(embed_pictures(self._contrastive, pictures).numpy())

    @cached_property
    def _plain(self) -> NDArray[np.float32]:
        return self._embedded(nullcontext)
