"""Which picture a row of a sidecar means, and what is said of rows that mean none."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from tests.worlds.tiny import noise_image
from vision_sae.errors import InvalidInputError
from vision_sae.pictures.folder import Picture, image_folder
from vision_sae.pictures.reading import Reading

NFD = unicodedata.normalize("NFD", "café.png")
NFC = unicodedata.normalize("NFC", "café.png")


def folder_of(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        noise_image(8, 8).save(root / name, "PNG")
    return root


def read(folder: Path) -> tuple[dict[str, str], list[str]]:
    """({picture: caption}, remarks)"""
    reading = Reading()
    found = image_folder(folder, reading)
    return {picture.id: picture.caption for picture in found}, reading.remarks


def say(folder: Path, *rows: dict[str, object]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "captions.jsonl").write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ("a.png", "a.png"),
        ("a.png", "./a.png"),
        ("a.png", " a.png "),
        ("a.png", "d/../a.png"),
        ("d/a.png", "d\\a.png"),
        ("d/a.png", ".\\d\\\\a.png"),
        (NFD, NFC),
        (NFC, NFD),
        ("A.PNG", "a.png"),
        ("d/Straße.png", "D/STRASSE.PNG"),
        ("a.png", "a"),
        ("A.png", "./a"),
        ("v1.2.png", "v1.2"),
    ],
)
def test_spellings_that_mean_one_picture(tmp_path: Path, stored: str, said: str) -> None:
    folder = folder_of(tmp_path, stored, "other.png")
    say(folder, {"file": said, "caption": "a cat"})
    assert read(folder) == ({stored: "a cat", "other.png": ""}, [])


def test_the_exact_name_comes_first(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.png", "A.png", "a")
    (folder / "a").rename(folder / "a.jpg")
    say(folder, {"file": "a.png", "caption": "small"}, {"file": "A.png", "caption": "large"})
    assert read(folder)[0] == {"A.png": "large", "a.jpg": "", "a.png": "small"}


@pytest.mark.parametrize(
    ("names", "said", "remark"),
    [
        (["a.png"], "b.png", "match no picture: 1 (line 1: 'b.png')"),
        (["a.png"], "a.jpg", "match no picture: 1 (line 1: 'a.jpg')"),
        (["a.png"], "", "name no file: 1 (line 1: 'a cat')"),
        (["a.png", "A.png"], "./A.PNG", "match several pictures: 1 (line 1: './A.PNG' may be"),
        (["a.png", "a.jpeg"], "a", "match several pictures: 1 (line 1: 'a' may be"),
    ],
)
def test_rows_that_mean_no_single_picture_are_told(
    tmp_path: Path, names: list[str], said: str, remark: str
) -> None:
    folder = folder_of(tmp_path, *names)
    say(folder, {"file": said, "caption": "a cat"})
    captions, remarks = read(folder)
    assert set(captions.values()) == {""}
    assert len(remarks) == 1
    assert remark in remarks[0]


def test_many_unmatched_rows_are_one_line_with_three_examples(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.png")
    say(folder, *({"file": f"{n}.png", "caption": "x" * 9999} for n in range(1000)))
    (remark,) = read(folder)[1]
    assert remark.endswith(
        "1000 (line 1: '0.png'; line 2: '1.png'; line 3: '2.png'; and 997 more lines)"
    )


def test_captions_of_one_picture_are_joined_each_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.png")
    say(
        folder,
        {"file": "a.png", "caption": "a cat", "tags": ["pet"]},
        {"file": "./a.png", "caption": ["a cat", "on a mat"], "tags": ["pet", "indoors"]},
        {"file": "a.png", "caption": "", "source": "photo.jpg"},
    )
    reading = Reading()
    (found,) = image_folder(folder, reading)
    path = folder / "a.png"
    assert found == Picture("a.png", path, "a cat; on a mat", ("pet", "indoors"), "photo.jpg")
    assert not reading.remarks


def test_two_sources_of_one_picture_are_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.png")
    say(folder, *({"file": "a.png", "caption": "x", "source": s} for s in ("one", "two")))
    assert "of which the first counts: 1 (line 2: 'a.png'" in read(folder)[1][0]


@pytest.mark.parametrize(
    ("table", "captions"),
    [
        ("file,caption\na.png,a cat, on a mat\n", ["a cat, on a mat", ""]),
        ("File, CAPTION \na.png,a cat\n", ["a cat", ""]),
        ("caption,file\na cat,a.png\n", ["a cat", ""]),
        ('file,caption\na.png,"two\nlines"\nb.png,"a ""b"""\n', ["two\nlines", 'a "b"']),
        ("file,caption\na.png,first\na.png,second\n", ["first; second", ""]),
        ("file,caption,,\n", ["", ""]),
        ("file,caption\na.png,\u2028,,\n", ["", ""]),
    ],
)
def test_tables_of_captions(tmp_path: Path, table: str, captions: list[str]) -> None:
    folder = folder_of(tmp_path, "a.png", "b.png")
    (folder / "captions.csv").write_text(table, "utf-8")
    assert list(read(folder)[0].values()) == captions


def test_columns_and_keys_that_nothing_reads_are_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.png")
    (folder / "captions.csv").write_text("file,caption,tags\na.png,a cat,pet\n")
    assert "nothing reads 'tags'" in read(folder)[1][0]
    say(folder, {"file": "a.png", "caption": "a cat", "width": 3})
    keys, table = read(folder)[1]
    assert "nothing reads 'width'" in keys
    assert "captions.csv is not read" in table


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("captions.csv", 'file,caption\na.png,"a cat\nb.png,a dog\n', "line 2: a quote is never"),
        ("captions.csv", "caption,file\na, b,a.png\n", "line 2: 3 fields for 2 columns"),
        ("captions.csv", "file;caption\na.png;a cat\n", "line 1: 0 columns 'file'"),
        ("captions.csv", "file,caption,caption\na.png,a,b\n", "line 1: 2 columns 'caption'"),
        ("captions.csv", "", "line 1: 0 columns 'file'"),
        ("captions.jsonl", '{"file":"a.png","caption":"x"}\n{"file":"b', "line 2: no JSON"),
        (
            "captions.jsonl",
            '{"file":"a","caption":"x","caption":"y"}',
            "line 1: a key stands twice",
        ),
        ("captions.jsonl", '{"file":"a","caption":"\\ud800"}', "line 1: half of a surrogate"),
        ("captions.jsonl", '{"file":"a","caption":["x", 1]}', "line 1: not text"),
        ("captions.jsonl", "[" * 100_000, "line 1: "),
        ("captions.jsonl", "9" * 5000, "line 1: "),
        ("captions.jsonl", "{}\n" * 5, "line 1: .*line 2: .*line 3: .*and 2 more lines"),
        ("captions.jsonl", '{"file":"a.png"}' + " " * 10**6 + "x", "line 1: "),
    ],
)
def test_sidecars_that_cannot_be_read_are_refused_by_line(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    folder = folder_of(tmp_path, "a.png", "b.png")
    (folder / name).write_text(text)
    with pytest.raises(InvalidInputError, match=f"{name}.*{says}") as refused:
        image_folder(folder)
    assert len(str(refused.value)) <= 1200


@pytest.mark.parametrize("character", "\u2028\u2029\x85\v\f\x1c")
def test_other_ends_of_lines_are_words_of_a_caption(tmp_path: Path, character: str) -> None:
    folder = folder_of(tmp_path, "a.png")
    escaped = character if character > " " else f"\\u{ord(character):04x}"
    text = f'{{"file": "a.png", "caption": "two{escaped}lines"}}\n'
    (folder / "captions.jsonl").write_text(text, "utf-8")
    assert read(folder)[0] == {"a.png": f"two{character}lines"}


def test_strict_refuses_what_matches_nothing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.png")
    say(folder, {"file": "b.png", "caption": "a cat"})
    with pytest.raises(InvalidInputError, match=r"line 1: 'b\.png'.*--strict"):
        image_folder(folder, Reading(strict=True))


def test_without_an_account_what_matches_nothing_is_warned_of(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.png")
    say(folder, {"file": "b.png", "caption": "a cat"})
    with pytest.warns(UserWarning, match=r"match no picture: 1 \(line 1: 'b\.png'\)"):
        image_folder(folder)
