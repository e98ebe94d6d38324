"""Labels of features: describe a bundle, read its labels, and score any text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from PIL import Image

from vision_sae.activations.store import ActivationStore
from vision_sae.api.encoding import label_of
from vision_sae.api.feature_search import toolbox
from vision_sae.api.making import opened_store, settings
from vision_sae.api.showing import Row, Table, html_table, paragraph, text_table
from vision_sae.api.subjects import AnyDictionary, opened, opened_bundle
from vision_sae.bundles.read import Bundle
from vision_sae.config import DescribeConfig
from vision_sae.descriptions.describe import describe_bundle
from vision_sae.descriptions.protocol import Description, Metric, Negatives, Score
from vision_sae.descriptions.scoring.scorer import other_texts
from vision_sae.errors import FeatureNotFoundError, InvalidInputError
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.labels.entries import description_from_json
from vision_sae.pictures.sheet import contact_sheet

_SHOWN = 30
"""Number of labels that a table shows."""
_PICTURES = 4
"""Number of exemplars of a feature that a notebook shows."""


@dataclass(frozen=True, eq=False, repr=False)
class Labels(Table):
    """The labels of a dictionary's features; a feature without a text is an abstention."""

    name: str
    """Name of the bundle or the dictionary."""
    descriptions: Mapping[int, Description]
    """{feature: description}, in order of the features."""
    bundle: Bundle | None = field(default=None)
    """The bundle with these labels; None for a dictionary alone."""

    @classmethod
    def of(cls, dictionary: AnyDictionary) -> Labels:
        """The labels of a bundle or a released dictionary; empty before `describe`."""
        source = opened(dictionary)
        descriptions = {
            i: description_from_json(row) for i, row in sorted(source.descriptions.items())
        }
        if isinstance(source, Bundle):
            return cls(source.name, descriptions, source)
        return cls((source.released or {}).get("name", "dictionary"), descriptions)

    def __iter__(self) -> Iterator[Description]:
        return iter(self.descriptions.values())

    def __len__(self) -> int:
        return len(self.descriptions)

    def __getitem__(self, feature: int) -> Description:
        """The description of a feature. Raises `FeatureNotFoundError` if there is none."""
        if feature not in self.descriptions:
            raise FeatureNotFoundError(
                f"{self.name} has no description of feature {feature}; run describe",
                field="feature",
            )
        return self.descriptions[feature]

    @property
    def texts(self) -> dict[int, str]:
        """{feature: text} of the features with a text."""
        return {
            i: description.text
            for i, description in self.descriptions.items()
            if description.text is not None
        }

    def rows(self) -> list[Row]:
        """The features with a text as rows of a table, confirmed labels first."""
        labelled = [self.descriptions[feature] for feature in self.texts]
        return [
            {
                "feature": description.feature,
                "label": label_of(description.text, bool(description.judged_by)),
                "score": description.scores[0].value if description.scores else None,
                "of": description.scores[0].metric if description.scores else "",
                "judged by": description.judged_by,
                "describer": description.describer,
            }
            for description in sorted(labelled, key=lambda description: description.is_guess)
        ]

    def to_pil(self, feature: int, count: int = _PICTURES) -> Image.Image:
        """The strongest exemplars of a feature side by side; raises `InvalidInputError` without a
        bundle, or for a feature that never fires."""
        if self.bundle is None:
            raise InvalidInputError(
                "a dictionary alone has no pictures; build a bundle from it", field="feature"
            )
        strongest, _ = self.bundle.exemplars(feature)
        if not strongest:
            raise InvalidInputError(f"feature {feature} never fires", field="feature")
        thumbnails = (self.bundle.thumbnails[e.image] for e in strongest[:count])
        return contact_sheet([[Image.open(io.BytesIO(data)).convert("RGB") for data in thumbnails]])

    def numpy(self) -> Int64[np.ndarray, " N"]:
        """The numbers of the features with a text (N), int64."""
        return np.array(list(self.texts), dtype=np.int64)

    def _heading(self) -> str:
        confirmed = sum(bool(description.text and description.judged_by) for description in self)
        texts = len(self.texts)
        return (
            f"{self.name}: {texts} of {len(self)} features labelled, {confirmed} labels confirmed "
            f"by a judge" + (f"; the first {_SHOWN}" if texts > _SHOWN else "")
        )

    def __repr__(self) -> str:
        return f"{self._heading()}\n{text_table(self.rows()[:_SHOWN])}"

    def _repr_html_(self) -> str:
        return paragraph(self._heading()) + html_table(self.rows()[:_SHOWN])


def describe(
    bundle: Bundle | str | Path,
    *,
    describer: str | None = None,
    clip: str | None = None,
    probe_from: ActivationStore | str | Path | None = None,
    config: DescribeConfig | None = None,
    progress: bool = True,
    **further: Any,
) -> Labels:
    """Label each of a bundle's F features, or abstain, and publish the bundle with the labels.

    The work resumes after a stop. The result's ``bundle`` is the bundle with the labels.

    ``describer`` is ``grounded`` (by default; labels are looked up in captions and pixels),
    ``caption-pmi``, ``contrastive``, ``milan``, ``vlm``, ``effects`` or ``scenes``. ``clip`` names
    the contrastive model of describers and scores; ``probe_from`` is a store of that model,
    harvested with ``text_aligned``, which saves a pass over the pictures. ``further`` holds other
    fields of `DescribeConfig`.

    Raises `InvalidInputError` for an unknown describer, and `MissingDependencyError` for
    a contrastive model that is not installed.
    """
    values = {"describer": describer, "clip": clip} | further
    wanted = settings(DescribeConfig, "describe", config, values)
    path = _place(bundle)
    store = None if probe_from is None else opened_store(probe_from)
    return Labels.of(describe_bundle(path, wanted, store=store, progress=progress))


def _place(bundle: Bundle | str | Path) -> Path:
    return bundle.path if isinstance(bundle, Bundle) else Path(bundle)


@dataclass(frozen=True, repr=False)
class Scores(Table):
    """Scores of a text for a feature."""

    feature: int
    text: str
    scores: tuple[Score, ...]
    """Ordered by metric, then by kind of negatives. A score without enough pictures is left out."""

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self) -> list[Row]:
        """The scores as rows of a table."""
        return [
            {
                "metric": s.metric,
                "negatives": s.negatives,
                "value": s.value,
                "lower": s.lower,
                "upper": s.upper,
                "control": s.control,
                "n": s.n,
            }
            for s in self.scores
        ]

    def numpy(self) -> Float64[np.ndarray, " N"]:
        """The values (N), float64."""
        return np.array([score.value for score in self.scores])

    def _heading(self) -> str:
        return f"{self.text!r} for feature {self.feature}"


def score(
    bundle: AnyDictionary,
    feature: int,
    text: str,
    *,
    metrics: Sequence[Metric] = ("detection_auc",),
    negatives: Sequence[Negatives] = ("random", "hard"),
    sample: int = 50,
    seed: int = 0,
    clip: str | None = None,
    config: DescribeConfig | None = None,
) -> Scores:
    """Score any text for one of a bundle's F features, on pictures that the describer has not seen.

    The judge is the contrastive model ``clip`` (``demo:clip`` by default). ``metrics`` are names of
    `vision_sae.descriptions.scores`; the control of a metric is the mean score of other features'
    labels. The scores use at most ``sample`` firing pictures, and as many counterexamples of each
    kind of ``negatives``. The first score runs the model over the bundle's pictures; its embeddings
    are stored beside the bundle.

    Raises `FeatureNotFoundError`, and `InvalidInputError` for an empty text or unknown metrics.
    """
    source_bundle = opened_bundle(bundle)
    source_bundle.check_feature(feature)
    evidence = BundleEvidence(source_bundle)
    measured = (
        toolbox(source_bundle, config, clip)
        .scorer(evidence)
        .score(
            evidence,
            feature,
            text,
            metrics,
            negatives=negatives,
            sample=sample,
            seed=seed,
            control_texts=other_texts(Labels.of(source_bundle).texts, feature, text, seed),
        )
    )
    return Scores(feature, text, tuple(measured))
