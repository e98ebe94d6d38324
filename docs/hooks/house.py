"""Tables of the page ARCHITECTURE: the content of each room, and the doors for extension."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from tests import rooms
from vision_sae.registry import Registry


def room_table() -> str:
    """The table of rooms with their packages and modules, from the ground up."""
    rows = ["| room | packages and modules |", "|---|---|"]
    for name, members in rooms.ROOMS.items():
        rows.append(f"| {name} | {', '.join(f'`{member}`' for member in members)} |")
    return "\n".join(rows)


def registries() -> Iterator[Registry[Any]]:
    """Every registry of the library and the server, once, ordered by the noun of its kinds."""
    unique: dict[int, Registry[Any]] = {}
    for name, path in rooms.modules().items():
        text = path.read_text("utf-8")
        if name == "vision_sae.registry" or not ("= Registry(" in text or "= Registry[" in text):
            continue
        for value in vars(import_module(name)).values():
            if isinstance(value, Registry):
                unique[id(value)] = value
    yield from sorted(unique.values(), key=lambda registry: registry.noun)


def door_table() -> str:
    """The table of doors: kind, folder of its file, entry-point group, registered names."""
    rows = ["| kind | one file in | entry point of others | there are |", "|---|---|---|---|"]
    for registry in registries():
        names = ", ".join(f"`{name}`" for name in registry.names)
        folder = registry.package.replace(".", "/")
        rows.append(f"| {registry.noun} | `{folder}/` | `{registry.group}` | {names} |")
    return "\n".join(rows)


PLACES: dict[str, Callable[[], str]] = {
    "<!-- table: rooms -->": room_table,
    "<!-- table: doors -->": door_table,
}
"""{placeholder comment: the function that writes the table}"""


def filled(markdown: str) -> str:
    """A page with its placeholders replaced by tables."""
    for place, write in PLACES.items():
        if place in markdown:
            markdown = markdown.replace(place, write())
    return markdown
