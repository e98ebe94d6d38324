"""The learner of each architecture."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.learner import Learner
from vision_sae.dictionaries.training.sparse import SparseLearner
from vision_sae.errors import InvalidInputError
from vision_sae.memory import check_available

_COPIES = 6
"""Encoder and decoder, and Adam's two moments of each."""


def new_learner(
    dim: int,
    config: TrainConfig,
    points: Callable[[int], Tensor],
    *,
    group: Group,
    device: str = "cpu",
) -> Learner:
    """An untrained learner of site vectors of length ``dim``, as ``config`` describes it.

    ``points(count)`` gives scaled site vectors (count, D), for architectures that start from data.
    Raises `InvalidInputError` for an architecture that is not trained by steps, and for one that
    this machine could not hold.
    """
    width = config.expansion * dim
    check_available(
        _COPIES * width * dim * 4, f"a dictionary of {width} features", field="expansion"
    )
    match config.architecture:
        case "topk" | "batch_topk" | "matryoshka":
            return SparseLearner(dim, config, group=group, device=device)
        case "relu" | "jumprelu" | "gated":
            from vision_sae.dictionaries.training import dense

            learners: dict[str, Callable[..., Learner]] = {
                "relu": dense.ReluLearner,
                "jumprelu": dense.JumpReluLearner,
                "gated": dense.GatedLearner,
            }
            return learners[config.architecture](dim, config, group=group, device=device)
        case "archetypal":
            from vision_sae.dictionaries.training.archetypal import ArchetypalLearner

            return ArchetypalLearner(
                dim, config, points=points(config.archetypes), group=group, device=device
            )
    raise InvalidInputError(
        f"{config.architecture} is not trained by steps; see dictionaries.factorise",
        field="architecture",
    )
