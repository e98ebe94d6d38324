"""What a server labels with: describers, a scorer, evidence of neurons, an index of meanings.

All of it is handed to `load_state` by whoever starts the server; nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_sae.config import CaptionPmiConfig
from vision_sae.descriptions.describers.caption_pmi import CaptionPmi
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.protocol import Description, Metric, Negatives, Score
from vision_sae.errors import NotConfiguredError, NotFoundError
from vision_sae.files import sha256_json
from vision_sae.v1.description_pb2 import ScoreMetric


class Labels(Protocol):
    """One describer, with what it takes to score its labels."""

    @property
    def version(self) -> int:
        """Of the describer."""
        ...

    @property
    def metrics(self) -> Sequence[Metric]:
        """What it can measure of its labels."""
        ...

    def identity(self) -> str:
        """SHA-256 of its settings and of all that they name: another makes other labels."""
        ...

    def label(
        self, evidence: Evidence, units: Sequence[int], metrics: Sequence[Metric]
    ) -> Iterable[Description]:
        """Labels of ``units``, scored by ``metrics``; with none, by its usual ones."""
        ...


class Scores(Protocol):
    """Scores of anybody's text for a unit; `vision_sae.descriptions.scores`."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """What it can measure."""
        ...

    def score(
        self,
        evidence: Evidence,
        unit: int,
        text: str,
        metrics: Sequence[Metric],
        *,
        negatives: Sequence[Negatives],
        sample: int,
        seed: int,
        control_texts: Sequence[str],
    ) -> list[Score]:
        """The scores, by metric and then by negatives."""
        ...


Meaning = Literal["exemplars", "label"]
"""Embedding of a feature that a text is compared with: mean of its exemplars, or of its label."""


class Meanings(Protocol):
    """Features found by what a text means, in the space of a contrastive model."""

    def nearest(self, text: str, evidence: Evidence, by: Meaning) -> Sequence[tuple[int, float]]:
        """(unit of the evidence, cosine similarity to the text), the nearest first."""
        ...


class Similarities(Protocol):
    """How near pictures are to texts, in the space of a contrastive model."""

    def __call__(
        self, pictures: Sequence[Image.Image], texts: Sequence[str]
    ) -> NDArray[np.float32]:
        """Cosines (pictures, texts)."""
        ...


class CaptionLabels:
    """The describer that needs no model: words of the captions, with their PMI."""

    metrics: tuple[Metric, ...] = ("pmi",)

    def __init__(self, config: CaptionPmiConfig) -> None:
        self._config = config
        self._describer = CaptionPmi(config)

    def identity(self) -> str:
        """Of its settings: it needs nothing else."""
        return sha256_json([self.version, self._config.model_dump(mode="json")])

    @property
    def version(self) -> int:
        """Of the describer."""
        return self._describer.version

    def label(
        self, evidence: Evidence, units: Sequence[int], metrics: Sequence[Metric]
    ) -> Iterator[Description]:
        """Labels of ``units``; their PMI is measured in any case."""
        return self._describer.describe(evidence, units)


def captions_alone(config: CaptionPmiConfig | None = None) -> dict[str, Labels]:
    """The describers of a server without a contrastive model."""
    return {CaptionPmi.name: CaptionLabels(config or CaptionPmiConfig())}


@dataclass(frozen=True)
class Labelling:
    """Everything a server labels with."""

    describers: Mapping[str, Labels] = field(default_factory=captions_alone)
    """By name, the default first."""
    scorer: Scores | None = None
    """Scores of texts; needs a contrastive model."""
    clip: str = ""
    """The name of the contrastive model; empty without one."""
    neurons: Mapping[str, Evidence] = field(default_factory=dict)
    """Evidence of raw neurons, by ``models/{model}/sites/{site}``."""
    meanings: Meanings | None = None
    """Search by meaning; needs a contrastive model."""
    similarities: Similarities | None = None
    """Of pictures and texts; needs a contrastive model."""
    unread_text: Callable[[str], str] = field(default=lambda text: "")
    """The end of a text that the contrastive model does not read; see `ContrastiveModel`."""

    def describer(self, name: str) -> tuple[str, Labels]:
        """(name, describer); the default for an empty name."""
        name = name or next(iter(self.describers))
        if name not in self.describers:
            raise NotFoundError(
                f"there is no describer {name!r}; this server has {', '.join(self.describers)}",
                field="describer",
            )
        return name, self.describers[name]


def metric_names(
    wanted: Iterable[ScoreMetric.ValueType], available: Sequence[Metric], who: str
) -> list[Metric]:
    """The metrics of a request by name; raises `NotConfiguredError` for one not available."""
    asked = [ScoreMetric.Name(m).removeprefix("SCORE_METRIC_").lower() for m in wanted]
    for name in asked:
        if name not in available:
            raise NotConfiguredError(
                f"{who} cannot measure {name} here, only {', '.join(available)}; a server with a "
                "contrastive model can measure more",
                field="metrics",
            )
    return [metric for name in asked for metric in available if metric == name]
