"""A disk that is full, or may not be written to, in words."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.worlds.tiny import random_sae, write_dictionary, write_store
from vision_sae.cli import app
from vision_sae.errors import CorruptArtifactError, InvalidInputError, StorageFullError
from vision_sae.files import publishing, replacing
from vision_sae.storage import storing

_ROOM = 20_000


@contextmanager
def little_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file may grow beyond `_ROOM` bytes: writing more fails as on a full disk."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python keeps a module that was cut off
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def index(path: Path) -> None:
    made = faiss.IndexFlatIP(100)
    made.add(np.zeros((1000, 100), dtype=np.float32))
    faiss.write_index(made, str(path))


WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: path.write_bytes(b"x" * 100_000),
    "numpy": lambda path: np.save(path.with_suffix(".npy"), np.zeros(100_000)),
    "safetensors": lambda path: save_file({"a": torch.zeros(30_000)}, path),
    "faiss": index,
    "parquet": lambda path: pq.write_table(pa.table({"a": np.random.rand(100_000)}), path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_full_disk_is_told_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    with (
        little_room(monkeypatch),
        pytest.raises(StorageFullError, match=r"out cannot be written|out/file cannot be written"),
        publishing(tmp_path / "out") as (staging, _),
    ):
        WRITERS[writer](staging / "file")
    assert not (tmp_path / "out").exists()


def test_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("earlier")
    with (
        little_room(monkeypatch),
        pytest.raises(StorageFullError, match=r"report\.json"),
        replacing(path) as temporary,
    ):
        temporary.write_bytes(b"x" * 100_000)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EROFS, InvalidInputError),
        (errno.EACCES, InvalidInputError),
    ],
)
def test_error_numbers_become_errors_of_ours(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"place.*{os.strerror(number)}"), storing(Path("place")):
        raise OSError(number, os.strerror(number))


def test_other_errors_stay_what_they_are() -> None:
    for error in (ValueError("no"), OSError(errno.ENOENT, "no"), CorruptArtifactError("no")):
        with pytest.raises(type(error), match="no"), storing(Path("place")):
            raise error


@pytest.mark.parametrize(
    "command",
    [
        ("train", "{w}/store", "{w}/new", "--steps", "2", "--batch-size", "64", "--k", "2"),
        ("build", "{w}/store", "{w}/d", "{w}/new"),
        ("export", "{w}/d", "{w}/new"),
    ],
    ids=lambda command: command[0],
)
def test_command_on_a_full_disk_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 4, 64))
    store = write_store(tmp_path / "store", [vectors])
    write_dictionary(tmp_path / "d", random_sae(64, 256, 4), store)
    with little_room(monkeypatch):
        result = CliRunner().invoke(app, [argument.format(w=tmp_path) for argument in command])
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("vision-sae: ")
    assert "new" in line
    assert "File too large" in line
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()


def test_full_database_of_labels_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vision_sae.labels.database import Database

    path = tmp_path / "labels.sqlite"
    database = Database(path)
    with (
        little_room(monkeypatch),
        pytest.raises(StorageFullError, match=r"labels\.sqlite"),
        database.writing() as connection,
    ):
        connection.exec_driver_sql("CREATE TABLE big (x TEXT)")
        connection.exec_driver_sql(f"INSERT INTO big VALUES ('{'x' * 200_000}')")
    database.close()
    assert sqlite3.connect(path).execute("SELECT count(*) FROM about").fetchone() == (2,)
