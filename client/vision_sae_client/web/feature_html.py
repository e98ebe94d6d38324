"""The HTML of one feature: its heat map on the picture, its label, and its exemplars."""

from __future__ import annotations

from html import escape

from PIL import Image

from vision_sae import tensors
from vision_sae.v1.attribution_service_pb2 import FeatureActivation
from vision_sae.v1.description_pb2 import Description, ScoreMetric
from vision_sae.v1.exemplar_pb2 import Exemplar
from vision_sae.v1.feature_pb2 import Feature, FeatureStatistics
from vision_sae.v1.image_pb2 import PatchGrid
from vision_sae_client.overlay import overlay
from vision_sae_client.report import is_guess
from vision_sae_client.web.answer_html import label
from vision_sae_client.web.pictures_html import exemplar_img, img


def detail(picture: Image.Image, grid: PatchGrid, item: FeatureActivation) -> str:
    """The heat map of a feature on the picture, its label and figures, and its exemplars."""
    feature = item.feature
    drawn = overlay(picture, tensors.from_proto(item.heatmap), grid, item.patches)
    heatmap = img(drawn, f"Where feature {feature.index} fires")
    exemplars = "\n".join(_exemplar(exemplar) for exemplar in feature.exemplars)
    return f"""
<section data-shown="{feature.index}">
  <h2>Where feature {feature.index} fires</h2>
  <p class="vs-meaning">{label(feature.description)}</p>
  <figure class="vs-heatmap">{heatmap}
    <figcaption>Bright is strong; the boxes are its {len(item.patches)} strongest places, up to
    {item.max_activation:.2f}.</figcaption>
  </figure>
  <p class="vs-note">{_statistics(feature.statistics)} {_alike(feature)}
  {_trust(feature.description)} {_scores(feature.description)}</p>
  <h3>Pictures that fire it most</h3>
  <div class="vs-exemplars">{exemplars}</div>
</section>
"""


def _exemplar(exemplar: Exemplar) -> str:
    caption = f"{escape(exemplar.caption)}<br>" if exemplar.caption else ""
    return (
        f'<figure class="vs-exemplar">{exemplar_img(exemplar, boxed=True)}'
        f"<figcaption>{caption}<b>{exemplar.activation:.2f}</b></figcaption></figure>"
    )


def _statistics(statistics: FeatureStatistics) -> str:
    return (
        f"Elsewhere it fires on {statistics.firing_rate:.2%} of places, in "
        f"{statistics.image_count:,} pictures; the strongest was {statistics.max:.2f}."
    )


def _alike(feature: Feature) -> str:
    """The monosemanticity of the feature in words; empty where it was not measured."""
    for metric in feature.metrics:
        if metric.name == "monosemanticity" and metric.HasField("control"):
            return (
                f"The pictures that fire it are alike by {metric.value:.2f}, any two pictures by "
                f"{metric.control:.2f}."
            )
    return ""


def _trust(description: Description) -> str:
    """The judge who confirmed the label, or that the label is a guess."""
    if is_guess(description):
        return "Its label is a guess: no independent judge has confirmed it."
    if description.HasField("text"):
        return f"Its label was confirmed by {escape(description.judged_by)}."
    return ""


def _scores(description: Description) -> str:
    """The scores of the label."""
    scores = [
        f"{ScoreMetric.Name(score.metric).removeprefix('SCORE_METRIC_').lower().replace('_', ' ')} "
        f"{score.value:.2f} on {score.count} pictures"
        + (f" (judged by {score.judge})" if score.judge else "")
        for score in description.scores
    ]
    if not scores:
        return ""
    by = description.author or description.describer
    return f"Score of the label by {escape(by)}: {escape('; '.join(scores))}."
