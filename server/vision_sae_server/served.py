"""What a server serves: models, and their units, which are features or raw neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.activations.store import sources_of
from vision_sae.bundles.read import Bundle, Exemplar
from vision_sae.config import ServeConfig
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import FeatureNotFoundError
from vision_sae.evaluation.monosemanticity import FeatureMonosemanticity, floor, of_feature
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.protocol import Evidence
from vision_sae.labels.store import LabelStore
from vision_sae.models.generator import Generator
from vision_sae.models.noised import generator_of
from vision_sae.models.protocol import Model
from vision_sae.resources import dictionary_of, model_resource
from vision_sae_server.runtime.lanes import ModelLane
from vision_sae_server.runtime.sharing import check_alike, sharing


@dataclass(frozen=True)
class ServedModel:
    """A model, the lane that runs its passes, and its replicas on further devices.

    Calls that encode wait in one queue for the first free replica (`lanes.Batches`). A call of
    several passes computes on one replica, `free`.
    """

    model: Model
    lane: ModelLane
    at_once: int
    """The most pictures in one pass."""
    replicas: tuple[ServedModel, ...] = ()
    """The same model on further devices, with their lanes."""

    @classmethod
    def ready(
        cls,
        model: Model,
        dictionaries: Sequence[SiteDictionary],
        config: ServeConfig,
        lanes: dict[torch.device, ModelLane] | None = None,
        *,
        replicas: Sequence[Model] = (),
    ) -> ServedModel:
        """A model and its ``replicas``, each with a lane of as many parallel passes as `sharing`
        allows; see `ModelLane.of` for ``lanes``.

        Raises `InvalidInputError` for replicas that give other numbers.
        """
        models, shared = (model, *replicas), {} if lanes is None else lanes
        check_alike(models)
        shares = [sharing(each, dictionaries, config.max_batch) for each in models]
        at_once = min(share.at_once for share in shares)
        first, *others = (
            cls(each, ModelLane.of(each.device, share.side_by_side, shared), at_once)
            for each, share in zip(models, shares, strict=True)
        )
        for each in models:
            each.embedding_width()  # cached: the first call may take a forward pass
        return replace(first, replicas=tuple(others))

    @property
    def devices(self) -> list[str]:
        """The devices that the model and its replicas compute on, by name."""
        return [str(each.model.device) for each in self.everywhere]

    @property
    def everywhere(self) -> tuple[ServedModel, ...]:
        """The model and its replicas."""
        return (self, *self.replicas)

    def free(self) -> ServedModel:
        """The replica, alone, whose lane has the least to do; of equals, the one that was given the
        fewest calls."""
        chosen = min(self.everywhere, key=lambda each: (each.lane.waiting, each.lane.calls))
        chosen.lane.calls += 1
        return replace(chosen, replicas=())

    def of(self, models: Sequence[Model]) -> ServedModel:
        """The same lanes for ``models``: the model and its replicas as a bundle binds them."""
        first, *others = (
            replace(each, model=model, replicas=())
            for each, model in zip(self.everywhere, models, strict=True)
        )
        return replace(first, replicas=tuple(others))

    @property
    def generator(self) -> Generator:
        """The text-to-image pipeline; raises `InvalidInputError` for any other model."""
        return generator_of(self.model, self.resource, "model")

    @property
    def resource(self) -> str:
        """``models/{model}``: the model ``demo:dinov2-s`` is ``models/demo-dinov2-s``."""
        return model_resource(self.model.name)


class Units(Protocol):
    """The units of one dictionary, with the evidence of their firing and their labels."""

    @property
    def model(self) -> ServedModel:
        """The model that the units belong to."""
        ...

    @property
    def labels(self) -> LabelStore:
        """The store of the units' labels, kept under the evidence's name."""
        ...

    @property
    def evidence(self) -> Evidence:
        """The patches and pictures that the units fire on."""
        ...

    @property
    def resource(self) -> str:
        """``dictionaries/{dictionary}``."""
        ...

    def check(self, index: int) -> None:
        """Raise `FeatureNotFoundError` for an index outside the dictionary."""
        ...

    def figures(self, index: int) -> dict[str, int | float]:
        """The scalars of ``FeatureStatistics`` that are known of a unit, by name."""
        ...

    def exemplars(self, index: int) -> tuple[list[Exemplar], list[Exemplar]]:
        """(strongest exemplars, exemplars across the quantiles), each strongest first."""
        ...

    def quantile(self, index: int, activation: float) -> float:
        """Share of the unit's non-zero activations that do not exceed ``activation``."""
        ...


@dataclass(frozen=True)
class Served:
    """A bundle with its model and the store of its labels."""

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
        """(SHA-256 of the model's weights, site). Dictionaries of one place decompose the same
        vectors, even where their models were loaded under different names."""
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
        """The monosemanticity of a feature over the bundle's pictures; None where undefined."""
        kept = self._kept
        return of_feature(
            self.evidence.peaks(index)[kept], self.bundle.embeddings[kept], self._sources[kept]
        )

    @cached_property
    def monosemanticity_floor(self) -> float:
        """Monosemanticity of a feature that fires equally on all pictures; NaN where undefined."""
        return floor(self.bundle.embeddings[self._kept])

    @cached_property
    def _kept(self) -> NDArray[np.int64]:
        """Row numbers of the pictures that were not deleted (N)."""
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
    """The raw neurons of one site: the server has their peaks and exemplars, but no codes."""

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
        """See `Units`: the figures that follow from the peaks."""
        peaks = self.evidence.peaks(index)
        return {"max": float(peaks.max()), "image_count": int(np.count_nonzero(peaks))}

    def exemplars(self, index: int) -> tuple[list[Exemplar], list[Exemplar]]:
        """See `Units`: there are no exemplars across the quantiles."""
        strongest = [
            Exemplar(firing.patch, firing.image, firing.activation, firing.mask)
            for firing in self.evidence.firings(index)
        ]
        return strongest, []

    def quantile(self, index: int, activation: float) -> float:
        """See `Units`: over the neuron's peaks, one per picture."""
        peaks = self.evidence.peaks(index)
        firing = peaks[peaks > 0]
        return float(np.mean(firing <= np.float32(activation))) if len(firing) else 0.0
