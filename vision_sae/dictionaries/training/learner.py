"""What the training loop asks of an architecture."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.training.scaling import InputScaling


class StepReport(NamedTuple):
    """What one step saw: scalars on the learner's device, so that nobody waits for them."""

    error: Tensor
    """Mean squared distance of rows from their reconstructions; not finite in divergence."""
    fvu: Tensor
    """Fraction of the batch's variance left unexplained."""
    l0: Tensor
    """Mean active features per row."""
    dead: Tensor
    """Share of features that have not fired for ``dead_after`` rows."""


class Learner(Protocol):
    """One dictionary being trained on scaled site vectors z."""

    @property
    def decoder(self) -> Tensor:
        """The decoder rows (F, D), of unit norm, as they stand."""
        ...

    def step(self, z: Tensor, rate: float, *, decoder_gradient: Tensor | None = None) -> StepReport:
        """One optimiser step on z (N, D) with this learning rate.

        ``decoder_gradient`` (F, D) is that of penalties on the decoder, added to the loss's own.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The live state, all of it: a checkpoint holds these, and resuming copies into them."""
        ...

    def refresh(self) -> None:
        """Take notice of a state that was copied into `tensors`."""
        ...

    def dictionary(self, scaling: InputScaling) -> Dictionary:
        """The dictionary as it stands, on raw site vectors: mean and scale folded in."""
        ...


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step number ``step``: linear warm-up, constant, linear decay to zero."""
    rising = (step + 1) / (config.warmup * config.steps) if config.warmup else 1.0
    falling = (config.steps - step) / (config.decay * config.steps) if config.decay else 1.0
    return config.learning_rate * min(1.0, rising, falling)
