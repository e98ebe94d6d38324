"""What the learners share whose encoder is dense in training: every feature has a gradient.

A subclass says how a forward pass goes and what it is penalised for; autograd does the rest, with
the dense products in the machine's fastest precision and everything else in float32. A batch is
taken in pieces, so that memory does not grow with it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.learner import StepReport
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.sparse import BETAS, Adam, adam_
from vision_sae.dictionaries.training.steering import SparsityWeight
from vision_sae.errors import InvalidInputError
from vision_sae.models.precision import fastest_dtype

_PIECE = 2**23
"""Pre-activations held at a time."""


class Pass(NamedTuple):
    """A forward pass over N rows."""

    x_hat: Tensor
    """Reconstructions of z (N, D)."""
    activations: Tensor
    """(N, F), >= 0"""
    penalty: Tensor
    """What lambda multiplies, summed over the rows, ()."""
    auxiliary: Tensor | None = None
    """A further loss, summed over the rows, ()."""


class Slopes(NamedTuple):
    """Gradients of the loss, and what was seen on the way to them."""

    gradients: dict[str, Tensor]
    """By every parameter, under its name."""
    error: Tensor
    """x_hat - z (N, D)"""
    fired: Tensor
    """Positive where a feature fired on any row (F)."""
    l0: Tensor
    """Active features, over the rows of the whole batch, ()."""


class DenseLearner(ABC):
    """One sparse autoencoder being trained by autograd; see `learner.Learner`.

    The loss is ``mean_n |z_n - x_hat_n|^2 + lambda * penalty``, where lambda is
    ``config.sparsity``, or is steered to ``config.k`` active features a row.

    AuxK does not help here, because what silences a feature is its bias, threshold or gate.
    Instead the biases of dead features are pushed up, as the pre-activation loss of Anthropic's
    "Circuits Updates - January 2025" does, until rows reach them again; ``config.aux_coefficient``
    is the gradient of that push.
    """

    firmness: ClassVar[float]
    """See `steering.SparsityWeight`."""
    haste: ClassVar[Mapping[str, float]] = {}
    """Parameters that learn so many times faster than the others."""

    def __init__(
        self,
        dim: int,
        config: TrainConfig,
        *,
        group: Group | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """``dtype`` is the precision of dense products; the fastest of the device when absent."""
        width = config.expansion * dim
        if config.k >= width:
            raise InvalidInputError(
                f"k = {config.k} of {width} features is not sparse; lower --k or raise --expansion",
                field="k",
            )
        self.config = config
        self._group = group or Group()
        self._dtype = dtype or fastest_dtype(device)
        generator = torch.Generator().manual_seed(config.seed)
        directions = F.normalize(torch.randn(width, dim, generator=generator), dim=1)
        level = firing_level(dim, width, config.k)
        parameters = {
            "w_enc": directions.clone(),
            "b_enc": torch.zeros(width),
            "w_dec": directions,
            "b_dec": torch.zeros(dim),
            **self.first_parameters(width, level),
        }
        self.parameters = {name: p.to(device).requires_grad_() for name, p in parameters.items()}
        """float32, changed in place; encoder and decoder (F, D), the latter's rows of unit norm."""
        self._moments = {
            f"{moment}_{name}": torch.zeros_like(p, requires_grad=False)
            for name, p in self.parameters.items()
            for moment in ("m", "v")
        }
        self.sparsity = SparsityWeight(
            config.k,
            start=self.first_sparsity(level),
            firmness=self.firmness,
            fixed=config.sparsity,
            device=device,
        )
        self.silent = torch.zeros(width, dtype=torch.int64, device=device)
        """Rows since each feature last fired (F)."""
        self.steps_done = torch.zeros((), dtype=torch.int64)

    @abstractmethod
    def first_parameters(self, width: int, level: float) -> dict[str, Tensor]:
        """Parameters before the first step, beyond unit decoder rows and zero biases.

        ``level`` is a pre-activation that about k of the ``width`` features exceed at first.
        """

    @abstractmethod
    def first_sparsity(self, level: float) -> float:
        """lambda before it is steered, for features that fire from about ``level`` on."""

    @abstractmethod
    def forward(self, z: Tensor) -> Pass:
        """Encode and reconstruct z (N, D)."""

    @abstractmethod
    def dictionary(self, scaling: InputScaling) -> Sae:
        """The SAE as it stands, on raw site vectors: mean and scale folded in."""

    def products(self, z: Tensor, shift: Tensor | None = None) -> Tensor:
        """``(z - b_dec) W_enc + shift`` of z (N, D), for a shift (F) -> (N, F).

        b_dec is subtracted after the product: its gradient then takes a sum over the rows where
        it would take another product of the size of the decoder's.
        """
        w_enc = self.parameters["w_enc"]
        through_encoder = (w_enc * self.parameters["b_dec"]).sum(1)
        return F.linear(z, w_enc, -through_encoder if shift is None else shift - through_encoder)

    def folded(self, scaling: InputScaling) -> dict[str, Tensor]:
        """The weights of `Sae`, on raw site vectors."""
        w_enc, b_enc, w_dec, b_dec = (
            self.parameters[name].detach().cpu().clone()
            for name in ("w_enc", "b_enc", "w_dec", "b_dec")
        )
        return {
            "w_enc": w_enc,
            "b_enc": b_enc / scaling.scale,
            "w_dec": w_dec,
            "b_dec": b_dec / scaling.scale + scaling.mean,
        }

    @property
    def decoder(self) -> Tensor:
        """The decoder rows (F, D), of unit norm, as they stand."""
        return self.parameters["w_dec"].detach()

    def step(self, z: Tensor, rate: float, *, decoder_gradient: Tensor | None = None) -> StepReport:
        """One optimiser step on z (N, D), the whole batch in every process."""
        n, mine = len(z), self._group.share(z)
        dead = self.silent > self.config.dead_after
        gradients, error, fired, l0 = self.slopes(mine, rows=n)
        squares = error.square().sum()
        if self._group.size > 1:
            for part in (*gradients.values(), squares, fired, l0):
                dist.all_reduce(part)
        if decoder_gradient is not None:
            gradients["w_dec"].add_(decoder_gradient)
        gradients["b_enc"].sub_(dead * self.config.aux_coefficient)
        self._descend(gradients, rate)
        self.sparsity.follow(l0, rate * z.shape[1] ** 0.5)
        self.silent += n
        self.silent.masked_fill_(fired > 0, 0)
        spread = (z - z.mean(0)).square().sum()
        return StepReport(error=squares / n, fvu=squares / spread, l0=l0, dead=dead.float().mean())

    def slopes(self, z: Tensor, *, rows: int | None = None) -> Slopes:
        """Gradients of the loss on z (N, D), a mean over ``rows`` rows (N when absent)."""
        rows, low = rows or len(z), self._dtype != torch.float32
        parameters = tuple(self.parameters.values())
        totals = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        width = len(self.silent)
        fired, l0 = torch.zeros(width, device=z.device), torch.zeros((), device=z.device)
        errors = []
        for piece in z.chunk(-(-len(z) * width // _PIECE)):
            with torch.enable_grad(), torch.autocast(z.device.type, self._dtype, enabled=low):
                made = self.forward(piece)
                error = made.x_hat - piece
                loss = error.square().sum() + self.sparsity.value * made.penalty
                if made.auxiliary is not None:
                    loss = loss + made.auxiliary
            for total, part in zip(totals, torch.autograd.grad(loss, parameters), strict=True):
                total.add_(part, alpha=1 / rows)
            errors.append(error.detach())
            active = made.activations.detach().sign()
            fired = torch.maximum(fired, active.amax(0))
            l0 += active.sum(1).float().sum() / rows
        gradients = dict(zip(self.parameters, totals, strict=True))
        return Slopes(gradients, torch.cat(errors), fired, l0)

    @torch.no_grad()
    def _descend(self, gradients: dict[str, Tensor], rate: float) -> None:
        """One Adam step of every parameter; decoder rows move along the sphere."""
        w_dec, gradient = self.parameters["w_dec"], gradients["w_dec"]
        radial = (gradient * w_dec).sum(1, keepdim=True)
        gradient.addcmul_(radial, w_dec, value=-1)
        self.steps_done += 1
        t = int(self.steps_done)
        for name, parameter in self.parameters.items():
            own_rate = rate * self.haste.get(name, 1.0)
            adam = Adam(own_rate / (1 - BETAS[0] ** t), (1 - BETAS[1] ** t) ** -0.5)
            m, v = self._moments[f"m_{name}"], self._moments[f"v_{name}"]
            adam_(parameter, gradients[name], m, v, adam)
        w_dec.div_(w_dec.norm(dim=1, keepdim=True))

    def tensors(self) -> dict[str, Tensor]:
        """The live state."""
        parameters = {name: parameter.detach() for name, parameter in self.parameters.items()}
        counters = {"silent": self.silent, "steps": self.steps_done}
        return parameters | self._moments | self.sparsity.tensors() | counters

    def refresh(self) -> None:  # noqa: B027  # there is nothing for a subclass to add
        """Nothing is remembered beside `tensors`."""


def firing_level(dim: int, width: int, k: int) -> float:
    """What k of ``width`` random unit directions exceed in their product with a row of z.

    z has unit mean square norm, so such products are nearly normal with variance 1 / ``dim``.
    """
    share = torch.tensor(1 - k / width, dtype=torch.float64)
    level: float = torch.special.ndtri(share).item()
    return level / math.sqrt(dim)
