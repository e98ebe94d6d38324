"""Answers as text for a terminal: plain, aligned, nothing cut that is needed to ask on."""

from __future__ import annotations

from collections.abc import Sequence

from vision_sae.v1.attribution_service_pb2 import EncodeResponse
from vision_sae.v1.catalog_service_pb2 import GetServerInfoResponse
from vision_sae.v1.description_pb2 import (
    DESCRIPTION_ORIGIN_PERSON,
    Description,
    Score,
    ScoreMetric,
    ScoreNegatives,
)
from vision_sae.v1.dictionary_pb2 import Dictionary
from vision_sae.v1.feature_pb2 import Feature
from vision_sae.v1.generation_service_pb2 import GenerationProgress, GenerationResult
from vision_sae.v1.image_pb2 import Box
from vision_sae.v1.intervention_service_pb2 import ClassChange, InterveneResponse
from vision_sae.v1.label_job_service_pb2 import (
    LabelJob,
    LabelJobState,
    WatchLabelJobResponse,
)
from vision_sae.v1.ledger_pb2 import (
    FaithfulnessSpace,
    FaithfulnessTest,
    Ledger,
    SiteAttribution,
)
from vision_sae.v1.measure_pb2 import Metric, UnreadText
from vision_sae.v1.model_pb2 import Model
from vision_sae.v1.search_service_pb2 import (
    FeatureMatch,
    SearchFeaturesResponse,
    SearchPatchesResponse,
)


def unread(text: UnreadText) -> str:
    """Which end of a text the answer does not know, in one line."""
    return f"the model does not read the end of {text.field}: {text.unread!r}; shorten it"


def is_guess(description: Description) -> bool:
    """Whether there is a text that no independent judge has confirmed."""
    return description.HasField("text") and not description.judged_by


def label(description: Description) -> str:
    """The text of a description, marked where it is a guess, or that the describer abstained, or
    that nobody tried."""
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


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int]) -> str:
    """Aligned columns; those whose position is in ``right`` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if position in right else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def encoding(answer: EncodeResponse) -> str:
    """The features that fire in a picture, in the order of the answer, with the share explained."""
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
            table(header, rows, frozenset({0, 2, 3, 4})),
            "",
            f"{len(rows)} of {answer.active_count} features that fire; explained variance "
            f"{answer.explained_variance:.3f}: the share of this picture that {answer.dictionary} "
            "explains",
        ]
    )


def attribution(site: SiteAttribution) -> str:
    """The features of one site's attribution, with the share explained and the check of its sum."""
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
            table(header, rows, frozenset({0, 2, 3})),
            "",
            f"explained variance {site.explained_variance:.3f}: the share of this picture that "
            f"{site.dictionary} explains",
            check_sum(site.ledger, [item.contribution for item in site.features]),
        ]
    )


def check_sum(ledger: Ledger, shown: Sequence[float]) -> str:
    """What is shown, the rest, the error and the bias, beside the total they must sum to."""
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


def description(name: str, made: Description) -> str:
    """A description with all its scores."""
    lines = [f"{name}: {label(made)}"]
    if made.abstained:
        lines.append(f"  why: {made.abstention_reason}")
    by = made.author or f"{made.describer} {made.describer_version}".strip()
    if made.origin == DESCRIPTION_ORIGIN_PERSON:
        by = by or "a person"
    if by:
        lines.append(f"  by: {by}")
    if made.judged_by and made.origin != DESCRIPTION_ORIGIN_PERSON:
        lines.append(f"  confirmed by: {made.judged_by}")
    return "\n".join([*lines, *map(_measured, made.scores)])


def _measured(measured: Score) -> str:
    """One score, against what, how sure, and what other texts reach."""
    metric = ScoreMetric.Name(measured.metric).removeprefix("SCORE_METRIC_").lower()
    said = f"  {metric}: {measured.value:.3f} ({measured.count} pictures)"
    if measured.judge:
        said += f", judged by {measured.judge}"
    if measured.negatives:
        kind = ScoreNegatives.Name(measured.negatives).removeprefix("SCORE_NEGATIVES_").lower()
        said += f", {kind} negatives"
    if measured.HasField("lower") and measured.HasField("upper"):
        said += f", 95 % within {measured.lower:.3f} to {measured.upper:.3f}"
    if measured.HasField("control"):
        said += f", other texts {measured.control:.3f}"
    return said


def statistics(feature: Feature) -> str:
    """How often and how strongly a feature fires, and its strongest exemplars."""
    measured = feature.statistics
    lines = [
        f"  fires on {measured.firing_rate:.2%} of patches, in {measured.image_count} pictures; "
        f"mean {measured.mean:.3f}, max {measured.max:.3f}"
    ]
    lines += map(_figure, feature.metrics)
    lines += [
        f"  exemplar {exemplar.image} at ({exemplar.row}, {exemplar.col}), "
        f"activation {exemplar.activation:.3f}: {exemplar.caption or '(no caption)'}"
        for exemplar in feature.exemplars
    ]
    return "\n".join(lines)


def _figure(metric: Metric) -> str:
    """One measured figure, how sure it is, and what it comes to by chance."""
    said = f"  {metric.name.replace('_', ' ')}: {metric.value:.3f}"
    if metric.HasField("lower") and metric.HasField("upper"):
        said += f", 95 % within {metric.lower:.3f} to {metric.upper:.3f}"
    if metric.HasField("control"):
        said += f", by chance {metric.control:.3f}"
    return said


def patches(answer: SearchPatchesResponse) -> str:
    """The patches found, best first, and how exact the search was."""
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
    found = table(header, rows, frozenset({0, 1}))
    return f"{found}\n\nrecall@10 of this search: {answer.recall_at_10:.3f}"


def features(answer: SearchFeaturesResponse) -> str:
    """The features found, best first, and what made them match."""
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
    return table(("rank", "score", "match", "feature", "label"), rows, frozenset({0, 1}))


def job(made: LabelJob) -> str:
    """A label job in one line: what it is about, and how far it is."""
    about = made.features.dictionary or f"{made.neurons.model} {' '.join(made.neurons.sites)}"
    state = LabelJobState.Name(made.state).removeprefix("LABEL_JOB_STATE_").lower()
    progress = made.progress
    line = (
        f"{made.name} {state}, {about} by {made.describer}: {progress.done} of {progress.total}, "
        f"{progress.labelled} labelled, {progress.abstained} abstained, {progress.failed} failed"
    )
    if progress.rate:
        line += f", {progress.rate:.1f} a second"
    if progress.HasField("remaining"):
        line += f", {progress.remaining.ToTimedelta().total_seconds():.0f} s left"
    if made.creator:
        line += f", for {made.creator}"
    return line + (f"; {made.error.message}" if made.error.message else "")


def news(message: WatchLabelJobResponse) -> str:
    """What happened in a label job: a unit that was finished, or its progress."""
    if message.WhichOneof("content") == "label_job":
        return job(message.label_job)
    if message.unit.HasField("error"):
        return f"{message.unit.feature}: failed: {message.unit.error.message}"
    return f"{message.unit.feature}: {label(message.unit.description)}"


def server(
    info: GetServerInfoResponse, models: Sequence[Model], dictionaries: Sequence[Dictionary]
) -> str:
    """What a server is and what it has."""
    lines = [f"vision_sae {info.version}, API {info.api_version}, on {info.device}"]
    lines += map(_model, models)
    for dictionary in dictionaries:
        labelled = dictionary.descriptions
        lines.append(
            f"  {dictionary.name}: {dictionary.width} features of {dictionary.site}, "
            f"{labelled.described} labelled, {labelled.confirmed} of them confirmed, "
            f"{labelled.abstained} abstained, "
            f"{dictionary.patch_index.size} patches indexed"
        )
    unserved = [
        f"{item.service.rpartition('.')[2]}.{item.rpc}"
        for item in info.capabilities
        if not item.served
    ]
    if unserved:
        lines.append(f"  not served here: {', '.join(unserved)}")
    return "\n".join(lines)


def _model(model: Model) -> str:
    line = f"  {model.name}: {model.source}, {model.parameters:,} parameters"
    return f"{line}, {len(model.sites)} sites"


def model(found: Model) -> str:
    """One model: how it reads a picture, and what its classes are called."""
    size = found.preprocessing
    lines = [
        _model(found).strip(),
        f"  pictures of {size.width} x {size.height} pixels: {size.resize}",
        f"  embeddings of {found.embedding_width} numbers",
    ]
    names = list(found.class_names)
    lines += [f"  class {index}: {name}" for index, name in enumerate(names)]
    return "\n".join(lines if names else [*lines, "  no classes with names"])


def _sides(box: Box) -> tuple[float, float, float, float]:
    return box.x0, box.y0, box.x1, box.y1


def generation_progress(progress: GenerationProgress) -> str:
    """How far a generation is."""
    if not progress.step:
        return f"{progress.queue_position} ahead" if progress.queue_position else "begun"
    seconds = progress.elapsed.ToMilliseconds() / 1000
    return f"step {progress.step} of {progress.steps}, {seconds:.1f} s"


def faithfulness(site: SiteAttribution) -> str:
    """How well the order of contributions agrees with what the model does."""
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
    return table(header, rows, frozenset({2, 3, 4}))


def intervention(answer: InterveneResponse, names: Sequence[str]) -> str:
    """What edits changed in each picture, and over all of them."""
    rows = []
    for name, outcome in zip(names, answer.images, strict=True):
        if outcome.HasField("error"):
            rows.append((name, outcome.error.message, "", "", "", ""))
            continue
        for target in outcome.change.targets:
            control = f"{target.control_change:.4f}" if target.HasField("control_change") else "-"
            rows.append(
                (
                    name,
                    target.id,
                    f"{target.before:.4f}",
                    f"{target.after:.4f}",
                    f"{target.after - target.before:+.4f}",
                    control,
                )
            )
    header = ("picture", "target", "before", "after", "change", "control")
    lines = [table(header, rows, frozenset({2, 3, 4, 5})), ""]
    lines += [
        f"{name}: {_class(before)} leads before, {_class(after)} after"
        for name, outcome in zip(names, answer.images, strict=True)
        if outcome.change.classes
        for before, after in [_leading(outcome.change.classes)]
    ]
    for effect in answer.summary.effects:
        line = f"{effect.id}: {effect.mean:+.4f} on average over {effect.count} pictures"
        if effect.group:
            line += f" of {effect.group}"
        if effect.HasField("lower"):
            line += f", 95 % interval {effect.lower:+.4f} to {effect.upper:+.4f}"
        if effect.HasField("control_exceeded"):
            line += f"; more than {effect.control_exceeded:.0%} of random features"
        lines.append(line)
    for contrast in answer.summary.contrasts:
        line = f"{contrast.id}: {contrast.difference:+.4f} more {contrast.group} than "
        line += contrast.other
        if contrast.HasField("lower"):
            line += f", 95 % interval {contrast.lower:+.4f} to {contrast.upper:+.4f}"
        lines.append(line)
    return "\n".join(lines).rstrip()


def _leading(classes: Sequence[ClassChange]) -> tuple[ClassChange, ClassChange]:
    """The classes that lead before and after."""
    before = max(classes, key=lambda change: change.logit_before)
    return before, max(classes, key=lambda change: change.logit_after)


def _class(change: ClassChange) -> str:
    return f"class {change.index}" + (f" ({change.label})" if change.label else "")


def generation(result: GenerationResult) -> str:
    """What the edits changed, and how to make the picture again."""
    settings, effect = result.recipe.settings, result.effect
    lines = [f"{settings.prompt!r}, seed {settings.seed}, {settings.steps} steps"]
    if result.HasField("reproduced"):
        lines.append("the same bits as before" if result.reproduced else "NOT the same bits")
    if result.HasField("effect"):
        for name in ("pixel", "perceptual"):
            everywhere = getattr(effect, f"{name}_change")
            line = f"{name} change {everywhere:.4f}"
            if effect.HasField(f"{name}_change_inside"):  # type: ignore[arg-type]
                inside = getattr(effect, f"{name}_change_inside")
                outside = getattr(effect, f"{name}_change_outside")
                line += f", inside of the region {inside:.4f}, outside {outside:.4f}"
            lines.append(line)
        lines += [_figure(metric).strip() for metric in effect.metrics]
        lines += [
            f"{text.text!r}: similarity {text.before:.3f} -> {text.after:.3f}"
            for text in effect.texts
        ]
    return "\n".join(lines)
