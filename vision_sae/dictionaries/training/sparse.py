"""Training k-sparse autoencoders: TopK, BatchTopK and Matryoshka, with AuxK.

The gradients are written out by hand, because they are as sparse as the codes: nothing of shape
(batch, F) but a slice of the encoder's pre-activations, and nothing of shape (batch, k, D), is
ever made. The dense product that chooses the features runs in the machine's fastest precision;
what the chosen ones are worth is computed in float32.

Sources: Gao et al. 2024 (TopK, AuxK, initialisation, unit-norm decoder with its gradient
projected), Bussmann et al. 2024 (BatchTopK), Bussmann et al. 2025 (Matryoshka).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.batch_topk import BatchTopKSae
from vision_sae.dictionaries.matryoshka import MatryoshkaSae, prefix_widths
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.topk import TopKSae
from vision_sae.dictionaries.training.aux_k import AuxGradients, aux_gradients
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.learner import StepReport
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.errors import InvalidInputError

BETAS = (0.9, 0.999)
EPSILON = 1e-8
WIDEST_ROW = 8
"""BatchTopK: a single row may take this many times k features."""
_THRESHOLD_WINDOW = (0.1, 100)
"""BatchTopK: the threshold is averaged over this share of the steps so far, and at most so many: a
longer memory would hold what early steps kept, which is more, in short trainings to their end."""


class Weights(NamedTuple):
    """The parameters, and Adam's two moments of each; all float32, changed in place."""

    w_enc: Tensor
    """(F, D), one encoder direction a row."""
    b_enc: Tensor
    """(F)"""
    w_dec: Tensor
    """(F, D), unit rows."""
    b_dec: Tensor
    """(D)"""
    m_w_enc: Tensor
    v_w_enc: Tensor
    m_b_enc: Tensor
    v_b_enc: Tensor
    m_w_dec: Tensor
    v_w_dec: Tensor
    m_b_dec: Tensor
    v_b_dec: Tensor


class Chosen(NamedTuple):
    """Which features fire: K slots a row, of which the first ``counts[n]`` are taken."""

    centred: Tensor
    """z - b_dec (N, D)"""
    features: Tensor
    """(N, K) int32, ascending in each row."""
    counts: Tensor
    """(N) int32"""


class Forward(NamedTuple):
    """A forward pass and the gradients by its codes; N rows."""

    centred: Tensor
    """z - b_dec (N, D)"""
    features: Tensor
    """(N, K) int32"""
    counts: Tensor
    """(N) int32"""
    values: Tensor
    """Activations (N, K), >= 0; 0 in slots not taken."""
    error: Tensor
    """x_hat - z (N, D)"""
    slopes: Tensor
    """Gradient of the loss by the output of features of each nested group (G, N, D)."""
    g_values: Tensor
    """Gradient of the loss by the activations (N, K); 0 where they are 0."""


class Totals(NamedTuple):
    """Sums over the N rows of a `Forward`."""

    slope: Tensor
    """Gradient of the loss by a shift of the output (D)."""
    squares: Tensor
    """Squared error, ()."""
    spread: Tensor
    """Squared distance of the rows from their mean, ()."""
    active: Tensor
    """Features that fire, ()."""


class Adam(NamedTuple):
    """The numbers of one Adam step (Kingma & Ba 2015), bias corrections worked in."""

    rate: float
    """Learning rate over (1 - beta1^t)."""
    unbias: float
    """1 / sqrt(1 - beta2^t)."""


class Shared(NamedTuple):
    """The batch in which rows compete for places, BatchTopK's."""

    group: Group
    """The processes that hold it."""
    rows: int
    """Its rows in all of them."""


class Kernels(Protocol):
    """The heavy part of a step, on one kind of device."""

    def choose(self, z: Tensor, k: int, shared: Shared | None) -> Chosen:
        """The k largest positive pre-activations of each row of z (N, D), or with ``shared`` the
        ``k * rows`` largest of the whole batch, at most `WIDEST_ROW` k a row."""
        ...

    def finish(self, chosen: Chosen, ends: tuple[int, ...], weight: float) -> Forward:
        """Activations, errors, and the gradients of ``weight / 2 * sum |error|^2``, summed over
        the nested prefixes that end at ``ends``."""
        ...

    def gradients_at(self, forward: Forward, slopes: Tensor) -> Forward:
        """``forward`` with another gradient ``slopes`` (1, N, D) by the reconstruction."""
        ...

    def totals(self, forward: Forward) -> Totals:
        """What a step reports, and what moves b_dec."""
        ...

    def update(
        self,
        forward: Forward,
        ends: tuple[int, ...],
        adam: Adam,
        aux: AuxGradients | None,
        decoder_gradient: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One Adam step of everything but b_dec. Returns (which features fired (F) bool, the
        gradient by b_enc times W_enc as it was before, (D))."""
        ...

    def refresh(self) -> None:
        """Take notice of weights that were changed from outside."""
        ...


def _kernels(weights: Weights) -> Kernels:
    """The kernels for the weights' device."""
    if weights.w_enc.device.type == "cpu":
        from vision_sae.dictionaries.training.sparse_cpu import CpuKernels

        return CpuKernels(weights)
    from vision_sae.dictionaries.training.sparse_torch import TorchKernels

    return TorchKernels(weights)


class SparseLearner:
    """One k-sparse autoencoder being trained; see `learner.Learner`."""

    def __init__(
        self, dim: int, config: TrainConfig, *, group: Group | None = None, device: str = "cpu"
    ) -> None:
        width = config.expansion * dim
        if config.k > width:
            raise InvalidInputError(
                f"k = {config.k} is more than the {width} features; lower --k or raise --expansion",
                field="k",
            )
        self.config = config
        self._group = group or Group()
        nested = config.architecture == "matryoshka"
        self._ends = prefix_widths(config.prefixes, width) if nested else (width,)
        self._across_rows = config.architecture == "batch_topk"
        generator = torch.Generator().manual_seed(config.seed)
        directions = F.normalize(torch.randn(width, dim, generator=generator), dim=1)
        parameters = (
            directions.clone(),
            torch.zeros(width),
            directions,
            torch.zeros(dim),
        )
        moments = (torch.zeros_like(p) for p in parameters for _ in range(2))
        self.weights = Weights(*(t.to(device) for t in (*parameters, *moments)))
        self.silent = torch.zeros(width, dtype=torch.int64, device=device)
        """Rows since each feature last fired (F)."""
        self.threshold = torch.zeros((), device=device)
        """BatchTopK's moving average of the smallest value kept."""
        self.steps_done = torch.zeros((), dtype=torch.int64)
        self._kernels = _kernels(self.weights)

    @property
    def decoder(self) -> Tensor:
        """The decoder rows (F, D), of unit norm, as they stand."""
        return self.weights.w_dec

    @torch.no_grad()
    def forward(self, z: Tensor, *, rows: int | None = None) -> Forward:
        """Encode and reconstruct z (N, D); gradients are those of the mean squared error over
        ``rows`` rows (N when absent)."""
        rows = rows or len(z)
        shared = Shared(self._group, rows) if self._across_rows else None
        chosen = self._kernels.choose(z, self.config.k, shared)
        return self._kernels.finish(chosen, self._ends, 2 / (rows * len(self._ends)))

    def step(self, z: Tensor, rate: float, *, decoder_gradient: Tensor | None = None) -> StepReport:
        """One optimiser step on z (N, D), the whole batch in every process."""
        mine = self.forward(self._group.share(z), rows=len(z))
        whole = Forward(
            *(
                self._group.gather(part, len(z), dim=1 if name == "slopes" else 0)
                for name, part in zip(Forward._fields, mine, strict=True)
            )
        )
        return self.backward(whole, rate, decoder_gradient=decoder_gradient)

    @torch.no_grad()
    def backward(
        self, forward: Forward, rate: float, *, decoder_gradient: Tensor | None = None
    ) -> StepReport:
        """The optimiser step that follows from `forward`."""
        w, n = self.weights, len(forward.centred)
        dead = self.silent > self.config.dead_after
        aux = aux_gradients(
            dead,
            forward.centred,
            forward.error,
            w_enc=w.w_enc,
            b_enc=w.b_enc,
            w_dec=w.w_dec,
            coefficient=self.config.aux_coefficient,
        )
        self.steps_done += 1
        t = int(self.steps_done)
        adam = Adam(rate / (1 - BETAS[0] ** t), (1 - BETAS[1] ** t) ** -0.5)
        totals = self._kernels.totals(forward)
        if self._across_rows:
            self._follow_threshold(forward.values[forward.values > 0])
        fired, through_encoder = self._kernels.update(
            forward, self._ends, adam, aux, decoder_gradient
        )
        # b_dec is added to the output (the first group's slope sums every prefix) and subtracted
        # from the encoder's input.
        g_b_dec = totals.slope - through_encoder
        adam_(w.b_dec, g_b_dec, w.m_b_dec, w.v_b_dec, adam)

        self.silent += n
        self.silent.masked_fill_(fired, 0)
        return StepReport(
            error=totals.squares / n,
            fvu=totals.squares / totals.spread,
            l0=totals.active / n,
            dead=dead.float().mean(),
        )

    def _follow_threshold(self, kept: Tensor) -> None:
        if len(kept):
            least = kept.min()
            share, longest = _THRESHOLD_WINDOW
            window = max(1.0, min(longest, share * int(self.steps_done)))
            self.threshold.lerp_(least, 1 / window)

    def gradients_at(self, forward: Forward, slopes: Tensor) -> Forward:
        """``forward`` with another loss, whose gradient by the reconstruction is ``slopes``
        (1, N, D)."""
        return self._kernels.gradients_at(forward, slopes)

    @torch.no_grad()
    def adopt(self, sae: Sae, scaling: InputScaling) -> None:
        """Start from an autoencoder that is there, as one with no history in the optimiser."""
        w = self.weights
        w.w_enc.copy_(sae.w_enc)
        w.b_enc.copy_(sae.b_enc * scaling.scale)
        w.w_dec.copy_(sae.w_dec)
        w.b_dec.copy_((sae.b_dec - scaling.mean) * scaling.scale)
        if isinstance(sae, BatchTopKSae):
            self.threshold.copy_(sae.threshold * scaling.scale)
        self.refresh()

    def tensors(self) -> dict[str, Tensor]:
        """The live state."""
        counters = {"silent": self.silent, "threshold": self.threshold, "steps": self.steps_done}
        return self.weights._asdict() | counters

    def refresh(self) -> None:
        """Take notice of a state that was copied into `tensors`."""
        self._kernels.refresh()

    def dictionary(self, scaling: InputScaling) -> Sae:
        """The SAE as it stands, on raw site vectors: mean and scale folded in."""
        w = self.weights
        folded = {
            "w_enc": w.w_enc.cpu().clone(),
            "b_enc": w.b_enc.cpu() / scaling.scale,
            "w_dec": w.w_dec.cpu().clone(),
            "b_dec": w.b_dec.cpu() / scaling.scale + scaling.mean,
        }
        k = self.config.k
        if self._across_rows:
            return BatchTopKSae(k=k, threshold=self.threshold.cpu() / scaling.scale, **folded)
        if len(self._ends) > 1:
            return MatryoshkaSae(k=k, prefixes=self._ends, **folded)
        return TopKSae(k=k, **folded)


def adam_(p: Tensor, gradient: Tensor, m: Tensor, v: Tensor, adam: Adam) -> None:
    """One Adam step of a parameter, in place."""
    m.lerp_(gradient, 1 - BETAS[0])
    v.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    p.addcdiv_(m, v.sqrt().mul_(adam.unbias).add_(EPSILON), value=-adam.rate)
