"""Pictures that lie in one folder per class, as model inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from vision_sae.errors import InvalidInputError, shortened
from vision_sae.evaluation.painted_words import paint_word, wrong_classes
from vision_sae.evaluation.tasks import Classified
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture
from vision_sae.pictures.reading import Reading

_Change: TypeAlias = Callable[[int, Image.Image], Image.Image]
"""Maps the number of a picture and the picture to another picture."""


def class_of(picture: Picture) -> str:
    """The class of a picture: the name of its folder, '' at the top."""
    return picture.id.rpartition("/")[0].rpartition("/")[2]


def class_names(pictures: Sequence[Picture]) -> list[str]:
    """The classes of all pictures, sorted; raises `InvalidInputError` for fewer than two classes,
    and for pictures without a class."""
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
    """Decode pictures for ``model``; the class of ``dog/1.jpg`` is ``dog``.

    ``names`` are the `class_names` of these pictures and of all others in the same evaluation.
    Files that cannot be read are left out and reported to ``reading``; without it they are refused.
    """
    return _ready(model, pictures, names, reading, lambda _number, image: image)[0]


def _ready(
    model: Model,
    pictures: Sequence[Picture],
    names: Sequence[str],
    reading: Reading | None,
    change: _Change,
) -> tuple[Classified, list[int]]:
    """(changed pictures as model inputs, the number of each among ``pictures``)."""
    account = Reading(strict=True) if reading is None else reading

    def prepared(number: int, image: Image.Image) -> Tensor:
        return model.preprocess(change(number, image))

    readable = [
        (number, picture, pixels)
        for number, each in enumerate(pictures)
        for picture, pixels in account.each([each], partial(prepared, number))
    ]
    if not readable:
        raise InvalidInputError(f"none of {len(pictures)} pictures could be read", field="images")
    numbers, kept, pixels = zip(*readable, strict=True)
    ready = Classified(torch.stack(pixels), torch.tensor(_numbers(kept, names)), names)
    return ready, list(numbers)


class PaintedOver(NamedTuple):
    """Pictures with the name of a wrong class painted on each."""

    pictures: Classified
    words: Int64[Tensor, " N"]
    """Number of the class whose name is on each picture."""


def painted_over(
    model: Model,
    pictures: Sequence[Picture],
    names: Sequence[str],
    seed: int,
    reading: Reading | None = None,
) -> PaintedOver:
    """`classified`, with the name of a wrong class painted on every picture."""
    wrong = wrong_classes(_numbers(pictures, names), len(names), seed)
    painted, numbers = _ready(
        model,
        pictures,
        names,
        reading,
        lambda number, image: paint_word(image, names[wrong[number]], seed + number),
    )
    return PaintedOver(painted, torch.tensor(wrong)[numbers])


def _numbers(pictures: Sequence[Picture], names: Sequence[str]) -> list[int]:
    return [names.index(class_of(picture)) for picture in pictures]
