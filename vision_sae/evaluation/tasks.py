"""Classification tasks whose accuracy can be watched while a model is edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vision_sae.errors import InvalidInputError
from vision_sae.models.protocol import ContrastiveModel, Model

_BATCH = 32


@dataclass(frozen=True)
class Classified:
    """Pictures made ready for a model, and the class of each."""

    pixels: Tensor
    """Model input (N, 3, H, W)."""
    classes: Tensor
    """Number of each picture's class (N), int64."""
    names: Sequence[str]
    """Of the classes."""

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.classes) or not len(self.pixels):
            raise InvalidInputError(
                f"{len(self.pixels)} pictures with {len(self.classes)} classes; every picture "
                "needs one",
                field="images",
            )


class Task(Protocol):
    """A classification, by whatever means."""

    def predict(self, model: Model, pixels: Tensor) -> Tensor:
        """The class of each picture (N), as the model stands."""
        ...


def embeddings(model: Model, pixels: Tensor) -> Tensor:
    """The model's pooled embeddings of pictures (N, 3, H, W), in batches: (N, E), float32."""
    with torch.inference_mode():
        return torch.cat([model.forward(part).embedding.cpu() for part in pixels.split(_BATCH)])


def accuracy(task: Task, model: Model, pictures: Classified) -> float:
    """The share of pictures that get their class."""
    return float((task.predict(model, pictures.pixels) == pictures.classes).float().mean())


class ZeroShot:
    """The class whose name lies nearest to the picture, for models with texts."""

    def __init__(self, model: ContrastiveModel, names: Sequence[str], template: str = "{}") -> None:
        """``template`` puts a name into words, as in ``a picture of {}``."""
        self._names = model.embed_texts([template.format(name) for name in names])

    def predict(self, model: Model, pixels: Tensor) -> Tensor:
        """The nearest class of each picture (N)."""
        return (embeddings(model, pixels) @ self._names.T).argmax(1)


class LinearProbe:
    """Logistic regression on the model's embeddings, fitted once, on the model as it was then."""

    def __init__(self, model: Model, pictures: Classified, *, inverse_penalty: float = 1.0) -> None:
        self._probe = LogisticRegression(C=inverse_penalty, max_iter=2000)
        self._probe.fit(embeddings(model, pictures.pixels).numpy(), pictures.classes.numpy())

    def predict(self, model: Model, pixels: Tensor) -> Tensor:
        """The likeliest class of each picture (N)."""
        found = self._probe.predict(embeddings(model, pixels).numpy())
        return torch.from_numpy(np.asarray(found, dtype=np.int64))
