"""What a server serves: models, and units of them, features of a dictionary or raw neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vision_sae.activations.store import sources_of
from vision_sae.bundles.bundle import Bundle, Exemplar
from vision_sae.config import ServeConfig
from vision_sae.descriptions.evidence.bundle import BundleEvidence
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.store import LabelStore
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import FeatureNotFoundError, InvalidInputError
from vision_sae.evaluation.monosemanticity import FeatureMonosemanticity, floor, of_feature
from vision_sae.models.generator import Generator
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import Model
from vision_sae.resources import dictionary_of, model_resource
from vision_sae_server.lanes import ModelLane
from vision_sae_server.sharing import sharing


@dataclass(frozen=True)
class ServedModel:
    """A model and the lane that runs it."""

    model: Model
    lane: ModelLane
    at_once: int
    """Pictures that may be in one pass."""

    @classmethod
    def ready(
        cls, model: Model, dictionaries: Sequence[SiteDictionary], config: ServeConfig
    ) -> ServedModel:
        """A model with a lane as wide as it and its dictionaries allow; see `sharing`."""
        found = sharing(model, dictionaries, config.max_batch)
        model.embedding_width()  # now, as it may take a forward pass
        return cls(model, ModelLane(found.side_by_side), found.at_once)

    @property
    def generator(self) -> Generator:
        """The model as a generator; raises `InvalidInputError` when it is none."""
        if not isinstance(self.model, NoisedPictures):
            raise InvalidInputError(
                f"{self.resource} does not generate; name a text-to-image model", field="model"
            )
        return self.model.generator

    @property
    def resource(self) -> str:
        """``models/{model}``: ``demo:dinov2-s`` is ``models/demo-dinov2-s``."""
        return model_resource(self.model.name)


class Units(Protocol):
    """The units of one dictionary, with the evidence of what they fire on and their labels."""

    @property
    def model(self) -> ServedModel:
        """The model they are of."""
        ...

    @property
    def labels(self) -> LabelStore:
        """Holds their labels, under the name of the evidence."""
        ...

    @property
    def evidence(self) -> Evidence:
        """What they fire on."""
        ...

    @property
    def resource(self) -> str:
        """``dictionaries/{dictionary}``."""
        ...

    def check(self, index: int) -> None:
        """Raise `FeatureNotFoundError` for an index outside the dictionary."""
        ...

    def figures(self, index: int) -> dict[str, int | float]:
        """The scalars of ``FeatureStatistics`` that were measured of a unit, by name."""
        ...

    def exemplars(self, index: int) -> tuple[list[Exemplar], list[Exemplar]]:
        """(strongest, spread over the quantiles), each strongest first."""
        ...

    def quantile(self, index: int, activation: float) -> float:
        """Share of the unit's non-zero activations that are at most ``activation``."""
        ...


@dataclass(frozen=True)
class Served:
    """A bundle with its model, and the store that holds its labels."""

    bundle: Bundle
    model: ServedModel
    labels: LabelStore
    evidence: BundleEvidence

    @property
    def resource(self) -> str:
        """``dictionaries/{dictionary}``."""
        return self.evidence.name

    @property
    def place(self) -> tuple[str, str]:
        """(hash of the model's weights, site): dictionaries that share it are of the same vectors,
        whatever name each of their models was loaded by."""
        return self.bundle.manifest["model"]["weights_sha256"], self.bundle.site

    def check(self, index: int) -> None:
        """See `Units`."""
        self.bundle.check_feature(index)

    def figures(self, index: int) -> dict[str, int | float]:
        """See `Units`."""
        stats, patches = self.bundle.statistics, len(self.bundle.codes.indptr) - 1
        return {
            "count": int(stats.count[index]),
            "firing_rate": float(stats.count[index]) / max(patches, 1),
            "mean": float(stats.mean[index]),
            "std": float(stats.std[index]),
            "max": float(stats.max[index]),
            "image_count": int(self.bundle.image_counts[index]),
        }

    def monosemanticity(self, index: int) -> FeatureMonosemanticity | None:
        """Of a feature, over the pictures of the bundle; None where it is undefined."""
        kept = self._kept
        return of_feature(
            self.evidence.peaks(index)[kept], self.bundle.embeddings[kept], self._sources[kept]
        )

    @cached_property
    def monosemanticity_floor(self) -> float:
        """That of a feature which fires alike on all pictures; NaN where it is undefined."""
        return floor(self.bundle.embeddings[self._kept])

    @cached_property
    def _kept(self) -> NDArray[np.int64]:
        """The pictures that were not deleted."""
        deleted = self.bundle.deleted
        return np.flatnonzero(np.ones(len(self.bundle.images)) if deleted is None else ~deleted)

    @cached_property
    def _sources(self) -> NDArray[np.int64]:
        return sources_of(self.bundle.images)

    def exemplars(self, index: int) -> tuple[list[Exemplar], list[Exemplar]]:
        """See `Units`."""
        return self.bundle.exemplars(index)

    def quantile(self, index: int, activation: float) -> float:
        """See `Units`."""
        _, values = self.bundle.postings.row(index)  # strongest first
        if len(values) == 0:
            return 0.0
        above = np.searchsorted(-values.astype(np.float32), -np.float32(activation), side="left")
        return float(1 - above / len(values))


@dataclass(frozen=True)
class ServedNeurons:
    """The raw neurons of one site, of which there are peaks and exemplars but no codes."""

    evidence: Evidence
    model: ServedModel
    labels: LabelStore

    @cached_property
    def resource(self) -> str:
        """``dictionaries/{model}.{site}``."""
        return dictionary_of(self.evidence.name)

    def check(self, index: int) -> None:
        """See `Units`."""
        if not 0 <= index < self.evidence.width:
            raise FeatureNotFoundError(
                f"{self.resource} has neurons 0 to {self.evidence.width - 1}, not {index}",
                field="feature",
            )

    def figures(self, index: int) -> dict[str, int | float]:
        """See `Units`: what peaks tell."""
        peaks = self.evidence.peaks(index)
        return {"max": float(peaks.max()), "image_count": int(np.count_nonzero(peaks))}

    def exemplars(self, index: int) -> tuple[list[Exemplar], list[Exemplar]]:
        """See `Units`: of the whole range there are none."""
        strongest = [
            Exemplar(firing.patch, firing.image, firing.activation, firing.mask)
            for firing in self.evidence.firings(index)
        ]
        return strongest, []

    def quantile(self, index: int, activation: float) -> float:
        """See `Units`: of its peaks, one a picture."""
        peaks = self.evidence.peaks(index)
        firing = peaks[peaks > 0]
        return float(np.mean(firing <= np.float32(activation))) if len(firing) else 0.0
