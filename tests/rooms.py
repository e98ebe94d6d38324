"""The rooms of the code from the ground up, and what the imports of its modules say of them.

A room imports itself and the rooms before it in `ROOMS`, so no two rooms import each other.
docs/ARCHITECTURE.md shows the same table.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "vision_sae": ROOT / "vision_sae",
    "vision_sae_client": ROOT / "client" / "vision_sae_client",
    "vision_sae_server": ROOT / "server" / "vision_sae_server",
    "tools": ROOT / "tools",
}
GROUND = tuple(
    f"vision_sae.{name}"
    for name in (
        *("arguments", "arrays", "artifacts", "compiled", "config", "devices", "errors", "exits"),
        *(
            "files",
            "hosts",
            "machine",
            "memory",
            "places",
            "processes",
            "registries",
            "registry",
            "resources",
        ),
        *("sections", "storage", "tensors", "tables", "texts", "threads", "transfers", "vectors"),
        *("version",),
    )
)
"""The modules that every room stands on."""
STATE = tuple(f"vision_sae_server.{name}" for name in ("labelling", "loading", "served"))
"""What `vision_sae_server.state` holds, and what makes it."""
ROOMS: dict[str, tuple[str, ...]] = {
    "v1": ("vision_sae.v1",),
    "ground": GROUND,
    "pictures": ("vision_sae.pictures",),
    "statistics": ("vision_sae.statistics",),
    "models": ("vision_sae.models",),
    "activations": ("vision_sae.activations",),
    "dictionaries": ("vision_sae.dictionaries",),
    "bundles": ("vision_sae.bundles",),
    "attribution": ("vision_sae.attribution",),
    "evidence": ("vision_sae.evidence",),
    "steering": ("vision_sae.steering",),
    "descriptions": ("vision_sae.descriptions",),
    "labels": ("vision_sae.labels",),
    "evaluation": ("vision_sae.evaluation",),
    "applications": ("vision_sae.applications",),
    "api": ("vision_sae.api", "vision_sae"),
    "client": ("vision_sae_client",),
    "client/web": ("vision_sae_client.web",),
    "client/cli": ("vision_sae_client.cli",),
    "server/runtime": ("vision_sae_server.runtime",),
    "server/state": ("vision_sae_server.state", *STATE),
    "server/requests": ("vision_sae_server.requests",),
    "server/answers": ("vision_sae_server.answers",),
    "server/services": ("vision_sae_server.services",),
    "server": ("vision_sae_server",),
    "demo": ("vision_sae.demo",),
    "cli": ("vision_sae.cli",),
    "tools": ("tools",),
}
"""{room: its modules and packages}, from the ground up; the longest name that fits decides."""


def modules() -> dict[str, Path]:
    """{dotted name: file} of every module of ours, tests aside."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str, rooms: dict[str, tuple[str, ...]] = ROOMS) -> str:
    """The room that a module is in. Raises `LookupError` for a module of no room."""
    fitting = [
        (len(name), room)
        for room, names in rooms.items()
        for name in names
        if module == name or (module.startswith(f"{name}.") and name != "vision_sae")
    ]
    if not fitting:
        raise LookupError(f"{module} is in no room: enter it in ROOMS, beside what it is like")
    return max(fitting)[1]


def _names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported(source: str, known: Iterable[str]) -> set[str]:
    """The modules of ``known`` that a module imports anywhere, inside functions too."""
    return _resolved(_names(ast.walk(ast.parse(source))), frozenset(known))


def imported_at_once(source: str, known: Iterable[str]) -> set[str]:
    """The modules of ``known`` that are imported when the module itself is."""

    def at_once(nodes: Iterable[ast.stmt]) -> Iterator[ast.AST]:
        for node in nodes:
            yield node
            if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
                yield from at_once([*node.body, *node.orelse])
            elif isinstance(node, ast.Try | ast.With):
                yield from at_once(node.body)

    return _resolved(_names(at_once(ast.parse(source).body)), frozenset(known))


def _resolved(names: Iterable[str], known: frozenset[str]) -> set[str]:
    """``from package import name`` means the module of that name, or else the package."""
    return {
        name if name in known else name.rpartition(".")[0]
        for name in names
        if name in known or name.rpartition(".")[0] in known
    }


@cache
def imports() -> dict[str, frozenset[str]]:
    """{module: the modules of ours that it imports}"""
    known = modules()
    return {m: frozenset(imported(p.read_text("utf-8"), known) - {m}) for m, p in known.items()}


def imports_up(
    edges: dict[str, frozenset[str]], rooms: dict[str, tuple[str, ...]] = ROOMS
) -> list[str]:
    """``"module -> module"`` for every import of a room above the importer's own."""
    floors = {name: floor for floor, name in enumerate(rooms)}
    return [
        f"{importer} -> {other}"
        for importer, others in sorted(edges.items())
        for other in sorted(others)
        if floors[room(other, rooms)] > floors[room(importer, rooms)]
    ]


def circle(edges: dict[str, frozenset[str]]) -> list[str]:
    """Modules that import each other in a ring, or none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []
