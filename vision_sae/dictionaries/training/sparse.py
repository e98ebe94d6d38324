"""The engine that trains k-sparse autoencoders (TopK, BatchTopK, Matryoshka, ...), with AuxK.

The gradients are written by hand, because they are as sparse as the codes. No tensor of shape
(batch, k, D) exists at any time, and the only tensor of shape (rows, F) is a slice of the encoder's
pre-activations. The dense product that chooses the features runs in the machine's fastest
precision; the activations of the chosen features are computed in float32.

Sources: Gao et al. 2024 (TopK, AuxK, initialisation, unit-norm decoder with its gradient
projected), Bussmann et al. 2024 (BatchTopK), Bussmann et al. 2025 (Matryoshka).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int32
from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.aux_k import AuxGradients, aux_gradients
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.silence import DeadSearch
from vision_sae.dictionaries.training.step import Points, StepReport
from vision_sae.errors import InvalidInputError

BETAS = (0.9, 0.999)
EPSILON = 1e-8
WIDEST_ROW = 8
"""BatchTopK: the most features of a single row, as a multiple of k."""


class Weights(NamedTuple):
    """The parameters, and Adam's two moments of each parameter; float32, changed in place."""

    w_enc: Float32[Tensor, "F D"]
    """Encoder directions, one per row."""
    b_enc: Float32[Tensor, " F"]
    w_dec: Float32[Tensor, "F D"]
    """Decoder directions, rows of unit norm."""
    b_dec: Float32[Tensor, " D"]
    m_w_enc: Float32[Tensor, "F D"]
    v_w_enc: Float32[Tensor, "F D"]
    m_b_enc: Float32[Tensor, " F"]
    v_b_enc: Float32[Tensor, " F"]
    m_w_dec: Float32[Tensor, "F D"]
    v_w_dec: Float32[Tensor, "F D"]
    m_b_dec: Float32[Tensor, " D"]
    v_b_dec: Float32[Tensor, " D"]


class Chosen(NamedTuple):
    """The features that fire. Row n has K slots, of which the first ``counts[n]`` are in use."""

    centred: Float[Tensor, "N D"]
    """z - b_dec"""
    features: Int32[Tensor, "N K"]
    """Feature numbers, ascending in each row."""
    counts: Int32[Tensor, " N"]
    """Slots in use."""
    values: Float[Tensor, "N K"]
    """Activations >= 0, in float32; 0 in unused slots."""


class Forward(NamedTuple):
    """A forward pass over N rows, and the gradients with respect to outputs and activations."""

    centred: Float[Tensor, "N D"]
    """z - b_dec"""
    features: Int32[Tensor, "N K"]
    """Feature numbers; see `Chosen`."""
    counts: Int32[Tensor, " N"]
    """Slots in use."""
    values: Float[Tensor, "N K"]
    """Activations >= 0; 0 in unused slots."""
    error: Float[Tensor, "N D"]
    """x_hat - z"""
    output_gradients: Float[Tensor, "G N D"]
    """Gradients of the loss by the output of the features of each nested group."""
    g_values: Float[Tensor, "N K"]
    """Gradients of the loss by the activations; 0 where the activations are 0."""


class Totals(NamedTuple):
    """Sums over the N rows of a `Forward`."""

    output_gradient: Float[Tensor, " D"]
    """Gradient of the loss by a shift of the output."""
    squares: Float[Tensor, ""]
    """Squared error."""
    spread: Float[Tensor, ""]
    """Squared distance of the rows from their mean."""
    active: Tensor
    """Active features, ()."""


class Adam(NamedTuple):
    """The numbers of one Adam step (Kingma & Ba 2015), with the bias corrections."""

    rate: float
    """Learning rate over (1 - beta1^t)."""
    unbias: float
    """1 / sqrt(1 - beta2^t)."""


class Shared(NamedTuple):
    """A batch whose rows compete for active features, as in BatchTopK."""

    group: Group
    """The processes among which the batch is divided."""
    rows: int
    """The rows of the batch in all processes."""


class Kernels(Protocol):
    """The costly operations of a step, on one kind of device."""

    def choose(self, z: Tensor, k: int, shared: Shared | None) -> Chosen:
        """The k largest positive pre-activations of each row of z (N, D).

        With ``shared``, the features of the ``k * rows`` largest pre-activations of the whole
        batch, at most `WIDEST_ROW` * k in a row.
        """
        ...

    def finish(self, chosen: Chosen, ends: tuple[int, ...], weight: float) -> Forward:
        """Errors and gradients for the chosen features.

        The loss is ``weight / 2 * sum |error|^2``, summed over the nested prefixes that end at
        ``ends``.
        """
        ...

    def gradients_at(self, forward: Forward, output_gradients: Tensor) -> Forward:
        """``forward`` for another loss, whose gradient by the reconstruction is
        ``output_gradients`` (1, N, D)."""
        ...

    def totals(self, forward: Forward) -> Totals:
        """The sums for the report of a step and for the gradient by b_dec."""
        ...

    def update(
        self,
        forward: Forward,
        ends: tuple[int, ...],
        adam: Adam,
        aux: AuxGradients | None,
        decoder_gradient: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One Adam step of all parameters but b_dec.

        Returns (the mask (F) of features that fired, the product (D) of the gradient by b_enc and
        W_enc before the step).
        """
        ...

    def refresh(self) -> None:
        """Update copies of the weights, after a change from outside."""
        ...


class SparseLearner(ABC):
    """A k-sparse autoencoder in training; see `step.Learner`."""

    across_rows: ClassVar[bool] = False
    """Whether the rows of a batch compete for ``k * N`` active features, instead of k per row."""

    @classmethod
    def begin(
        cls, dim: int, config: TrainConfig, *, points: Points, group: Group, device: str
    ) -> Self:
        """See `step.Learner`."""
        return cls(dim, config, group=group, device=device)

    @classmethod
    def continuing(
        cls, start: Sae, config: TrainConfig, scaling: InputScaling, *, device: str = "cpu"
    ) -> SparseLearner:
        """A learner that continues from ``start``, an autoencoder for raw site vectors; ``start``
        and ``scaling`` are on ``device``."""
        learner = cls(start.dim, config, device=device)
        learner.adopt(start, scaling)
        return learner

    def __init__(
        self, dim: int, config: TrainConfig, *, group: Group | None = None, device: str = "cpu"
    ) -> None:
        """Random unit directions, equal in encoder and decoder; all biases are zero.

        Raises `InvalidInputError` for more active features than features.
        """
        from vision_sae.dictionaries.training.choice import kernels_for  # which needs this module

        width = config.expansion * dim
        if config.k > width:
            raise InvalidInputError(
                f"k = {config.k} is more than the {width} features; lower --k or raise --expansion",
                field="k",
            )
        self.config = config
        self._group = group or Group()
        self.ends: tuple[int, ...] = (width,)
        """Where the nested prefixes of the dictionary end."""
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
        self._dead = DeadSearch(self.silent, config.dead_after)
        self.steps_done = torch.zeros((), dtype=torch.int64)
        """`step_number`, as checkpoints hold it; always in host memory."""
        self.step_number = 0
        self._kernels = kernels_for(
            self.weights, rows=config.batch_size, k=config.k, group=self._group
        )

    @property
    def decoder(self) -> Float[Tensor, "F D"]:
        """The current decoder rows, of unit norm."""
        return self.weights.w_dec

    @torch.no_grad()
    def forward(self, z: Float[Tensor, "N D"], *, rows: int | None = None) -> Forward:
        """Encode and reconstruct z.

        The loss is the squared error, summed over z, divided by ``rows`` (N when absent), and
        averaged over the nested prefixes.
        """
        rows = rows or len(z)
        shared = Shared(self._group, rows) if self.across_rows else None
        chosen = self._kernels.choose(z, self.config.k, shared)
        return self._kernels.finish(chosen, self.ends, 2 / (rows * len(self.ends)))

    def step(
        self,
        z: Float[Tensor, "N D"],
        rate: float,
        *,
        decoder_gradient: Float[Tensor, "F D"] | None = None,
    ) -> StepReport:
        """One optimiser step on z, which is the whole batch in every process."""
        mine = self.forward(self._group.share(z), rows=len(z))
        whole = Forward(
            *(
                self._group.gather(part, len(z), dim=1 if name == "output_gradients" else 0)
                for name, part in zip(Forward._fields, mine, strict=True)
            )
        )
        return self.backward(whole, rate, decoder_gradient=decoder_gradient)

    @torch.no_grad()
    def backward(
        self,
        forward: Forward,
        rate: float,
        *,
        decoder_gradient: Float[Tensor, "F D"] | None = None,
    ) -> StepReport:
        """The optimiser step for a forward pass."""
        w, n = self.weights, len(forward.centred)
        dead = self.silent > self.config.dead_after
        coefficient = self.config.aux_coefficient
        candidates = self._dead.find(dead, n) if coefficient else None
        aux = candidates and aux_gradients(
            candidates,
            forward.centred,
            forward.error,
            w_enc=w.w_enc,
            b_enc=w.b_enc,
            w_dec=w.w_dec,
            coefficient=coefficient,
        )
        self.step_number += 1
        self.steps_done.fill_(self.step_number)
        t = self.step_number
        adam = Adam(rate / (1 - BETAS[0] ** t), (1 - BETAS[1] ** t) ** -0.5)
        totals = self._kernels.totals(forward)
        fired, through_encoder = self._kernels.update(
            forward, self.ends, adam, aux, decoder_gradient
        )
        # b_dec is added to the output, whose gradient is that of the first group (a sum over all
        # prefixes), and subtracted from the encoder's input.
        g_b_dec = totals.output_gradient - through_encoder
        adam_(w.b_dec, g_b_dec, w.m_b_dec, w.v_b_dec, adam)

        self.silent += n
        self.silent.masked_fill_(fired, 0)
        return StepReport(
            error=totals.squares / n,
            fvu=totals.squares / totals.spread,
            l0=totals.active / n,
            dead=dead.float().mean(),
        )

    def gradients_at(self, forward: Forward, output_gradients: Float[Tensor, "1 N D"]) -> Forward:
        """``forward`` for another loss, with ``output_gradients`` of the reconstruction."""
        return self._kernels.gradients_at(forward, output_gradients)

    @torch.no_grad()
    def adopt(self, sae: Sae, scaling: InputScaling) -> None:
        """Take over the weights of a trained autoencoder; the optimiser's moments stay."""
        w = self.weights
        w.w_enc.copy_(sae.w_enc)
        w.b_enc.copy_(sae.b_enc * scaling.scale)
        w.w_dec.copy_(sae.w_dec)
        w.b_dec.copy_((sae.b_dec - scaling.mean) * scaling.scale)
        self._kernels.refresh()

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, by name; see `step.Learner`."""
        counters = {"silent": self.silent, "steps": self.steps_done}
        return self.weights._asdict() | counters

    def refresh(self) -> None:
        """Update what follows from the state, after a copy into `tensors`."""
        self.step_number = int(self.steps_done)
        self._dead.look_again()
        self._kernels.refresh()

    @abstractmethod
    def dictionary(self, scaling: InputScaling) -> Sae:
        """The current SAE for raw site vectors, with mean and scale folded into the weights."""

    def folded(self, scaling: InputScaling) -> dict[str, Tensor]:
        """The constructor arguments of `Sae`, for raw site vectors."""
        w = self.weights
        return {
            "w_enc": w.w_enc.cpu().clone(),
            "b_enc": w.b_enc.cpu() / scaling.scale,
            "w_dec": w.w_dec.cpu().clone(),
            "b_dec": w.b_dec.cpu() / scaling.scale + scaling.mean,
        }


def adam_(p: Tensor, gradient: Tensor, m: Tensor, v: Tensor, adam: Adam) -> None:
    """One Adam step of a parameter, in place."""
    m.lerp_(gradient, 1 - BETAS[0])
    v.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    p.addcdiv_(m, v.sqrt().mul_(adam.unbias).add_(EPSILON), value=-adam.rate)
