"""Labels of a released dictionary are judged again on the pictures of a bundle.

A label that a judge confirmed on the training pictures may be false for other pictures. If captions
or pixels of the bundle's pictures contradict the label, the label becomes a guess. If there are too
few pictures to decide, the label keeps its state. Pictures of the auditing side are not used, so
that reports can use them.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from vision_sae.bundles.publish import add_descriptions
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.descriptions.describe import PROBES
from vision_sae.descriptions.grounding import label_of, over_of
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.protocol import JUDGED_BY, Description
from vision_sae.descriptions.scores.truth import FEWEST, judge
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.labels.entries import description_from_json

JUDGED_AGAIN = "judged_again"
"""Key in the manifest of a bundle whose labels were judged on its own pictures."""


def judge_again(path: Path, bundle: Bundle | None = None) -> Bundle:
    """Judge the labels of the bundle at ``path`` on its pictures, once, and publish it again.

    ``bundle`` is the opened bundle of ``path``, which saves reading and hashing it again.
    """
    bundle = bundle or read_bundle(path)
    summary = bundle.manifest.get("describe", {})
    if JUDGED_AGAIN in summary:
        return bundle
    evidence = BundleEvidence(bundle)
    facts = Facts(evidence, path.parent / PROBES)
    descriptions = [description_from_json(row) for row in bundle.descriptions.values()]
    judged = [_judged(facts, evidence, each) if each.judged_by else each for each in descriptions]
    doubted = sum(
        new.is_guess and not old.is_guess for new, old in zip(judged, descriptions, strict=True)
    )
    entry = {"describe": summary | {JUDGED_AGAIN: {"doubted": doubted}}}
    return add_descriptions(bundle, path, [asdict(each) for each in judged], entry)


def _judged(facts: Facts, evidence: BundleEvidence, description: Description) -> Description:
    """The description, turned into a guess if the pictures contradict its label."""
    side, label = facts.side("choose", "judge"), label_of(description)
    if not label.length:
        return description
    verdict = judge(
        facts, evidence, description.feature, label, side=side, over=over_of(description)
    )
    rests_on = max((score.n for score in verdict.scores if score.metric == "precision"), default=0)
    if verdict.judged_by or rests_on < FEWEST:
        return description
    details = description.details | {JUDGED_BY: "", JUDGED_AGAIN: verdict.reason}
    return replace(description, details=details, scores=(*description.scores, *verdict.scores))
