"""Registries: the kinds of one thing (architectures, describers, ...) by name, built in or added.

A built-in kind is one module of one package: the module's name is the kind's name, and importing
the module registers the kind. A module whose kind has another name states it in a line such as
``NAME = "vit-prisma"``, which is read without running the module. Another distribution adds a kind
by an entry point::

    [project.entry-points."vision_sae.architectures"]
    my_sae = "my_package.my_sae"

The names are known without importing a single kind, so that ``--help`` stays fast; a kind is
imported on its first use.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Generic, Protocol, TypeVar

from vision_sae.errors import InvalidInputError, MissingDependencyError


class Kind(Protocol):
    """An entry of a registry: any object with a name."""

    @property
    def name(self) -> str:
        """The name in configurations, flags and requests."""
        ...


K = TypeVar("K", bound=Kind)
_NAME = re.compile(r'^NAME = "([^"]+)"$', re.MULTILINE)


class Registry(Generic[K]):
    """The kinds of one thing, by name, in the order of their names."""

    def __init__(
        self, noun: str, *, package: str, group: str, field: str, separator: str = "_"
    ) -> None:
        """Create a registry of the modules of ``package`` and the entry points of ``group``.

        Messages use ``noun`` ("architecture") and ``field`` (the configuration key that names a
        kind). Sub-packages of ``package``, and modules that begin with an underscore, are no kinds.
        ``separator`` replaces the underscores of module names in the names of kinds.
        """
        self.noun, self.group, self.field = noun, group, field
        self.package, self._separator = package, separator
        self._registered: dict[str, K] = {}

    def register(self, kind: K) -> K:
        """Register a kind and return it; the kind's module calls this method when imported.

        Raises `InvalidInputError` when another kind has the name.
        """
        if self._registered.setdefault(kind.name, kind) is not kind:
            raise InvalidInputError(
                f"two kinds of {self.noun} are called {kind.name!r}; rename one", field=self.field
            )
        return kind

    @cached_property
    def _modules(self) -> dict[str, str]:
        """{name: module} of the built-in kinds, without importing any."""
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        modules = [
            module.name
            for module in iter_modules([str(folder)])
            if not module.ispkg and not module.name.startswith("_")
        ]
        return {
            self._name_in(folder / f"{module}.py"): f"{self.package}.{module}" for module in modules
        }

    def _name_in(self, file: Path) -> str:
        """The name of the kind that a built-in module registers."""
        stated = _NAME.search(file.read_text("utf-8"))
        return stated[1] if stated else file.stem.replace("_", self._separator)

    @cached_property
    def _announced(self) -> dict[str, EntryPoint]:
        """{name: entry point} of the kinds of other distributions."""
        return {point.name: point for point in entry_points(group=self.group)}

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, sorted; imports no kind."""
        return tuple(sorted({*self._modules, *self._announced, *self._registered}))

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[K]:
        """Import and yield every kind, in the order of their names."""
        return (self[name] for name in self.names)

    def check(self, name: str) -> None:
        """Raise `InvalidInputError`, listing the known names, for an unknown name.

        This method imports no kind.
        """
        if name not in self:
            nearest = difflib.get_close_matches(name, self.names, n=1)
            hint = f", did you mean {nearest[0]!r}?" if nearest else ""
            raise InvalidInputError(
                f"there is no {self.noun} {name[:80]!r}{hint}; there are: {', '.join(self.names)}",
                field=self.field,
            )

    def __getitem__(self, name: str) -> K:
        """Import, if need be, and return the kind of this name.

        Raises `InvalidInputError` for an unknown name and for a name that two kinds have, and
        `MissingDependencyError` when another distribution's kind cannot be imported.
        """
        self.check(name)
        if name not in self._registered:
            self._import(name)
        return self._registered[name]

    def _import(self, name: str) -> None:
        announced = self._announced.get(name)
        if announced is None:
            import_module(self._modules[name])
        else:
            owner = announced.dist.name if announced.dist else announced.value
            if name in self._modules:
                raise InvalidInputError(
                    f"{owner} announces a {self.noun} {name!r}, which is a name of ours; ask its "
                    "authors to rename it, or uninstall it",
                    field=self.field,
                )
            try:
                announced.load()
            except Exception as error:
                raise MissingDependencyError(
                    f"the {self.noun} {name!r} of {owner} cannot be imported: "
                    f"{type(error).__name__}: {error}",
                    field=self.field,
                ) from error
        if name not in self._registered:
            raise MissingDependencyError(
                f"the {self.noun} {name!r} was imported and did not register itself under this "
                "name; see `vision_sae.registry`",
                field=self.field,
            )
