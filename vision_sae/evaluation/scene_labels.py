"""How true the labels of a scene generator's features are, on held-out scenes.

The labels are those of `vision_sae.descriptions.describers.scenes`. A quarter of the prompts
neither chose nor judged the labels: these prompts audit the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.describers.scenes import read_scenes, strongest_of
from vision_sae.descriptions.scene_terms import read_label, truth
from vision_sae.evaluation.scene_steering import JUDGE as STEERING
from vision_sae.evidence.protocol import Evidence

DESCRIBED = 128
"""The number of features to describe, those that fire most often."""
HOLDS = 0.8
"""A label holds if it is true of at least this share of the strongest scenes."""
ADDS = 0.4
"""A feature adds an object if the object appears in at least this share of pictures."""


def most_frequent(counts: NDArray[np.integer], described: int = DESCRIBED) -> list[int]:
    """The features that fire in most patches, from the number of patches of each feature (F)."""
    often = np.argsort(-counts, kind="stable")[:described]
    return [int(feature) for feature in often if counts[feature]]


def held_share(evidence: Evidence, feature: int, row: Mapping[str, Any]) -> float | None:
    """The share of the 20 auditing prompts with the largest activation for which a feature's label
    is true; None for a feature that has no label or never fires."""
    scenes = read_scenes(tuple(evidence.images))
    if not row["text"]:
        return None
    peaks = scenes.peaks(evidence.peaks(feature))[scenes.auditing]
    strongest = strongest_of(peaks)
    if not len(strongest):
        return None
    label = read_label(row["details"]["terms"])
    return float(truth(label, scenes.shown[scenes.auditing][strongest]).mean())


def figures(
    evidence: Evidence, rows: Mapping[int, Mapping[str, Any]], features: Sequence[int]
) -> dict[str, float | int | None]:
    """Figures of the labels of ``features``:

    - ``described`` features, and how many of them are ``labelled``, and the ``labelled_share``
    - ``attribute_holds``: the share of labels that are true of at least 80 % of the 20 auditing
      scenes that fire their feature most; ``attribute_holds_median``: the median share of these
      scenes that a label is true of; ``attribute_holds_half``: the share of labels true of at
    least half - ``causal_share``: the share of labels that steering confirms
    - ``adds_object``: the mean share of pictures in which a feature whose label names a shape adds
      the object where nothing was; ``object_labels`` is how many such labels there are
    - ``becomes``: the mean share of pictures without it that are then taken for the label
    """
    labelled = [rows[f] for f in features if rows[f]["text"]]
    held = [held_share(evidence, row["feature"], row) for row in labelled]
    shares = np.array([share for share in held if share is not None])
    steered = [row["details"][STEERING] for row in labelled if STEERING in row["details"]]
    adding = [detail["adds_object"] for detail in steered if detail["adds_object"] is not None]
    return {
        "described": len(features),
        "labelled": len(labelled),
        "labelled_share": _rounded(len(labelled) / max(len(features), 1)),
        "attribute_holds": _mean(shares >= HOLDS),
        "attribute_holds_median": _rounded(float(np.median(shares))) if len(shares) else None,
        "attribute_holds_half": _mean(shares >= 0.5),
        "causal_share": _mean([detail["borne_out"] for detail in steered]),
        "becomes": _mean([detail["becomes"] for detail in steered]),
        "adds_object": _mean(adding),
        "adds_object_features": _mean([share >= ADDS for share in adding]),
        "object_labels": len(adding),
    }


def _rounded(value: float) -> float:
    return round(value, 4)


def _mean(values: Sequence[Any] | NDArray[Any]) -> float | None:
    return _rounded(float(np.mean(values))) if len(values) else None
