"""The HTML of one picture's answer: overview, explained variance, and a card per feature."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from PIL import Image

from vision_sae import tensors
from vision_sae.v1.attribution_service_pb2 import EncodeResponse, FeatureActivation
from vision_sae.v1.description_pb2 import Description
from vision_sae.v1.measure_pb2 import UnreadText
from vision_sae_client import report
from vision_sae_client.colours import FEATURES
from vision_sae_client.overlay import winners
from vision_sae_client.report import is_guess
from vision_sae_client.web.pictures_html import exemplar_img, img

EMPTY = """
<div class="vs-empty">Upload a picture, paste one, or pick an example.<br>
The answer appears here.</div>
"""


_GUESS = (
    '<span class="vs-guess" title="No independent judge has confirmed this label.">guess:</span>'
)


def failure(message: str) -> str:
    """An error message as HTML."""
    return f'<div class="vs-failure" role="alert">{escape(message)}</div>'


def unread(texts: Iterable[UnreadText]) -> str:
    """Warnings about the ends of texts that the model did not read, as HTML."""
    return "".join(f'<p class="vs-warning">{escape(report.unread(text))}</p>' for text in texts)


def summary(picture: Image.Image, answer: EncodeResponse) -> str:
    """The picture with each patch in the colour of its strongest feature, and the explained
    variance, as HTML."""
    heatmaps = [tensors.from_proto(item.heatmap) for item in answer.features]
    overview = img(winners(picture, heatmaps, answer.grid), "Which feature is strongest where")
    return f"""
<section class="vs-summary">
  <figure class="vs-overview">{overview}
    <figcaption>Each place has the colour of the listed feature that is strongest there.
    </figcaption>
  </figure>
  {_explained(answer)}
</section>
"""


def cards(answer: EncodeResponse) -> str:
    """A button per feature, in the order of the answer; ``data-rank`` counts from 0."""
    if not answer.features:
        return '<p class="vs-note">No feature fires in this picture.</p>'
    shown = "\n".join(_card(rank, item) for rank, item in enumerate(answer.features))
    return f"""
<section>
  <h2>Features that fire</h2>
  <p class="vs-note">The {len(answer.features)} of {answer.active_count:,} that say most about this
  picture: confirmed labels first, then what is strong here and seldom elsewhere. Click one to see
  where it fires and what else fires it.</p>
  {shown}
</section>
"""


def label(description: Description) -> str:
    """The label as HTML, with a mark if it is a guess; without a label, the reason."""
    if is_guess(description):
        return f'<span class="vs-label">{_GUESS} {escape(description.text)}</span>'
    if description.HasField("text"):
        by = escape(f"Confirmed by {description.judged_by}")
        return f'<span class="vs-label" title="{by}">{escape(description.text)}</span>'
    why = description.abstention_reason if description.abstained else "nobody described it yet"
    return f'<span class="vs-abstained">abstained: {escape(why)}</span>'


def _explained(answer: EncodeResponse) -> str:
    share = max(0.0, min(1.0, answer.explained_variance))
    unusual = (
        '<p class="vs-warning">This picture is unlike those the dictionary was measured on: its '
        "features may not mean here what they mean there.</p>"
        if answer.unusual_picture
        else ""
    )
    return f"""
<div class="vs-explained">
  <p><strong>{answer.explained_variance:.0%}</strong> of what the model computes from this picture
  is explained by <code>{escape(answer.dictionary)}</code>.</p>
  <div class="vs-bar" role="meter" aria-label="Share explained" aria-valuemin="0"
    aria-valuemax="1" aria-valuenow="{share:.3f}"><span style="width:{share:.1%}"></span></div>
  <p class="vs-note">The rest is in no feature. On average {answer.l0:.0f} features fire at each
  place.</p>
  {unusual}
</div>
"""


def _card(rank: int, item: FeatureActivation) -> str:
    feature = item.feature
    red, green, blue = FEATURES[rank % len(FEATURES)]
    relative = min(1.0, item.max_activation / (feature.statistics.max or 1.0))
    thumbnails = "".join(exemplar_img(e, boxed=False) for e in feature.exemplars[:3])
    return f"""
<button class="vs-card" type="button" data-rank="{rank}" data-feature="{feature.index}"
  aria-pressed="{str(rank == 0).lower()}">
  <span class="vs-chip" style="background:rgb({red},{green},{blue})"></span>
  <span class="vs-words">
    {label(feature.description)}
    <span class="vs-small">feature {feature.index} · activation {item.max_activation:.2f}
      · {item.patch_count} places</span>
    <span class="vs-bar" title="{relative:.0%} of the strongest it was ever seen"><span
      style="width:{relative:.1%}"></span></span>
  </span>
  <span class="vs-thumbs">{thumbnails}</span>
</button>
"""
