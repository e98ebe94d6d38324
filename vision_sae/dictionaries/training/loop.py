"""The training loop: one pass over a store drives one learner, or many in lockstep."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vision_sae.activations.store import ActivationStore
from vision_sae.config import TrainConfig
from vision_sae.dictionaries.kernels_cpu import current_lanes
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.stream import ShuffledRows
from vision_sae.dictionaries.training.architectures import new_learner
from vision_sae.dictionaries.training.checkpoint import restore_checkpoint, save_checkpoint
from vision_sae.dictionaries.training.distributed import join_group
from vision_sae.dictionaries.training.learner import Learner, StepReport, learning_rate
from vision_sae.dictionaries.training.penalties import (
    agreement_gradients,
    orthogonality_gradient,
)
from vision_sae.dictionaries.training.scaling import InputScaling, input_scaling
from vision_sae.errors import InvalidInputError

_SHARED = ("site", "steps", "batch_size", "shuffle_mb", "shuffle_seed", "checkpoint_steps")
"""What dictionaries trained in lockstep must have in common."""

Transform = Callable[[Tensor], Tensor]
"""Site vectors (N, D) -> what is trained on instead (N, D)."""


class Training(NamedTuple):
    """What a pass over the store made."""

    dictionaries: list[Dictionary]
    """In the order of the configurations."""
    scaling: InputScaling
    seconds: float
    """Spent in the loop, waiting and computing, since it was last resumed."""
    idle_share: float
    """Share of them in which the learners waited for the stream."""
    samples_per_second: float
    """Rows a second, counting each row once however many learners saw it."""


def _check_lockstep(configs: Sequence[TrainConfig]) -> None:
    for name in _SHARED:
        values = {getattr(config, name) for config in configs}
        if len(values) > 1:
            raise InvalidInputError(
                f"dictionaries trained on one pass must share {name}, not "
                f"{', '.join(map(str, sorted(values, key=str)))}; train them apart",
                field=name,
            )


def _decoder_gradients(
    learners: Sequence[Learner], configs: Sequence[TrainConfig], step: int
) -> list[Tensor | None]:
    """Gradients of the penalties on each decoder; None where a configuration has none."""
    gradients: list[Tensor | None] = [
        orthogonality_gradient(learner.decoder, config.orthogonality, (config.seed, step))
        if config.orthogonality
        else None
        for learner, config in zip(learners, configs, strict=True)
    ]
    agreement = configs[0].agreement
    if agreement and len(learners) > 1:
        mutual = agreement_gradients([x.decoder for x in learners], agreement, (step,))
        gradients = [m if g is None else g + m for g, m in zip(gradients, mutual, strict=True)]
    return gradients


def _step_all(
    learners: Sequence[Learner],
    z: Tensor,
    rates: Sequence[float],
    gradients: Sequence[Tensor | None],
    *,
    side_by_side: bool,
) -> list[StepReport]:
    """One step of every learner; ``side_by_side``, as many at a time as there are cores.

    A core to itself wastes nothing on waiting for others; what does not divide by the number of
    cores goes one by one, each on all of them.
    """

    def steps(first: int, last: int) -> list[StepReport]:
        return [
            learners[i].step(z, rates[i], decoder_gradient=gradients[i]) for i in range(first, last)
        ]

    lanes = current_lanes()
    apart = len(learners) - len(learners) % lanes.count if side_by_side else 0
    if apart < 2:
        return steps(0, len(learners))
    return [*chain.from_iterable(lanes.run(steps, apart)), *steps(apart, len(learners))]


def train_together(
    store: ActivationStore,
    configs: Sequence[TrainConfig],
    *,
    checkpoint: Path | None = None,
    progress: bool = True,
    transform: Transform | None = None,
    device: str = "cpu",
) -> Training:
    """Train a dictionary for each of ``configs`` on one pass over one site of ``store``.

    Each comes out as it would if trained alone, up to rounding (but for ``agreement``, which ties
    them together).
    With ``checkpoint``, the state is saved there every ``checkpoint_steps`` and an interrupted run
    goes on from it; the result has the same bits as an undisturbed run. Raises
    `InvalidInputError` when the configurations do not fit on one pass.
    """
    _check_lockstep(configs)
    config, group = configs[0], join_group(device)
    site = store.site(config.site)
    scaling = input_scaling(store, site, transform)
    scaling = scaling._replace(mean=scaling.mean.to(device))

    def prepare(vectors: Tensor) -> Tensor:
        moved = vectors.to(device).float()
        return scaling.apply(transform(moved) if transform else moved)

    def points(count: int) -> Tensor:
        """Spread evenly over the store."""
        stride = max(1, store.rows // count)
        rows = torch.cat([array.flatten(0, 1)[::stride] for array in store.arrays(site)])
        return prepare(rows[:count])

    learners = [
        new_learner(store.sites[site], c, points, group=group, device=device) for c in configs
    ]
    step = first = restore_checkpoint(checkpoint, learners) if checkpoint else 0
    stream = ShuffledRows(
        store, site, config.batch_size, shuffle_mb=config.shuffle_mb, seed=config.shuffle_seed
    )
    # Collective calls of several processes must come in one order: then one learner at a time.
    together = device == "cpu" and group.size == 1
    begin = time.perf_counter()
    idle = 0.0
    with tqdm(
        total=config.steps,
        initial=step,
        desc=f"train {site}",
        unit="step",
        disable=not (progress and group.leads),
    ) as bar:
        batches = stream.batches(step)
        while step < config.steps:
            waiting = time.perf_counter()
            vectors = next(batches)
            idle += time.perf_counter() - waiting
            z = prepare(vectors)
            gradients = _decoder_gradients(learners, configs, step)
            rates = [learning_rate(c, step) for c in configs]
            reports = _step_all(learners, z, rates, gradients, side_by_side=together)
            step += 1
            if bar.update():  # only when it is drawn, so that nothing waits for a device
                shown = [
                    f"EV {1 - float(r.fvu):.3f} L0 {float(r.l0):.1f} dead {float(r.dead):.1%}"
                    for r in reports
                ]
                bar.set_postfix_str(" | ".join(shown), refresh=False)
            if checkpoint and group.leads and step % config.checkpoint_steps == 0:
                save_checkpoint(checkpoint, learners, step)
        batches.close()
    seconds = time.perf_counter() - begin
    group.wait()
    on_cpu = scaling._replace(mean=scaling.mean.cpu())
    return Training(
        [learner.dictionary(on_cpu) for learner in learners],
        on_cpu,
        seconds,
        idle / seconds if seconds else 0.0,
        (step - first) * config.batch_size / seconds if seconds else 0.0,
    )


def train(
    store: ActivationStore,
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    progress: bool = True,
    device: str = "cpu",
) -> Dictionary:
    """Train one dictionary on one site of ``store``; see `train_together`."""
    made = train_together(store, [config], checkpoint=checkpoint, progress=progress, device=device)
    return made.dictionaries[0]
