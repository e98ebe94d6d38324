"""The server's describers, scores of texts, search by meaning, and similarities to texts.

A server without a contrastive model labels from captions alone. With a contrastive model, all four
use one `vision_sae.descriptions.toolbox.Toolbox`; see `contrastive_labelling`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_sae.config import DescribeConfig
from vision_sae.descriptions.describers.caption_pmi import CaptionPmi, CaptionPmiConfig
from vision_sae.descriptions.kinds import describer_kind
from vision_sae.descriptions.meanings import nearest
from vision_sae.descriptions.protocol import Description, Metric, Negatives, Score
from vision_sae.descriptions.scoring.scorer import METRICS
from vision_sae.descriptions.toolbox import Toolbox
from vision_sae.errors import NotConfiguredError, NotFoundError
from vision_sae.evidence.protocol import Evidence
from vision_sae.files import sha256_json
from vision_sae.labels.store import LabelStore
from vision_sae.models.protocol import Model
from vision_sae.models.similarity import similarities
from vision_sae.registries import DESCRIBERS
from vision_sae.v1.description_pb2 import ScoreMetric


class ServedDescriber(Protocol):
    """A describer that labels units and scores its labels."""

    @property
    def version(self) -> int:
        """The version of the describer."""
        ...

    @property
    def metrics(self) -> Sequence[Metric]:
        """The metrics that can be measured of the describer's labels."""
        ...

    def identity(self) -> str:
        """SHA-256 of the settings and of all files that the settings name; labels of different
        identities may differ."""
        ...

    def label(
        self, evidence: Evidence, units: Sequence[int], metrics: Sequence[Metric]
    ) -> Iterable[Description]:
        """Labels of ``units``, scored by ``metrics``; by the describer's usual metrics where
        ``metrics`` is empty."""
        ...


class TextScorer(Protocol):
    """Scores any text as the description of a unit; see `vision_sae.descriptions.scores`."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """The metrics that can be measured."""
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
        """The scores, ordered by metric and then by negatives."""
        ...


Meaning = Literal["exemplars", "label"]
"""What a text is compared with: the mean embedding of a unit's exemplars, or its label's."""
MeaningSearch: TypeAlias = Callable[[str, Evidence, Meaning], Sequence[tuple[int, float]]]
"""(text, evidence, meaning) -> [(unit, cosine similarity to the text)], the nearest unit first."""
Similarities: TypeAlias = Callable[[Sequence[Image.Image], Sequence[str]], NDArray[np.float32]]
"""Cosine similarities (pictures, texts), in the space of a contrastive model."""


class CaptionLabels:
    """The describer that needs no model: labels are words of captions, scored by their PMI."""

    metrics: tuple[Metric, ...] = ("pmi",)

    def __init__(self, config: CaptionPmiConfig) -> None:
        self._config = config
        self._describer = CaptionPmi(config)

    def identity(self) -> str:
        """See `ServedDescriber`; the settings name no files."""
        return sha256_json([self.version, self._config.model_dump(mode="json")])

    @property
    def version(self) -> int:
        """The version of the describer."""
        return self._describer.version

    def label(
        self, evidence: Evidence, units: Sequence[int], metrics: Sequence[Metric]
    ) -> Iterable[Description]:
        """Labels of ``units`` with their PMI, which is the only metric; ``metrics`` is ignored."""
        return self._describer.describe(evidence, units)


class ToolboxLabels:
    """A `ServedDescriber` from a `Toolbox`."""

    metrics: Sequence[Metric] = ("pmi", *METRICS)

    def __init__(self, toolbox: Toolbox, describer: str) -> None:
        self._toolbox, self._describer = toolbox, describer
        self.version = describer_kind(describer).version

    def identity(self) -> str:
        """See `ServedDescriber`."""
        return self._toolbox.identity(self._describer)

    def label(
        self, evidence: Evidence, units: Sequence[int], metrics: Sequence[Metric]
    ) -> Iterable[Description]:
        """See `ServedDescriber`."""
        measured = [metric for metric in metrics if metric != "pmi"]  # always measured
        labeller = self._toolbox.labeller(evidence, self._describer)
        return labeller.label(evidence, units, measured)


class ToolboxScorer:
    """The `TextScorer` of a `Toolbox`."""

    metrics: Sequence[Metric] = METRICS

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox

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
        """See `TextScorer`."""
        return self._toolbox.scorer(evidence).score(
            evidence,
            unit,
            text,
            metrics,
            negatives=negatives,
            sample=sample,
            seed=seed,
            control_texts=control_texts,
        )


def captions_alone(config: DescribeConfig | None = None) -> dict[str, ServedDescriber]:
    """{name: describer} of a server without a contrastive model."""
    settings = (config or DescribeConfig()).of(CaptionPmi.name)
    assert isinstance(settings, CaptionPmiConfig)
    return {CaptionPmi.name: CaptionLabels(settings)}


@dataclass(frozen=True)
class Labelling:
    """The server's describers, scores and contrastive model."""

    describers: Mapping[str, ServedDescriber] = field(default_factory=captions_alone)
    """{name: describer}, the default describer first."""
    scorer: TextScorer | None = None
    """None without a contrastive model."""
    clip: str = ""
    """The name of the contrastive model; empty without one."""
    neurons: Mapping[str, Evidence] = field(default_factory=dict)
    """Evidence of raw neurons, by ``models/{model}/sites/{site}``."""
    meanings: MeaningSearch | None = None
    """None without a contrastive model."""
    similarities: Similarities | None = None
    """None without a contrastive model."""
    unread_text: Callable[[str], str] = field(default=lambda text: "")
    """Maps a text to its end that the contrastive model does not read; see `ContrastiveModel`."""

    def describer(self, name: str) -> tuple[str, ServedDescriber]:
        """(name, describer); an empty name means the default. Raises `NotFoundError`."""
        name = name or next(iter(self.describers))
        if name not in self.describers:
            raise NotFoundError(
                f"there is no describer {name!r}; this server has {', '.join(self.describers)}",
                field="describer",
            )
        return name, self.describers[name]


def contrastive_labelling(
    config: DescribeConfig,
    probes: Path,
    labels: LabelStore,
    loaded: Mapping[str, Model] = MappingProxyType({}),
    *,
    device: str = "auto",
) -> Labelling:
    """Labelling with a contrastive model: every describer whose requirements ``config`` meets,
    ``config.describer`` being the default, scores, and search by meaning.

    A model that is missing from ``loaded`` is loaded on ``device`` on first use. ``probes`` is the
    folder for cached embeddings and codes; search by meaning reads ``labels``.
    """
    toolbox = Toolbox(config, probes, loaded=loaded, device=device, progress=False)

    def search(text: str, evidence: Evidence, by: Meaning) -> Sequence[tuple[int, float]]:
        if by == "exemplars":
            return toolbox.by_meaning(text, evidence)
        texts, embed = labels.texts(evidence.name), toolbox.scorer(evidence).embed
        units, (query,) = list(texts), embed([text])
        ranked = nearest(query, embed(list(texts.values()))) if texts else []
        return [(units[row], cosine) for row, cosine in ranked]

    others = [name for name in DESCRIBERS.names if describer_kind(name).served(config.of(name))]
    describers = [config.describer, *others]
    return Labelling(
        {name: ToolboxLabels(toolbox, name) for name in dict.fromkeys(describers)},
        ToolboxScorer(toolbox),
        clip=config.clip,
        meanings=search,
        similarities=lambda pictures, texts: similarities(toolbox.clip, pictures, texts),
        unread_text=lambda text: toolbox.clip.unread_text(text),
    )


def metric_names(
    wanted: Iterable[ScoreMetric.ValueType], available: Sequence[Metric], who: str
) -> list[Metric]:
    """The names of the metrics of a request; raises `NotConfiguredError` for an unavailable one."""
    names = [ScoreMetric.Name(m).removeprefix("SCORE_METRIC_").lower() for m in wanted]
    for name in names:
        if name not in available:
            raise NotConfiguredError(
                f"{who} cannot measure {name} here, only {', '.join(available)}; a server with a "
                "contrastive model can measure more",
                field="metrics",
            )
    return [metric for name in names for metric in available if metric == name]
