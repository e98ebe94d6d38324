"""The door for foreign formats: one file a format, which registers itself in `FORMATS`.

Our formats are the modules of `vision_sae.dictionaries.interop.formats`; another distribution adds
one by an entry point of the group ``vision_sae.formats``. This module imports no torch; the modules
of the formats do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_sae.dictionaries.interop.settings import Ignored
from vision_sae.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from vision_sae.dictionaries.protocol import Dictionary


class Sign(IntEnum):
    """What tells that files are of a format; formats with the surer sign are asked first."""

    RARE_NAMES = 0
    """Names of files that few other libraries use, such as ``cfg.json``."""
    NAMES = 1
    """Names of files together, such as ``config.json`` beside ``ae.pt``."""
    CONTENT = 2
    """What stands in a file."""
    SUFFIX = 3
    """How a file's name ends."""


@dataclass(frozen=True)
class Format:
    """How one library keeps its dictionaries in files."""

    name: str
    summary: str
    """Whose dictionaries they are, in a phrase."""
    versions: str
    """The versions of the library, or of its files, that are read."""
    sign: Sign
    recognises: Callable[[Path], bool]
    """Whether the files at a path, a directory or a file of it, are of this format."""
    load: Callable[[Path, Ignored], tuple[Dictionary, dict[str, Any]]]
    """The dictionary of raw site vectors (float32, CPU), and what the source says about itself
    (JSON). Refuses settings that it does not know, but for those that are ignored."""
    version: int = 1
    """Rises when the same files are read as another dictionary."""
    files: tuple[str, ...] = ()
    """The names that files of this format must have."""
    save: Callable[[Dictionary, Path, Mapping[str, Any]], None] | None = None
    """Publishes a dictionary and its metadata (JSON) in a directory; None where a format is only
    read."""
    measure: Callable[[Dictionary, Iterable[Tensor]], dict[str, Any]] | None = None
    """What an import measures of a dictionary on the site vectors (n, D) of a store, beside its
    metrics: where its features fire otherwise than in the library. JSON, for the manifest."""


FORMATS: Registry[Format] = Registry(
    "format",
    package="vision_sae.dictionaries.interop.formats",
    group="vision_sae.formats",
    field="format",
)
"""Every foreign format, by name."""


def described() -> list[dict[str, Any]]:
    """{name, version, summary, versions, files, written} of every format, for tables of documents.
    Imports every format."""
    return [
        {
            "name": format.name,
            "version": format.version,
            "summary": format.summary,
            "versions": format.versions,
            "files": list(format.files),
            "written": format.save is not None,
        }
        for format in FORMATS
    ]
