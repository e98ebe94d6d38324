"""Kinds by name: those of a package, and those that other distributions announce."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import vision_sae
from vision_sae.errors import InvalidInputError, MissingDependencyError
from vision_sae.registry import Registry

GROUP = "vision_sae.fruits"


@dataclass(frozen=True)
class Fruit:
    name: str


FRUITS: Registry[Fruit]


@pytest.fixture(autouse=True)
def fruits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Fruit]:
    """A package ``vision_sae.fruits`` of two kinds, a helper and a sub-package."""
    folder = tmp_path / "vision_sae" / "fruits"
    (folder / "parts").mkdir(parents=True)
    entry = "from tests.unit.ground import test_registry as t\nt.FRUITS.register(t.Fruit({!r}))\n"
    for module, name in (("apple", "apple"), ("dragon_fruit", "dragon-fruit")):
        (folder / f"{module}.py").write_text(entry.format(name))
    for empty in ("__init__.py", "_peel.py", "parts/__init__.py"):
        (folder / empty).write_text("")
    monkeypatch.setattr(vision_sae, "__path__", [*vision_sae.__path__, str(folder.parent)])
    monkeypatch.setattr("vision_sae.registry.__file__", str(folder.parent / "registry.py"))
    made: Registry[Fruit] = Registry(
        "fruit", package="vision_sae.fruits", group=GROUP, field="fruit", separator="-"
    )
    monkeypatch.setattr("tests.unit.ground.test_registry.FRUITS", made, raising=False)
    yield made  # type: ignore[misc]
    for module in [m for m in sys.modules if m.startswith(("vision_sae.fruits", "orchard_"))]:
        del sys.modules[module]


def test_a_kind_whose_name_no_module_can_have_says_it_in_a_line(
    tmp_path: Path, fruits: Registry[Fruit]
) -> None:
    source = (
        'NAME = "kiwi_of-1"\n'
        "from tests.unit.ground import test_registry as t\n"
        "t.FRUITS.register(t.Fruit(NAME))\n"
    )
    (tmp_path / "vision_sae" / "fruits" / "kiwi.py").write_text(source)
    assert fruits.names == ("apple", "dragon-fruit", "kiwi_of-1")
    assert fruits["kiwi_of-1"].name == "kiwi_of-1"


def announce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> None:
    """Install a distribution that announces a fruit of this name, made by ``source``."""
    site = tmp_path / "site"
    info = site / "orchard-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: orchard\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = orchard_{name}\n")
    (site / f"orchard_{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(site))


def test_names_are_known_without_importing_a_kind(fruits: Registry[Fruit]) -> None:
    assert fruits.names == ("apple", "dragon-fruit")
    assert not [m for m in sys.modules if m.startswith("vision_sae.fruits.")]


def test_a_kind_is_imported_when_it_is_asked_for(fruits: Registry[Fruit]) -> None:
    assert fruits["dragon-fruit"] == Fruit("dragon-fruit")
    assert "vision_sae.fruits.apple" not in sys.modules


def test_all_kinds_come_in_the_order_of_their_names(fruits: Registry[Fruit]) -> None:
    assert list(fruits) == [Fruit("apple"), Fruit("dragon-fruit")]


def test_an_unknown_name_is_answered_with_the_nearest_and_all(fruits: Registry[Fruit]) -> None:
    with pytest.raises(InvalidInputError, match=r"did you mean 'apple'\?; there are: apple, drag"):
        fruits["aple"]


def test_a_distribution_adds_a_kind(
    fruits: Registry[Fruit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from tests.unit.ground import test_registry as t\nt.FRUITS.register(t.Fruit('fig'))"
    announce(tmp_path, monkeypatch, "fig", source)
    assert "fig" in fruits.names
    assert fruits["fig"] == Fruit("fig")


def test_a_kind_that_cannot_be_imported_is_told_with_its_distribution(
    fruits: Registry[Fruit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(tmp_path, monkeypatch, "fig", "import no_such_module")
    with pytest.raises(MissingDependencyError, match="'fig' of orchard cannot be imported"):
        fruits["fig"]


def test_a_kind_that_registers_nothing_is_told(
    fruits: Registry[Fruit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(tmp_path, monkeypatch, "fig", "")
    with pytest.raises(MissingDependencyError, match="did not register itself"):
        fruits["fig"]


def test_a_distribution_may_not_take_a_name_of_ours(
    fruits: Registry[Fruit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(tmp_path, monkeypatch, "apple", "")
    with pytest.raises(InvalidInputError, match="orchard announces a fruit 'apple'"):
        fruits["apple"]


def test_two_kinds_of_one_name_are_refused(fruits: Registry[Fruit]) -> None:
    fruits.register(Fruit("fig"))
    with pytest.raises(InvalidInputError, match="two kinds of fruit are called 'fig'"):
        fruits.register(Fruit("fig"))
