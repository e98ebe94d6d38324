"""The types of a training step: the interface of a learner, and the report of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self, TypeAlias

from jaxtyping import Float
from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.scaling import InputScaling

Points: TypeAlias = Callable[[int], Tensor]
"""count -> scaled site vectors (count, D), spread evenly over the store."""


class StepReport(NamedTuple):
    """Measures of one step. The scalars stay on the learner's device: no step waits for them."""

    error: Float[Tensor, ""]
    """Mean squared distance of rows from their reconstructions; not finite after divergence."""
    fvu: Float[Tensor, ""]
    """Fraction of the batch's variance that is unexplained."""
    l0: Float[Tensor, ""]
    """Mean active features per row."""
    dead: Float[Tensor, ""]
    """Share of features that have not fired for ``dead_after`` rows."""


class Learner(Protocol):
    """One dictionary in training on scaled site vectors z."""

    @classmethod
    def begin(
        cls, dim: int, config: TrainConfig, *, points: Points, group: Group, device: str
    ) -> Self:
        """An untrained learner of site vectors of length ``dim``.

        Architectures that start from data take it from ``points``. Raises `InvalidInputError` for
        settings that contradict each other.
        """
        ...

    @property
    def decoder(self) -> Float[Tensor, "F D"]:
        """The current decoder rows, of unit norm."""
        ...

    def step(
        self,
        z: Float[Tensor, "N D"],
        rate: float,
        *,
        decoder_gradient: Float[Tensor, "F D"] | None = None,
    ) -> StepReport:
        """One optimiser step on z with the learning rate ``rate``.

        The step adds ``decoder_gradient``, the gradient of penalties on the decoder, to the
        gradient of its own loss.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, by name. Checkpoints hold the tensors; resuming copies into them."""
        ...

    def refresh(self) -> None:
        """Update what the learner derives from its state, after a copy into `tensors`."""
        ...

    def dictionary(self, scaling: InputScaling) -> Dictionary:
        """The current dictionary for raw site vectors, with mean and scale folded in."""
        ...


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step number ``step``: linear warm-up, constant, linear decay to zero."""
    rising = (step + 1) / (config.warmup * config.steps) if config.warmup else 1.0
    falling = (config.steps - step) / (config.decay * config.steps) if config.decay else 1.0
    return config.learning_rate * min(1.0, rising, falling)
