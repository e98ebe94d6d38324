"""The ledger: how much each feature, the SAE error and the bias contributed to a target.

At the patches of a site, ``update = b_dec + sum_i f_i d_i + eps``; the codes f and the error eps
are the leaves. They are measured from a `Reference`, which has codes, an error and perhaps no bias.
With G the gradient of the target by the update, averaged over the way from the reference to the
picture, a feature contributes ``sum over patches of (f_i - f_i') <d_i, G>``, the error
``sum <eps - eps', G>`` and the bias, where the reference lacks it, ``sum <b_dec, G>``. One node at
the picture itself is act x grad; Gauss-Legendre nodes are integrated gradients (Sundararajan et al.
2017, arXiv:1703.01365). Special tokens are left as they are in the picture and in the reference,
unless they are asked for: then they are attributed like patches, as rows in front of them.

Only codes that fire are touched: memory does not grow with patches times features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vision_sae.attribution.targets import Target, measured
from vision_sae.dictionaries.kernels import sampled_dot
from vision_sae.dictionaries.protocol import Codes, Dictionary, SiteDictionary
from vision_sae.models.protocol import Model

_AT_ONCE = 16
"""Variants of a picture in one forward pass."""


class Reference(NamedTuple):
    """What an attribution is measured from."""

    update: Tensor
    """The site vectors (R, D), or (D) for the same in every row."""
    codes: Codes | None = None
    """Codes of the rows (R, k); None for the zero code."""
    mean_code: Tensor | None = None
    """A code (F) of every row, in the place of `codes`."""
    biased: bool = True
    """Whether ``b_dec`` is part of it."""


def zero_code(dictionary: Dictionary) -> Reference:
    """No feature fires and the error is zero: the block adds its bias only."""
    return Reference(dictionary.bias)


def block_removed(dictionary: Dictionary) -> Reference:
    """The block adds nothing at all."""
    return Reference(torch.zeros_like(dictionary.bias), biased=False)


def mean_code(site_mean: Tensor, mean_activations: Tensor) -> Reference:
    """The mean code (F) and the mean error of a data set, whose mean site vector (D) is given."""
    return Reference(site_mean, mean_code=mean_activations)


def of_picture(dictionary: Dictionary, vectors: Tensor) -> Reference:
    """The codes and errors of another picture's site vectors (R, D), row by row."""
    return Reference(vectors, codes=dictionary.encode(vectors))


class MeanPart(NamedTuple):
    """What the mean code of a reference takes from the books."""

    code: Tensor
    """The mean code (F)."""
    gradient: Tensor
    """The averaged gradient by the rows (R, D)."""
    decoder: Tensor
    """(F, D)"""

    def per_row(self) -> Tensor:
        """All features together at each row (R), float64."""
        return -(self.gradient.double() @ (self.code @ self.decoder).double())

    def per_feature(self) -> Tensor:
        """Each feature over all rows (F), float64."""
        return -(self.code.double() * (self.decoder @ self.gradient.sum(0)).double())

    def at(self, features: Tensor) -> Tensor:
        """Some features (N) at each row (N, R), float64."""
        slopes = self.decoder[features].double() @ self.gradient.double().T
        return -self.code[features].double()[:, None] * slopes


class Ledger(NamedTuple):
    """Contributions to one target of one picture; everything sums to `total`.

    Its R rows are the special tokens that are attributed, if any, and then the patches.
    """

    target_value: float
    """The target for the picture as it is."""
    baseline_value: float
    """The target at the reference."""
    update: Tensor
    """The site vectors of the rows (R, D)."""
    codes: Codes
    """The codes of the rows (R, k)."""
    per_feature: Tensor
    """What each feature contributed over all rows (F), float64."""
    contributions: Codes
    """What each code contributed (R, K), as (features, float64 values of either sign); codes of
    the reference count against."""
    mean: MeanPart | None
    """What the reference's mean code took from the features; None without one."""
    error: Tensor
    """What the SAE error of each row contributed (R), float64."""
    bias: Tensor
    """What b_dec contributed at each row (R), float64; zero unless the reference lacks it."""
    nodes: int
    """Integration nodes used."""
    special: int = 0
    """How many rows, the first ones, are special tokens."""

    @property
    def features_total(self) -> float:
        """The part of all features."""
        return float(self.per_feature.sum())

    @property
    def total(self) -> float:
        """Everything that was attributed."""
        return self.features_total + float(self.error.sum() + self.bias.sum())

    @property
    def completeness_gap(self) -> float:
        """``target_value - baseline_value - total``: what the method failed to attribute."""
        return self.target_value - self.baseline_value - self.total

    @property
    def per_patch(self) -> Tensor:
        """Features, error and bias together at each patch (P), float64."""
        return self._per_row[self.special :]

    @property
    def at_special_tokens(self) -> float:
        """The part of `total` at special tokens."""
        return float(self._per_row[: self.special].sum())

    @property
    def _per_row(self) -> Tensor:
        of_codes = self.contributions.values.sum(1) + self.error + self.bias
        return of_codes if self.mean is None else of_codes + self.mean.per_row()


def gauss_legendre(nodes: int) -> tuple[list[float], list[float]]:
    """(positions in (0, 1], weights that sum to 1); one node is the end of the way itself."""
    if nodes == 1:
        return [1.0], [1.0]
    positions, weights = np.polynomial.legendre.leggauss(nodes)
    return ((positions + 1) / 2).tolist(), (weights / 2).tolist()


class Scene:
    """One picture before one model: what its sites hold, and the target under other updates."""

    def __init__(
        self,
        model: Model,
        image: Tensor,
        target: Target,
        sites: Sequence[str],
        *,
        special_tokens: bool = False,
    ) -> None:
        """``image`` (3, H, W); ``sites`` are those to be changed, at their patches and, if they
        are asked for, at their special tokens in front of them."""
        self.model, self.target = model, target
        self.special = model.grid.special if special_tokens else 0
        self._held, self._batch = model.grid.special - self.special, image[None]
        with torch.no_grad(), model.capture(sites) as captured:
            _, values = measured(model, self._batch, [target])
        self.value = float(values)
        self.updates: dict[str, Tensor] = {
            site: captured[site][0, self._held :].float().cpu() for site in sites
        }

    def _run(self, site: str, updates: Tensor) -> Tensor:
        """The target with each of some updates (N, R, D) of a site (N).

        What comes before the site is computed once: the batch of one becomes N there.
        """

        def setting(vectors: Tensor) -> Tensor:
            held = vectors[:, : self._held].expand(len(updates), -1, -1)
            return torch.cat([held, updates.to(vectors)], dim=1)

        with self.model.replace(site, setting):
            return measured(self.model, self._batch, [self.target])[1][:, 0]

    def values_at(self, site: str, updates: Tensor) -> Tensor:
        """The target with each of some updates (N, R, D) of a site, float64 (N)."""
        with torch.no_grad():
            parts = [self._run(site, some) for some in updates.split(_AT_ONCE)]
        return torch.cat(parts).double().cpu()

    def value_at(self, site: str, update: Tensor) -> float:
        """The target with the update (R, D) of a site set."""
        return float(self.values_at(site, update[None]))

    def values_of(self, images: Tensor) -> Tensor:
        """The target for other model inputs (N, 3, H, W) in the picture's place, float64 (N)."""
        with torch.no_grad():
            parts = [measured(self.model, i, [self.target])[1] for i in images.split(_AT_ONCE)]
        return torch.cat(parts)[:, 0].double().cpu()

    def gradient(self, site: str, start: Tensor | None = None, nodes: int = 1) -> Tensor:
        """The gradient of the target by the site's update (R, D), averaged over the way from
        ``start`` to the picture; at the picture itself for one node."""
        update = self.updates[site]
        start = update if start is None else start
        positions, weights = (torch.tensor(part) for part in gauss_legendre(nodes))
        gradient = torch.zeros_like(update)
        for where, weight in zip(positions.split(_AT_ONCE), weights.split(_AT_ONCE), strict=True):
            rows = (start + where[:, None, None] * (update - start)).requires_grad_()
            (slopes,) = torch.autograd.grad(self._run(site, rows).sum(), rows)
            gradient += torch.einsum("n,npd->pd", weight, slopes.float().cpu())
        return gradient


def attribute(
    model: Model,
    found: SiteDictionary,
    image: Tensor,
    target: Target,
    *,
    nodes: int = 1,
    reference: Reference | None = None,
    special_tokens: bool = False,
) -> Ledger:
    """Attribute ``target`` of one picture (3, H, W) to the features at a site.

    ``nodes`` 1 is act x grad (one backward pass); more are Gauss-Legendre integrated gradients.
    Without ``reference`` it is the zero code. ``special_tokens`` attributes to the codes of special
    tokens too, which is all there is at the last block of a model that reads its class token only.
    """
    scene = Scene(model, image, target, [found.site], special_tokens=special_tokens)
    return ledger(scene, found, nodes=nodes, reference=reference)


def ledger(
    scene: Scene, found: SiteDictionary, *, nodes: int, reference: Reference | None = None
) -> Ledger:
    """`attribute` of a picture that has been seen."""
    dictionary, update = found.dictionary, scene.updates[found.site]
    reference = reference or zero_code(dictionary)
    start = reference.update.expand_as(update)
    gradient = scene.gradient(found.site, start, nodes)
    codes = dictionary.encode(update)

    def along(some: Codes) -> Tensor:
        """What each of some codes (R, k) contributes."""
        slopes = sampled_dot(some.indices, gradient, dictionary.decoder)
        return some.values.double() * slopes.double()

    parts = [Codes(codes.indices, along(codes))]
    reference_decoded = dictionary.bias.expand_as(update)
    if reference.codes is not None:
        parts.append(Codes(reference.codes.indices, -along(reference.codes)))
        reference_decoded = dictionary.decode(reference.codes)
    contributions = Codes(*(torch.cat(side, dim=1) for side in zip(*parts, strict=True)))
    per_feature = torch.zeros(dictionary.width, dtype=torch.float64).index_add_(
        0, contributions.indices.reshape(-1), contributions.values.reshape(-1)
    )
    mean = None
    if reference.mean_code is not None:
        reference_decoded = reference_decoded + reference.mean_code @ dictionary.decoder
        mean = MeanPart(reference.mean_code, gradient, dictionary.decoder)
        per_feature += mean.per_feature()
    bias = torch.zeros(len(update), dtype=torch.float64)
    error = update - dictionary.decode(codes)
    if reference.biased:
        error = error - (start - reference_decoded)
    else:
        bias += gradient.double() @ dictionary.bias.double()
    return Ledger(
        target_value=scene.value,
        baseline_value=scene.value_at(found.site, start),
        update=update,
        codes=codes,
        per_feature=per_feature,
        contributions=contributions,
        mean=mean,
        error=(error.double() * gradient.double()).sum(1),
        bias=bias,
        nodes=nodes,
        special=scene.special,
    )


def exact_ablation(scene: Scene, found: SiteDictionary, features: Sequence[int]) -> Ledger:
    """Ablate each of some features alone, then the error alone, and measure the target again.

    A feature's effect is spread over its rows by its activation there. Effects of several do
    not add up: the gap holds what they do together, and what other features do.
    """
    dictionary, update = found.dictionary, scene.updates[found.site]
    codes = dictionary.encode(update)
    error = update - dictionary.decode(codes)
    per_feature = torch.zeros(dictionary.width, dtype=torch.float64)
    values = torch.zeros_like(codes.values, dtype=torch.float64)
    firing = [codes.values * (codes.indices == feature) for feature in features]
    without = [
        update - fires.sum(1, keepdim=True) * dictionary.decoder[feature]
        for feature, fires in zip(features, firing, strict=True)
    ]
    after = scene.values_at(found.site, torch.stack([*without, update - error]))
    effects = (scene.value - after).tolist()
    for feature, fires, effect in zip(features, firing, effects, strict=False):
        if not fires.any():  # its effect is 0, whatever rounding says
            continue
        per_feature[feature] = effect
        values += effect * (fires / fires.sum().clamp_min(1e-12)).double()
    of_error = effects[-1]
    norms = error.double().norm(dim=1)
    nothing = torch.zeros(len(update), dtype=torch.float64)
    return Ledger(
        target_value=scene.value,
        baseline_value=scene.value_at(found.site, dictionary.bias.expand_as(update)),
        update=update,
        codes=codes,
        per_feature=per_feature,
        contributions=Codes(codes.indices, values),
        mean=None,
        error=of_error * norms / norms.sum().clamp_min(1e-12),
        bias=nothing,
        nodes=1,
        special=scene.special,
    )
