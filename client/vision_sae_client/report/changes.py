"""Formats the changes that edits cause in a model's output and in generated pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vision_sae.tables import table
from vision_sae.v1.generation_service_pb2 import GenerationProgress, GenerationResult
from vision_sae.v1.intervention_service_pb2 import (
    ClassChange,
    InterveneResponse,
    InterventionSummary,
)
from vision_sae_client.report.features import figure


def intervention(answer: InterveneResponse, names: Sequence[str]) -> str:
    """The changes that edits cause in each picture, and over all pictures."""
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
    lines = [table(header, rows, right={2, 3, 4, 5}), ""]
    lines += [
        f"{name}: {_class(before)} leads before, {_class(after)} after"
        for name, outcome in zip(names, answer.images, strict=True)
        if outcome.change.classes
        for before, after in [_leading(outcome.change.classes)]
    ]
    lines += _effects(answer.summary)
    return "\n".join(lines).rstrip()


def _leading(classes: Sequence[ClassChange]) -> tuple[ClassChange, ClassChange]:
    """The classes that lead before and after."""
    before = max(classes, key=lambda change: change.logit_before)
    return before, max(classes, key=lambda change: change.logit_after)


def _class(change: ClassChange) -> str:
    return f"class {change.index}" + (f" ({change.label})" if change.label else "")


def _effects(summary: InterventionSummary) -> Iterator[str]:
    """The mean effect on each target, and the contrasts of groups, a line each."""
    for effect in summary.effects:
        line = f"{effect.id}: {effect.mean:+.4f} on average over {effect.count} pictures"
        if effect.group:
            line += f" of {effect.group}"
        if effect.HasField("lower"):
            line += f", 95 % interval {effect.lower:+.4f} to {effect.upper:+.4f}"
        if effect.HasField("control_exceeded"):
            line += f"; more than {effect.control_exceeded:.0%} of random features"
        yield line
    for contrast in summary.contrasts:
        line = f"{contrast.id}: {contrast.difference:+.4f} more {contrast.group} than "
        line += contrast.other
        if contrast.HasField("lower"):
            line += f", 95 % interval {contrast.lower:+.4f} to {contrast.upper:+.4f}"
        yield line


def generation_progress(progress: GenerationProgress) -> str:
    """The progress of a generation."""
    if not progress.step:
        return f"{progress.queue_position} ahead" if progress.queue_position else "begun"
    seconds = progress.elapsed.ToMilliseconds() / 1000
    return f"step {progress.step} of {progress.steps}, {seconds:.1f} s"


def generation(result: GenerationResult) -> str:
    """The changes of a generation, with the settings that repeat it."""
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
        lines += [figure(metric).strip() for metric in effect.metrics]
        lines += [
            f"{text.text!r}: similarity {text.before:.3f} -> {text.after:.3f}"
            for text in effect.texts
        ]
    return "\n".join(lines)
