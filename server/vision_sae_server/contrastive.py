"""What a server labels with when it has a contrastive model: describers, scores, and meanings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_sae.config import DescribeConfig
from vision_sae.descriptions.describers.caption_pmi import CaptionPmi
from vision_sae.descriptions.describers.contrastive import ContrastiveDescriber
from vision_sae.descriptions.describers.milan import MilanDescriber
from vision_sae.descriptions.describers.vlm import VlmDescriber
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.meanings import meanings, nearest
from vision_sae.descriptions.protocol import Description, Metric, Negatives, Score
from vision_sae.descriptions.scores.scorer import METRICS
from vision_sae.descriptions.store import LabelStore
from vision_sae.descriptions.toolbox import Toolbox, describer_version
from vision_sae.models.protocol import Model
from vision_sae.models.similarity import similarities
from vision_sae_server.labelling import Labelling, Meaning


class _Labels:
    """See `vision_sae_server.labelling.Labels`."""

    metrics: Sequence[Metric] = ("pmi", *METRICS)

    def __init__(self, toolbox: Toolbox, describer: str) -> None:
        self._toolbox, self._describer = toolbox, describer
        self.version = describer_version(describer)

    def identity(self) -> str:
        return self._toolbox.identity(self._describer)

    def label(
        self, evidence: Evidence, units: Sequence[int], metrics: Sequence[Metric]
    ) -> Iterable[Description]:
        measured = [metric for metric in metrics if metric != "pmi"]  # the describer's own
        labeller = self._toolbox.labeller(evidence, self._describer)
        return labeller.label(evidence, units, measured)


class _Scores:
    """See `vision_sae_server.labelling.Scores`."""

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


class _Meanings:
    """See `vision_sae_server.labelling.Meanings`."""

    def __init__(self, toolbox: Toolbox, labels: LabelStore) -> None:
        self._toolbox, self._labels = toolbox, labels

    def nearest(self, text: str, evidence: Evidence, by: Meaning) -> Sequence[tuple[int, float]]:
        toolbox = self._toolbox
        embed = toolbox.scorer(evidence).embed
        (query,) = embed([text])
        if by == "label":
            texts = self._labels.texts(evidence.name)
            rows = list(texts)
            found = nearest(query, embed(list(texts.values()))) if texts else []
            return [(rows[row], cosine) for row, cosine in found]
        return nearest(query, meanings(evidence, toolbox.probe(evidence), toolbox.directory))


class _Similarities:
    """See `vision_sae_server.labelling.Similarities`."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox

    def __call__(
        self, pictures: Sequence[Image.Image], texts: Sequence[str]
    ) -> NDArray[np.float32]:
        return similarities(self._toolbox.clip, pictures, texts)


def contrastive_labelling(
    config: DescribeConfig,
    probes: Path,
    labels: LabelStore,
    loaded: Mapping[str, Model] = MappingProxyType({}),
) -> Labelling:
    """Labels by every describer that ``config`` has what it takes for, that of its own choice the
    default; scores by its contrastive model, and search by meaning.

    A model that is not among those ``loaded`` is loaded when it is asked for. ``probes`` is the
    folder in which labelling keeps what it needs again; ``labels`` are those searched by meaning.
    """
    toolbox = Toolbox(config, probes, loaded=loaded, progress=False)
    describers = [config.describer, ContrastiveDescriber.name, CaptionPmi.name, MilanDescriber.name]
    if config.vlm.url:
        describers.append(VlmDescriber.name)
    return Labelling(
        {name: _Labels(toolbox, name) for name in dict.fromkeys(describers)},
        _Scores(toolbox),
        clip=config.clip,
        meanings=_Meanings(toolbox, labels),
        similarities=_Similarities(toolbox),
        unread_text=lambda text: toolbox.clip.unread_text(text),
    )
