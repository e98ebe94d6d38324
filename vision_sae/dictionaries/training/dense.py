"""The engine of learners that train with dense codes: every feature has a gradient.

A subclass defines the forward pass and the penalty. Autograd computes the gradients, with dense
products in the machine's fastest precision and all other operations in float32. A step processes
its batch in pieces, so that memory does not grow with the batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.sparse import BETAS, Adam, adam_
from vision_sae.dictionaries.training.steering import SparsityWeight
from vision_sae.dictionaries.training.step import Points, StepReport
from vision_sae.errors import InvalidInputError
from vision_sae.models.precision import training_dtype

_PIECE = 2**23
"""Pre-activations in memory at a time."""


class Pass(NamedTuple):
    """A forward pass over N rows."""

    x_hat: Float[Tensor, "N D"]
    """Reconstructions of z."""
    activations: Float[Tensor, "N F"]
    """Activations >= 0."""
    penalty: Float[Tensor, ""]
    """The sparsity penalty without its weight lambda, summed over the rows."""
    auxiliary: Float[Tensor, ""] | None = None
    """A further loss, summed over the rows."""


class LossGradients(NamedTuple):
    """Gradients of the loss, and measures of the forward passes."""

    gradients: dict[str, Tensor]
    """{parameter: gradient}"""
    error: Float[Tensor, "N D"]
    """x_hat - z"""
    fired: Float[Tensor, " F"]
    """Positive where a feature fired on any row."""
    l0: Float[Tensor, ""]
    """Active features, divided by the rows of the whole batch."""


class DenseLearner(ABC):
    """A sparse autoencoder in training by autograd; see `step.Learner`.

    The loss is ``mean_n |z_n - x_hat_n|^2 + lambda * penalty``, where lambda is
    ``config.sparsity``, or is steered to ``config.k`` active features a row.

    AuxK does not help here, because a feature dies through its bias, threshold or gate. Instead,
    each step raises the biases of dead features until they fire again, as the pre-activation loss
    of Anthropic's "Circuits Updates - January 2025" does; ``config.aux_coefficient`` is the
    gradient of that loss.
    """

    proportional_gain: ClassVar[float]
    """See `steering.SparsityWeight`."""
    rate_factors: ClassVar[Mapping[str, float]] = {}
    """{parameter: factor on its learning rate}"""

    @classmethod
    def begin(
        cls, dim: int, config: TrainConfig, *, points: Points, group: Group, device: str
    ) -> Self:
        """See `step.Learner`."""
        return cls(dim, config, group=group, device=device)

    def __init__(
        self,
        dim: int,
        config: TrainConfig,
        *,
        group: Group | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """``dtype`` is the precision of dense products; by default that of `training_dtype`.

        Raises `InvalidInputError` if as many features may be active as there are.
        """
        width = config.expansion * dim
        if config.k >= width:
            raise InvalidInputError(
                f"k = {config.k} of {width} features is not sparse; lower --k or raise --expansion",
                field="k",
            )
        self.config = config
        self._group = group or Group()
        self._dtype = dtype or training_dtype(device)
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
        """{name: parameter}, float32, changed in place. Encoder and decoder have shape (F, D);
        decoder rows have unit norm."""
        self._moments = {
            f"{moment}_{name}": torch.zeros_like(p, requires_grad=False)
            for name, p in self.parameters.items()
            for moment in ("m", "v")
        }
        self.sparsity = SparsityWeight(
            config.k,
            start=self.first_sparsity(level),
            proportional_gain=self.proportional_gain,
            fixed=config.sparsity,
            device=device,
        )
        self.silent = torch.zeros(width, dtype=torch.int64, device=device)
        """Rows since each feature last fired (F)."""
        self.steps_done = torch.zeros((), dtype=torch.int64)
        """`step_number`, as checkpoints hold it; always in host memory."""
        self.step_number = 0

    @abstractmethod
    def first_parameters(self, width: int, level: float) -> dict[str, Tensor]:
        """Initial parameters, beyond unit decoder rows and zero biases.

        ``level`` is a pre-activation that about k of the ``width`` features exceed at first.
        """

    @abstractmethod
    def first_sparsity(self, level: float) -> float:
        """The initial lambda, for features that fire above about ``level``."""

    @abstractmethod
    def forward(self, z: Float[Tensor, "N D"]) -> Pass:
        """Encode and reconstruct scaled site vectors z."""

    @abstractmethod
    def dictionary(self, scaling: InputScaling) -> Sae:
        """The current SAE for raw site vectors, with mean and scale folded into the weights."""

    def products(
        self, z: Float[Tensor, "N D"], shift: Float[Tensor, " F"] | None = None
    ) -> Float[Tensor, "N F"]:
        """``(z - b_dec) W_enc + shift``.

        b_dec is subtracted after the product, so that its gradient takes a sum over the rows
        instead of another product of the decoder's size.
        """
        w_enc = self.parameters["w_enc"]
        through_encoder = (w_enc * self.parameters["b_dec"]).sum(1)
        return F.linear(z, w_enc, -through_encoder if shift is None else shift - through_encoder)

    def folded(self, scaling: InputScaling) -> dict[str, Tensor]:
        """The constructor arguments of `Sae`, for raw site vectors."""
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
    def decoder(self) -> Float[Tensor, "F D"]:
        """The current decoder rows, of unit norm."""
        return self.parameters["w_dec"].detach()

    def step(
        self,
        z: Float[Tensor, "N D"],
        rate: float,
        *,
        decoder_gradient: Float[Tensor, "F D"] | None = None,
    ) -> StepReport:
        """One optimiser step on z, which is the whole batch in every process."""
        n, mine = len(z), self._group.share(z)
        dead = self.silent > self.config.dead_after
        gradients, error, fired, l0 = self.loss_gradients(mine, rows=n)
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

    def loss_gradients(self, z: Float[Tensor, "N D"], *, rows: int | None = None) -> LossGradients:
        """Gradients of the loss on z: a sum over z, divided by ``rows`` (N when absent)."""
        rows, low = rows or len(z), self._dtype != torch.float32
        parameters = tuple(self.parameters.values())
        totals = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        width = len(self.silent)
        fired, l0 = torch.zeros(width, device=z.device), torch.zeros((), device=z.device)
        errors = []
        for piece in z.chunk(-(-len(z) * width // _PIECE)):
            with torch.enable_grad(), torch.autocast(z.device.type, self._dtype, enabled=low):
                result = self.forward(piece)
                error = result.x_hat - piece
                loss = error.square().sum() + self.sparsity.value * result.penalty
                if result.auxiliary is not None:
                    loss = loss + result.auxiliary
            for total, part in zip(totals, torch.autograd.grad(loss, parameters), strict=True):
                total.add_(part, alpha=1 / rows)
            errors.append(error.detach())
            active = result.activations.detach().sign()
            fired = torch.maximum(fired, active.amax(0))
            l0 += active.sum(1).float().sum() / rows
        gradients = dict(zip(self.parameters, totals, strict=True))
        return LossGradients(gradients, torch.cat(errors), fired, l0)

    @torch.no_grad()
    def _descend(self, gradients: dict[str, Tensor], rate: float) -> None:
        """One Adam step of every parameter; decoder rows move along the sphere."""
        w_dec, gradient = self.parameters["w_dec"], gradients["w_dec"]
        radial = (gradient * w_dec).sum(1, keepdim=True)
        gradient.addcmul_(radial, w_dec, value=-1)
        self.step_number += 1
        self.steps_done.fill_(self.step_number)
        t = self.step_number
        for name, parameter in self.parameters.items():
            own_rate = rate * self.rate_factors.get(name, 1.0)
            adam = Adam(own_rate / (1 - BETAS[0] ** t), (1 - BETAS[1] ** t) ** -0.5)
            m, v = self._moments[f"m_{name}"], self._moments[f"v_{name}"]
            adam_(parameter, gradients[name], m, v, adam)
        w_dec.div_(w_dec.norm(dim=1, keepdim=True))

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, by name; see `step.Learner`."""
        parameters = {name: parameter.detach() for name, parameter in self.parameters.items()}
        counters = {"silent": self.silent, "steps": self.steps_done}
        return parameters | self._moments | self.sparsity.tensors() | counters

    def refresh(self) -> None:
        """Update what follows from the state, after a copy into `tensors`."""
        self.step_number = int(self.steps_done)


def firing_level(dim: int, width: int, k: int) -> float:
    """The value that the products of a row of z with k of ``width`` random unit directions exceed.

    z has unit mean square norm, so such products are nearly normal with variance 1 / ``dim``.
    """
    share = torch.tensor(1 - k / width, dtype=torch.float64)
    level: float = torch.special.ndtri(share).item()
    return level / math.sqrt(dim)
