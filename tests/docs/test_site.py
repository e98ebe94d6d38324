"""The site builds without a warning, is what the code says, and fetches nothing when it is read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs.hooks import catalogue, commands, configuration, house, notebooks, pages
from tests import rooms
from vision_sae import errors
from vision_sae.config import Config

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")


class Fetched(HTMLParser):
    """Collects the addresses that a browser fetches to show a page; links are not among them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.found.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(given.get("href") or "")


def fetched(page: str) -> list[str]:
    """The addresses of other hosts that a page makes a browser fetch."""
    parser = Fetched()
    parser.feed(page)
    return [each for each in parser.found if re.match(r"(?:https?:)?//", each)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds_strictly_and_fetches_nothing_when_it_is_read(tmp_path: Path) -> None:
    words = ("-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site"))
    build = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    built = {path: path.read_text("utf-8") for path in (tmp_path / "site").rglob("*.html")}
    named = {str(path.relative_to(tmp_path / "site")) for path in built}
    written = [*pages.GENERATED, *pages.shown_files(), "index.md", "labels/index.md"]
    assert {page.replace(".md", ".html") for page in written if page.endswith(".md")} <= named
    assert {path.name: fetched(page) for path, page in built.items() if fetched(page)} == {}
    examples = (tmp_path / "site" / "contributing.html").read_text("utf-8")
    assert "SoftThresholdSae" in examples
    assert "--8" not in examples  # a file that is shown takes the place of its marker
    methods = (tmp_path / "site" / "METHODS.html").read_text("utf-8")
    assert "<math" in methods
    assert "\\frac" not in methods
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text("utf-8"))


def test_what_a_page_fetches_is_found() -> None:
    page = '<a href="https://a"></a><img src="b.png"><script src="//c/d.js"></script>'
    assert fetched(page) == ["//c/d.js"]


def test_the_table_of_rooms_is_the_one_that_imports_are_held_to() -> None:
    table = ARCHITECTURE.partition("| room | what lives there |\n|---|---|\n")[2].partition("\n\n")[
        0
    ]
    assert [row.split("|")[1].strip() for row in table.splitlines()] == list(rooms.ROOMS)


def test_tables_of_the_code_take_their_places() -> None:
    filled = house.filled(ARCHITECTURE)
    assert "<!-- table" not in filled
    for members in rooms.ROOMS.values():
        assert all(f"`{member}`" in filled for member in members)
    for registry in house.registries():
        assert f"`{registry.group}`" in filled


def test_every_setting_is_on_the_page_of_the_configuration() -> None:
    page = configuration.page()
    for name, section in configuration.sections():
        assert f"\n## {name}\n" in page
        for key, field in section.model_fields.items():
            inside = hasattr(field.annotation, "model_fields")
            assert inside or f"\n| `{key}` |" in page
    in_sections = {name for name, _ in configuration.sections()}
    for key in Config.model_fields:
        assert key in in_sections or f"\n| `{key}` |" in page
    assert "| `k` | integer (≥ 1, ≤ 2147483647) | `32` | Active features per patch;" in page


def test_every_error_is_on_the_page_of_errors() -> None:
    page = catalogue.page()
    assert "| `ConflictError` | `CONFLICT` | `ABORTED` | Somebody else changed" in page
    for kind in catalogue.kinds(errors.VisionSaeError):
        assert f"| `{kind.__name__}` | `{kind.reason}` |" in page


def test_every_command_is_on_the_page_of_commands() -> None:
    page = commands.page()
    for words in ("vision-sae harvest", "vision-sae evaluate labels", "vision-sae-client steer"):
        assert re.search(rf"(?m)^#+ `{words}`$", page), words
    assert "--text-aligned" in page


def test_the_notebook_is_a_page_with_its_code_tables_and_pictures(tmp_path: Path) -> None:
    outputs = [
        {"data": {"text/plain": ["[]"], "text/html": ["<table>\n\n</table>"]}},
        {"data": {"text/plain": ["<Image>"], "image/jpeg": ["QUJD\n"]}},
        {"data": {"text/plain": ["\n"], "text/html": ["<pre></pre>"]}},
        {"data": {"text/plain": ["8"]}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Tour"]},
        {"cell_type": "code", "source": ["1 + 7"], "outputs": outputs},
    ]
    notebook = tmp_path / "tour.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    assert notebooks.page(notebook).split("\n\n") == [
        "# Tour",
        "```python\n1 + 7\n```",
        '<div class="output"><table> </table></div>',
        '<img src="data:image/jpeg;base64,QUJD" alt="&lt;Image&gt;">',
        "```text\n8\n```\n",
    ]


def test_every_page_that_is_shown_from_elsewhere_exists() -> None:
    assert [str(path) for path in pages.shown_files().values() if not path.is_file()] == []
