"""Which features are reviewed, and which pictures show what each of them does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_sae.bundles.bundle import Bundle
from vision_sae.descriptions.evidence.bundle import BundleEvidence
from vision_sae.descriptions.evidence.protocol import Firing, spaced
from vision_sae.descriptions.evidence.sources import Sources
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.errors import InvalidInputError


class Sample(NamedTuple):
    """Some features of a bundle."""

    units: list[int]
    rule: str
    """How they were chosen, in a sentence for readers."""


def described(bundle: Bundle, unit: int) -> Description | None:
    """The description of a feature; None before `describe`."""
    row = bundle.descriptions.get(unit)
    if row is None:
        return None
    scores = tuple(Score(**score) for score in row["scores"])
    return Description(**(row | {"scores": scores}))


def label_of(bundle: Bundle, unit: int) -> str | None:
    """The text of a feature's description, where it has one."""
    text: str | None = bundle.descriptions.get(unit, {}).get("text")
    return text


def sample(
    bundle: Bundle,
    wanted: int,
    *,
    named: Sequence[int] = (),
    seed: int = 0,
    labelled_only: bool = False,
) -> Sample:
    """At most ``wanted`` features that fire, from the rarest to the most frequent, or just those
    that are ``named``.

    Raises `InvalidInputError` when none is left to review.
    """
    if named:
        for unit in named:
            bundle.check_feature(unit)
        return Sample(list(dict.fromkeys(named)), "Features named by the person who asked.")
    counts = bundle.image_counts
    labelled = np.array([label_of(bundle, unit) is not None for unit in range(len(counts))])
    free = np.flatnonzero((counts > 0) & (labelled | (not labelled_only)))
    kind = "labelled features" if labelled_only else "features that fire"
    if not len(free):
        raise InvalidInputError(f"{bundle.name} has no {kind} to review", field="features")
    ordered = free[np.argsort(counts[free], kind="stable")]
    if len(free) <= wanted:
        rule = f"All {len(free):,} {kind}, in the order of the share of pictures they fire in."
        return Sample(ordered.tolist(), rule)
    groups = np.array_split(ordered, wanted)
    random = np.random.default_rng(seed)
    rule = (
        f"{len(groups):,} of {len(free):,} {kind}: ordered by the share of pictures in which they "
        f"fire and cut into {len(groups):,} groups of equal size, of each of which one was drawn "
        f"at random (seed {seed})."
    )
    return Sample([int(random.choice(group)) for group in groups], rule)


@dataclass(frozen=True)
class Activity:
    """What one feature does in all pictures of a bundle."""

    evidence: BundleEvidence
    unit: int
    peaks: NDArray[np.float32]
    """The strongest activation in each picture (N); 0 where the feature is silent."""
    threshold: float
    """The activation from which on a firing patch belongs to a mask."""

    @classmethod
    def of(cls, evidence: BundleEvidence, unit: int) -> Activity:
        """The activity of feature number ``unit``."""
        _, values = evidence.bundle.postings.row(unit)
        quantile = evidence.bundle.manifest["build"]["mask_quantile"]
        threshold = float(np.quantile(values, quantile)) if len(values) else 0.0
        return cls(evidence, unit, evidence.peaks(unit), threshold)

    def firing(self, image: int) -> Firing:
        """Where the feature fires in a picture in which it does, however weakly."""
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
        """The pictures of ``pool`` (N) that fire the feature, strongest first, one a source."""
        order = np.argsort(-self.peaks, kind="stable")
        return sources.first_of_each(order[(self.peaks[order] > 0) & pool[order]])

    def stronger_than(self, image: int) -> float:
        """Share of the pictures that fire the feature in which it is weaker than in ``image``."""
        fired = self.peaks[self.peaks > 0]
        return float((fired < self.peaks[image]).mean())


def across(ordered: NDArray[np.int64], count: int) -> list[int]:
    """At most ``count`` of some pictures, evenly spaced over their order."""
    return [int(image) for image in ordered[spaced(len(ordered), count)]] if len(ordered) else []


def present(bundle: Bundle) -> NDArray[np.bool_]:
    """The pictures (N) of a bundle that have not been deleted."""
    everything = np.ones(len(bundle.images), dtype=np.bool_)
    return everything if bundle.deleted is None else ~bundle.deleted
