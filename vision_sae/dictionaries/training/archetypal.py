"""Training archetypal autoencoders: TopK whose decoder rows are mixtures of data points.

Fel et al. 2025, "Archetypal SAE", the relaxed form: a decoder row is a convex combination of data
points, plus a relaxation of bounded length. Here each feature mixes a few points of its own, so
that what it is made of is small enough to keep and to look at, and its row is then brought to unit
norm, as everywhere: lengths are the activations' affair.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.archetypal import ArchetypalSae
from vision_sae.dictionaries.kernels import bag, transpose, transposed_bag
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
from vision_sae.errors import InvalidInputError

BOUND = 0.1
"""Longest relaxation, as a share of its mixture's length: a row is at most 6 degrees off."""
_MEMBERS = 32
"""Data points that a feature mixes."""
_HASTE = 30.0
"""How many times faster the logits of the shares learn than the weights."""
_SHORTEST = 1e-12
"""A mixture of points that cancel has no direction: its row stays zero."""
_RIDGE = 0.1
"""Of the first encoder, beside the mean square of the decoder's dimensions."""


class Mixing(NamedTuple):
    """How decoder rows are made of ``points``; changed in place."""

    points: Tensor
    """Scaled site vectors (A, D); never changed."""
    members: Tensor
    """The points that each feature mixes (F, M), int64."""
    logits: Tensor
    """Their shares are the softmax of these (F, M)."""
    relaxation: Tensor
    """(F, D)"""
    m_logits: Tensor
    """Adam's moments of the logits (F, M); ``w_dec``'s own are those of the relaxation."""
    v_logits: Tensor

    def mixtures(self, logits: Tensor) -> Tensor:
        """Convex combinations of the points with these logits (F, D)."""
        return bag(self.members, logits.softmax(1), self.points)

    def rows(self) -> tuple[Tensor, Tensor]:
        """(decoder rows of unit norm (F, D), the lengths they had before (F))."""
        raw = self.mixtures(self.logits) + self.relaxation
        lengths = raw.norm(dim=1).clamp_min(_SHORTEST)
        return raw / lengths[:, None], lengths


class MixedDecoder:
    """`sparse.Kernels` for a decoder that follows from a mixing."""

    def __init__(self, kernels: Kernels, weights: Weights, mixing: Mixing) -> None:
        """Everything but the update is left to ``kernels`` of the same weights."""
        self._kernels, self._w, self._mixing = kernels, weights, mixing

    def refresh(self) -> None:
        """Take notice of weights that were changed from outside."""
        self._kernels.refresh()

    def choose(self, z: Tensor, k: int, shared: Shared | None) -> Chosen:
        """See `sparse.Kernels`."""
        return self._kernels.choose(z, k, shared)

    def finish(self, chosen: Chosen, ends: tuple[int, ...], weight: float) -> Forward:
        """See `sparse.Kernels`."""
        return self._kernels.finish(chosen, ends, weight)

    def gradients_at(self, forward: Forward, slopes: Tensor) -> Forward:
        """See `sparse.Kernels`."""
        return self._kernels.gradients_at(forward, slopes)

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
        by_decoder = transposed_bag(by_feature, forward.values, forward.slopes[0])
        by_encoder = transposed_bag(by_feature, forward.g_values, forward.centred)
        by_bias = torch.zeros_like(w.b_enc)
        by_bias.index_add_(0, indices.reshape(-1), forward.g_values.reshape(-1))
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
        fired = torch.zeros(len(w.w_enc), dtype=torch.bool, device=indices.device)
        fired[indices[forward.values > 0]] = True
        return fired, through_encoder

    def _mix(self, by_rows: Tensor, adam: Adam) -> None:
        """One Adam step against the gradient by the unit rows (F, D); relaxations come back inside
        their bound."""
        w, mixing = self._w, self._mixing
        with torch.enable_grad():
            logits, relaxation = (
                t.clone().requires_grad_() for t in (mixing.logits, mixing.relaxation)
            )
            rows = F.normalize(mixing.mixtures(logits) + relaxation, dim=1)
            by_logits, by_relaxation = torch.autograd.grad(rows, (logits, relaxation), by_rows)
        hasty = adam._replace(rate=adam.rate * _HASTE)
        adam_(mixing.logits, by_logits, mixing.m_logits, mixing.v_logits, hasty)
        adam_(mixing.relaxation, by_relaxation, w.m_w_dec, w.v_w_dec, adam)
        mixtures = mixing.mixtures(mixing.logits)
        longest = BOUND * mixtures.norm(dim=1, keepdim=True)
        lengths = mixing.relaxation.norm(dim=1, keepdim=True)
        mixing.relaxation.mul_(torch.where(lengths > longest, longest / lengths, 1.0))
        torch.add(mixtures, mixing.relaxation, out=w.w_dec)
        w.w_dec.div_(w.w_dec.norm(dim=1, keepdim=True).clamp_min(_SHORTEST))


class ArchetypalLearner(SparseLearner):
    """One archetypal autoencoder being trained; see `learner.Learner`."""

    def __init__(
        self,
        dim: int,
        config: TrainConfig,
        *,
        points: Tensor,
        group: Group | None = None,
        device: str = "cpu",
    ) -> None:
        """``points`` (A, D) are scaled site vectors to mix."""
        super().__init__(dim, config, group=group, device=device)
        if len(points) < 2:
            raise InvalidInputError(
                f"{len(points)} data points cannot be mixed; raise --archetypes, or give more "
                "pictures",
                field="archetypes",
            )
        first = first_mixing(points.float().cpu(), len(self.weights.w_dec), config.seed)
        self.mixing = Mixing(*(t.to(device) for t in first))
        rows, _ = self.mixing.rows()
        self.weights.w_dec.copy_(rows)
        self._kernels = MixedDecoder(self._kernels, self.weights, self.mixing)
        self._start_encoder()

    def _start_encoder(self) -> None:
        """Begin with the dual frame of the decoder, at the length that reconstructs best.

        Data points resemble each other: with encoder = decoder, all features would answer to the
        few directions that the points share, reconstruct them many times over, and half would die.
        """
        w, points = self.weights, self.mixing.points
        second_moment = w.w_dec.T @ w.w_dec
        second_moment.diagonal().add_(_RIDGE * second_moment.diagonal().mean())
        w.w_enc.copy_(F.normalize(torch.linalg.solve(second_moment, w.w_dec.T).T, dim=1))
        self.refresh()
        made = self.forward(points).error + points
        if (squares := made.square().sum()) > 0:  # else nothing fires at any length
            w.w_enc.mul_((made * points).sum() / squares)
        self.refresh()

    def tensors(self) -> dict[str, Tensor]:
        """The live state; the points are not part of it."""
        mixing = {name: t for name, t in self.mixing._asdict().items() if name != "points"}
        return super().tensors() | mixing

    def dictionary(self, scaling: InputScaling) -> ArchetypalSae:
        """The SAE as it stands, on raw site vectors: mean and scale folded in."""
        plain = super().dictionary(scaling)
        _, lengths = self.mixing.rows()
        return ArchetypalSae(
            k=self.config.k,
            bound=BOUND,
            points=self.mixing.points.cpu() / scaling.scale + scaling.mean,
            members=self.mixing.members.cpu().int(),
            shares=self.mixing.logits.cpu().softmax(1),
            lengths=lengths.cpu() / scaling.scale,
            origin=scaling.mean.clone(),
            w_enc=plain.w_enc,
            b_enc=plain.b_enc,
            w_dec=plain.w_dec,
            b_dec=plain.b_dec,
        )


def first_mixing(points: Tensor, width: int, seed: int) -> Mixing:
    """Each feature begins with half its share in a point of its own, as far as there are as many,
    and mixes it with others drawn at random: neighbours would all say the same.

    ``points`` (A, D) -> a mixing of ``width`` features without relaxations.
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
