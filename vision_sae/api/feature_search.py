"""Search for features of a bundle by a text that matches their labels or their exemplars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from vision_sae.api.choices import check_choice, check_top
from vision_sae.api.encoding import label_of
from vision_sae.api.showing import Row, Table
from vision_sae.api.subjects import AnyDictionary, loaded, opened_bundle
from vision_sae.bundles.read import Bundle
from vision_sae.config import DescribeConfig, load_config, with_values
from vision_sae.descriptions.describe import PROBES
from vision_sae.descriptions.protocol import JUDGED_BY
from vision_sae.descriptions.toolbox import Toolbox
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.labels.database import MEMORY
from vision_sae.labels.store import LabelStore

Match = Literal["label", "exemplars"]
"""What a text is compared with: the words of labels, or the content of the strongest pictures."""


@dataclass(frozen=True)
class FoundFeature:
    """A feature that matches a text."""

    feature: int
    score: float
    """Rank of the words, or cosine similarity; comparable within one kind of match only."""
    match: Match
    label: str | None
    confirmed: bool


@dataclass(frozen=True, repr=False)
class FeatureHits(Table):
    """The features of a bundle that match a text, best first."""

    query: str
    bundle: str
    features: tuple[FoundFeature, ...]

    def __iter__(self) -> Iterator[FoundFeature]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, place: int) -> FoundFeature:
        return self.features[place]

    def rows(self) -> list[Row]:
        """The features as rows of a table."""
        return [
            {
                "feature": f.feature,
                "score": f.score,
                "match": f.match,
                "label": label_of(f.label, f.confirmed),
            }
            for f in self.features
        ]

    def numpy(self) -> Int64[np.ndarray, " N"]:
        """The numbers of the features (N), int64."""
        return np.array([each.feature for each in self.features], dtype=np.int64)

    def _heading(self) -> str:
        return f"{len(self)} features of {self.bundle} by text {self.query!r}"


def search_features(
    bundle: AnyDictionary,
    text: str,
    *,
    match: Match = "label",
    top: int = 20,
    clip: str | None = None,
) -> FeatureHits:
    """Find some of a bundle's F features by a text.

    With ``match="label"`` the text is compared with the words of labels, and confirmed labels come
    first. With ``match="exemplars"`` a contrastive model, ``clip`` (``demo:clip`` by default),
    compares the text with the strongest pictures of each feature. The first search by ``exemplars``
    runs the model over the bundle's pictures; its embeddings are stored beside the bundle.

    Raises `InvalidInputError` for a text without words.
    """
    opened = opened_bundle(bundle)
    check_choice(match, Match, "match")
    check_top(top)
    if not text.strip():
        raise InvalidInputError("the text to search for is empty", field="text")
    if match == "label":
        ranked = _by_words(opened, text)
    else:
        ranked = toolbox(opened, None, clip).by_meaning(text, BundleEvidence(opened))
    hits = []
    for feature, score in ranked[:top]:
        row = opened.descriptions.get(feature, {})
        confirmed = bool(row.get("details", {}).get(JUDGED_BY))
        hits.append(FoundFeature(feature, score, match, row.get("text"), confirmed))
    return FeatureHits(text, opened.name, tuple(hits))


def _by_words(bundle: Bundle, text: str) -> list[tuple[int, float]]:
    name = BundleEvidence(bundle).name
    with LabelStore(MEMORY) as labels:
        labels.import_bundle(bundle)
        hits = labels.search(text, [name])
        confirmed = labels.confirmed(hit.unit for hit in hits)
    hits.sort(key=lambda hit: hit.unit not in confirmed)
    return [(hit.unit.index, hit.rank) for hit in hits]


def toolbox(bundle: Bundle, config: DescribeConfig | None, clip: str | None) -> Toolbox:
    """The toolbox of describers and scores, which stores its probes beside the bundle."""
    start = load_config().describe if config is None else config
    chosen = with_values(start, "describe", {"clip": clip})
    ready = {chosen.clip: loaded(chosen.clip)}
    return Toolbox(chosen, bundle.path.parent / PROBES, loaded=ready, progress=False)
