"""Pictures inside HTML as data URLs, so that no picture is written to disk."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from vision_sae.v1.exemplar_pb2 import Exemplar
from vision_sae_client.overlay import draw_boxes


def img(picture: Image.Image, alt: str) -> str:
    """An ``<img>`` that carries its picture."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(alt)}">'


def exemplar_img(exemplar: Exemplar, *, boxed: bool) -> str:
    """The thumbnail of an exemplar, ``boxed`` with a box around its patch; empty without one."""
    if not exemplar.thumbnail.data:
        return ""
    with Image.open(io.BytesIO(exemplar.thumbnail.data)) as stored:
        thumbnail = stored.convert("RGB")
    if boxed:
        draw_boxes(thumbnail, [exemplar.box], (exemplar.image_width, exemplar.image_height))
    return img(thumbnail, exemplar.caption or exemplar.image)
