"""An executed notebook as a page of the site: its cells, and the outputs that it was saved with."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOUR = Path(__file__).resolve().parents[1] / "notebooks" / "tour.ipynb"


def page(notebook: Path = TOUR) -> str:
    """A notebook in Markdown. Tables and pictures stay HTML; no script is added."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell)) + "\n"


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell.get("outputs", ()):
        if (shown := _output(output)) is not None:
            yield shown


def _output(output: dict[str, Any]) -> str | None:
    """One output: its HTML, else its picture, else its text; None for an empty one."""
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    text = data.get("text/plain", "".join(output.get("text", ())))
    if not text.strip():
        return None
    if "text/html" in data:
        return f'<div class="output">{" ".join(data["text/html"].split())}</div>'
    if "image/jpeg" in data:
        address = f"data:image/jpeg;base64,{''.join(data['image/jpeg'].split())}"
        return f'<img src="{address}" alt="{html.escape(text)}">'
    return f"```text\n{text}\n```"
