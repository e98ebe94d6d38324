"""Training a TopK SAE with AuxK on an ActivationStore.

The gradients are written out by hand, because they are as sparse as the codes: nothing of shape
(batch, F) but the encoder's pre-activations, and nothing of shape (batch, k, D), is ever made.
Training runs on z = (x - mean) * scale with unit mean square norm; both are folded into the saved
weights. Sources: Gao et al. 2024 (TopK, AuxK, initialisation, unit-norm decoder with its gradient
projected).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from vision_sae.activations.store import ActivationStore
from vision_sae.config import TrainConfig
from vision_sae.dictionaries.kernels import (
    bag,
    sampled_dot,
    top_k,
    transpose,
    transposed_bag,
)
from vision_sae.dictionaries.stream import ShuffledRows
from vision_sae.dictionaries.topk import TopKSae
from vision_sae.errors import InvalidInputError
from vision_sae.files import replacing
from vision_sae.models.precision import fastest_dtype

_STATISTICS_ROWS = 262_144
"""Rows from which mean and scale are estimated."""


class InputScaling(NamedTuple):
    """``z = (x - mean) * scale`` has zero mean and unit mean square norm."""

    mean: Tensor
    """Mean per dimension (D)."""
    scale: float
    mean_to_std: float
    """|mean| over the root mean square of |x - mean|: features die in proportion to it."""


def input_scaling(store: ActivationStore, site: str) -> InputScaling:
    """Estimate the scaling from rows spread evenly over the store."""
    stride = max(1, store.rows // _STATISTICS_ROWS)
    total, count = torch.zeros(store.sites[site], dtype=torch.float64), 0
    square = torch.zeros((), dtype=torch.float64)
    for array in store.arrays(site):
        rows = array.flatten(0, 1)[::stride].double()
        total, count = total + rows.sum(0), count + len(rows)
        square = square + rows.square().sum()
    mean = total / count
    mean_square = square / count - mean.square().sum()
    if not mean_square > 0:
        raise InvalidInputError(
            f"all vectors of {site} are equal; there is nothing to train on", field="site"
        )
    spread = float(mean_square.sqrt())
    return InputScaling(mean.float(), 1 / spread, float(mean.norm()) / spread)


class StepReport(NamedTuple):
    """What one step saw."""

    fvu: float
    """Fraction of the batch's variance left unexplained."""
    l0: float
    """Mean active features per row."""
    dead: float
    """Share of features that have not fired for ``dead_after`` rows."""


@dataclass
class _State:
    """Everything that a step reads and writes: weights, Adam's moments, when features fired."""

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    silent: Tensor
    """Rows since each feature last fired (F), int64."""


class TopKTrainer:
    """One TopK SAE being trained: call `step` with batches of site vectors."""

    def __init__(self, scaling: InputScaling, width: int, config: TrainConfig) -> None:
        dim = len(scaling.mean)
        if config.k > width:
            raise InvalidInputError(
                f"k = {config.k} is more than the {width} features; lower --k or raise --expansion",
                field="k",
            )
        self.scaling, self.config = scaling, config
        generator = torch.Generator().manual_seed(config.seed)
        directions = F.normalize(torch.randn(width, dim, generator=generator), dim=1)
        self.state = _State(
            w_enc=directions.clone(),
            b_enc=torch.zeros(width),
            w_dec=directions,
            b_dec=torch.zeros(dim),
            silent=torch.zeros(width, dtype=torch.int64),
        )
        self._parameters = {
            name: getattr(self.state, name) for name in ("w_enc", "b_enc", "w_dec", "b_dec")
        }
        self._optimizer = torch.optim.Adam(
            self._parameters.values(), lr=config.learning_rate, betas=(0.9, 0.999), fused=True
        )
        self.steps_done = 0
        self._encoder_dtype = fastest_dtype()

    def _learning_rate(self) -> float:
        """Linear warm-up, constant, linear decay to zero."""
        steps, done = self.config.steps, self.steps_done
        rising = (done + 1) / (self.config.warmup * steps) if self.config.warmup else 1.0
        falling = (steps - done) / (self.config.decay * steps) if self.config.decay else 1.0
        return self.config.learning_rate * min(1.0, rising, falling)

    def _encode(self, centred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(indices, values, dense pre-activations) of z - b_dec (N, D).

        The dense product runs in the machine's fastest precision; it only chooses the features.
        Their values are computed again in float32 where that precision is lower.
        """
        s, dtype = self.state, self._encoder_dtype
        pre = F.linear(centred.to(dtype), s.w_enc.to(dtype), s.b_enc.to(dtype))
        indices, values = top_k(pre, self.config.k)
        if dtype != torch.float32:
            values = sampled_dot(indices, centred, s.w_enc) + s.b_enc[indices]
        return indices, values.relu(), pre

    @torch.no_grad()
    def step(self, vectors: Tensor) -> StepReport:
        """One optimiser step on site vectors (N, D)."""
        s, n = self.state, len(vectors)
        centred = (vectors - self.scaling.mean) * self.scaling.scale - s.b_dec
        indices, values, pre = self._encode(centred)
        error = bag(indices, values, s.w_dec) - centred

        # L = mean_n |error_n|^2
        g_output = error * (2 / n)
        g_values = sampled_dot(indices, g_output, s.w_dec) * (values > 0)
        by_feature = transpose(indices, len(s.w_dec))
        gradients = {
            "w_dec": transposed_bag(by_feature, values, g_output),
            "w_enc": transposed_bag(by_feature, g_values, centred),
            "b_enc": torch.zeros_like(s.b_enc).index_add_(
                0, indices.reshape(-1), g_values.reshape(-1)
            ),
        }
        dead = s.silent > self.config.dead_after
        if dead.any() and self.config.aux_coefficient > 0:
            self._add_aux_gradients(gradients, pre, centred, error, dead)
        # b_dec is added to the output and subtracted from the encoder's input.
        gradients["b_dec"] = g_output.sum(0) - gradients["b_enc"] @ s.w_enc
        self._update(gradients)

        s.silent += n
        s.silent[indices[values > 0]] = 0
        return StepReport(
            fvu=float(error.square().sum() / (centred - centred.mean(0)).square().sum()),
            l0=float((values > 0).sum() / n),
            dead=float(dead.float().mean()),
        )

    def _add_aux_gradients(
        self,
        gradients: dict[str, Tensor],
        pre: Tensor,
        centred: Tensor,
        error: Tensor,
        dead: Tensor,
    ) -> None:
        """AuxK: the strongest dead features reconstruct the (constant) error x - x_hat.

        No b_dec is added again, and no gradient reaches the live features through the error.
        """
        s, n = self.state, len(centred)
        numbers = dead.nonzero()[:, 0]
        k_aux = centred.shape[1] // 2
        dead_pre = pre[:, numbers].float()
        if len(numbers) > k_aux:
            chosen = torch.topk(dead_pre, k_aux, dim=1).indices
            dead_pre = torch.zeros_like(dead_pre).scatter_(1, chosen, dead_pre.gather(1, chosen))
        activations = dead_pre.relu_()
        residual = activations @ s.w_dec[numbers] + error  # aux reconstruction - (x - x_hat)
        coefficient = self.config.aux_coefficient * min(1.0, len(numbers) / k_aux)
        g_residual = residual * (2 * coefficient / n)
        g_activations = (g_residual @ s.w_dec[numbers].T) * (activations > 0)
        gradients["w_dec"].index_add_(0, numbers, activations.T @ g_residual)
        gradients["w_enc"].index_add_(0, numbers, g_activations.T @ centred)
        gradients["b_enc"].index_add_(0, numbers, g_activations.sum(0))

    def _update(self, gradients: dict[str, Tensor]) -> None:
        """Adam; decoder rows keep unit norm, and their gradient loses its radial part first."""
        s = self.state
        radial = (gradients["w_dec"] * s.w_dec).sum(1, keepdim=True)
        gradients["w_dec"].addcmul_(radial, s.w_dec, value=-1)
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        self._optimizer.param_groups[0]["lr"] = self._learning_rate()
        self._optimizer.step()
        s.w_dec.div_(s.w_dec.norm(dim=1, keepdim=True))
        self.steps_done += 1

    def dictionary(self) -> TopKSae:
        """The SAE as it stands, on raw site vectors: mean and scale folded in."""
        s = self.state
        return TopKSae(
            w_enc=s.w_enc.clone(),
            b_enc=s.b_enc / self.scaling.scale,
            w_dec=s.w_dec.clone(),
            b_dec=s.b_dec / self.scaling.scale + self.scaling.mean,
            k=self.config.k,
        )

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically; `restore` goes on from it to the same bits."""
        tensors = dict(self._parameters) | {"silent": self.state.silent}
        for name, parameter in self._parameters.items():
            moments = self._optimizer.state[parameter]
            tensors[f"{name}.exp_avg"] = moments["exp_avg"]
            tensors[f"{name}.exp_avg_sq"] = moments["exp_avg_sq"]
        tensors["steps_done"] = torch.tensor(self.steps_done)
        with replacing(path) as temporary:
            save_file(tensors, temporary)

    def restore(self, path: Path) -> None:
        """Take up the state that `save` wrote."""
        tensors = load_file(path)
        self.steps_done = int(tensors["steps_done"])
        self.state.silent.copy_(tensors["silent"])
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(self.steps_done)),
                "exp_avg": tensors[f"{name}.exp_avg"],
                "exp_avg_sq": tensors[f"{name}.exp_avg_sq"],
            }


def train(
    store: ActivationStore,
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> TopKSae:
    """Train on one site of ``store``; returns the dictionary for raw site vectors.

    With ``checkpoint``, the state is saved there every ``checkpoint_steps`` and an interrupted
    run goes on from it; the result has the same bits as an undisturbed run.
    """
    site = store.site(config.site)
    scaling = input_scaling(store, site)
    trainer = TopKTrainer(scaling, config.expansion * store.sites[site], config)
    if checkpoint and checkpoint.is_file():
        trainer.restore(checkpoint)
    stream = ShuffledRows(
        store, site, config.batch_size, shuffle_mb=config.shuffle_mb, seed=config.seed
    )
    bar = tqdm(
        total=config.steps,
        initial=trainer.steps_done,
        desc=f"train {site}",
        unit="step",
        disable=not progress,
    )
    with bar:
        for vectors in stream.batches(trainer.steps_done):
            if trainer.steps_done >= config.steps:
                break
            report = trainer.step(vectors)
            bar.set_postfix_str(
                f"EV {1 - report.fvu:.3f} L0 {report.l0:.1f} dead {report.dead:.1%}",
                refresh=False,
            )
            bar.update()
            if checkpoint and trainer.steps_done % config.checkpoint_steps == 0:
                trainer.save(checkpoint)
    return trainer.dictionary()
