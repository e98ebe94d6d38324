"""Pictures in one folder a class, made ready for a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from vision_sae.errors import InvalidInputError, shortened
from vision_sae.evaluation.painted_words import paint_word, wrong_classes
from vision_sae.evaluation.tasks import Classified
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture
from vision_sae.pictures.reading import Reading

_Change: TypeAlias = Callable[[int, Image.Image], Image.Image]
"""Takes the number of a picture and its pixels, gives others."""


def class_of(picture: Picture) -> str:
    """The folder that a picture lies in, below the folder of all pictures."""
    return picture.id.rpartition("/")[0].rpartition("/")[2]


def class_names(pictures: Sequence[Picture]) -> list[str]:
    """The classes of all pictures, in order; raises `InvalidInputError` for fewer than two, and for
    pictures that are of none."""
    names = sorted({class_of(picture) for picture in pictures})
    if len(names) < 2:
        raise InvalidInputError(
            "the pictures are of fewer than two classes; put those of each class into a folder of "
            "its own, named as the class",
            field="images",
        )
    if stray := [picture.id for picture in pictures if not class_of(picture)]:
        raise InvalidInputError(
            f"{len(stray)} pictures lie in the folder of no class: {shortened(str(stray))}; move "
            "them into one, or away",
            field="images",
        )
    return names


def classified(
    model: Model,
    pictures: Sequence[Picture],
    names: Sequence[str],
    reading: Reading | None = None,
) -> Classified:
    """Decode pictures for ``model``; their classes are their folders, ``dog/1.jpg`` a dog.

    ``names`` are the `class_names` of these and of any others that they are used with. Files that
    cannot be read are left out and told to ``reading``; without one they are refused.
    """
    return _ready(model, pictures, names, reading, lambda _number, image: image)[0]


def _ready(
    model: Model,
    pictures: Sequence[Picture],
    names: Sequence[str],
    reading: Reading | None,
    change: _Change,
) -> tuple[Classified, list[int]]:
    """(pictures that were changed and made ready, the number of each among ``pictures``)."""
    account = Reading(strict=True) if reading is None else reading

    def prepared(number: int, image: Image.Image) -> Tensor:
        return model.preprocess(change(number, image))

    found = [
        (number, picture, pixels)
        for number, each in enumerate(pictures)
        for picture, pixels in account.each([each], partial(prepared, number))
    ]
    if not found:
        raise InvalidInputError(f"none of {len(pictures)} pictures could be read", field="images")
    numbers, kept, pixels = zip(*found, strict=True)
    made = Classified(torch.stack(pixels), torch.tensor(_numbers(kept, names)), names)
    return made, list(numbers)


class PaintedOver(NamedTuple):
    """Pictures with the name of a wrong class painted on each."""

    pictures: Classified
    words: Tensor
    """Number of the class whose name is on each (N), int64."""


def painted_over(
    model: Model,
    pictures: Sequence[Picture],
    names: Sequence[str],
    seed: int,
    reading: Reading | None = None,
) -> PaintedOver:
    """`classified`, with the name of a wrong class painted on every picture."""
    wrong = wrong_classes(_numbers(pictures, names), len(names), seed)
    made, numbers = _ready(
        model,
        pictures,
        names,
        reading,
        lambda number, image: paint_word(image, names[wrong[number]], seed + number),
    )
    return PaintedOver(made, torch.tensor(wrong)[numbers])


def _numbers(pictures: Sequence[Picture], names: Sequence[str]) -> list[int]:
    return [names.index(class_of(picture)) for picture in pictures]
