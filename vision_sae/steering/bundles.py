"""Bundles of a generator, for steering the generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.bound import load_bound_model
from vision_sae.models.generator import GenerationSettings, Generator
from vision_sae.models.noised import generator_of
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.steering.movements import RANDOMS, Movements


@dataclass(frozen=True)
class SteeringBundle:
    """A bundle, with the figures of its features that steering needs."""

    bundle: Bundle
    dictionary: SiteDictionary

    @property
    def alive(self) -> Int64[np.ndarray, " n"]:
        """The features that fire in the data."""
        return self.bundle.statistics.alive

    @property
    def usual_mean(self) -> float:
        """The mean non-zero activation of a usual feature: the median over features that fire."""
        return self.bundle.statistics.usual_mean

    def spread(self, count: int) -> list[int]:
        """Features evenly spaced over the third that fire most often."""
        often = self.alive[np.argsort(-self.bundle.statistics.count[self.alive], kind="stable")]
        third = often[: max(count, len(often) // 3)]
        return [int(third[i * len(third) // count]) for i in range(min(count, len(third)))]

    def movements(
        self,
        model: Generator,
        contrastive: ContrastiveModel,
        prompts: Sequence[GenerationSettings],
        *,
        amount: float,
        randoms: int = RANDOMS,
        seed: int = 0,
    ) -> Movements:
        """How pictures of ``prompts`` move when a feature is raised by ``amount`` times
        `usual_mean`; see `Movements`."""
        return Movements(
            model,
            self.dictionary,
            contrastive,
            prompts,
            amount=amount * self.usual_mean,
            alive=self.alive,
            randoms=randoms,
            seed=seed,
        )


def open_bundles(paths: Sequence[Path]) -> tuple[Generator, list[SteeringBundle]]:
    """(the generator, its bundles).

    Raises `InvalidInputError` for a bundle of a model that does not generate, and for bundles of
    different models.
    """
    bundles = [read_bundle(path) for path in paths]
    identity = bundles[0].manifest["model"]
    generator = generator_of(load_bound_model(identity), str(paths[0]), "bundle")
    for path, bundle in zip(paths, bundles, strict=True):
        if bundle.manifest["model"]["weights_sha256"] != identity["weights_sha256"]:
            raise InvalidInputError(f"{path} is of another model than {paths[0]}", field="bundle")
    steering_bundles = [SteeringBundle(b, SiteDictionary(b.dictionary, b.site)) for b in bundles]
    return generator, steering_bundles
