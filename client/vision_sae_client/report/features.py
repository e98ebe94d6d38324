"""Formats features, descriptions and attributions."""

from __future__ import annotations

from collections.abc import Sequence

from vision_sae.tables import table
from vision_sae.v1.attribution_service_pb2 import EncodeResponse
from vision_sae.v1.description_pb2 import (
    DESCRIPTION_ORIGIN_PERSON,
    Description,
    Score,
    ScoreMetric,
    ScoreNegatives,
)
from vision_sae.v1.feature_pb2 import Feature
from vision_sae.v1.image_pb2 import Box
from vision_sae.v1.ledger_pb2 import (
    FaithfulnessSpace,
    FaithfulnessTest,
    Ledger,
    SiteAttribution,
)
from vision_sae.v1.measure_pb2 import Metric
from vision_sae.v1.search_service_pb2 import (
    FeatureMatch,
    SearchFeaturesResponse,
    SearchPatchesResponse,
)


def is_guess(description: Description) -> bool:
    """Whether there is a text that no independent judge has confirmed."""
    return description.HasField("text") and not description.judged_by


def label(description: Description) -> str:
    """The text of a description, with a mark if it is a guess; ``(abstained)`` or
    ``(not described)`` without a text."""
    if description.HasField("text"):
        return f"{description.text} (guess)" if is_guess(description) else description.text
    return "(abstained)" if description.abstained else "(not described)"


def score(description: Description) -> str:
    """The first score of a description with its metric's name; ``-`` without one."""
    if not description.scores:
        return "-"
    first = description.scores[0]
    metric = ScoreMetric.Name(first.metric).removeprefix("SCORE_METRIC_").lower()
    return f"{metric} {first.value:.2f}"


def encoding(answer: EncodeResponse) -> str:
    """The features that fire in a picture, in the order of the answer, and the explained
    variance."""
    rows = [
        (
            str(rank),
            item.feature.name,
            f"{item.max_activation:.3f}",
            str(item.patch_count),
            str(item.feature.statistics.image_count),
            label(item.feature.description),
            item.feature.description.judged_by or "-",
        )
        for rank, item in enumerate(answer.features, start=1)
    ]
    header = ("rank", "feature", "activation", "places", "pictures", "label", "confirmed by")
    return "\n".join(
        [
            table(header, rows, right={0, 2, 3, 4}),
            "",
            f"{len(rows)} of {answer.active_count} features that fire; explained variance "
            f"{answer.explained_variance:.3f}: the share of this picture that {answer.dictionary} "
            "explains",
        ]
    )


def attribution(site: SiteAttribution) -> str:
    """The features of one site's attribution, the explained variance, and the check of the sum."""
    rows = [
        (
            str(rank),
            item.feature.name,
            f"{item.max_activation:.3f}",
            f"{item.contribution:+.5f}",
            label(item.feature.description),
            score(item.feature.description),
        )
        for rank, item in enumerate(site.features, start=1)
    ]
    header = ("rank", "feature", "activation", "contribution", "label", "score")
    return "\n".join(
        [
            table(header, rows, right={0, 2, 3}),
            "",
            f"explained variance {site.explained_variance:.3f}: the share of this picture that "
            f"{site.dictionary} explains",
            check_sum(site.ledger, [item.contribution for item in site.features]),
        ]
    )


def check_sum(ledger: Ledger, shown: Sequence[float]) -> str:
    """The sum of shown features, remainder, error and bias, beside the total it must equal."""
    total = sum(shown) + ledger.remainder + ledger.sae_error + ledger.bias
    verdict = (
        "checks" if abs(total - ledger.total) <= 1e-6 + 1e-6 * abs(total) else "DOES NOT CHECK"
    )
    return (
        f"sum {verdict}: shown {sum(shown):+.5f}, remainder {ledger.remainder:+.5f} "
        f"({ledger.remainder_count} features), error {ledger.sae_error:+.5f}, "
        f"bias {ledger.bias:+.5f} = {total:+.5f}; total {ledger.total:+.5f}, "
        f"completeness gap {ledger.completeness_gap:+.5f}"
    )


def faithfulness(site: SiteAttribution) -> str:
    """A table of the faithfulness tests of an attribution."""
    rows = [
        (
            FaithfulnessSpace.Name(test.space).removeprefix("FAITHFULNESS_SPACE_").lower(),
            FaithfulnessTest.Name(test.test).removeprefix("FAITHFULNESS_TEST_").lower(),
            f"{test.area:.3f}",
            f"{test.area_random:.3f}",
            f"{test.area_activation:.3f}" if test.HasField("area_activation") else "-",
        )
        for test in site.faithfulness
    ]
    header = ("space", "test", "area", "at random", "by activation")
    return table(header, rows, right={2, 3, 4})


def description(name: str, described: Description) -> str:
    """A description with all its scores."""
    lines = [f"{name}: {label(described)}"]
    if described.abstained:
        lines.append(f"  why: {described.abstention_reason}")
    by = described.author or f"{described.describer} {described.describer_version}".strip()
    if described.origin == DESCRIPTION_ORIGIN_PERSON:
        by = by or "a person"
    if by:
        lines.append(f"  by: {by}")
    if described.judged_by and described.origin != DESCRIPTION_ORIGIN_PERSON:
        lines.append(f"  confirmed by: {described.judged_by}")
    return "\n".join([*lines, *map(_score_line, described.scores)])


def _score_line(measured: Score) -> str:
    """One score with its judge, negatives, interval and control."""
    metric = ScoreMetric.Name(measured.metric).removeprefix("SCORE_METRIC_").lower()
    line = f"  {metric}: {measured.value:.3f} ({measured.count} pictures)"
    if measured.judge:
        line += f", judged by {measured.judge}"
    if measured.negatives:
        kind = ScoreNegatives.Name(measured.negatives).removeprefix("SCORE_NEGATIVES_").lower()
        line += f", {kind} negatives"
    if measured.HasField("lower") and measured.HasField("upper"):
        line += f", 95 % within {measured.lower:.3f} to {measured.upper:.3f}"
    if measured.HasField("control"):
        line += f", other texts {measured.control:.3f}"
    return line


def statistics(feature: Feature) -> str:
    """How often and how strongly a feature fires, and its strongest exemplars."""
    measured = feature.statistics
    lines = [
        f"  fires on {measured.firing_rate:.2%} of patches, in {measured.image_count} pictures; "
        f"mean {measured.mean:.3f}, max {measured.max:.3f}"
    ]
    lines += map(figure, feature.metrics)
    lines += [
        f"  exemplar {exemplar.image} at ({exemplar.row}, {exemplar.col}), "
        f"activation {exemplar.activation:.3f}: {exemplar.caption or '(no caption)'}"
        for exemplar in feature.exemplars
    ]
    return "\n".join(lines)


def figure(metric: Metric) -> str:
    """One measured figure with its interval and its chance level."""
    line = f"  {metric.name.replace('_', ' ')}: {metric.value:.3f}"
    if metric.HasField("lower") and metric.HasField("upper"):
        line += f", 95 % within {metric.lower:.3f} to {metric.upper:.3f}"
    if metric.HasField("control"):
        line += f", by chance {metric.control:.3f}"
    return line


def patches(answer: SearchPatchesResponse) -> str:
    """A table of the hits, best first, and the recall of the search."""
    rows = [
        (
            str(rank),
            f"{hit.score:.3f}",
            hit.patch.image,
            ",".join(f"{side:.0f}" for side in _sides(hit.patch.box)),
            hit.patch.caption,
        )
        for rank, hit in enumerate(answer.hits, start=1)
    ]
    header = ("rank", "score", "picture", "box", "caption")
    drawn = table(header, rows, right={0, 1})
    return f"{drawn}\n\nrecall@10 of this search: {answer.recall_at_10:.3f}"


def features(answer: SearchFeaturesResponse) -> str:
    """A table of the hits, best first, with the kind of each match."""
    rows = [
        (
            str(rank),
            f"{hit.score:.3f}",
            FeatureMatch.Name(hit.match).removeprefix("FEATURE_MATCH_").lower(),
            hit.feature.name,
            label(hit.feature.description),
        )
        for rank, hit in enumerate(answer.hits, start=1)
    ]
    return table(("rank", "score", "match", "feature", "label"), rows, right={0, 1})


def _sides(box: Box) -> tuple[float, float, float, float]:
    return box.x0, box.y0, box.x1, box.y1
