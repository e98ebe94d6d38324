"""The reference of the configuration: every section's fields, with the text under each field."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel

_INTRODUCTION = """\
# Configuration

A YAML file, passed by `--config`, holds any of the keys and sections below. A flag overrides a
variable of the environment (`VISION_SAE_TRAIN__STEPS=500` is `steps` of the section `train`), a
variable overrides the file, and the file overrides the default. A key that is not listed here is
refused. Settings of one architecture or describer can also be passed as `--set KEY=VALUE`.
"""


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted name, class) of every section; a section comes before the sections inside it."""
    from vision_sae.config import Config

    yield from _inside("", Config)


def _inside(name: str, section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    from pydantic import BaseModel

    for key, field in section.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield f"{name}{key}", kind
            yield from _inside(f"{name}{key}.", kind)


def texts(section: type[Any]) -> dict[str, str]:
    """{field: the docstring under the field} of a class and its base classes."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if base.__module__.startswith(("pydantic", "builtins", "typing", "abc")):
            continue
        try:
            (defined,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, ValueError):  # a class made at run time has no source
            continue
        body = getattr(defined, "body", [])
        for statement, follower in pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(follower, ast.Expr)
                and isinstance(follower.value, ast.Constant)
            ):
                found[statement.target.id] = inspect.cleandoc(str(follower.value.value))
    return found


def _type(annotation: Any) -> str:
    """A type in words for readers: ``integer``, ``text``, or the allowed values."""
    if get_origin(annotation) is not None and str(annotation).startswith("typing.Literal"):
        return ", ".join(f"`{word}`" for word in get_args(annotation))
    if get_args(annotation):
        inner = [_type(each) for each in get_args(annotation) if each is not Ellipsis]
        if get_origin(annotation) is tuple:
            return f"list of: {inner[0]}"
        if get_origin(annotation) is dict:
            return "mapping"
        return " or ".join(each for each in inner if each)
    names = {"str": "text", "NoneType": "", "Path": "path", "int": "integer", "float": "number"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, name)


def _limits(metadata: list[Any]) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}
    told = [
        f"{sign} {getattr(rule, name)}"
        for rule in metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    return f" ({', '.join(told)})" if told else ""


def _default(value: Any) -> str:
    return "none" if value is None else f"`{value}`"


def _rows(section: type[BaseModel]) -> Iterator[str]:
    from pydantic import BaseModel

    told = texts(section)
    for key, field in section.model_fields.items():
        default = field.get_default(call_default_factory=False)
        if isinstance(default, BaseModel):
            continue  # a section of its own
        text = " ".join(told.get(key, field.description or "").split()).replace("|", "\\|")
        kind = _type(field.annotation) + _limits(field.metadata)
        yield f"| `{key}` | {kind} | {_default(default)} | {text} |"


def page() -> str:
    """The page in Markdown."""
    from vision_sae.config import Config

    parts = [_INTRODUCTION, _table(Config)]
    for name, section in sections():
        about = inspect.cleandoc(section.__doc__ or "").replace("->", "→")
        parts += [f"## {name}\n\n{about}\n", _table(section)]
    return "\n".join(parts)


def _table(section: type[BaseModel]) -> str:
    """The keys of a section, without those that are sections themselves."""
    if not (rows := list(_rows(section))):
        return ""
    head = ["| key | value | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"
