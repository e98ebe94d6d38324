"""Checkpoints: the whole state of the learners in one file, replaced atomically."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vision_sae.dictionaries.training.step import Learner
from vision_sae.dictionaries.weights import not_finite
from vision_sae.errors import CorruptArtifactError, InvalidInputError
from vision_sae.files import replacing

_STEP = "step"


def _named(learners: Sequence[Learner]) -> dict[str, Tensor]:
    """{"NUMBER.NAME": tensor} of the state of all learners"""
    return {
        f"{number}.{name}": tensor
        for number, learner in enumerate(learners)
        for name, tensor in learner.tensors().items()
    }


def check_converging(learners: Sequence[Learner], step: int) -> None:
    """Raise `InvalidInputError` if the state after ``step`` steps holds NaN or infinity.

    Such a training has diverged, and its state is not saved.
    """
    for learner in learners:
        if wrong := not_finite(learner.tensors()):
            raise diverged(step, wrong)


def diverged(step: int, what: str) -> InvalidInputError:
    """The error for a training that has diverged by ``step``; ``what`` is the evidence."""
    return InvalidInputError(
        f"training diverged by step {step}: {what}. Lower the learning rate "
        "(train.learning_rate), or clip extreme vectors in the store; earlier checkpoints stay",
        field="learning_rate",
    )


def save_checkpoint(path: Path, learners: Sequence[Learner], step: int) -> None:
    """Write the state after ``step`` steps; readers see the whole old or the whole new file.

    The state of the sampler and of random draws follows from the step and the configured seeds.
    Raises `InvalidInputError` for a state with NaN or infinity; see `check_converging`.
    """
    check_converging(learners, step)
    state = {name: tensor.contiguous() for name, tensor in _named(learners).items()}
    with replacing(path) as temporary:
        save_file(state | {_STEP: torch.tensor(step)}, temporary)


def restore_checkpoint(path: Path, learners: Sequence[Learner]) -> int:
    """Restore the state that `save_checkpoint` wrote. Returns the steps done, 0 without a file.

    Raises `CorruptArtifactError` for a damaged file; the learners then stay unchanged.
    """
    if not path.is_file():
        return 0
    state = _named(learners)
    try:
        saved = load_file(path)
        step = int(saved[_STEP])
        kept = {name: saved[name].reshape(tensor.shape) for name, tensor in state.items()}
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise CorruptArtifactError(
            f"{path} is no whole checkpoint ({error}); delete it, and training starts anew"
        ) from error
    if wrong := not_finite(kept):
        raise CorruptArtifactError(f"{path}: {wrong}; delete it, and training starts anew")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(kept[name])
    for learner in learners:
        learner.refresh()
    return step
