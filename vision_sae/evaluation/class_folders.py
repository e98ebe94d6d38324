"""Pictures in one folder a class, made ready for a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.painted_words import paint_word, wrong_classes
from vision_sae.evaluation.tasks import Classified
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture


def class_of(picture: Picture) -> str:
    """The folder that a picture lies in, below the folder of all pictures."""
    return picture.id.rpartition("/")[0].rpartition("/")[2]


def class_names(pictures: Sequence[Picture]) -> list[str]:
    """The classes of all pictures, in order; raises `InvalidInputError` for fewer than two."""
    names = sorted({class_of(picture) for picture in pictures})
    if len(names) < 2:
        raise InvalidInputError(
            "the pictures are of fewer than two classes; put those of each class into a folder of "
            "its own, named as the class",
            field="images",
        )
    return names


def classified(
    model: Model,
    pictures: Sequence[Picture],
    names: Sequence[str],
    change: Callable[[int, Image.Image], Image.Image] = lambda _number, image: image,
) -> Classified:
    """Decode pictures for ``model``; their classes are their folders, ``dog/1.jpg`` a dog.

    ``names`` are the `class_names` of these and of any others that they are used with; ``change``
    takes the number and the pixels of each.
    """
    pixels = [model.preprocess(change(i, p.load())) for i, p in enumerate(pictures)]
    return Classified(torch.stack(pixels), torch.tensor(_numbers(pictures, names)), names)


class PaintedOver(NamedTuple):
    """Pictures with the name of a wrong class painted on each."""

    pictures: Classified
    words: Tensor
    """Number of the class whose name is on each (N), int64."""


def painted_over(
    model: Model, pictures: Sequence[Picture], names: Sequence[str], seed: int
) -> PaintedOver:
    """`classified`, with the name of a wrong class painted on every picture."""
    wrong = wrong_classes(_numbers(pictures, names), len(names), seed)
    made = classified(
        model, pictures, names, lambda i, image: paint_word(image, names[wrong[i]], seed + i)
    )
    return PaintedOver(made, torch.tensor(wrong))


def _numbers(pictures: Sequence[Picture], names: Sequence[str]) -> list[int]:
    return [names.index(class_of(picture)) for picture in pictures]
