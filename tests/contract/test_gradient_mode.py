"""No generator hands out a value while gradients are off: its caller may need gradients.

A context manager is a generator too, and is meant to hold the mode; it is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests import rooms


def yields_without_gradients(source: str) -> list[int]:
    """The lines of ``with torch.inference_mode()`` or ``no_grad()`` blocks that yield."""
    return [
        block.lineno
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef) and not _is_context_manager(function)
        for block in _own_nodes(function)
        if isinstance(block, ast.With)
        and any("inference_mode" in ast.dump(i) or "no_grad" in ast.dump(i) for i in block.items)
        and any(isinstance(node, ast.Yield | ast.YieldFrom) for node in _own_nodes(block))
    ]


def _is_context_manager(function: ast.FunctionDef) -> bool:
    return any("contextmanager" in ast.dump(decorator) for decorator in function.decorator_list)


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below ``node``, without those of functions inside it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.Lambda | ast.GeneratorExp):
            yield child
            yield from _own_nodes(child)


def test_nothing_of_ours_yields_without_gradients() -> None:
    found = {
        name: lines
        for name, path in rooms.modules().items()
        if (lines := yields_without_gradients(path.read_text("utf-8")))
    }
    assert found == {}


def test_a_generator_that_does_is_found() -> None:
    source = "def f():\n    with torch.inference_mode():\n        yield 1\n"
    assert yields_without_gradients(source) == [2]
    assert yields_without_gradients(f"@contextmanager\n{source}") == []
    after = "def f():\n    with torch.no_grad():\n        x = 1\n    yield x\n"
    assert yields_without_gradients(after) == []
