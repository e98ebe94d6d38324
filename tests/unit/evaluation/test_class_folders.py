"""Pictures in one folder a class: the numbers of the classes are those of all pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.worlds.tiny import noise_image, tiny_model
from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.class_folders import class_names, classified, painted_over
from vision_sae.pictures.folder import Picture, image_folder
from vision_sae.pictures.reading import Reading


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    """One cat, two cows, one dog."""
    for number, name in enumerate(("cat", "cow", "cow", "dog")):
        (tmp_path / name).mkdir(exist_ok=True)
        noise_image(40, 40, seed=number).save(tmp_path / name / f"{number}.png")
    return image_folder(tmp_path)


def test_a_part_of_the_pictures_keeps_the_numbers_of_all_classes(pictures: list[Picture]) -> None:
    names = class_names(pictures)
    assert names == ["cat", "cow", "dog"]
    # The first half holds no dog, the second no cat.
    assert classified(tiny_model(), pictures[:2], names).classes.tolist() == [0, 1]
    assert classified(tiny_model(), pictures[2:], names).classes.tolist() == [1, 2]


def test_painted_over_are_the_same_pictures_with_something_on_them(
    pictures: list[Picture],
) -> None:
    names, model = class_names(pictures), tiny_model()
    plain, painted = classified(model, pictures, names), painted_over(model, pictures, names, 0)
    assert painted.pictures.classes.tolist() == plain.classes.tolist()
    assert (painted.pictures.pixels != plain.pixels).flatten(1).any(1).all()
    assert (painted.words != plain.classes).all()
    assert set(painted.words.tolist()) <= set(range(len(names)))


def test_one_class_is_none(pictures: list[Picture]) -> None:
    with pytest.raises(InvalidInputError, match="two classes"):
        class_names(pictures[1:3])


def test_pictures_in_no_class_are_refused_by_name(pictures: list[Picture], tmp_path: Path) -> None:
    noise_image(40, 40).save(tmp_path / "stray.png")
    with pytest.raises(InvalidInputError, match=r"1 pictures lie .*stray\.png"):
        class_names(image_folder(tmp_path))


def test_broken_pictures_are_left_out_of_both_and_counted_once(pictures: list[Picture]) -> None:
    names, model = class_names(pictures), tiny_model()
    whole = painted_over(model, pictures, names, 0)
    pictures[1].path.write_bytes(b"")
    with pytest.raises(InvalidInputError, match=r"cow/1\.png: the image is empty"):
        classified(model, pictures, names)
    reading = Reading()
    plain = classified(model, pictures, names, reading)
    painted = painted_over(model, pictures, names, 0, reading)
    assert plain.classes.tolist() == painted.pictures.classes.tolist() == [0, 1, 2]
    assert painted.words.tolist() == whole.words[[0, 2, 3]].tolist()
    assert reading.summary() == "3 pictures read, 1 skipped: 1 broken"


def test_no_picture_at_all_is_refused(pictures: list[Picture]) -> None:
    names = class_names(pictures)
    pictures[0].path.write_bytes(b"")
    with pytest.raises(InvalidInputError, match="none of 1 pictures"):
        classified(tiny_model(), pictures[:1], names, Reading())
