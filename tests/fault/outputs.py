"""What stands where a command is told to write, and whether it is all there afterwards."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import typer

from tests.fault.commands import LABELS, PLAIN, SITE, TRAIN, Seen, filled, library, run

_LARGE = 2**18
"""Bytes."""
WRITERS: tuple[tuple[str, ...], ...] = (
    ("harvest", "{w}/pictures", "{o}", "--model", "{w}/model", "--site", SITE),
    ("train", "{w}/store", "{o}", *TRAIN),
    ("sweep", "{w}/store", "{o}", *TRAIN),
    ("build", "{w}/store", "{w}/d", "{o}"),
    ("import", "{w}/exported", "{o}", "--store", "{w}/store"),
    ("export", "{w}/d", "{o}"),
    ("export-labels", "{w}/labels.sqlite", "{o}"),
    ("export-exemplars", "{w}/bundle", "{o}"),
    ("review", "{w}/bundle", "--out", "{o}"),
    ("fetch", "demo:dinov2-s/blocks.10.update", "--to", "{o}"),
    ("audit", "{w}/bundle", "cat", *LABELS, "--out", "{o}"),
    ("score", "{w}/bundle", "{w}/annotations.csv", *PLAIN, "--out", "{o}"),
    ("evaluate", "attribution", "{w}/bundle", "--images", "{w}/pictures", "--out", "{o}"),
    ("demo", "--once", "--work", "{t}/work", "--out", "{o}"),
    ("demo", "--once", "--out", "{t}/out", "--work", "{o}"),
)
"""Every command that is told where to write, ``{o}`` being the place."""

PLACES: tuple[str, ...] = (
    *("{w}/pictures", "{w}/pictures/cat", "{w}", "{w}/notes", "{w}/bytes.bin", "{w}/link"),
    *("{w}/store", "{w}/d", "{w}/bundle", "{w}/model", "{w}/exported", "{w}/store/inside"),
    *("{w}/bundle/inside", "{w}/pictures/inside", "{w}/labels.sqlite", "{w}/annotations.csv"),
    *("{w}/config.yaml", ".", "..", "{w}/model/model.safetensors", "{w}/store/manifest.json"),
    "{w}/besides",
)
"""Places that are somebody's: pictures, notes, a file, a link, inputs, artifacts, the folder one is
in and those around it; and a free place beside folders of the names that publishing uses."""


@dataclass(frozen=True)
class Output:
    """One run that is told to write where something stands."""

    args: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.args)


def furnish(world: Path) -> None:
    """Add to a world of `commands.make_world` what `PLACES` names."""
    (world / "link").symlink_to(world / "notes", target_is_directory=True)
    for name in (".besides.staging", ".besides.old"):
        (world / name).mkdir()
        (world / name / "diary.txt").write_text("mine\n")


def outputs() -> Iterator[Output]:
    """Every writer at every place."""
    for args in WRITERS:
        for place in PLACES:
            yield Output(tuple(arg.replace("{o}", place) for arg in args))


def contents(root: Path) -> dict[str, str]:
    """{path below ``root``: hash of a file's bytes, or target of a link}.

    A large file is told by its size and by when it was written: reading it each time takes long. A
    database of labels is told by its labels: commands may add some, and SQLite moves bytes between
    the file and the log beside it.
    """
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*files, *folders):
            path = Path(folder, name)
            if path.is_symlink():
                found[path.relative_to(root).as_posix()] = os.readlink(path)
            elif path.suffix == ".sqlite" and path.is_file():
                found |= _labels(path, path.relative_to(root).as_posix())
            elif path.is_file() and not path.name.endswith((".sqlite-wal", ".sqlite-shm")):
                found[path.relative_to(root).as_posix()] = _digest(path)
    return found


def _labels(path: Path, name: str) -> dict[str, str]:
    """{unit, below the name of the database: its current label}, and the database itself."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        rows = database.execute(
            "SELECT parent, number, text FROM units JOIN descriptions ON descriptions.id = current"
        )
        return {name: ""} | {f"{name}/{parent}/{unit}": str(text) for parent, unit, text in rows}


def _digest(path: Path) -> str:
    stat = path.stat()
    if stat.st_size > _LARGE:
        return f"{stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lost(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What was there before and is gone or changed."""
    return sorted(path for path, digest in before.items() if after.get(path) != digest)


def try_output(case: Output, world: Path, temporary: Path, seconds: int = 30) -> Seen:
    """Run a case from inside the folder of notes, which ``.`` then names."""
    before = Path.cwd()
    os.chdir(world / "notes")
    try:
        program: typer.Typer = library
        return run(program, tuple(filled(case.args, world, temporary)), seconds)
    finally:
        os.chdir(before)
