"""How true the labels of a scene generator's features are, by scenes that nobody has looked at.

The labels are those of `vision_sae.descriptions.describers.scenes`. A quarter of the prompts
neither chose nor judged them: these audit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.describers.scene_terms import read_label, truth
from vision_sae.descriptions.describers.scenes import read_scenes, strongest_of
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.evaluation.scene_steering import JUDGE as STEERING

DESCRIBED = 128
"""Features of a dictionary that are asked about, of those that fire most often."""
HOLDS = 0.8
"""Share of the strongest scenes from which on a label is said to hold."""
ADDS = 0.4
"""Share of pictures that an object must come to in order to say that a feature adds it."""


def most_frequent(counts: NDArray[np.integer], described: int = DESCRIBED) -> list[int]:
    """The features that fire in most patches, by how often each fires (F)."""
    often = np.argsort(-counts, kind="stable")[:described]
    return [int(feature) for feature in often if counts[feature]]


def held_share(evidence: Evidence, feature: int, row: Mapping[str, Any]) -> float | None:
    """Of the 20 auditing prompts that fire a feature most, the share that its label is true of;
    None where it has no label or fires in none."""
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
    """What is known of the labels of ``features``:

    - ``described`` features, and how many of them are ``labelled``, and the ``labelled_share``
    - ``attribute_holds``: the share of labels that are true of at least 80 % of the 20 auditing
      scenes that fire their feature most; ``attribute_holds_median``: of how many of them the usual
      label is true; ``attribute_holds_half``: the share of labels true of at least half
    - ``causal_share``: the share of labels that steering bears out
    - ``adds_object``: the mean share of pictures in which a feature whose label names a shape adds
      the object where nothing was; ``object_labels`` is how many such labels there are
    - ``becomes``: the mean share of pictures without it that are then taken for the label
    """
    labelled = [rows[f] for f in features if rows[f]["text"]]
    held = [held_share(evidence, row["feature"], row) for row in labelled]
    shares = np.array([share for share in held if share is not None])
    steered = [row["details"][STEERING] for row in labelled if STEERING in row["details"]]
    adding = [found["adds_object"] for found in steered if found["adds_object"] is not None]
    return {
        "described": len(features),
        "labelled": len(labelled),
        "labelled_share": _rounded(len(labelled) / max(len(features), 1)),
        "attribute_holds": _mean(shares >= HOLDS),
        "attribute_holds_median": _rounded(float(np.median(shares))) if len(shares) else None,
        "attribute_holds_half": _mean(shares >= 0.5),
        "causal_share": _mean([found["borne_out"] for found in steered]),
        "becomes": _mean([found["becomes"] for found in steered]),
        "adds_object": _mean(adding),
        "adds_object_features": _mean([share >= ADDS for share in adding]),
        "object_labels": len(adding),
    }


def _rounded(value: float) -> float:
    return round(value, 4)


def _mean(values: Sequence[Any] | NDArray[Any]) -> float | None:
    return _rounded(float(np.mean(values))) if len(values) else None
