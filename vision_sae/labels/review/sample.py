"""The choice of features for a review, and the activity of each feature in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_sae.bundles.read import Bundle
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.protocol import Firing, spaced
from vision_sae.evidence.sources import Sources


class Sample(NamedTuple):
    """Some features of a bundle."""

    units: list[int]
    rule: str
    """The rule of the choice, in a sentence for readers."""


def described(bundle: Bundle, unit: int) -> Description | None:
    """The description of a feature; None before `describe`."""
    row = bundle.descriptions.get(unit)
    if row is None:
        return None
    scores = tuple(Score(**score) for score in row["scores"])
    return Description(**(row | {"scores": scores}))


def label_of(bundle: Bundle, unit: int) -> str | None:
    """The text of a feature's description, or None."""
    text: str | None = bundle.descriptions.get(unit, {}).get("text")
    return text


def sample(
    bundle: Bundle,
    count: int,
    *,
    named: Sequence[int] = (),
    seed: int = 0,
    labelled_only: bool = False,
) -> Sample:
    """Choose at most ``count`` features that fire, from rare to frequent, or just the ``named``
    ones.

    Raises `InvalidInputError` if there is no feature to review.
    """
    if named:
        for unit in named:
            bundle.check_feature(unit)
        return Sample(list(dict.fromkeys(named)), "Features that the user named.")
    counts = bundle.image_counts
    labelled = np.array([label_of(bundle, unit) is not None for unit in range(len(counts))])
    free = np.flatnonzero((counts > 0) & (labelled | (not labelled_only)))
    kind = "labelled features" if labelled_only else "features that fire"
    if not len(free):
        raise InvalidInputError(f"{bundle.name} has no {kind} to review", field="features")
    ordered = free[np.argsort(counts[free], kind="stable")]
    if len(free) <= count:
        rule = f"All {len(free):,} {kind}, in the order of the share of pictures they fire in."
        return Sample(ordered.tolist(), rule)
    groups = np.array_split(ordered, count)
    random = np.random.default_rng(seed)
    rule = (
        f"{len(groups):,} of {len(free):,} {kind}: ordered by the share of pictures in which they "
        f"fire and cut into {len(groups):,} groups of equal size; one feature of each group "
        f"was drawn at random (seed {seed})."
    )
    return Sample([int(random.choice(group)) for group in groups], rule)


@dataclass(frozen=True)
class Activity:
    """The activations of one feature in all pictures of a bundle."""

    evidence: BundleEvidence
    unit: int
    peaks: NDArray[np.float32]
    """The largest activation in each picture (N); 0 in silent pictures."""
    threshold: float
    """Smallest activation of a patch inside a mask."""

    @classmethod
    def of(cls, evidence: BundleEvidence, unit: int) -> Activity:
        """The activity of feature number ``unit``."""
        _, values = evidence.bundle.postings.row(unit)
        quantile = evidence.bundle.manifest["build"]["mask_quantile"]
        threshold = float(np.quantile(values, quantile)) if len(values) else 0.0
        return cls(evidence, unit, evidence.peaks(unit), threshold)

    def firing(self, image: int) -> Firing:
        """Activations and mask of the feature in a picture in which it fires, however weakly."""
        grid = self.evidence.grid
        rows, values = self.evidence.bundle.postings.row(self.unit)
        inside = rows // grid.patches == image
        flat = np.zeros(grid.patches, dtype=np.float32)
        flat[rows[inside] % grid.patches] = values[inside]
        mask = flat >= min(self.threshold, float(flat.max()))
        strongest, shape = int(flat.argmax()), (grid.rows, grid.cols)
        return Firing(
            image,
            image * grid.patches + strongest,
            float(flat[strongest]),
            flat.reshape(shape),
            mask.reshape(shape) & (flat.reshape(shape) > 0),
        )

    def by_strength(self, sources: Sources, pool: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The pictures of ``pool`` (N) that fire the feature, strongest first, one per source."""
        order = np.argsort(-self.peaks, kind="stable")
        return sources.first_of_each(order[(self.peaks[order] > 0) & pool[order]])

    def stronger_than(self, image: int) -> float:
        """Share of the firing pictures with a weaker activation than picture ``image``."""
        fired = self.peaks[self.peaks > 0]
        return float((fired < self.peaks[image]).mean())


def across(ordered: NDArray[np.int64], count: int) -> list[int]:
    """At most ``count`` of the ordered pictures, evenly spaced."""
    return [int(image) for image in ordered[spaced(len(ordered), count)]] if len(ordered) else []


def present(bundle: Bundle) -> NDArray[np.bool_]:
    """The pictures (N) of a bundle that have not been deleted."""
    everything = np.ones(len(bundle.images), dtype=np.bool_)
    return everything if bundle.deleted is None else ~bundle.deleted
