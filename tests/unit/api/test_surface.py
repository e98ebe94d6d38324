"""What `import vision_sae` costs and promises."""

from __future__ import annotations

import ast
import inspect
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import vision_sae as vs

ROOT = Path(vs.__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "api.md"
HEAVY = ("torch", "numpy", "pydantic", "PIL", "google", "grpc")
FUNCTIONS = [
    name
    for name in vs.__all__
    if inspect.isfunction(getattr(vs, name)) and name != "using"  # which has no arrays
]


def cpu_seconds(code: str) -> float:
    """The CPU time of a process of its own, the least of three."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(3))


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, vision_sae; dir(vision_sae); print(*sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {name.partition(".")[0] for name in ran.stdout.split()} & set(HEAVY)


def test_importing_the_package_takes_less_than_50_ms_of_cpu() -> None:
    assert cpu_seconds("import vision_sae") - cpu_seconds("pass") < 0.05


def test_every_name_that_is_promised_can_be_had_and_is_listed() -> None:
    assert set(vs.__all__) <= set(dir(vs))
    for name in vs.__all__:
        assert getattr(vs, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'steal'"):
        vs.steal  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_names_that_are_promised() -> None:
    """The names under TYPE_CHECKING, the lazy ones and `__all__` are the same."""
    tree = ast.parse(Path(vs.__file__).read_text("utf-8"))
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        (f"vision_sae.{node.module}".replace("vision_sae.vision_sae", "vision_sae"), alias.name)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {(home, name) for name, home in vs._HOMES.items()}
    assert sorted([*vs._HOMES, "__version__"]) == sorted(vs.__all__)


def test_the_page_of_the_docs_describes_just_the_names_that_are_promised() -> None:
    told = re.findall(r"^::: vision_sae\.(\w+)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(set(vs.__all__) - {"__version__"})


@pytest.mark.parametrize("name", sorted(set(vs.__all__) - {"__version__"}))
def test_every_name_has_a_docstring(name: str) -> None:
    assert (inspect.getdoc(getattr(vs, name)) or "").strip()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_tells_its_shapes_and_its_errors(name: str) -> None:
    told = inspect.getdoc(getattr(vs, name)) or ""
    assert re.search(r"[Rr]aises", told)
    assert re.search(r"\((B|H|F|P|E|N|D|1|3|rows|pictures|x0)(, \w+)*\)|\bF features", told), told


def test_every_parameter_of_a_function_has_a_type() -> None:
    for name in FUNCTIONS:
        signature = inspect.signature(getattr(vs, name))
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, (name, parameter)
