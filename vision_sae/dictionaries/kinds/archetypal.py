"""Archetypal sparse autoencoder: features are mixtures of data points (Fel et al. 2025).

The relaxed form of "Archetypal SAE": a decoder row is a convex combination of data points, plus a
relaxation of bounded length. Here each feature mixes a few points, chosen per feature, so that the
mixture is small enough to save and to inspect. Each row is then scaled to unit norm, as in every
architecture: the activations carry the lengths.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture, settings_of
from vision_sae.dictionaries.kernels import (
    add_rows_,
    bag,
    fired_features,
    transpose,
    transposed_bag,
)
from vision_sae.dictionaries.kinds.topk import TopKLearner, TopKSae
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.aux_k import AuxGradients
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.sparse import (
    Adam,
    Chosen,
    Forward,
    Kernels,
    Shared,
    SparseLearner,
    Totals,
    Weights,
    adam_,
)
from vision_sae.dictionaries.training.step import Points
from vision_sae.errors import InvalidInputError
from vision_sae.sections import Section

BOUND = 0.1
"""Longest relaxation, as a share of its mixture's length: a row is at most 6 degrees off."""
_MEMBERS = 32
"""Data points that a feature mixes."""
_LOGIT_RATE = 30.0
"""Learning rate of the shares' logits, relative to the weights' learning rate."""
_SHORTEST = 1e-12
"""The least length of a row before scaling: points may cancel each other in a mixture."""
_RIDGE = 0.1
"""Ridge of the initial encoder, relative to the mean square of the decoder's dimensions."""


class ArchetypalConfig(Section):
    """Features that are mixtures of data points."""

    archetypes: int = Field(4096, ge=2, le=2**31 - 1)
    """Data points of which decoder rows are convex combinations."""


class ArchetypalSae(TopKSae):
    """A TopK autoencoder whose decoder rows point from the data's mean to mixtures of data points.

    ``lengths_i * d_i = mixture_i - origin + relaxation_i``, where the mixture is a convex
    combination of site vectors and the relaxation is short:
    ``|relaxation_i| <= bound * |mixture_i - origin|``. Rows d_i have unit norm.
    """

    architecture = "archetypal"

    def __init__(
        self,
        *,
        k: int,
        bound: float,
        points: Float[Tensor, "A D"],
        members: Int[Tensor, "F M"],
        shares: Float[Tensor, "F M"],
        lengths: Float[Tensor, " F"],
        origin: Float[Tensor, " D"],
        **weights: Tensor,
    ) -> None:
        """Take the weights of `TopKSae`, and the mixtures behind the decoder.

        ``points`` are site vectors. Feature i mixes the points numbered ``members[i]`` with the
        weights ``shares[i]`` >= 0, which sum to 1. ``lengths``, ``origin`` and ``bound`` are those
        of the class docstring, in the units of the site vectors.
        """
        super().__init__(k=k, **weights)
        self.bound, self.points, self.members, self.shares = bound, points, members, shares
        self.lengths, self.origin = lengths, origin

    def settings(self) -> dict[str, Any]:
        """``k`` and the bound of the relaxations."""
        return super().settings() | {"bound": self.bound}

    def tensors(self) -> dict[str, Tensor]:
        """The points, the members and shares of the mixtures, the lengths and the origin."""
        names = ("points", "members", "shares", "lengths", "origin")
        return {name: getattr(self, name) for name in names}

    def mixtures(self) -> Float[Tensor, "F D"]:
        """The convex combination of site vectors behind each feature."""
        return bag(self.members, self.shares, self.points)

    def relaxations(self) -> Float[Tensor, "F D"]:
        """The difference between each feature, at its length, and its mixture."""
        return self.lengths[:, None] * self.w_dec - (self.mixtures() - self.origin)


class Mixing(NamedTuple):
    """The parameters of decoder rows as mixtures of ``points``; changed in place."""

    points: Float[Tensor, "A D"]
    """Scaled site vectors; never changed."""
    members: Int[Tensor, "F M"]
    """The numbers of the points that each feature mixes."""
    logits: Float[Tensor, "F M"]
    """The shares of the points are the softmax of the logits."""
    relaxation: Float[Tensor, "F D"]
    m_logits: Float[Tensor, "F M"]
    """Adam's first moments of the logits. The moments of ``w_dec`` serve the relaxation."""
    v_logits: Float[Tensor, "F M"]

    def mixtures(self, logits: Float[Tensor, "F M"]) -> Float[Tensor, "F D"]:
        """Convex combinations of the points, with shares from these logits."""
        return bag(self.members, logits.softmax(1), self.points)

    def rows(self) -> tuple[Float[Tensor, "F D"], Float[Tensor, " F"]]:
        """(decoder rows of unit norm, their lengths before scaling)."""
        raw = self.mixtures(self.logits) + self.relaxation
        lengths = raw.norm(dim=1).clamp_min(_SHORTEST)
        return raw / lengths[:, None], lengths


class MixedDecoder:
    """`sparse.Kernels` for a decoder whose rows are mixtures."""

    def __init__(self, kernels: Kernels, weights: Weights, mixing: Mixing) -> None:
        """``kernels``, of the same weights, does everything but the update."""
        self._kernels, self._w, self._mixing = kernels, weights, mixing

    def refresh(self) -> None:
        """Update copies of the weights, after a change from outside."""
        self._kernels.refresh()

    def choose(self, z: Tensor, k: int, shared: Shared | None) -> Chosen:
        """See `sparse.Kernels`."""
        return self._kernels.choose(z, k, shared)

    def finish(self, chosen: Chosen, ends: tuple[int, ...], weight: float) -> Forward:
        """See `sparse.Kernels`."""
        return self._kernels.finish(chosen, ends, weight)

    def gradients_at(self, forward: Forward, output_gradients: Tensor) -> Forward:
        """See `sparse.Kernels`."""
        return self._kernels.gradients_at(forward, output_gradients)

    def totals(self, forward: Forward) -> Totals:
        """See `sparse.Kernels`."""
        return self._kernels.totals(forward)

    def update(
        self,
        forward: Forward,
        ends: tuple[int, ...],
        adam: Adam,
        aux: AuxGradients | None,
        decoder_gradient: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `sparse.Kernels`."""
        w, indices = self._w, forward.features.long()
        by_feature = transpose(indices, len(w.w_enc))
        by_decoder = transposed_bag(by_feature, forward.values, forward.output_gradients[0])
        by_encoder = transposed_bag(by_feature, forward.g_values, forward.centred)
        by_bias = torch.zeros_like(w.b_enc)
        add_rows_(by_bias, indices.reshape(-1), forward.g_values.reshape(-1))
        if aux is not None:
            by_encoder.index_add_(0, aux.features, aux.w_enc)
            by_bias.index_add_(0, aux.features, aux.b_enc)
            by_decoder.index_add_(0, aux.features, aux.w_dec)
        if decoder_gradient is not None:
            by_decoder += decoder_gradient
        through_encoder = by_bias @ w.w_enc
        adam_(w.w_enc, by_encoder, w.m_w_enc, w.v_w_enc, adam)
        adam_(w.b_enc, by_bias, w.m_b_enc, w.v_b_enc, adam)
        self._mix(by_decoder, adam)
        self.refresh()
        return fired_features(indices, forward.values, len(w.w_enc)), through_encoder

    def _mix(self, by_rows: Tensor, adam: Adam) -> None:
        """One Adam step of the mixtures for the gradient (F, D) by the unit rows.

        Relaxations longer than their bound are shortened to it.
        """
        w, mixing = self._w, self._mixing
        with torch.enable_grad():
            logits, relaxation = (
                t.clone().requires_grad_() for t in (mixing.logits, mixing.relaxation)
            )
            rows = F.normalize(mixing.mixtures(logits) + relaxation, dim=1)
            by_logits, by_relaxation = torch.autograd.grad(rows, (logits, relaxation), by_rows)
        faster = adam._replace(rate=adam.rate * _LOGIT_RATE)
        adam_(mixing.logits, by_logits, mixing.m_logits, mixing.v_logits, faster)
        adam_(mixing.relaxation, by_relaxation, w.m_w_dec, w.v_w_dec, adam)
        mixtures = mixing.mixtures(mixing.logits)
        longest = BOUND * mixtures.norm(dim=1, keepdim=True)
        lengths = mixing.relaxation.norm(dim=1, keepdim=True)
        mixing.relaxation.mul_(torch.where(lengths > longest, longest / lengths, 1.0))
        torch.add(mixtures, mixing.relaxation, out=w.w_dec)
        w.w_dec.div_(w.w_dec.norm(dim=1, keepdim=True).clamp_min(_SHORTEST))


class ArchetypalLearner(TopKLearner):
    """An archetypal autoencoder in training; see `step.Learner`."""

    @classmethod
    def begin(
        cls, dim: int, config: TrainConfig, *, points: Points, group: Group, device: str
    ) -> Self:
        """See `step.Learner`."""
        count = settings_of(config, ArchetypalConfig).archetypes
        return cls(dim, config, points=points(count), group=group, device=device)

    @classmethod
    def continuing(
        cls, start: Sae, config: TrainConfig, scaling: InputScaling, *, device: str = "cpu"
    ) -> SparseLearner:
        """A TopK learner, whose decoder rows need not stay mixtures of data points."""
        return TopKLearner.continuing(start, config, scaling, device=device)

    def __init__(
        self,
        dim: int,
        config: TrainConfig,
        *,
        points: Float[Tensor, "A D"],
        group: Group | None = None,
        device: str = "cpu",
    ) -> None:
        """``points`` are scaled site vectors to mix; fewer than 2 raise `InvalidInputError`."""
        super().__init__(dim, config, group=group, device=device)
        if len(points) < 2:
            raise InvalidInputError(
                f"{len(points)} data points cannot be mixed; raise train.archetypal.archetypes, or "
                "give more pictures",
                field="train.archetypal.archetypes",
            )
        first = first_mixing(points.float().cpu(), len(self.weights.w_dec), config.seed)
        self.mixing = Mixing(*(t.to(device) for t in first))
        rows, _ = self.mixing.rows()
        self.weights.w_dec.copy_(rows)
        self._kernels = MixedDecoder(self._kernels, self.weights, self.mixing)
        self._start_encoder()

    def _start_encoder(self) -> None:
        """Start with the dual frame of the decoder, at the length that reconstructs best.

        Data points resemble each other. With an encoder equal to the decoder, all features would
        fire on the few directions that the points share, and half of the features would die.
        """
        w, points = self.weights, self.mixing.points
        second_moment = w.w_dec.T @ w.w_dec
        second_moment.diagonal().add_(_RIDGE * second_moment.diagonal().mean())
        w.w_enc.copy_(F.normalize(torch.linalg.solve(second_moment, w.w_dec.T).T, dim=1))
        self._kernels.refresh()
        reconstruction = self.forward(points).error + points
        squares = reconstruction.square().sum()  # 0 if no feature fires at any length
        w.w_enc.mul_(torch.where(squares > 0, (reconstruction * points).sum() / squares, 1.0))
        self._kernels.refresh()

    def tensors(self) -> dict[str, Tensor]:
        """The whole state but the points, which never change; see `step.Learner`."""
        mixing = {name: t for name, t in self.mixing._asdict().items() if name != "points"}
        return super().tensors() | mixing

    def dictionary(self, scaling: InputScaling) -> ArchetypalSae:
        """The current SAE for raw site vectors, with mean and scale folded into the weights."""
        _, lengths = self.mixing.rows()
        return ArchetypalSae(
            k=self.config.k,
            bound=BOUND,
            points=self.mixing.points.cpu() / scaling.scale + scaling.mean,
            members=self.mixing.members.cpu().int(),
            shares=self.mixing.logits.cpu().softmax(1),
            lengths=lengths.cpu() / scaling.scale,
            origin=scaling.mean.clone(),
            **self.folded(scaling),
        )


def first_mixing(points: Float[Tensor, "A D"], width: int, seed: int) -> Mixing:
    """The initial mixing of ``width`` features, without relaxations.

    Each feature has one point with about half of the share, a different point for each feature as
    long as there are enough. The other points are random: near neighbours would be too similar.
    """
    generator = torch.Generator().manual_seed(seed)
    own = torch.randperm(len(points), generator=generator).repeat(width // len(points) + 1)
    members = torch.randint(len(points), (width, _MEMBERS), generator=generator)
    members[:, 0] = own[:width]
    logits = 0.5 * torch.randn(width, _MEMBERS, generator=generator)
    logits[:, 0] += math.log(_MEMBERS)
    return Mixing(
        points=points,
        members=members,
        logits=logits,
        relaxation=torch.zeros(width, points.shape[1]),
        m_logits=torch.zeros(width, _MEMBERS),
        v_logits=torch.zeros(width, _MEMBERS),
    )


ARCHITECTURES.register(
    Architecture(ArchetypalSae, learner=ArchetypalLearner, settings=ArchetypalConfig)
)
