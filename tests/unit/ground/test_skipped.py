"""What is left out of a folder of pictures, and how it is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from tests.worlds.tiny import noise_image
from vision_sae.errors import ImageTooLargeError, InvalidImageError, InvalidInputError
from vision_sae.pictures import folder as folders
from vision_sae.pictures.folder import Picture, image_folder
from vision_sae.pictures.reading import Reading, Skipped, attempt


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise_image(8, 8).save(path, "PNG")


def read(folder: Path) -> tuple[list[str], dict[str, str]]:
    """(ids of the pictures, {what is left out: the reason})"""
    reading = Reading()
    ids = [picture.id for picture in image_folder(folder, reading)]
    return ids, {skipped.id: skipped.reason for skipped in reading.skipped}


def test_hidden_files_and_other_kinds_are_left_out_and_told(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png", ".cache/c.png", "d/._e.png", "d/f.WEBP"):
        save(tmp_path / name)
    for name in ("notes.txt", "d/g.gif", "h", "captions.jsonl"):
        (tmp_path / name).touch()
    assert read(tmp_path) == (
        ["a.png", "d/f.WEBP"],
        {
            ".b.png": "hidden",
            ".cache": "hidden",
            "d/._e.png": "hidden",
            "d/g.gif": "of another kind",
            "h": "of another kind",
            "notes.txt": "of another kind",
        },
    )


def test_names_that_are_not_utf8_are_left_out_and_told(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for name in (b"caf\xe9.png", b"\xed\xa0\x80.png"):  # Latin-1; half of a surrogate pair
        save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)))
    save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff/b.png")))
    ids, left = read(tmp_path)
    assert ids == ["a.png"]
    assert left == dict.fromkeys(
        ["caf\\udce9.png", "d\\udcff", "\\udced\\udca0\\udc80.png"], "not named in UTF-8"
    )


def test_links_to_folders_are_followed_once_each(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    save(outside / "a.png")
    save(inside / "d/b.png")
    (inside / "again").symlink_to(inside / "d")
    (inside / "d/circle").symlink_to(inside)
    (inside / "elsewhere").symlink_to(outside)
    (inside / "gone.png").symlink_to(tmp_path / "nowhere")
    (inside / "link.png").symlink_to(outside / "a.png")
    (inside / "self.png").symlink_to(inside / "self.png")
    assert read(inside) == (
        ["d/b.png", "elsewhere/a.png", "link.png"],
        dict.fromkeys(["again", "d/circle", "gone.png", "self.png"], "a link"),
    )


def test_pipes_and_folders_called_pictures_are_no_pictures(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "folder.png/b.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert read(tmp_path) == (["a.png", "folder.png/b.png"], {"pipe.png": "of another kind"})


def test_folders_that_cannot_be_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "d/b.png")
    real = os.listdir

    def refuse(path: Path) -> list[str]:
        if path == tmp_path / "d":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr("vision_sae.pictures.tree.os.listdir", refuse)
    assert read(tmp_path) == (["a.png"], {"d": "unreadable"})


def picture(tmp_path: Path, data: bytes) -> Picture:
    (tmp_path / "a.png").write_bytes(data)
    return Picture("a.png", tmp_path / "a.png")


def test_loading_a_broken_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match=r"/a\.png: the bytes are not a JPEG"):
        picture(tmp_path, b"no picture").load()
    with pytest.raises(InvalidImageError, match=r"/b\.png cannot be read \(No such file"):
        Picture("b.png", tmp_path / "b.png").load()


def test_a_huge_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MAX_BYTES", 9)
    with pytest.raises(ImageTooLargeError, match=r"a\.png: the file has 10 bytes, the limit is 9"):
        picture(tmp_path, b"no picture").load()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError(274), "broken"),
        (ZeroDivisionError("a rational"), "broken"),
        (RecursionError(), "broken"),
        (MemoryError(), "too large"),
        (Image.DecompressionBombError("too many pixels"), "too large"),
    ],
)
def test_whatever_is_thrown_while_a_picture_is_made_ready_is_a_reason(
    tmp_path: Path, error: Exception, reason: str
) -> None:
    save(tmp_path / "a.png")

    def fail(_image: Image.Image) -> None:
        raise error

    found = attempt(Picture("a.png", tmp_path / "a.png"), fail)
    assert isinstance(found, Skipped)
    assert (found.id, found.reason) == ("a.png", reason)


def test_the_summary_counts_by_reason_and_the_details_give_three_examples(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"")
    for name in ("a.png", "b.png", ".c.png"):
        save(tmp_path / name)
    reading = Reading()
    found = image_folder(tmp_path, reading)
    for _ in range(2):  # a picture that is read twice counts once
        assert [p.id for p, _ in reading.each(found, lambda image: image)] == ["a.png", "b.png"]
    assert reading.summary() == "2 pictures read, 6 skipped: 1 hidden, 5 broken"
    empty = "the image is empty (0 bytes); send a JPEG, PNG or WebP"
    assert reading.details() == [
        "skipped .c.png: its name begins with a dot",
        *(f"skipped {number}.png: {empty}" for number in range(3)),
        "skipped as broken, and 2 more",
    ]


def test_a_name_never_breaks_a_line() -> None:
    skipped = Skipped("a\n\x1b[31mb.png", "its name begins with a dot", "hidden")
    assert str(skipped) == "'a\\n\\x1b[31mb.png': its name begins with a dot"


def test_nothing_skipped_is_not_spoken_of() -> None:
    assert Reading(read=12).summary() == "12 pictures read"


def test_strict_refuses_what_would_be_skipped(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    reading = Reading(strict=True)
    found = image_folder(tmp_path, reading)
    with pytest.raises(InvalidInputError, match=r"1 broken \(b\.png: the image is empty.*--strict"):
        reading.all(found, lambda image: image)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InvalidInputError, match=r"1 of another kind \(notes\.txt"):
        image_folder(tmp_path, Reading(strict=True))


def test_nothing_readable_is_refused_with_an_example(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"")
    reading = Reading()
    with pytest.raises(InvalidInputError, match=r"none of the 1 pictures.*b\.png: the image is em"):
        reading.all(image_folder(tmp_path, reading), lambda image: image)
