"""The training loop: one pass over a store drives one learner, or many in lockstep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vision_sae.activations.store import ActivationStore
from vision_sae.config import TrainConfig
from vision_sae.dictionaries.architectures import ARCHITECTURES, checked
from vision_sae.dictionaries.kernels_cpu import current_lanes
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.stream import ShuffledRows
from vision_sae.dictionaries.training.checkpoint import (
    check_converging,
    diverged,
    restore_checkpoint,
    save_checkpoint,
)
from vision_sae.dictionaries.training.distributed import Group, join_group, own_device
from vision_sae.dictionaries.training.feeding import on_device
from vision_sae.dictionaries.training.penalties import (
    agreement_gradients,
    orthogonality_gradient,
)
from vision_sae.dictionaries.training.scaling import InputScaling, input_scaling
from vision_sae.dictionaries.training.step import Learner, Points, StepReport, learning_rate
from vision_sae.errors import InvalidInputError
from vision_sae.memory import check_available

_SHARED = ("site", "steps", "batch_size", "shuffle_mb", "shuffle_seed", "checkpoint_steps")
"""Settings that dictionaries trained in lockstep must share."""

_COPIES = 6
"""Tensors of shape (F, D): encoder and decoder, and Adam's two moments of each."""

_STRETCH = 8
"""The most steps by which one learner is ahead of another."""

Transform = Callable[[Tensor], Tensor]
"""Site vectors (N, D) -> the vectors (N, D) to train on."""


class Training(NamedTuple):
    """The result of a pass over the store."""

    dictionaries: list[Dictionary]
    """The dictionaries, in the order of the configurations."""
    scaling: InputScaling
    seconds: float
    """Time in the loop since the last resumption, waiting included."""
    idle_share: float
    """Share of the time in which the learners waited for the stream."""
    samples_per_second: float
    """Rows per second; a row counts once, however many learners train on it."""


def new_learner(
    dim: int, config: TrainConfig, points: Points, *, group: Group, device: str = "cpu"
) -> Learner:
    """An untrained learner for site vectors of length ``dim``, with the settings of ``config``.

    Architectures that start from data take it from ``points``. Raises `InvalidInputError` for an
    architecture that is not trained by steps, for wrong settings, and for a dictionary too large
    for this machine's memory.
    """
    config = checked(config)
    width = config.expansion * dim
    check_available(
        _COPIES * width * dim * 4, f"a dictionary of {width} features", field="expansion"
    )
    learner = ARCHITECTURES[config.architecture].learner
    if learner is None:
        raise InvalidInputError(
            f"{config.architecture} is not trained by steps; see dictionaries.factorise",
            field="architecture",
        )
    return learner.begin(dim, config, points=points, group=group, device=device)


def _check_lockstep(configs: Sequence[TrainConfig]) -> None:
    for name in _SHARED:
        values = {getattr(config, name) for config in configs}
        if len(values) > 1:
            raise InvalidInputError(
                f"dictionaries trained on one pass must share {name}, not "
                f"{', '.join(map(str, sorted(values, key=str)))}; train them apart",
                field=name,
            )


def check_errors(reports: Sequence[StepReport], configs: Sequence[TrainConfig], step: int) -> None:
    """Raise `InvalidInputError` if the reconstruction error of the last step is not finite.

    ``step`` is the number of steps done, for the message.
    """
    for report, config in zip(reports, configs, strict=True):
        if not math.isfinite(error := float(report.error)):
            raise diverged(
                step, f"the error of {config.architecture} with seed {config.seed} is {error}"
            )


class _Lockstep:
    """Learners that train on the same batches, a few steps at a time.

    With at least as many learners as cores, each core repeatedly takes the learner that is furthest
    behind, and advances it by one step; no core waits for another. A fast learner may be ahead of a
    slow learner within a stretch of steps, but not at its end. With fewer learners than cores, the
    learners take turns, each on all cores.
    """

    def __init__(
        self, learners: Sequence[Learner], configs: Sequence[TrainConfig], *, threads: bool
    ) -> None:
        """``threads`` says whether several learners may step at the same time."""
        self._learners, self._configs = learners, configs
        self._tied = configs[0].agreement > 0 and len(learners) > 1
        lanes = current_lanes()
        self._lanes = lanes if threads and 1 < lanes.count <= len(learners) else None
        self.stretch = _STRETCH if self._lanes and not self._tied else 1
        """Steps in one call of `advance`."""

    def advance(self, first: int, batches: Sequence[Tensor]) -> list[StepReport]:
        """One step per batch for each learner, from step ``first`` on; reports of the last step."""
        agreement = self._agreement(first)
        done = [0] * len(self._learners)
        free, lock = set(range(len(done))), Lock()
        reports: dict[int, StepReport] = {}

        def work(_first: int, _last: int) -> None:
            while True:
                with lock:
                    behind = [i for i in free if done[i] < len(batches)]
                    if not behind:
                        return
                    chosen = min(behind, key=lambda i: (done[i], i))
                    free.remove(chosen)
                number = done[chosen]
                gradient = self._decoder_gradient(chosen, first + number, agreement[chosen])
                reports[chosen] = self._learners[chosen].step(
                    batches[number],
                    learning_rate(self._configs[chosen], first + number),
                    decoder_gradient=gradient,
                )
                with lock:
                    done[chosen] += 1
                    free.add(chosen)

        if self._lanes:
            self._lanes.run(work, self._lanes.count)
        else:
            work(0, 1)
        return [reports[i] for i in range(len(done))]

    def _agreement(self, step: int) -> Sequence[Tensor | None]:
        """Gradients of the penalty that makes the decoders agree; None without the penalty."""
        if not self._tied:
            return [None] * len(self._learners)
        decoders = [learner.decoder for learner in self._learners]
        return agreement_gradients(decoders, self._configs[0].agreement, (step,))

    def _decoder_gradient(self, index: int, step: int, agreement: Tensor | None) -> Tensor | None:
        """Gradient of all penalties on one decoder; None without penalties."""
        config = self._configs[index]
        if not config.orthogonality:
            return agreement
        decoder = self._learners[index].decoder
        gradient = orthogonality_gradient(decoder, config.orthogonality, (config.seed, step))
        return gradient if agreement is None else gradient + agreement


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

    Each dictionary equals, up to rounding, the dictionary of a training alone; with ``agreement``
    the dictionaries influence each other. The state is saved at ``checkpoint`` every
    ``checkpoint_steps``; an interrupted run resumes from there, and ends with the same bits as a
    run without interruption. On a GPU (not yet run there) the state resumes exactly, and the next
    steps may round otherwise. Under torchrun ``cuda`` is the GPU of the process' local rank.
    Raises `InvalidInputError` if the configurations cannot share a pass.
    """
    _check_lockstep(configs)
    config, group, device = configs[0], join_group(), own_device(device)
    site = store.site(config.site)
    scaling = input_scaling(store, site, transform)
    scaling = scaling._replace(mean=scaling.mean.to(device))

    def prepare(vectors: Tensor) -> Tensor:
        moved = vectors.to(device).float()
        return scaling.apply(transform(moved) if transform else moved)

    def points(count: int) -> Tensor:
        """Scaled site vectors, spread evenly over the store."""
        stride = max(1, store.rows // count)
        rows = torch.cat([array.flatten(0, 1)[::stride] for array in store.arrays(site)])
        return prepare(store.checked(site, rows[:count]))

    learners = [
        new_learner(store.sites[site], c, points, group=group, device=device) for c in configs
    ]
    step = first = restore_checkpoint(checkpoint, learners) if checkpoint else 0
    stream = ShuffledRows(
        store, site, config.batch_size, shuffle_mb=config.shuffle_mb, seed=config.shuffle_seed
    )
    # Collective calls need the same order in all processes, so learners then step one at a time.
    lockstep = _Lockstep(learners, configs, threads=device == "cpu" and group.size == 1)
    begin = time.perf_counter()
    idle = 0.0
    with tqdm(
        total=config.steps,
        initial=step,
        desc=f"train {site}",
        unit="step",
        disable=not (progress and group.leads),
    ) as bar:
        batches = on_device(stream.batches(step), device)
        while step < config.steps:
            to_save = config.checkpoint_steps - step % config.checkpoint_steps
            count = min(lockstep.stretch, to_save, config.steps - step)
            waiting = time.perf_counter()
            vectors = list(islice(batches, count))
            idle += time.perf_counter() - waiting
            reports = lockstep.advance(step, [prepare(v) for v in vectors])
            step += count
            if device == "cpu":  # on another device the check would wait for the device
                check_errors(reports, configs, step)
            # `update` is true only when the bar is drawn. Reading the reports waits for the device.
            if bar.update(count):
                shown = [
                    f"EV {1 - float(r.fvu):.3f} L0 {float(r.l0):.1f} dead {float(r.dead):.1%}"
                    for r in reports
                ]
                bar.set_postfix_str(" | ".join(shown), refresh=False)
            if checkpoint and group.leads and step % config.checkpoint_steps == 0:
                save_checkpoint(checkpoint, learners, step)
        batches.close()
    check_converging(learners, step)
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
    training = train_together(
        store, [config], checkpoint=checkpoint, progress=progress, device=device
    )
    return training.dictionaries[0]
