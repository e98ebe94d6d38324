from __future__ import annotations

from pathlib import Path

import pytest

from tests.worlds.tiny import noise_image
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.pictures.folder import image_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.PNG", "sub/c.webp"):
        noise_image(8, 8).save(tmp_path / name)
    return tmp_path


def test_pictures_are_found_below_the_folder_in_order_of_id(folder: Path) -> None:
    assert [p.id for p in image_folder(folder)] == ["a.PNG", "b.png", "sub/c.webp"]


def test_picture_loads_as_rgb(folder: Path) -> None:
    image = image_folder(folder)[0].load()
    assert (image.mode, image.size) == ("RGB", (8, 8))


def test_without_a_sidecar_captions_are_empty(folder: Path) -> None:
    assert {p.caption for p in image_folder(folder)} == {""}


def test_captions_and_tags_from_jsonl(folder: Path) -> None:
    lines = [
        '{"file": "sub/c.webp", "caption": "a cat – grey", "tags": ["animal", "pet"]}',
        "",
        '{"file": "b.png", "caption": "a bee"}',
    ]
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = [(p.id, p.caption, p.tags) for p in image_folder(folder)]
    assert found == [
        ("a.PNG", "", ()),
        ("b.png", "a bee", ()),
        ("sub/c.webp", "a cat – grey", ("animal", "pet")),
    ]


def test_source_from_jsonl_is_empty_where_none_is_said(folder: Path) -> None:
    (folder / "captions.jsonl").write_text(
        '{"file": "a.PNG", "caption": "left half", "source": "photo.jpg"}\n'
        '{"file": "b.png", "caption": "a bee"}\n'
    )
    assert [p.source for p in image_folder(folder)] == ["photo.jpg", "", ""]


def test_captions_from_csv(folder: Path) -> None:
    (folder / "captions.csv").write_text('file,caption\nb.png,"a bee, flying"\n')
    assert [p.caption for p in image_folder(folder)] == ["", "a bee, flying", ""]


def test_csv_of_a_spreadsheet_with_a_byte_order_mark(folder: Path) -> None:
    (folder / "captions.csv").write_text("file,caption\nb.png,a bee\n", encoding="utf-8-sig")
    assert [p.caption for p in image_folder(folder)] == ["", "a bee", ""]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.jsonl", b'{"file": "b.png"}'),
        ("captions.jsonl", b'{"caption": "a bee"}'),
        ("captions.jsonl", b"b.png: a bee"),
        ("captions.jsonl", b'["b.png", "a bee"]'),
        ("captions.jsonl", b'{"file": "b.png", "caption": null}'),
        ("captions.jsonl", b'{"file": "b.png", "caption": "a bee", "tags": "insect"}'),
        ("captions.jsonl", b'{"file": "b.png", "caption": "a bee", "source": 5}'),
        ("captions.csv", b"name,text\nb.png,a bee\n"),
        ("captions.csv", b"file,caption\nb.png\n"),
    ],
)
def test_bad_sidecar_is_refused(folder: Path, name: str, text: bytes) -> None:
    (folder / name).write_bytes(text)
    with pytest.raises(InvalidInputError, match=f"{folder.name}.*`file` and `caption`"):
        image_folder(folder)


def test_folder_without_pictures_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=tmp_path.name):
        image_folder(tmp_path)


def test_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        image_folder(tmp_path / "nowhere")
