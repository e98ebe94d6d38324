"""Classification tasks, to measure a model's accuracy before and after edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vision_sae.errors import InvalidInputError
from vision_sae.models.protocol import ContrastiveModel, Model

_BATCH = 32


@dataclass(frozen=True)
class Classified:
    """Pictures as model inputs, with the class of each."""

    pixels: Float[Tensor, "pictures channels H W"]
    """Model inputs."""
    classes: Int64[Tensor, " classes"]
    """Number of each picture's class."""
    names: Sequence[str]
    """Names of the classes."""

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.classes) or not len(self.pixels):
            raise InvalidInputError(
                f"{len(self.pixels)} pictures with {len(self.classes)} classes; every picture "
                "needs one",
                field="images",
            )


class Task(Protocol):
    """A classifier that runs a model."""

    def predict(self, model: Model, pixels: Float[Tensor, "N channels H W"]) -> Int64[Tensor, " N"]:
        """The class of each picture, by the model in its present state."""
        ...


def embeddings(model: Model, pixels: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N E"]:
    """The model's pooled embeddings of pictures, computed in batches."""
    with torch.inference_mode():
        return torch.cat([model.forward(part).embedding for part in pixels.split(_BATCH)]).cpu()


def accuracy(task: Task, model: Model, pictures: Classified) -> float:
    """The share of pictures that are classified right."""
    return float((task.predict(model, pictures.pixels) == pictures.classes).float().mean())


class ZeroShot:
    """The class whose name lies nearest to the picture, for models with texts."""

    def __init__(self, model: ContrastiveModel, names: Sequence[str], template: str = "{}") -> None:
        """``template`` makes a text of a class name, as in ``a picture of {}``."""
        self._names = model.embed_texts([template.format(name) for name in names]).cpu()

    def predict(self, model: Model, pixels: Float[Tensor, "N channels H W"]) -> Int64[Tensor, " N"]:
        """The nearest class of each picture."""
        return (embeddings(model, pixels) @ self._names.T).argmax(1)


class LinearProbe:
    """Logistic regression on the embeddings of the model as it is when the probe is created."""

    def __init__(self, model: Model, pictures: Classified, *, inverse_penalty: float = 1.0) -> None:
        self._probe = LogisticRegression(C=inverse_penalty, max_iter=2000)
        self._probe.fit(embeddings(model, pictures.pixels).numpy(), pictures.classes.numpy())

    def predict(self, model: Model, pixels: Float[Tensor, "N channels H W"]) -> Int64[Tensor, " N"]:
        """The likeliest class of each picture."""
        classes = self._probe.predict(embeddings(model, pixels).numpy())
        return torch.from_numpy(np.asarray(classes, dtype=np.int64))
