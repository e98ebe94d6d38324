"""Bundles of a generator, opened to steer it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vision_sae.bundles.bundle import Bundle
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.bound import load_bound_model
from vision_sae.models.generator import GenerationSettings, Generator
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.steering.movements import RANDOMS, Movements


@dataclass(frozen=True)
class SteeringBundle:
    """A bundle with what steering needs of it."""

    bundle: Bundle
    dictionary: SiteDictionary

    @property
    def alive(self) -> NDArray[np.int64]:
        """The features that fire in the data."""
        return np.flatnonzero(self.bundle.statistics.count)

    @property
    def usual_mean(self) -> float:
        """The mean non-zero activation of the usual feature: the median over those that fire."""
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
        """Of pictures of ``prompts`` under features raised by ``amount`` mean activations of the
        usual feature; see `Movements`."""
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


def opened(paths: Sequence[Path]) -> tuple[Generator, list[SteeringBundle]]:
    """(the generator, its bundles).

    Raises `InvalidInputError` for a bundle of a model that does not generate, or of another one.
    """
    bundles = [Bundle(path) for path in paths]
    identity = bundles[0].manifest["model"]
    model = load_bound_model(identity)
    if not isinstance(model, NoisedPictures):
        raise InvalidInputError(
            f"{paths[0]} is of {identity['name']}, which does not generate; name bundles of a "
            "text-to-image model",
            field="bundle",
        )
    for path, bundle in zip(paths, bundles, strict=True):
        if bundle.manifest["model"]["weights_sha256"] != identity["weights_sha256"]:
            raise InvalidInputError(f"{path} is of another model than {paths[0]}", field="bundle")
    found = [SteeringBundle(b, SiteDictionary(b.dictionary, b.site)) for b in bundles]
    return model.generator, found
