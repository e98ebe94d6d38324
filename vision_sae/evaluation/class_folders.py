"""Pictures in one folder a class, made ready for a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.painted_words import paint_word, wrong_classes
from vision_sae.evaluation.tasks import Classified
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture


def class_of(picture: Picture) -> str:
    """The folder that a picture lies in, below the folder of all pictures."""
    return picture.id.rpartition("/")[0].rpartition("/")[2]


def classified(
    model: Model,
    pictures: Sequence[Picture],
    change: Callable[[int, Image.Image], Image.Image] = lambda _number, image: image,
) -> Classified:
    """Decode pictures for ``model``; their classes are their folders, ``dog/1.jpg`` a dog.

    ``change`` takes the number and the pixels of each. Raises `InvalidInputError` unless there are
    two classes at least.
    """
    names = sorted({class_of(picture) for picture in pictures})
    if len(names) < 2:
        raise InvalidInputError(
            "the pictures are of fewer than two classes; put those of each class into a folder of "
            "its own, named as the class",
            field="images",
        )
    pixels = [model.preprocess(change(i, p.load())) for i, p in enumerate(pictures)]
    classes = torch.tensor([names.index(class_of(picture)) for picture in pictures])
    return Classified(torch.stack(pixels), classes, names)


def painted_over(model: Model, pictures: Sequence[Picture], seed: int) -> Classified:
    """The same with the name of a wrong class painted on every picture."""
    plain = classified(model, pictures)
    wrong = wrong_classes(plain.classes.tolist(), len(plain.names), seed)
    return classified(
        model, pictures, lambda i, image: paint_word(image, plain.names[wrong[i]], seed + i)
    )
