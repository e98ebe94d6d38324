"""Fetching a released dictionary from an index or a hub: every file by its hash, then one rename.

Files are fetched into a staging folder beside the dictionary's place until all are there. An
interrupted fetch keeps its complete files, and the next fetch begins the other files anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import urlopen

from filelock import FileLock
from tqdm import tqdm

from vision_sae.dictionaries.released.lookup import (
    INDEX,
    PACKAGED,
    IndexEntry,
    cached,
    is_inside,
    locate,
    parse_index,
    shipped,
)
from vision_sae.dictionaries.released.names import HUB, check_name, hub_place
from vision_sae.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MismatchError,
    NotFoundError,
    RemoteServerError,
    VisionSaeError,
)
from vision_sae.files import (
    MANIFEST,
    open_staging,
    publish,
    published,
    read_json,
    replacing,
    sha256_file,
    verify_files,
    write_json,
)
from vision_sae.places import check_output, check_replaceable
from vision_sae.storage import storing

_FORMAT = "vision_sae.dictionary"
"""That of `vision_sae.dictionaries.artifact`, which would import torch; fetching needs none."""
_KEYS = {"model", "site", "dictionary", "metrics"}
"""The keys that every manifest of a dictionary has."""
_SMALL_FILE = 64 * 2**20
"""The most bytes of an index or a manifest."""
_BLOCK = 2**20
_TIMEOUT = 60.0
"""Seconds to wait for an answer of a server."""


class _Source(NamedTuple):
    """Where a dictionary is fetched from."""

    url: str
    """Its folder, with a slash at the end."""
    sha256: str = ""
    """The expected hash of its manifest; empty where it is unknown."""
    name: str = ""
    """The expected name in its manifest; empty where it is unknown."""


def read_index(index: str) -> list[IndexEntry]:
    """The entries of the index at a URL (``https://``, ``file://``), a path, or in a folder."""
    url = _index_url(index)
    return parse_index(_read(url).decode(errors="replace"), url)


def fetch(
    name: str,
    *,
    index: str | None = None,
    to: Path | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Copy or download a released dictionary, and return its folder.

    ``index`` is the URL or the path of the index that lists it; a hub needs none. The folder is
    ``to``, or a place in the cache, where names are looked up. A dictionary that ships in the
    package is not copied there: its own folder is returned. One that is there whole is kept, and
    another one at ``to`` is replaced only with ``overwrite``.

    Raises `NotFoundError` when nobody has it, `CorruptArtifactError` for a file that does not have
    the hash its manifest names, and `AlreadyExistsError` when ``to`` is a folder of other things.
    """
    check_name(name)
    if to is None and name in shipped():
        return locate(name)
    place = to or cached(name)
    finished = check_output(place, _FORMAT, field="to")
    source = _source(name, index)
    place.parent.mkdir(parents=True, exist_ok=True)
    with storing(place), FileLock(place.with_name(f".{place.name}.lock")):
        manifest, sha256 = _read_manifest(source)
        if not _is_there(place, sha256):
            if to is not None and not _was_fetched(place, sha256):
                check_replaceable(place, finished, overwrite=overwrite, field="to")
            _copy(source, manifest, sha256, place, progress=progress)
    return place


def _source(name: str, index: str | None) -> _Source:
    if index is not None:
        entries = {entry.name: entry for entry in read_index(index)}
        if name not in entries:
            known = ", ".join(entries) or "nothing"
            raise NotFoundError(f"the index {index} has no {name}; it has {known}", field="name")
        entry = entries[name]
        folder = urljoin(_index_url(index), quote(entry.path) + "/")
        return _Source(folder, entry.sha256, name)
    if name.startswith(HUB):
        return _Source(_hub_folder(name).resolve().as_uri() + "/")
    if listed := shipped().get(name):
        return _Source((PACKAGED / listed.path).resolve().as_uri() + "/", listed.sha256, name)
    raise NotFoundError(
        f"the package's index has no {name}; give the index that lists it: `vision-sae fetch "
        f"{name} --index URL`",
        field="name",
    )


def _index_url(index: str) -> str:
    if urlsplit(index).scheme in ("file", "https", "http"):
        return index
    path = Path(index)
    return (path / INDEX if path.is_dir() else path).resolve().as_uri()


def _hub_folder(name: str) -> Path:
    """The local copy of a folder of a hub's repository, downloaded where it is not there yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, folder = hub_place(name)
    try:
        snapshot = snapshot_download(repository, allow_patterns=[f"{folder}/*"] if folder else None)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise NotFoundError(
            f"the hub did not give {repository} ({error}); look at the name, at the network, and "
            "whether HF_HUB_OFFLINE is set",
            field="name",
        ) from error
    return Path(snapshot) / folder


def _open(url: str) -> IO[bytes]:
    """What ``url`` holds; raises `InvalidInputError` for anything but https and local files."""
    scheme = urlsplit(url).scheme
    if scheme not in ("file", "https"):
        raise InvalidInputError(
            f"{url}: dictionaries are fetched from https:// and file:// only", field="index"
        )
    try:
        opened: Any = urlopen(url, timeout=_TIMEOUT)
    except HTTPError as error:
        with closing(error):
            kind = NotFoundError if error.code in (404, 410) else RemoteServerError
            raise kind(f"{url}: {error.code} {error.reason}", field="index") from error
    except (OSError, ValueError) as error:
        kind = NotFoundError if scheme == "file" else RemoteServerError
        raise kind(f"{url} cannot be read ({error})", field="index") from error
    if urlsplit(opened.url).scheme != scheme:
        opened.close()
        raise InvalidInputError(f"{url} leads to {opened.url}, which is not trusted", field="index")
    stream: IO[bytes] = opened
    return stream


def _blocks(stream: IO[bytes], url: str, most: int) -> Iterator[bytes]:
    """The bytes of ``stream`` in blocks; raises `CorruptArtifactError` after more than ``most``."""
    total = 0
    while True:
        try:
            block = stream.read(_BLOCK)
        except (OSError, HTTPException) as error:
            raise RemoteServerError(
                f"{url} broke off after {total} bytes ({error}); fetch it again: what is complete "
                "is kept"
            ) from error
        if not block:
            return
        total += len(block)
        if total > most:
            raise CorruptArtifactError(f"{url} holds more than the {most} bytes it should")
        yield block


def _read(url: str) -> bytes:
    with closing(_open(url)) as stream:
        return b"".join(_blocks(stream, url, _SMALL_FILE))


def _read_manifest(source: _Source) -> tuple[dict[str, Any], str]:
    """The manifest that is to be fetched, and its hash."""
    url = source.url + MANIFEST
    data = _read(url)
    sha256 = hashlib.sha256(data).hexdigest()
    if source.sha256 and sha256 != source.sha256:
        raise CorruptArtifactError(
            f"{url} has SHA-256 {sha256}, its index names {source.sha256}; the index and the "
            "dictionary do not belong together"
        )
    try:
        manifest = json.loads(data)
        files: dict[str, dict[str, Any]] = manifest["files"]
        fine = (
            manifest["format"] == _FORMAT
            and manifest.keys() >= _KEYS
            and all(is_inside(name) and name != MANIFEST for name in files)
            and all(int(f["bytes"]) >= 0 and str(f["sha256"]) for f in files.values())
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifactError(f"{url} is no manifest of a dictionary ({error})") from error
    if not fine:
        raise CorruptArtifactError(f"{url} is no manifest of a dictionary")
    called = manifest.get("released", {}).get("name")
    if source.name and called != source.name:
        raise MismatchError(
            f"{source.url} holds the dictionary {called}, its index calls it {source.name}",
            field="name",
        )
    return manifest, sha256


def _has(path: Path, expected: Mapping[str, Any]) -> bool:
    return (
        path.is_file()
        and path.stat().st_size == expected["bytes"]
        and sha256_file(path) == expected["sha256"]
    )


def _was_fetched(place: Path, sha256: str) -> bool:
    """Whether the dictionary with this manifest is in its place, whole or not."""
    manifest = published(place) / MANIFEST
    return manifest.is_file() and sha256_file(manifest) == sha256


def _is_there(place: Path, sha256: str) -> bool:
    """Whether the dictionary with this manifest is whole in its place."""
    here = published(place)
    if not _was_fetched(place, sha256):
        return False
    try:
        verify_files(here, read_json(here / MANIFEST)["files"])
    except VisionSaeError:
        return False
    return here == place


def _copy(
    source: _Source, manifest: dict[str, Any], sha256: str, place: Path, *, progress: bool
) -> None:
    files: dict[str, dict[str, Any]] = manifest["files"]
    staging = open_staging(place, plan=sha256)
    total = sum(expected["bytes"] for expected in files.values())
    with tqdm(total=total, desc="fetch", unit="B", unit_scale=True, disable=not progress) as bar:
        for name, expected in files.items():
            if not _has(staging / name, expected):
                _download(source.url + quote(name), staging / name, expected)
            bar.update(expected["bytes"])
    write_json(staging / MANIFEST, manifest)
    if sha256_file(staging / MANIFEST) != sha256:
        shutil.rmtree(staging)
        raise CorruptArtifactError(
            f"{source.url}{MANIFEST} was not written by vision_sae: its JSON has another layout"
        )
    publish(place, {key: value for key, value in manifest.items() if key != "files"})


def _download(url: str, path: Path, expected: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with replacing(path) as beside, beside.open("wb") as file, closing(_open(url)) as stream:
        for block in _blocks(stream, url, expected["bytes"]):
            file.write(block)
            digest.update(block)
            size += len(block)
        file.flush()
        if (size, digest.hexdigest()) != (expected["bytes"], expected["sha256"]):
            raise CorruptArtifactError(
                f"{url} does not have the size and SHA-256 that its manifest names; it was changed "
                "or broke off"
            )
