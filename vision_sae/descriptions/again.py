"""Labels that come with a dictionary, judged once more on the pictures of a bundle.

A label that was confirmed on the pictures of its maker may not hold for others. Where captions or
pixels of the bundle's own pictures speak against it, it is a guess from then on; where they are too
few to tell, it stays what it was. Pictures of the auditing side are left to whoever reports.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from vision_sae.bundles.bundle import Bundle, add_descriptions
from vision_sae.descriptions.describe import PROBES
from vision_sae.descriptions.evidence.bundle import BundleEvidence
from vision_sae.descriptions.grounding import label_of, over_of
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.protocol import JUDGED_BY, Description
from vision_sae.descriptions.scores.truth import FEWEST, judge
from vision_sae.descriptions.store import description_from_json

JUDGED_AGAIN = "judged_again"
"""The manifest's entry of a bundle whose labels were judged on its own pictures."""


def judge_again(path: Path) -> Bundle:
    """Judge the labels of the bundle at ``path`` on its pictures, once, and publish it anew."""
    bundle = Bundle(path)
    summary = bundle.manifest.get("describe", {})
    if JUDGED_AGAIN in summary:
        return bundle
    evidence = BundleEvidence(bundle)
    facts = Facts(evidence, path.parent / PROBES)
    made = [description_from_json(row) for row in bundle.descriptions.values()]
    judged = [_judged(facts, evidence, each) if each.judged_by else each for each in made]
    doubted = sum(new.is_guess and not old.is_guess for new, old in zip(judged, made, strict=True))
    entry = {"describe": summary | {JUDGED_AGAIN: {"doubted": doubted}}}
    return add_descriptions(bundle, path, [asdict(each) for each in judged], entry)


def _judged(facts: Facts, evidence: BundleEvidence, made: Description) -> Description:
    """The description, as a guess when the pictures speak against it."""
    side, label = facts.side("choose", "judge"), label_of(made)
    if not label.length:
        return made
    verdict = judge(facts, evidence, made.feature, label, side=side, over=over_of(made))
    rests_on = max((score.n for score in verdict.scores if score.metric == "precision"), default=0)
    if verdict.judged_by or rests_on < FEWEST:
        return made
    details = made.details | {JUDGED_BY: "", JUDGED_AGAIN: verdict.reason}
    return replace(made, details=details, scores=(*made.scores, *verdict.scores))
