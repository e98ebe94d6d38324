"""The panel "steer a picture": a prompt, and one feature turned up or down."""

from __future__ import annotations

from html import escape
from itertools import islice
from typing import NamedTuple

import gradio as gr
from PIL import Image

from vision_sae.errors import InvalidInputError, VisionSaeError
from vision_sae.v1.generation_service_pb2 import GenerationSettings
from vision_sae_client import report, steering
from vision_sae_client.client import Client
from vision_sae_client.edits import edit
from vision_sae_client.errors import ClientError
from vision_sae_client.web import answer_html

_FEATURES = 200
_PROMPT = "a large red star in the centre of a white background"
_RANGE = 40
"""The range of the slider in both directions, in mean activations of the feature."""
_HEADING = """
<h2>Steer a picture</h2>
<p>Left, the picture of your prompt; in the middle, from the same noise, with one feature of the
generator turned up or down; right, where they differ.</p>
"""


class Steerable(NamedTuple):
    """The model and the features that the panel can steer."""

    model: str
    features: list[tuple[str, str]]
    """(label, name) of each feature."""


def steerable(client: Client) -> Steerable | None:
    """The server's first text-to-image model, and its features with a confirmed label, the most
    frequent first; where no label is confirmed, the features with a guess. None when the server has
    no such model or does not answer."""
    try:
        model = client.generator()
        if model is None:
            return None
        names = [each.name for each in client.dictionaries() if each.model == model]
        confirmed = _labelled(client, names, "confirmed = true")
        return Steerable(model, confirmed or _labelled(client, names, "described = true"))
    except ClientError:
        return None


def _labelled(client: Client, dictionaries: list[str], filter: str) -> list[tuple[str, str]]:
    """(label with the index, name) of features that pass ``filter``, the most frequent first."""
    choices = (
        (f"{report.label(feature.description)} ({feature.index})", feature.name)
        for dictionary in dictionaries
        for feature in client.features(dictionary, filter=filter, order_by="firing_rate desc")
    )
    return list(islice(choices, _FEATURES))


def add_panel(client: Client, steerable: Steerable) -> None:
    """Add the panel to the open Gradio Blocks, and connect it to a client."""
    gr.HTML(_HEADING)
    with gr.Row(elem_classes="vs-top"):
        with gr.Column(scale=2, min_width=280):
            prompt = gr.Textbox(_PROMPT, label="Prompt")
            feature = gr.Dropdown(
                steerable.features,
                value=steerable.features[0][1] if steerable.features else None,
                label="Feature (or its full name)",
                allow_custom_value=True,
            )
            value = gr.Slider(-_RANGE, _RANGE, value=8, step=0.5, label="How much, in its means")
            seed = gr.Number(1, label="Seed of the noise", precision=0, minimum=0)
            button = gr.Button("Generate", variant="primary", elem_id="vs-steer")
        with gr.Column(scale=3, min_width=320):
            shown = gr.Image(label="Twin, steered, difference", interactive=False, buttons=[])
            changes = gr.HTML("", elem_id="vs-steered")

    def steer(
        prompt: str, feature: str | None, value: float, seed: float | None
    ) -> tuple[Image.Image | None, str]:
        return steered(client, steerable.model, prompt, feature, value, seed)

    button.click(steer, [prompt, feature, value, seed], [shown, changes], api_visibility="private")


def steered(
    client: Client, model: str, prompt: str, feature: str | None, value: float, seed: float | None
) -> tuple[Image.Image | None, str]:
    """(twin, picture and difference side by side; the changes as HTML), or (None; the error)."""
    try:
        edits = [edit(feature, "add", value)] if feature else []
        number = _seed(seed)
        settings = GenerationSettings(model=model, prompt=prompt, seed=number, edits=edits)
        *_, last = client.generate(settings)
    except (ClientError, VisionSaeError) as error:
        return None, answer_html.failure(str(error))
    lines = report.generation(last.result).splitlines()
    changes = "<br>".join(map(escape, lines)) + answer_html.unread(last.result.unread_texts)
    return steering.beside(last.result), changes


def _seed(value: float | None) -> int:
    if value is None or not 0 <= value < 2**64:
        raise InvalidInputError("a seed is a whole number from 0 to 2^64 - 1", field="seed")
    return int(value)
