"""How true the labels of the demo generator's blocks are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_sae.demo import generations
from vision_sae.evaluation.scene_attributes import AttributeClassifier, train_classifier
from vision_sae.evaluation.scene_labels import figures, most_frequent
from vision_sae.evaluation.scene_steering import JUDGE, SteeringJudgement, judged_by_steering
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.steering.bundles import open_bundles

_SEED = 2003
"""Of scenes that no dictionary and no label was made of."""


def generator_figures(
    bundles: Sequence[Path],
    settings: SteeringJudgement,
    classifier: AttributeClassifier | None = None,
) -> dict[str, dict[str, Any]]:
    """{BLOCK: `vision_sae.evaluation.scene_labels.figures`} of bundles with labels of scenes.

    Labels that steering has not judged yet are judged here by ``settings``, without being written
    down; the ``classifier`` of scenes is trained for it where none is given.
    """
    generator, found = open_bundles(bundles)
    scenes = generations.scenes(4 * settings.prompts, _SEED)
    report = {}
    for each in found:
        frequent = most_frequent(each.bundle.statistics.count)
        rows = {feature: each.bundle.descriptions[feature] for feature in frequent}
        if not any(JUDGE in row["details"] for row in rows.values()):
            classifier = classifier or train_classifier(progress=False)
            judged = judged_by_steering(
                generator,
                each.dictionary,
                classifier,
                rows.values(),
                scenes,
                each.usual_mean,
                settings,
                progress=False,
            )
            rows = {row["feature"]: row for row in judged}
        short = generations.SHORT.get(each.bundle.site, each.bundle.site)
        report[short] = figures(BundleEvidence(each.bundle), rows, frequent)
    return report
