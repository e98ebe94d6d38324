"""Checkpoints: the whole state of the learners in one file, replaced atomically."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vision_sae.dictionaries.training.learner import Learner
from vision_sae.errors import CorruptArtifactError
from vision_sae.files import replacing

_STEP = "step"


def _named(learners: Sequence[Learner]) -> dict[str, Tensor]:
    """{number of the learner . name: its live tensor}"""
    return {
        f"{number}.{name}": tensor
        for number, learner in enumerate(learners)
        for name, tensor in learner.tensors().items()
    }


def save_checkpoint(path: Path, learners: Sequence[Learner], step: int) -> None:
    """Write the state after ``step`` steps; a reader finds the old file or the new, never a part.

    The sampler and every random draw follow from the step and the seeds of the configuration.
    """
    state = {name: tensor.contiguous() for name, tensor in _named(learners).items()}
    with replacing(path) as temporary:
        save_file(state | {_STEP: torch.tensor(step)}, temporary)


def restore_checkpoint(path: Path, learners: Sequence[Learner]) -> int:
    """Take up the state that `save_checkpoint` wrote; returns the steps done, 0 without a file.

    Raises `CorruptArtifactError`, and takes up nothing, for a file that is damaged.
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
            f"{path} is no whole checkpoint ({error}); delete it, and the training begins anew"
        ) from error
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(kept[name])
    for learner in learners:
        learner.refresh()
    return step
