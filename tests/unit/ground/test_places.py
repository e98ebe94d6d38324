"""Where outputs may go, asked before any work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vision_sae.errors import AlreadyExistsError, InvalidInputError
from vision_sae.files import open_staging, publishing
from vision_sae.places import (
    check_collection,
    check_output,
    check_output_file,
    check_output_folder,
    check_replaceable,
)

OURS, OTHER = "vision_sae.ours", "vision_sae.other"


def put(place: Path, format: str = OURS) -> Path:
    with publishing(place) as (staging, manifest):
        (staging / "data").write_text("data")
        manifest["format"] = format
    return place


def notes(place: Path, name: str = "notes.txt") -> Path:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text("mine")
    return place


def tree(folder: Path) -> dict[str, str | None]:
    """{name: content} of all that is below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
    }


def link(place: Path, to: Path) -> Path:
    place.symlink_to(to)
    return place


@pytest.mark.parametrize(
    "make",
    [
        lambda root: root / "new",
        lambda root: root / "deep" / "er" / "new",
        lambda root: put(root / "ours").parent / "beside",
        lambda root: (root / "empty").mkdir() or root / "empty",
        lambda root: open_staging(root / "begun").with_name("begun"),
        lambda root: link(root / "link", root / "nowhere"),
        lambda root: notes(root / "seen", ".DS_Store").parent / "other",
    ],
    ids=["new", "deep", "beside", "empty", "begun", "dangling", "other"],
)
def test_free_place_is_free_and_stays_as_it_is(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    place = make(tmp_path)
    before = tree(tmp_path)
    assert check_output(place, OURS) is None
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda root: notes(root / "home"), r"holds notes\.txt"),
        (lambda root: notes(root / "home", "manifest.json"), r"holds manifest\.json"),
        (lambda root: notes(root / "home", ".hidden"), r"holds \.hidden"),
        (lambda root: notes(root / "home", "a/b.txt"), "holds a"),
        (lambda root: notes(put(root / "ours")), r"holds notes\.txt, which does not belong"),
        (lambda root: notes(put(root / "ours"), "a/b.txt"), r"holds a/b\.txt"),
        (lambda root: link(put(root / "ours") / "x", root / "ours").parent, "holds x"),
        (lambda root: put(root / "other", OTHER), "is a vision_sae.other, not a vision_sae.ours"),
        (lambda root: notes(root, "file") / "file", "file is a file"),
        (lambda root: link(root / "link", notes(root / "home")), r"holds notes\.txt"),
        (lambda root: link(root / "link", put(root / "other", OTHER)), "vision_sae.other"),
        (lambda root: notes(root / ".out.staging").parent / "out", r"\.out\.staging holds"),
        (lambda root: notes(root / ".out.old").parent / "out", r"\.out\.old holds"),
        (
            lambda root: link(root / ".out.old", notes(root / "home")).parent / "out",
            r"\.out\.old is a link",
        ),
    ],
)
def test_what_is_not_ours_is_refused_by_name(
    tmp_path: Path, make: Callable[[Path], Path], why: str
) -> None:
    place = make(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(AlreadyExistsError, match=why):
        check_output(place, OURS)
    assert tree(tmp_path) == before


def test_finished_artifact_is_given_and_replaced_only_when_asked_to(tmp_path: Path) -> None:
    found = check_output(put(tmp_path / "ours"), OURS)
    assert found is not None
    with pytest.raises(AlreadyExistsError, match="ours is finished already.*--overwrite"):
        check_replaceable(tmp_path / "ours", found, overwrite=False)
    check_replaceable(tmp_path / "ours", found, overwrite=True)


def test_artifact_that_a_dead_writer_had_set_aside_counts(tmp_path: Path) -> None:
    put(tmp_path / "ours").rename(tmp_path / ".ours.old")
    assert check_output(tmp_path / "ours", OURS) is not None


@pytest.mark.parametrize(
    ("place", "why"),
    [
        (".", "the folder you are in"),
        ("..", "the folder you are in"),
        ("", "the folder you are in"),
        ("/", "the folder you are in"),
        ("~", "your home"),
        ("new/..", "the folder you are in"),
        ("in", "in is an input"),
        ("x/../in", "is an input"),
        ("link", "is an input"),
        ("in/new", "lies inside .*in, an input"),
        ("in/a/b", "lies inside .*in, an input"),
        ("deep", "holds .*deep/in, an input"),
        ("file", "file is an input"),
        ("file/new", "file is a file|lies inside"),
        ("other/new", "other is a file"),
        ("a\0b", "is no usable path"),
        ("x" * 300, "is no usable path"),
    ],
)
@pytest.mark.parametrize(
    "check",
    [
        lambda place, inputs: check_output(place, OURS, inputs=inputs),
        lambda place, inputs: check_collection(place, OURS, inputs=inputs),
        lambda place, inputs: check_output_file(place, inputs=inputs, overwrite=True),
        lambda place, inputs: check_output_folder(place, ["*"], inputs=inputs, overwrite=True),
    ],
    ids=["artifact", "collection", "file", "folder"],
)
def test_place_that_is_no_place_of_its_own_is_refused_by_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[[Path, list[Path]], object],
    place: str,
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    notes(tmp_path / "in")
    notes(tmp_path / "deep" / "in")
    for name in ("file", "other"):
        notes(tmp_path, name)
    link(tmp_path / "link", tmp_path / "in")
    (tmp_path / "me").mkdir()
    with pytest.raises((InvalidInputError, AlreadyExistsError), match=why):
        check(Path(place).expanduser(), [Path("in"), Path("deep/in"), Path("file")])


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_place_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidInputError, match="may not be written to"):
        check_output(tmp_path / "new", OURS)


def test_file_replaces_an_earlier_one_only_when_asked_to(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    check_output_file(path)
    path.write_text("earlier")
    with pytest.raises(AlreadyExistsError, match=r"report\.json exists.*--overwrite"):
        check_output_file(path)
    check_output_file(path, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_file_never_replaces_a_folder_or_a_device(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(AlreadyExistsError, match="is a folder"):
        check_output_file(notes(tmp_path / "home"), overwrite=overwrite)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AlreadyExistsError, match="no regular file"):
        check_output_file(tmp_path / "pipe", overwrite=overwrite)


def test_folder_of_files_is_new_or_holds_nothing_else(tmp_path: Path) -> None:
    names = ["*-feature-*.png"]
    check_output_folder(tmp_path / "new", names)
    (tmp_path / "out").mkdir()
    check_output_folder(tmp_path / "out", names)
    notes(tmp_path / "out", "01-feature-7.png")
    with pytest.raises(AlreadyExistsError, match=r"holds 01-feature-7\.png already.*--overwrite"):
        check_output_folder(tmp_path / "out", names)
    check_output_folder(tmp_path / "out", names, overwrite=True)
    notes(tmp_path / "out")
    with pytest.raises(AlreadyExistsError, match=r"holds notes\.txt"):
        check_output_folder(tmp_path / "out", names, overwrite=True)


def test_collection_holds_its_own_kind_only(tmp_path: Path) -> None:
    put(tmp_path / "all" / "one")
    open_staging(tmp_path / "all" / "two")
    check_collection(tmp_path / "all", OURS)
    put(tmp_path / "all" / "other", OTHER)
    with pytest.raises(AlreadyExistsError, match="holds other, which is no vision_sae.ours"):
        check_collection(tmp_path / "all", OURS)
