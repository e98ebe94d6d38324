"""The kinds of published directories, recognised by their manifests alone.

This module imports no torch, so a command refuses a wrong path before its slow imports.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from vision_sae.files import MANIFEST, published, read_json


class ArtifactKind(NamedTuple):
    """One kind of published directory."""

    format: str
    version: int
    noun: str
    """The words for such a directory in messages."""
    remedy: str
    """The way to get such a directory, for messages."""
    field: str
    """The argument that names such a directory."""

    def manifest(self, directory: Path) -> dict[str, Any]:
        """The manifest of the publication at ``directory``.

        Raises `NotFoundError` when nothing is published there, and `CorruptArtifactError` for a
        manifest of another kind or version.
        """
        path = published(directory) / MANIFEST
        if not path.is_file():
            raise NotFoundError(f"{directory} is not {self.noun}; {self.remedy}", field=self.field)
        content = read_json(path)
        manifest = content if isinstance(content, dict) else {}
        form, version = manifest.get("format"), manifest.get("version")
        if (form, version) != (self.format, self.version):
            raise CorruptArtifactError(
                f"{directory} is not {self.noun}: it has format {form} version {version}, this "
                f"program reads {self.format} version {self.version}; name another, or "
                f"{self.remedy}",
                field=self.field,
            )
        return manifest


STORE = ArtifactKind(
    "vision_sae.activation_store",
    1,
    "a finished ActivationStore",
    "run `vision-sae harvest` (again: it resumes)",
    "store",
)
DICTIONARY = ArtifactKind(
    "vision_sae.dictionary",
    1,
    "a finished dictionary",
    "run `vision-sae train` (again: it resumes)",
    "dictionary",
)
BUNDLE = ArtifactKind(
    "vision_sae.bundle", 2, "a published bundle", "run `vision-sae build`", "bundle"
)
NEURONS = ArtifactKind(
    "vision_sae.neurons", 1, "evidence of neurons", "run `vision-sae label`", "units"
)


def site_of(sites: Collection[str], name: str | None) -> str:
    """``name``, or the only site when ``name`` is None; raises `InvalidInputError` otherwise."""
    if name is None and len(sites) == 1:
        return next(iter(sites))
    if name is None or name not in sites:
        raise InvalidInputError(
            f"the store has no site {name!r}; choose one of {', '.join(sites)}", field="site"
        )
    return name
