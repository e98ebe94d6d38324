from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vision_sae.errors import AlreadyExistsError, CorruptArtifactError
from vision_sae.files import (
    MANIFEST,
    file_table,
    open_staging,
    publish,
    published,
    publishing,
    read_cached,
    read_json,
    replacing,
    sha256_file,
    sha256_json,
    verify_files,
    write_json,
)
from vision_sae.places import UNFINISHED


def put(directory: Path, text: str) -> None:
    with publishing(directory) as (staging, manifest):
        (staging / "data.txt").write_text(text)
        manifest["text"] = text


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_sha256_of_a_file_is_the_published_test_vector(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "f") == expected


def test_sha256_of_json_ignores_the_order_of_keys() -> None:
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})


def test_publication_holds_files_and_a_manifest_that_names_them(tmp_path: Path) -> None:
    put(tmp_path / "out", "one")
    manifest = read_json(tmp_path / "out" / MANIFEST)
    digest = sha256_file(tmp_path / "out" / "data.txt")
    assert manifest == {"text": "one", "files": {"data.txt": {"bytes": 3, "sha256": digest}}}


def test_publication_leaves_nothing_beside_itself(tmp_path: Path) -> None:
    put(tmp_path / "out", "one")
    put(tmp_path / "out", "two")
    assert names(tmp_path) == {"out"}
    assert names(tmp_path / "out") == {"data.txt", MANIFEST}


def test_failing_body_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"), publishing(tmp_path / "out") as (s, _):
        (s / "data.txt").write_text("half")
        raise RuntimeError("half way")
    assert not (tmp_path / "out").exists()


def test_failing_body_leaves_the_last_publication(tmp_path: Path) -> None:
    put(tmp_path / "out", "one")
    with pytest.raises(RuntimeError, match="half way"), publishing(tmp_path / "out") as (s, _):
        (s / "data.txt").write_text("half")
        raise RuntimeError("half way")
    assert (tmp_path / "out" / "data.txt").read_text() == "one"


def test_new_publication_drops_files_of_the_old_one(tmp_path: Path) -> None:
    with publishing(tmp_path / "out") as (staging, _):
        (staging / "only_in_the_first").write_text("x")
    put(tmp_path / "out", "two")
    assert names(tmp_path / "out") == {"data.txt", MANIFEST}


def between_the_renames(directory: Path) -> None:
    """What a writer leaves that dies after moving the old publication aside."""
    directory.rename(directory.with_name(f".{directory.name}.old"))


def test_death_between_the_renames_leaves_the_old_publication_readable(tmp_path: Path) -> None:
    put(tmp_path / "out", "one")
    between_the_renames(tmp_path / "out")
    assert (published(tmp_path / "out") / "data.txt").read_text() == "one"


def test_next_writer_puts_the_old_publication_back(tmp_path: Path) -> None:
    put(tmp_path / "out", "one")
    between_the_renames(tmp_path / "out")
    open_staging(tmp_path / "out")
    assert (tmp_path / "out" / "data.txt").read_text() == "one"


def test_published_is_the_directory_itself_when_nothing_went_wrong(tmp_path: Path) -> None:
    put(tmp_path / "out", "one")
    assert published(tmp_path / "out") == tmp_path / "out"


def test_staging_of_a_dead_writer_is_swept_away(tmp_path: Path) -> None:
    (open_staging(tmp_path / "out") / "stale").write_text("x")
    assert names(open_staging(tmp_path / "out")) == {UNFINISHED}


def test_staging_is_kept_for_whoever_makes_the_same(tmp_path: Path) -> None:
    (open_staging(tmp_path / "out", plan="one") / "done").write_text("x")
    assert names(open_staging(tmp_path / "out", plan="one")) == {"done", UNFINISHED}
    assert names(open_staging(tmp_path / "out", plan="two")) == {UNFINISHED}


def test_resuming_does_not_publish_a_half_written_manifest(tmp_path: Path) -> None:
    staging = open_staging(tmp_path / "out", plan="one")
    (staging / f".{MANIFEST}.4242.tmp").write_text("{")  # killed while writing the manifest
    (staging / "done").write_text("x")
    open_staging(tmp_path / "out", plan="one")
    publish(tmp_path / "out", {})
    assert names(tmp_path / "out") == {"done", MANIFEST}


@pytest.mark.parametrize("beside", [".out.staging", ".out.old"])
def test_what_is_somebodys_beside_a_publication_is_in_the_way(tmp_path: Path, beside: str) -> None:
    (tmp_path / beside).mkdir()
    (tmp_path / beside / "notes.txt").write_text("mine")
    with pytest.raises(AlreadyExistsError, match=rf"{beside} holds notes\.txt"):
        put(tmp_path / "out", "one")
    assert names(tmp_path) == {beside}
    assert (tmp_path / beside / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["notes.txt", "sub/notes.txt"])
def test_file_that_somebody_put_into_a_publication_keeps_it_in_place(
    tmp_path: Path, name: str
) -> None:
    put(tmp_path / "out", "one")
    path = tmp_path / "out" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(AlreadyExistsError, match=f"holds {name}"):
        put(tmp_path / "out", "two")
    assert path.read_text() == "mine"
    assert (tmp_path / "out" / "data.txt").read_text() == "one"


def test_file_that_somebody_adds_while_a_publication_is_written_is_not_lost(tmp_path: Path) -> None:
    put(tmp_path / "out", "one")
    staging = open_staging(tmp_path / "out")
    (staging / "data.txt").write_text("two")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(AlreadyExistsError, match=r"notes\.txt"):
        publish(tmp_path / "out", {})
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_publication_of_another_format_is_not_replaced(tmp_path: Path) -> None:
    with publishing(tmp_path / "out") as (_, manifest):
        manifest["format"] = "a"
    with (
        pytest.raises(AlreadyExistsError, match="is a a, not a b"),
        publishing(tmp_path / "out") as (
            _,
            other,
        ),
    ):
        other["format"] = "b"
    assert read_json(tmp_path / "out" / MANIFEST)["format"] == "a"


def test_half_deleted_publication_is_deleted_by_the_next_writer(tmp_path: Path) -> None:
    put(tmp_path / "out", "one")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    (tmp_path / ".out.old" / "data.txt").unlink()  # killed while it deleted
    put(tmp_path / "out", "two")
    assert names(tmp_path) == {"out"}


def test_link_to_a_place_is_that_place(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    for text in ("one", "two"):
        put(tmp_path / "out", text)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "out" / "data.txt").read_text() == "two"
    assert names(tmp_path / "disk") == {"out"}


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)]
)
def test_published_files_have_the_mode_of_the_umask(
    tmp_path: Path, umask: int, file: int, folder: int
) -> None:
    before = os.umask(umask)
    try:
        with publishing(tmp_path / "out") as (staging, _):
            (staging / "sub").mkdir()
            save_file({"a": np.zeros(1)}, staging / "sub" / "weights.safetensors")  # it writes 0600
        with replacing(tmp_path / "f") as temporary:
            save_file({"a": np.zeros(1)}, temporary)
    finally:
        os.umask(before)
    for path in (tmp_path / "f", *(tmp_path / "out").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


def test_kept_file_is_made_anew_when_it_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "new" / "kept.json"

    def get(value: int) -> int:
        return int(read_cached(path, read_json, lambda p: write_json(p, value)))

    assert (get(1), get(2)) == (1, 1)
    path.write_text("{")
    assert get(3) == 3
    assert str(path) in caplog.text


def test_file_table_lists_nested_files_with_forward_slashes(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("x")
    (tmp_path / MANIFEST).write_text("{}")
    assert list(file_table(tmp_path)) == ["a/b/c"]


def test_changed_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("one")
    table = file_table(tmp_path)
    (tmp_path / "data.txt").write_text("two")  # the same length: only the hash tells
    with pytest.raises(CorruptArtifactError, match=r"data\.txt"):
        verify_files(tmp_path, table)


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("one")
    table = file_table(tmp_path)
    (tmp_path / "data.txt").unlink()
    with pytest.raises(CorruptArtifactError, match=r"data\.txt is missing"):
        verify_files(tmp_path, table)


def test_untouched_files_pass(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("one")
    verify_files(tmp_path, file_table(tmp_path))


def test_replacing_puts_the_new_file_in_place(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with replacing(tmp_path / "f") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "f").read_text() == "new"
    assert names(tmp_path) == {"f"}


def test_replacing_leaves_the_old_file_on_an_exception(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "f") as temporary:
        temporary.write_text("ha")
        raise RuntimeError
    assert (tmp_path / "f").read_text() == "old"
    assert names(tmp_path) == {"f"}


def test_replacing_sweeps_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".f.4194305.tmp").write_text("x")  # one more than the largest process number
    (tmp_path / f".f.{os.getppid()}.tmp").write_text("x")  # a process that lives
    with replacing(tmp_path / "f") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == {"f", f".f.{os.getppid()}.tmp"}


def test_json_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", {"b": [1, 2.5, None], "a": "é"})
    assert read_json(tmp_path / "f.json") == {"b": [1, 2.5, None], "a": "é"}


def test_broken_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"a": ')
    with pytest.raises(CorruptArtifactError, match=r"f\.json is not valid JSON"):
        read_json(tmp_path / "f.json")


def test_two_threads_may_replace_one_file(tmp_path: Path) -> None:
    path, begun = tmp_path / "file", threading.Barrier(2)

    def write(text: str) -> None:
        with replacing(path) as temporary:
            temporary.write_text(text)
            begun.wait(10)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ["one", "two"]))
    assert path.read_text() in ("one", "two")
    assert list(tmp_path.iterdir()) == [path]
