"""The whole page: a heading, the panels, and a footer about uploads."""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr

from vision_sae_client.client import Client
from vision_sae_client.web import explain, steer

# Every 60 s Gradio deletes uploads that are older than 600 s.
_DELETE_CACHE = (60, 600)

_HEADING = """
<header class="vs-heading">
  <h1>What does the model see?</h1>
  <p>Give it a picture. A dictionary of features takes the insides of the vision model apart: you
  see which features fire, where in the picture they fire, what they seem to mean, and other
  pictures that fire them.</p>
</header>
"""

_FOOTER = """
<footer class="vs-footer">Your picture goes to the vision_sae server at <code>{address}</code> and
nowhere else; the server keeps nothing. This page holds an upload in a temporary folder and deletes
it after about ten minutes, or when the page ends.</footer>
"""


def build_page(
    client_address: str, examples_dir: Path | None = None, *, token: str | None = None
) -> gr.Blocks:
    """The page for the server at ``client_address``; it offers pictures of ``examples_dir``.

    For a server with a text-to-image model, the page has a panel that steers pictures.
    """
    client = Client(client_address, token=token)
    page = gr.Blocks(title="vision_sae", analytics_enabled=False, delete_cache=_DELETE_CACHE)
    with page:
        gr.HTML(_HEADING)
        explain.add_panel(client, examples_dir)
        generator = steer.steerable(client)
        if generator is not None:
            steer.add_panel(client, generator)
        gr.HTML(_FOOTER.format(address=escape(client_address)))
    return page
