"""The settings of a foreign checkpoint: which are known, and a check of each value that is used.

An unknown setting could change what is encoded or decoded, and numbers would be wrong silently. So
each format lists the settings that it knows (`Known`), and any other setting stops the import.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError, quoted

OTHERWISE = "download it again, or name its format with --format"
_LONGEST = 80
_MOST = 5


def listed(names: Collection[object]) -> str:
    """Names as a message lists them: the first few, and how many others there are."""
    first = [name if name.isprintable() else repr(name) for name in map(str, names)][:_MOST]
    others = len(names) - len(first)
    cut = (name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in first)
    return ", ".join(cut) + (f" and {others} others" if others else "")


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


@dataclass(frozen=True)
class Accepted:
    """A setting that is imported with some values only."""

    values: tuple[Any, ...]
    because: str
    """Why no other value can be imported, and the way out."""

    def includes(self, value: object) -> bool:
        """Whether this is one of the values; 1 is not True."""
        return any(type(value) is type(known) and value == known for known in self.values)


@dataclass(frozen=True)
class Known:
    """All settings that an importer knows in one place of a format's files."""

    used: frozenset[str]
    """Settings that the importer reads and checks."""
    accepted: Mapping[str, Accepted]
    """Settings that could change what is computed: imported with these values, or absent."""
    without_effect: frozenset[str]
    """Settings of training and data, which change nothing that is encoded or decoded."""


class Ignored:
    """Unknown settings that, as the caller says, change nothing that is computed."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Take the names, dotted where an object holds them."""
        self.names = frozenset(names)
        self._met: set[str] = set()

    def covers(self, name: str) -> bool:
        """Whether the caller named an unknown setting."""
        self._met |= {name} & self.names
        return name in self.names

    def unmet(self) -> list[str]:
        """The names that no unknown setting of the files has."""
        return sorted(self.names - self._met)


@dataclass(frozen=True)
class ForeignSettings:
    """The settings in a JSON file, or in a part of one; each value is checked when it is read."""

    path: Path
    values: Mapping[str, Any]
    within: str = ""
    """The dotted name, with a dot behind it, of the object that holds these settings."""
    ignored: Ignored = field(default_factory=Ignored)

    def check(self, known: Known) -> None:
        """Raise `InvalidInputError` for unknown settings, and for values that are not accepted."""
        for key, accepted in known.accepted.items():
            self.accept(key, accepted)
        known_keys = known.used | known.accepted.keys() | known.without_effect
        unknown = [key for key in self.values if key not in known_keys]
        refused = [key for key in unknown if not self.ignored.covers(f"{self.within}{key}")]
        if refused:
            name = listed([f"{self.within}{refused[0]}"])
            others = f" (nor {listed(refused[1:])})" if refused[1:] else ""
            raise InvalidInputError(
                f"{self.path}: no import knows the setting {name}, here "
                f"{quoted(self.values[refused[0]])}{others}; it could change what is computed. "
                f"Where you know that it does not, repeat with --ignore-setting {name}",
                field=name,
            )

    def accept(self, key: str, accepted: Accepted) -> None:
        """Refuse any value of ``key`` but the accepted, with the reason and the way out."""
        if key in self.values and not accepted.includes(self.values[key]):
            raise InvalidInputError(
                f"{self._name(key)} {quoted(self.values[key])} cannot be imported, only "
                f"{' or '.join(map(quoted, accepted.values))}: {accepted.because}",
                field=self.within + key,
            )

    def section(self, key: str) -> ForeignSettings:
        """The object under ``key``."""
        value = self._required(key)
        if not isinstance(value, dict):
            raise CorruptArtifactError(f"{self._name(key)} is {quoted(value)}, not an object")
        return ForeignSettings(self.path, value, f"{self.within}{key}.", self.ignored)

    def integer(self, key: str) -> int:
        """A positive integer."""
        value = self._required(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CorruptArtifactError(
                f"{self._name(key)} is {quoted(value)}, not a positive integer"
            )
        return value

    def active(self, key: str, width: int) -> int:
        """A number of active features, at most ``width``."""
        value = self.integer(key)
        if value > width:
            raise CorruptArtifactError(f"{self._name(key)} is {quoted(value)}, of {width} features")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string; ``default`` when it is absent."""
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise CorruptArtifactError(f"{self.path} has no text {self.within}{key}; {OTHERWISE}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise CorruptArtifactError(f"{self._name(key)} is {quoted(value)}, not true or false")
        return value

    def agrees(self, key: str, size: int) -> None:
        """Raise `CorruptArtifactError` if ``key`` has a value that is not the tensors' ``size``."""
        value = self.values.get(key)
        if value is not None and (isinstance(value, bool) or value != size):
            self._disagrees(key, size)

    def expands(self, key: str, dim: int, width: int) -> None:
        """Raise `CorruptArtifactError` if ``key`` has a value, and ``dim`` times the value, rounded
        down, is not ``width``."""
        value = self.values.get(key)
        if value is None:
            return
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not -(2**53) < value < 2**53 or int(dim * value) != width:
            self._disagrees(key, width / dim)

    def _disagrees(self, key: str, size: float) -> None:
        raise CorruptArtifactError(
            f"{self._name(key)} is {quoted(self.values[key])}, but the tensors have {size}; "
            "the files do not belong together"
        )

    def _name(self, key: str) -> str:
        return f"{self.path}: {self.within}{key}"

    def _required(self, key: str) -> Any:
        if key not in self.values:
            raise CorruptArtifactError(f"{self.path} has no {self.within}{key}; {OTHERWISE}")
        return self.values[key]


def read_settings(path: Path, ignored: Ignored) -> ForeignSettings:
    """Read a file that holds one JSON object."""
    with opened(path) as file:
        return ForeignSettings(path, parse_settings(path, file.read()), ignored=ignored)


def parse_settings(path: Path, text: bytes) -> dict[str, Any]:
    """The JSON object that ``path`` holds as ``text``."""
    try:
        values = json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested without end
        raise CorruptArtifactError(f"{path} is not valid JSON ({error}); {OTHERWISE}") from error
    if not isinstance(values, dict):
        raise CorruptArtifactError(f"{path} holds no JSON object; {OTHERWISE}")
    return values


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's settings; raises for a setting that stands there twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{listed([k for k in values if keys.count(k) > 1])} stands there twice")
    return values


def opened(path: Path) -> IO[bytes]:
    """A file, opened to be read; raises `NotFoundError` without one."""
    must_exist(path)
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read ({error.strerror}); check its permissions", field="source"
        ) from error


def must_exist(path: Path) -> None:
    """Raise `NotFoundError` when there is no such file."""
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist; {OTHERWISE}", field="source")
