"""The rooms of the code: every import points down, and no two modules import each other."""

from __future__ import annotations

import pytest

from tests import rooms

SMALL = {"ground": ("a",), "hall": ("b",), "tower": ("b.tower",)}


def test_no_room_imports_one_above_it() -> None:
    assert rooms.imports_up(rooms.imports()) == []


def test_every_module_is_in_a_room() -> None:
    assert {rooms.room(module) for module in rooms.modules()} == set(rooms.ROOMS)


def test_no_modules_import_each_other_when_they_are_imported() -> None:
    known = rooms.modules()
    edges = {
        module: frozenset(rooms.imported_at_once(path.read_text("utf-8"), known) - {module})
        for module, path in known.items()
    }
    assert rooms.circle(edges) == []


def test_an_import_of_a_room_above_is_named() -> None:
    edges = {"a.x": frozenset({"b.y"}), "b.y": frozenset({"a.x"}), "b.tower.z": frozenset({"b.y"})}
    assert rooms.imports_up(edges, SMALL) == ["a.x -> b.y"]


def test_the_longest_name_that_fits_decides() -> None:
    assert [rooms.room(m, SMALL) for m in ("a.x", "b.y", "b.tower.z")] == list(SMALL)


def test_a_module_of_no_room_is_told() -> None:
    with pytest.raises(LookupError, match=r"vision_sae\.attic is in no room"):
        rooms.room("vision_sae.attic")


def test_imports_inside_functions_are_imports_too() -> None:
    source = "import a\ndef f():\n    from b import c\n    from b import d\n"
    assert rooms.imported(source, ["a", "b", "b.c"]) == {"a", "b", "b.c"}
    assert rooms.imported_at_once(source, ["a", "b", "b.c"]) == {"a"}


def test_a_ring_is_found() -> None:
    assert set(rooms.circle({"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a")})) == {
        *"abc"
    }
