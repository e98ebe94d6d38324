"""Hooks that mkdocs calls: they generate pages from the code each time the site is built.

No generated page is a file of the repository, so no generated page can be out of date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from docs.hooks import catalogue, commands, configuration, house, notebooks

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
GENERATED: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands.page,
    "reference/configuration.md": configuration.page,
    "reference/errors.md": catalogue.page,
    "notebooks/tour.md": notebooks.page,
}
"""{page: the function that writes the page}"""
SHOWN = {
    "formats/activation-store.md": "vision_sae/activations/FORMAT.md",
    "formats/bundle.md": "vision_sae/bundles/FORMAT.md",
    "formats/labelling.md": "vision_sae/descriptions/FORMAT.md",
    "formats/released-dictionary.md": "vision_sae/dictionaries/released/FORMAT.md",
    "formats/foreign-checkpoints.md": "vision_sae/dictionaries/interop/README.md",
    "formats/reviews.md": "vision_sae/labels/review/README.md",
    "guides/choosing-a-dictionary.md": "vision_sae/dictionaries/GUIDE.md",
    "guides/guide.png": "vision_sae/dictionaries/guide.png",
    "cards/clip-licences.md": "vision_sae/models/embedded/weights/clip/LICENSES.md",
    "cards/corpus-licences.md": "vision_sae/demo/corpus/LICENSES.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
"""{page: the file that the page shows}. These files lie beside the code that they describe."""
_RELEASED = "vision_sae/dictionaries/released/embedded"


def shown_files() -> dict[str, Path]:
    """{page: file} of `SHOWN` and of the card of every released dictionary."""
    pages = {page: ROOT / source for page, source in SHOWN.items()}
    for card in sorted((ROOT / _RELEASED).rglob("card.md")):
        model, site = card.parts[-3:-1]
        pages[f"cards/{model}-{site}.md"] = card
    return pages


def contents() -> Iterator[tuple[str, str | bytes]]:
    """(page, content) of every page that is not a file in ``docs``."""
    for page, write in GENERATED.items():
        yield page, write()
    for page, source in shown_files().items():
        content = source.read_bytes()
        yield page, content if source.suffix != ".md" else _linked(content.decode())


def _linked(text: str) -> str:
    """Rewrite links of a file in the repository's root for the site, whose root is ``docs``."""
    return re.sub(r"\]\(docs/", "](", text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for page, content in contents():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Replace the placeholders of tables by the tables that are read from the code."""
    return house.filled(markdown)
