"""The panel "explain a picture": the features that fire in an upload, and details of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from vision_sae.errors import VisionSaeError
from vision_sae.v1.attribution_service_pb2 import ENCODE_ORDER_INFORMATIVE, EncodeResponse
from vision_sae.v1.exemplar_pb2 import ExemplarOptions
from vision_sae_client.client import Client
from vision_sae_client.errors import ClientError
from vision_sae_client.overlay import open_picture
from vision_sae_client.web import answer_html, feature_html

_FEATURES = 12
_EXEMPLARS = ExemplarOptions(max_count=9, thumbnail_pixels=192)
_EXAMPLES = 12
_FORGET_SECONDS = 1800
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})

# A click on a card marks the card and sends the feature's rank.
_ON_LOAD = """
element.addEventListener('click', (event) => {
  const card = event.target.closest('[data-rank]');
  if (!card) return;
  element.querySelectorAll('[data-rank]').forEach(
    (other) => other.setAttribute('aria-pressed', String(other === card)));
  trigger('click', {rank: Number(card.dataset.rank)});
});
"""


@dataclass(frozen=True)
class PageState:
    """The page's state: one picture and its answer."""

    picture: Image.Image
    answer: EncodeResponse


def add_panel(client: Client, examples_dir: Path | None) -> None:
    """Add the panel to the open Gradio Blocks, and connect it to a client."""
    answered = gr.State(None, time_to_live=_FORGET_SECONDS)
    with gr.Row(elem_classes="vs-top"):
        with gr.Column(scale=2, min_width=280):
            upload = gr.Image(
                label="Your picture",
                sources=["upload", "clipboard"],
                type="filepath",
                buttons=[],
                height=300,
                elem_id="vs-upload",
            )
            # Gradio would decode the file. The file is passed on unchanged instead, so that the
            # server checks it and explains an error. (For a subclass, Gradio would write a stub
            # file beside this one.)
            upload.preprocess = _path  # type: ignore[method-assign]
            examples = example_pictures(examples_dir)
            if examples:
                gr.Examples(examples, upload, label="Or pick one", examples_per_page=_EXAMPLES)
        with gr.Column(scale=3, min_width=320):
            summary = gr.HTML(answer_html.EMPTY, elem_id="vs-summary")
    with gr.Row(elem_classes="vs-bottom"):
        with gr.Column(scale=2, min_width=280):
            features = gr.HTML("", elem_id="vs-features", js_on_load=_ON_LOAD)
        with gr.Column(scale=3, min_width=320):
            detail = gr.HTML("", elem_id="vs-detail")

    def explain(path: str | None) -> tuple[PageState | None, str, str, str]:
        return answer(client, path)

    def show(event: gr.EventData, state: PageState | None) -> str:
        return "" if state is None else detail_of(state, int(event.rank))

    upload.change(
        explain,
        upload,
        [answered, summary, features, detail],
        show_progress_on=summary,
        api_visibility="private",
    )
    features.click(show, answered, detail, show_progress="hidden", api_visibility="private")


def answer(client: Client, path: str | None) -> tuple[PageState | None, str, str, str]:
    """(state, summary, features, detail of the first feature) for the picture in a file."""
    if path is None:
        return None, answer_html.EMPTY, "", ""
    try:
        data = Path(path).read_bytes()
        encoded = client.encode(
            data,
            top_k=_FEATURES,
            order=ENCODE_ORDER_INFORMATIVE,
            full=True,
            exemplars=_EXEMPLARS,
        )
        state = PageState(open_picture(data), encoded)
    except (ClientError, VisionSaeError) as error:
        return None, answer_html.failure(str(error)), "", ""
    detail = detail_of(state, 0) if encoded.features else ""
    return state, answer_html.summary(state.picture, encoded), answer_html.cards(encoded), detail


def detail_of(state: PageState, rank: int) -> str:
    """The heat map and the exemplars of the feature at a rank, from 0."""
    return feature_html.detail(state.picture, state.answer.grid, state.answer.features[rank])


def _path(payload: ImageData | None) -> str | None:
    """The path of the uploaded file."""
    return None if payload is None else payload.path


def example_pictures(folder: Path | None) -> list[str]:
    """At most twelve pictures of a folder and its subfolders, spread evenly over the sorted
    paths."""
    if folder is None:
        return []
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    step = max(1, len(paths) // _EXAMPLES)
    return [str(path) for path in paths[::step][:_EXAMPLES]]
