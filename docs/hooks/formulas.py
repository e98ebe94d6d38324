"""Formulas: LaTeX blocks become MathML, which browsers draw without a script."""

from __future__ import annotations

from typing import Any


def mathml(source: str, *_: Any, **__: Any) -> str:
    """The MathML of a ``math`` block; a blank line begins a new formula."""
    from latex2mathml.converter import convert

    formulas = (part.strip() for part in source.split("\n\n"))
    return "\n".join(convert(each, display="block") for each in formulas if each)
