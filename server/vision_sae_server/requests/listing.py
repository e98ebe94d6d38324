"""Pages, filters and orders of listings, in the grammar that CatalogService documents."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from vision_sae.errors import InvalidInputError

T = TypeVar("T")
Values = Mapping[str, Any]
"""The values of a row that filters and orders can name: {field: value or None}."""

_DEFAULT_PAGE = 50
_CONDITION = re.compile(r'\s*([a-z_0-9.]+)\s*(!=|<=|>=|=|<|>|:)\s*("[^"]*"|[^\s"]+)\s*')
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    ":": lambda value, part: str(part).lower() in str(value).lower(),
}


def page(
    rows: Sequence[T], size: int, token: str, default: int = _DEFAULT_PAGE
) -> tuple[Sequence[T], str]:
    """(rows of one page, token of the next page or empty). A token is the offset of its page."""
    if token and not token.isdecimal():
        raise InvalidInputError(
            f"page_token {token!r} is not from this server; start without one",
            field="page_token",
        )
    start = int(token or 0)
    stop = start + (size or default)
    return rows[start:stop], str(stop) if stop < len(rows) else ""


def _known(field: str, fields: Sequence[str], where: str) -> str:
    if field not in fields:
        raise InvalidInputError(
            f"{where} knows no field {field!r}; use one of {', '.join(fields)}", field=where
        )
    return field


def _typed(text: str, like: Any) -> Any:
    """The literal of a condition, converted to the type of the value that it is compared with."""
    text = text.strip('"')
    if isinstance(like, bool):
        return text.lower() == "true"
    if isinstance(like, int | float):
        try:
            return float(text)
        except ValueError as error:
            raise InvalidInputError(f"{text!r} is not a number", field="filter") from error
    return text


def matcher(text: str, fields: Sequence[str]) -> Callable[[Values], bool]:
    """A predicate for conditions joined by `` AND ``; a row without a named value never matches."""
    conditions = []
    for part in re.split(r'\sAND\s(?=(?:[^"]*"[^"]*")*[^"]*$)', text) if text.strip() else []:
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise InvalidInputError(
                f"cannot read the condition {part.strip()!r}; write: field operator value, "
                'joined by AND, for example firing_rate < 0.1 AND text:"dog"',
                field="filter",
            )
        conditions.append((_known(match[1], fields, "filter"), match[2], match[3]))

    def matches(values: Values) -> bool:
        return all(
            values[field] is not None
            and _COMPARE[sign](values[field], _typed(literal, values[field]))
            for field, sign, literal in conditions
        )

    return matches


def sort(rows: list[T], text: str, fields: Sequence[str], values: Callable[[T], Values]) -> list[T]:
    """The rows sorted by ``field [desc], ...``; rows without a named value come last."""
    for part in reversed([p.split() for p in text.split(",") if p.strip()]):
        if len(part) > 2 or part[1:] not in ([], ["asc"], ["desc"]):
            raise InvalidInputError(
                f"cannot read order_by {text!r}; write: field [desc], ...", field="order_by"
            )
        name, descending = _known(part[0], fields, "order_by"), part[1:] == ["desc"]
        present = [row for row in rows if values(row)[name] is not None]
        absent = [row for row in rows if values(row)[name] is None]
        present.sort(key=lambda row: values(row)[name], reverse=descending)
        rows = present + absent
    return rows
