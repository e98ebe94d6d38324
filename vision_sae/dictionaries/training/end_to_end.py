"""End-to-end training (Braun et al. 2024): the loss is measured at the model's output.

The reconstruction replaces the site vectors of the patches, and the model continues from there. The
loss is the distance of the output from the plain output, plus a share of the reconstruction error,
which keeps the features close to the site vectors:

    ``mean_b distance(output_b, output_b with x_hat) + error_weight * mean_n |z_n - z_hat_n|^2``

The distance is that of `dictionaries.downstream.output_distance`: KL divergence for a model with
logits, cosine distance of the embedding for one without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.architectures import ARCHITECTURES
from vision_sae.dictionaries.downstream import output_distance
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.checkpoint import (
    check_converging,
    diverged,
    restore_checkpoint,
    save_checkpoint,
)
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.sparse import SparseLearner
from vision_sae.dictionaries.training.step import StepReport, learning_rate
from vision_sae.errors import InvalidInputError
from vision_sae.models.hooks import at_patches
from vision_sae.models.protocol import Model


def k_sparse(config: TrainConfig) -> type[SparseLearner]:
    """The learner of a k-sparse architecture, which accepts gradients from the model's output.

    Raises `InvalidInputError` for another architecture.
    """
    learner = ARCHITECTURES[config.architecture].learner
    if learner is None or not issubclass(learner, SparseLearner):
        raise InvalidInputError(
            f"end-to-end training needs a k-sparse architecture, such as topk, not "
            f"{config.architecture}",
            field="end_to_end",
        )
    return learner


def end_to_end_step(
    model: Model,
    site: str,
    images: Float[Tensor, "B C H W"],
    learner: SparseLearner,
    scaling: InputScaling,
    rate: float,
    *,
    error_weight: float,
) -> tuple[StepReport, float]:
    """One optimiser step on model inputs, with all of it on the model's device.

    Returns (the report, the mean distance of the outputs before the step).
    """
    special = model.grid.special
    with torch.no_grad(), model.capture([site]) as captured:
        plain = model.forward(images)
    vectors = captured[site][:, special:].flatten(0, 1).float()
    z = scaling.apply(vectors)
    forward = learner.forward(z)
    x_hat = ((forward.error + z) / scaling.scale + scaling.mean).requires_grad_()
    with torch.enable_grad(), model.replace(site, at_patches(special, lambda _: x_hat)):
        distance = output_distance(plain, model.forward(images)).mean()
        (gradient,) = torch.autograd.grad(distance, x_hat)
    pull = forward.error * (2 * error_weight / len(z))
    output_gradients = (gradient.float() / scaling.scale + pull)[None]
    report = learner.backward(learner.gradients_at(forward, output_gradients), rate)
    return report, float(distance.detach())


def train_end_to_end(
    model: Model,
    site: str,
    pictures: Sequence[Tensor],
    start: Sae,
    scaling: InputScaling,
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Sae:
    """Train ``start`` further, end to end, on preprocessed pictures (3, H, W) each.

    ``config.end_to_end`` holds the steps, the pictures per step and the weight of the
    reconstruction error. Training resumes from ``checkpoint`` to the same bits. Raises
    `InvalidInputError` without pictures, for an architecture that is not k-sparse, and when
    training diverges.
    """
    if not pictures:
        raise InvalidInputError(
            "there are no pictures to train end to end on; name a folder with some", field="images"
        )
    settings = config.end_to_end
    schedule = config.model_copy(update={"steps": settings.steps})
    here = str(model.device)
    scaling = scaling._replace(mean=scaling.mean.to(here))
    learner = k_sparse(config).continuing(start.to(model.device), config, scaling, device=here)
    step = restore_checkpoint(checkpoint, [learner]) if checkpoint else 0
    size = min(settings.images, len(pictures))
    with tqdm(
        total=settings.steps, initial=step, desc="end to end", unit="step", disable=not progress
    ) as bar:
        while step < settings.steps:
            generator = torch.Generator().manual_seed(config.shuffle_seed * 1_000_003 + step)
            chosen = torch.randperm(len(pictures), generator=generator)[:size].tolist()
            images = torch.stack([pictures[i] for i in chosen]).to(model.device)
            report, distance = end_to_end_step(
                model,
                site,
                images,
                learner,
                scaling,
                learning_rate(schedule, step),
                error_weight=settings.error_weight,
            )
            step += 1
            if not math.isfinite(distance):
                raise diverged(step, f"the distance of the model's outputs is {distance}")
            bar.set_postfix_str(
                f"distance {distance:.4f} EV {1 - float(report.fvu):.3f}", refresh=False
            )
            bar.update()
            if checkpoint and step % config.checkpoint_steps == 0:
                save_checkpoint(checkpoint, [learner], step)
    check_converging([learner], step)
    return learner.dictionary(scaling._replace(mean=scaling.mean.cpu()))
