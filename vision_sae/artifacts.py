"""The kinds of published directories, told by their manifests alone.

Nothing here imports torch, so a wrong path is told at once, before what takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from vision_sae.files import MANIFEST, published, read_json


class Kind(NamedTuple):
    """One kind of published directory."""

    format: str
    version: int
    noun: str
    """What messages call one."""
    remedy: str
    """How to get one."""
    field: str
    """The argument that names one."""

    def manifest(self, directory: Path) -> dict[str, Any]:
        """The manifest of the publication at ``directory``.

        Raises `NotFoundError` where nothing is published, `CorruptArtifactError` for a manifest of
        another kind or version.
        """
        path = published(directory) / MANIFEST
        if not path.is_file():
            raise NotFoundError(f"{directory} is not {self.noun}; {self.remedy}", field=self.field)
        found = read_json(path)
        said = found if isinstance(found, dict) else {}
        if (said.get("format"), said.get("version")) != (self.format, self.version):
            raise CorruptArtifactError(
                f"{directory} is not {self.noun}: it has format {said.get('format')} version "
                f"{said.get('version')}, this program reads {self.format} version {self.version}; "
                f"name another, or {self.remedy}",
                field=self.field,
            )
        return said


STORE = Kind(
    "vision_sae.activation_store",
    1,
    "a finished ActivationStore",
    "run `vision-sae harvest` (again: it resumes)",
    "store",
)
DICTIONARY = Kind(
    "vision_sae.dictionary",
    1,
    "a finished dictionary",
    "run `vision-sae train` (again: it resumes)",
    "dictionary",
)
BUNDLE = Kind("vision_sae.bundle", 2, "a published bundle", "run `vision-sae build`", "bundle")
NEURONS = Kind("vision_sae.neurons", 1, "evidence of neurons", "run `vision-sae label`", "units")


def site_of(sites: Collection[str], name: str | None) -> str:
    """``name``, or the only one of a store's ``sites`` when ``name`` is None."""
    if name is None and len(sites) == 1:
        return next(iter(sites))
    if name is None or name not in sites:
        raise InvalidInputError(
            f"the store has no site {name!r}; choose one of {', '.join(sites)}", field="site"
        )
    return name
