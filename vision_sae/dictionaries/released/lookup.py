"""Looking up dictionaries by name: shipped ones, fetched ones, and local folders.

| name | where it is looked up |
|---|---|
| ``demo:dinov2-s/blocks.10.update`` | the package's index; then what `fetch` put in the cache |
| ``hf-hub:ORG/NAME[/FOLDER]`` | what `fetch` put in the cache |
| a path | the folder of a released dictionary, or of one that ``vision-sae train`` made |

Nothing is downloaded unless it is asked for. FORMAT.md beside this file is normative.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self

from vision_sae.dictionaries.released.cards import CARD
from vision_sae.dictionaries.released.labels import Rows, read_labels
from vision_sae.dictionaries.released.names import folder_of, is_name, name_of
from vision_sae.errors import CorruptArtifactError, NotFoundError
from vision_sae.files import MANIFEST, published, read_json, sha256_file, write_json

if TYPE_CHECKING:
    from vision_sae.dictionaries.protocol import Dictionary

PACKAGED = Path(__file__).parent / "embedded"
"""The folder of what ships in the package."""
INDEX = "index.json"
CACHE_VARIABLE = "VISION_SAE_CACHE"


@dataclass(frozen=True)
class LoadedDictionary:
    """A dictionary and everything that was published with it."""

    dictionary: Dictionary
    manifest: dict[str, Any]
    """What it belongs to, and its metrics."""
    descriptions: Rows
    """{feature: description}; empty where none were released."""
    card: str
    """The text of its card, in Markdown; empty where it has none."""
    released: dict[str, str] | None
    """See `released_as`."""

    def __repr__(self) -> str:
        name, dictionary = (self.released or {}).get("name", "LoadedDictionary"), self.dictionary
        site = self.manifest.get("site", "a site that is not known")
        return f"<{name}: {dictionary.width} features ({dictionary.architecture}) of {site}>"


@dataclass(frozen=True)
class IndexEntry:
    """One dictionary in an index."""

    name: str
    path: str
    """Folder, relative to the index, with forward slashes."""
    sha256: str
    """SHA-256 of its manifest."""
    bytes: int
    """Size of its files together."""
    width: int
    """Number of features."""
    k: int | None
    """Active features per patch, where the architecture has such a number."""
    card: str
    """Its card, relative to the index; empty when it has none."""
    explained_variance: float | None
    """Of held-out pictures, or of the first data set it was measured on."""
    labelled: int
    """Features that have a label."""

    @classmethod
    def of(cls, directory: Path, path: str, name: str = "") -> Self:
        """The entry of the published dictionary in ``directory``, which an index has at ``path``.

        ``name`` is for dictionaries that do not say theirs.
        """
        manifest = read_json(directory / MANIFEST)
        released: dict[str, Any] = manifest.get("released", {})
        metrics: dict[str, dict[str, float]] = manifest["metrics"]
        measured = metrics.get("heldout") or next(iter(metrics.values()), {})
        sizes = [file["bytes"] for file in manifest["files"].values()]
        return cls(
            name=name or released["name"],
            path=path,
            sha256=sha256_file(directory / MANIFEST),
            bytes=sum(sizes) + (directory / MANIFEST).stat().st_size,
            width=manifest["dictionary"]["width"],
            k=manifest["dictionary"].get("k"),
            card=f"{path}/{CARD}" if CARD in manifest["files"] else "",
            explained_variance=measured.get("explained_variance"),
            labelled=released.get("labelled", 0),
        )


def released_as(directory: Path) -> dict[str, str] | None:
    """Name and manifest hash of the released dictionary in ``directory``, which identify it. None
    for a dictionary that was not released, or where there is no dictionary."""
    manifest = published(directory) / MANIFEST
    released = read_json(manifest).get("released") if manifest.is_file() else None
    return (
        {"name": released["name"], "manifest_sha256": sha256_file(manifest)} if released else None
    )


def parse_index(text: str, where: str) -> list[IndexEntry]:
    """The entries of an index; ``where`` is named in the error. Further keys are passed over."""
    known = {field.name for field in fields(IndexEntry)}
    try:
        rows = json.loads(text)
        entries = [IndexEntry(**{k: v for k, v in row.items() if k in known}) for row in rows]
        wrong = [e for e in entries if not (is_name(e.name) and is_inside(e.path))]
    except (ValueError, TypeError, AttributeError) as error:
        raise CorruptArtifactError(f"{where} is no index of dictionaries ({error})") from error
    if wrong:
        raise CorruptArtifactError(
            f"{where}: {wrong[0].name!r} is no name of a dictionary, or its path "
            f"{wrong[0].path!r} leads out of the index's folder"
        )
    return entries


def is_inside(path: str) -> bool:
    """Whether a relative path with forward slashes stays in the folder that it starts from."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not {"/", ".."} & set(parts) and not set("\\:") & set(path)


def shipped() -> dict[str, IndexEntry]:
    """What ships in the package, by name."""
    index = PACKAGED / INDEX
    if not index.is_file():
        return {}
    return {entry.name: entry for entry in parse_index(index.read_text("utf-8"), str(index))}


def add_to_index(index: Path, entry: IndexEntry) -> None:
    """Put an entry into an index, in the place of any of the same name."""
    before = parse_index(index.read_text("utf-8"), str(index)) if index.is_file() else []
    kept = [other for other in before if other.name != entry.name]
    write_json(index, [asdict(e) for e in sorted([*kept, entry], key=lambda e: e.name)])


def cache_folder() -> Path:
    """Where fetched dictionaries are kept: ``dictionaries`` in the folder that the environment
    variable VISION_SAE_CACHE names, or in ``~/.cache/vision_sae``."""
    named = os.environ.get(CACHE_VARIABLE)
    root = Path(named).expanduser() if named else Path.home() / ".cache" / "vision_sae"
    return root / "dictionaries"


def cached(name: str) -> Path:
    """The place of a fetched dictionary; nothing needs to be there."""
    return cache_folder() / folder_of(name)


def fetched() -> Iterator[tuple[IndexEntry, Path]]:
    """Every dictionary in the cache and its place, by name."""
    for manifest in sorted(cache_folder().glob(f"*/{MANIFEST}")):
        place = manifest.parent
        if is_name(name_of(place.name)):
            yield IndexEntry.of(place, place.name, name_of(place.name)), place


def locate(name: str | Path) -> Path:
    """Where the dictionary of a name or a path lies on this machine.

    Raises `NotFoundError`, with the way out, for a name that is not here, and
    `CorruptArtifactError` for a shipped dictionary that is not the one its index names. A path is
    returned as it is.
    """
    if isinstance(name, Path) or not is_name(name):
        return Path(name)
    if entry := shipped().get(name):
        place = PACKAGED / entry.path
        if not (place / MANIFEST).is_file() or sha256_file(place / MANIFEST) != entry.sha256:
            raise CorruptArtifactError(
                f"{place} is not the dictionary {name} that the package's index names; install "
                "vision_sae again"
            )
        return place
    place = cached(name)
    if (published(place) / MANIFEST).is_file():
        return place
    if Path(name).is_dir():
        return Path(name)
    raise NotFoundError(
        f"the dictionary {name} is not on this machine, and nothing is downloaded unasked; run "
        f"`vision-sae fetch {name}`, or `vision-sae dictionaries` for those that are here",
        field="dictionary",
    )


def load_dictionary(name: str | Path, *, allow_downloads: bool = False) -> LoadedDictionary:
    """Load a dictionary by name or path, after checking every file's hash.

    ``name`` is that of a released dictionary (``demo:dinov2-s/blocks.10.update``), one on a hub
    (``hf-hub:ORG/NAME[/FOLDER]``), or the path of a published one, released or just trained. What
    is not on this machine is downloaded only with ``allow_downloads``; without, it is a
    `NotFoundError`.
    """
    from vision_sae.dictionaries import artifact
    from vision_sae.dictionaries.released.fetching import fetch

    try:
        place = locate(name)
    except NotFoundError:
        if not allow_downloads:
            raise
        place = fetch(str(name))
    dictionary, manifest = artifact.load_dictionary(place)
    here = published(place)
    card = here / CARD
    return LoadedDictionary(
        dictionary=dictionary,
        manifest=manifest,
        descriptions=read_labels(here),
        card=card.read_text("utf-8") if card.is_file() else "",
        released=released_as(place),
    )
