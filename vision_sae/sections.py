"""Sections of the configuration, and sections that registered kinds define.

A kind (a describer, an architecture, ...) may have settings of its own: a `Section` that the kind's
module defines. The configuration holds the settings under the kind's name::

    describe:
      describer: milan
      milan: {beam: 20}

The same setting in the environment is ``VISION_SAE_DESCRIBE__MILAN__BEAM=20``, and on the command
line ``--set beam=20``. The kind's class checks the section, and checking imports the kind. A
configuration without the section imports nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, Self, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from vision_sae.errors import InvalidInputError
from vision_sae.registry import Registry


class Section(BaseModel):
    """A part of the configuration. All numbers are finite; docstrings describe the fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class NoSettings(Section):
    """The section of a kind that has nothing to set."""


S = TypeVar("S", bound=Section)


class Sectioned(Protocol):
    """A kind with settings of its own."""

    @property
    def name(self) -> str:
        """The name of the kind in the configuration."""
        ...

    @property
    def settings(self) -> type[Section]:
        """The class of the kind's section; `NoSettings` for a kind without settings."""
        ...


def section_name(kind: str) -> str:
    """The key of a kind's section: its name, with an underscore for each hyphen."""
    return kind.replace("-", "_")


class SectionsByKind(Section):
    """A section that also holds one section for each kind of a registry.

    A subclass names the registry in `kinds`. As everywhere in the configuration, the error for an
    unknown key or a refused value names the dotted field.
    """

    model_config = ConfigDict(extra="allow")

    @classmethod
    def kinds(cls) -> Registry[Any]:
        """The registry of the kinds, which are `Sectioned`."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        sections = self.__pydantic_extra__
        if not sections:
            return self
        names = {section_name(name): name for name in self.kinds().names}
        for key, values in sections.items():
            if key not in names:
                raise _located([("extra_forbidden", (key,), "Extra inputs are not permitted")])
            sections[key] = _section(self.kinds()[names[key]], values, key)
        return self

    @property
    def kinds_with_section(self) -> tuple[str, ...]:
        """The names of the kinds whose section the configuration holds."""
        sections = self.__pydantic_extra__ or {}
        return tuple(name for name in self.kinds().names if section_name(name) in sections)

    def of(self, kind: str) -> Section:
        """The settings of a kind from the configuration, or the kind's defaults. Imports the kind.

        Raises `InvalidInputError` for an unknown kind.
        """
        settings: Section | None = (self.__pydantic_extra__ or {}).get(section_name(kind))
        return self.kinds()[kind].settings() if settings is None else settings

    def with_settings(self, kind: str, values: Mapping[str, Any], *section: str) -> Self:
        """A copy in which ``values`` replace some settings of one kind, as ``--set`` does.

        Raises `InvalidInputError` at the field ``section`` + kind + setting.
        """
        merged = _merged(self.of(kind).model_dump(exclude_unset=True), values)
        path = (*section, section_name(kind))
        settings = validated(self.kinds()[kind].settings, merged, *path)
        return self.model_copy(update={section_name(kind): settings})

    def with_one_section(self, kind: str) -> Self:
        """A copy with the section of one kind alone: defaults included, and absent when empty."""
        settings = self.of(kind)
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        if type(settings).model_fields:
            fields[section_name(kind)] = settings
        return cast(Self, type(self).model_construct({*self.model_fields_set}, **fields))


def _section(kind: Sectioned, values: object, key: str) -> Section:
    """The checked section of a kind; errors are located under ``key``."""
    if isinstance(values, kind.settings):
        return values
    try:
        return _read(kind.settings, values)
    except ValidationError as error:
        raise _located([(e["type"], (key, *e["loc"]), e["msg"]) for e in error.errors()]) from error


def _located(errors: Iterable[tuple[str, tuple[str | int, ...], str]]) -> ValidationError:
    """A section's errors, at their places in the section around it.

    Pydantic has no way to move an error.
    """
    return ValidationError.from_exception_data(
        "configuration",
        [
            InitErrorDetails(
                type=PydanticCustomError(code, "{message}", {"message": message}),
                loc=loc,
                input=None,
            )
            for code, loc, message in errors
        ],
    )


def validated(kind: type[S], values: Mapping[str, Any], *section: str) -> S:
    """Check the values of a section whose dotted name is ``section``.

    Raises `InvalidInputError`, which names the wrong field.
    """
    try:
        return _read(kind, values)
    except ValidationError as error:
        raise refusal(error, *section) from error


def refusal(error: ValidationError, *section: str) -> InvalidInputError:
    """Pydantic's first error as one of ours, with the dotted name of the field."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in (*section, *first["loc"]))
    message = first["msg"].removeprefix("Value error, ")  # pydantic's prefix to our messages
    return InvalidInputError(f"configuration: {field}: {message}", field=field)


def _read(kind: type[S], values: object) -> S:
    """Validate the values; a text that its field refuses is parsed as YAML and tried again.

    The environment and ``--set`` give texts. A field `beam: int` accepts "20"; a field
    `prefixes: tuple` refuses "[0.5, 1]", and accepts the list that the YAML means.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        parsed = values
        for fault in error.errors():
            if isinstance(fault["input"], str):
                parsed = _with_yaml(parsed, fault["loc"])
        if parsed == values:
            raise
        try:
            return kind.model_validate(parsed)
        except ValidationError:
            raise error from None


def _with_yaml(values: Any, loc: tuple[str | int, ...]) -> Any:
    """The values with the text at ``loc`` parsed as YAML; unchanged if ``loc`` holds no text."""
    if loc and isinstance(values, Mapping) and loc[0] in values:
        return {**values, loc[0]: _with_yaml(values[loc[0]], loc[1:])}  # type: ignore[dict-item]
    if isinstance(values, str):
        try:
            return yaml.safe_load(values)
        except yaml.YAMLError:
            return values
    return values


def parse_settings(assignments: Iterable[str], *, field: str = "set") -> dict[str, Any]:
    """``["beam=20", "end_to_end.steps=5"]`` -> ``{"beam": "20", "end_to_end": {"steps": "5"}}``.

    Values stay texts, which the section's fields convert later. Raises `InvalidInputError`, at
    ``field``, for an assignment that is not KEY=VALUE.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, sign, value = assignment.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(part.isidentifier() for part in parts):
            raise InvalidInputError(
                f"{assignment!r} is not KEY=VALUE, such as beam=20", field=field
            )
        nested: Any = value.strip()
        for part in reversed(parts):
            nested = {part: nested}
        values = _merged(values, nested)
    return values


def _merged(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings as one, at every depth; ``others`` takes precedence."""
    merged = dict(values)
    for key, value in others.items():
        present = merged.get(key)
        if isinstance(present, Mapping) and isinstance(value, Mapping):
            value = _merged(present, value)
        merged[key] = value
    return merged


class Setting(NamedTuple):
    """One setting of a section, for tables that people read."""

    name: str
    type: str
    """The type, as Python writes it: ``tuple[float, ...]``."""
    default: Any
    """The default; None for a required setting."""
    doc: str
    """The field's docstring, on one line."""


def settings_of(section: type[Section]) -> list[Setting]:
    """The settings of a section, in the order of their definition."""
    return [
        Setting(
            name,
            inspect.formatannotation(field.annotation),
            None if field.is_required() else field.get_default(call_default_factory=True),
            " ".join((field.description or "").split()),
        )
        for name, field in section.model_fields.items()
    ]
