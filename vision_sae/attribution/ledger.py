"""The ledger: how much each feature, the SAE error and the bias contributed to a target.

At the patches of a site, ``update = b_dec + sum_i f_i d_i + eps``; the codes f and the error eps
are the leaves. They are measured from a `Reference`, which has codes, an error and perhaps no bias.
With G the gradient of the target by the update, averaged over the way from the reference to the
picture, a feature contributes ``sum over patches of (f_i - f_i') <d_i, G>``, the error
``sum <eps - eps', G>`` and the bias, where the reference lacks it, ``sum <b_dec, G>``. One node at
the picture itself is act x grad; Gauss-Legendre nodes are integrated gradients (Sundararajan et al.
2017, arXiv:1703.01365). Special tokens are left as they are in the picture and in the reference,
unless the caller asks for them: then they are attributed like patches, as rows in front of the
patches.

Only codes that fire are stored, so memory does not grow with patches times features.

All of a ledger is computed on the model's device, and copied to host memory once at the end.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from vision_sae.attribution.firing import maps_of
from vision_sae.attribution.observation import Observation
from vision_sae.attribution.targets import Target
from vision_sae.bundles.read import Bundle
from vision_sae.dictionaries.kernels import add_rows_, sampled_dot
from vision_sae.dictionaries.protocol import Codes, Dictionary, SiteDictionary
from vision_sae.dictionaries.resident import resident
from vision_sae.models.protocol import Model
from vision_sae.transfers import finest_float, to_host


class Reference(NamedTuple):
    """The state of a site that an attribution is measured from."""

    update: Float[Tensor, "*R D"]
    """The site vectors of R rows, or one vector for all rows."""
    codes: Codes | None = None
    """Codes of the rows; None for the zero code."""
    mean_code: Float[Tensor, " F"] | None = None
    """The code of every row, instead of `codes`."""
    biased: bool = True
    """Whether ``b_dec`` is part of it."""

    def to(self, device: torch.device) -> Reference:
        """The same state on ``device``."""
        codes, mean = self.codes, self.mean_code
        return Reference(
            self.update.to(device),
            None if codes is None else Codes(*(part.to(device) for part in codes)),
            None if mean is None else mean.to(device),
            self.biased,
        )


def zero_code(dictionary: Dictionary) -> Reference:
    """No feature fires and the error is zero: the block adds its bias only."""
    return Reference(dictionary.bias)


def block_removed(dictionary: Dictionary) -> Reference:
    """The block adds nothing at all."""
    return Reference(torch.zeros_like(dictionary.bias), biased=False)


def mean_code(site_mean: Float[Tensor, " D"], mean_activations: Float[Tensor, " F"]) -> Reference:
    """The mean code and the mean error of a data set with this mean site vector."""
    return Reference(site_mean, mean_code=mean_activations)


def mean_of(bundle: Bundle) -> Reference:
    """`mean_code` of the pictures that a bundle was built from."""
    stats, rows = bundle.statistics, len(bundle.codes.indptr) - 1
    mean = torch.from_numpy(stats.mean * (stats.count / rows)).float()
    return mean_code(torch.from_numpy(bundle.site_mean), mean)


def of_picture(dictionary: Dictionary, vectors: Float[Tensor, "R D"]) -> Reference:
    """The codes and errors of another picture's site vectors, row by row, on their device."""
    return Reference(vectors, codes=resident(dictionary, vectors.device).encode(vectors))


ReferenceKind = Literal["zero", "mean", "removed"]
"""No feature fires, the mean code of the data, or the block adds nothing."""


def reference_of(
    kind: ReferenceKind, dictionary: Dictionary, bundle: Bundle | None = None
) -> Reference:
    """The reference of a kind; ``mean`` is of the data of ``bundle``."""
    match kind:
        case "zero":
            return zero_code(dictionary)
        case "removed":
            return block_removed(dictionary)
        case "mean":
            assert bundle is not None
            return mean_of(bundle)


class MeanPart(NamedTuple):
    """What the mean code of a reference subtracts from a ledger.

    Its tensors stay on the model's device, where the decoder is.
    """

    code: Float[Tensor, " F"]
    """The mean code."""
    gradient: Float[Tensor, "R D"]
    """The averaged gradient by the rows."""
    decoder: Float[Tensor, "F D"]

    def per_row(self) -> Float64[Tensor, " R"]:
        """All features together at each row."""
        wide = finest_float(self.code.device)
        return -(self.gradient.to(wide) @ (self.code @ self.decoder).to(wide))

    def per_feature(self) -> Float64[Tensor, " F"]:
        """Each feature over all rows."""
        wide = finest_float(self.code.device)
        return -(self.code.to(wide) * (self.decoder @ self.gradient.sum(0)).to(wide))

    def at(self, features: Int64[Tensor, " N"]) -> Float64[Tensor, "N R"]:
        """Some features at each row, in host memory."""
        wide, features = finest_float(self.code.device), features.to(self.code.device)
        along = self.decoder[features].to(wide) @ self.gradient.to(wide).T
        return (-self.code[features].to(wide)[:, None] * along).cpu()


class FeaturePart(NamedTuple):
    """What one feature contributed."""

    feature: int
    contribution: float
    """Over all rows of the ledger."""
    at_special_tokens: float
    """The part of `contribution` at special tokens."""
    activation: float
    """The largest activation over the rows."""
    contributions: Float64[np.ndarray, " P"]
    """The contribution at each patch."""
    activations: Float64[np.ndarray, " P"]
    """The activation at each patch."""


class Ledger(NamedTuple):
    """Contributions to one target of one picture; everything sums to `total`.

    Its R rows are the special tokens that are attributed, if any, and then the patches.
    """

    values: Float[Tensor, " 2"]
    """The target for the picture as it is, and at the reference."""
    update: Float[Tensor, "R D"]
    """The site vectors of the rows."""
    codes: Codes
    """The codes of the rows."""
    per_feature: Float64[Tensor, " F"]
    """What each feature contributed over all rows."""
    contributions: Codes
    """What each code contributed (R, K), as features and float64 values of either sign. The codes
    of the reference enter with a minus sign."""
    mean: MeanPart | None
    """What a mean code of the reference subtracts from the features; None without a mean code."""
    error: Float64[Tensor, " R"]
    """What the SAE error of each row contributed."""
    bias: Float64[Tensor, " R"]
    """What b_dec contributed at each row; zero unless the reference lacks b_dec."""
    nodes: int
    """Integration nodes used."""
    special: int = 0
    """How many rows, the first ones, are special tokens."""

    def on_host(self) -> Ledger:
        """The same ledger in host memory, where its figures are read; one transfer."""
        values, update, per_feature, error, bias, *codes = to_host(
            self.values,
            self.update,
            self.per_feature,
            self.error,
            self.bias,
            *self.codes,
            *self.contributions,
        )
        return self._replace(
            values=values,
            update=update,
            codes=Codes(*codes[:2]),
            per_feature=per_feature,
            contributions=Codes(*codes[2:]),
            error=error,
            bias=bias,
        )

    @property
    def target_value(self) -> float:
        """The target for the picture as it is."""
        return float(self.values[0])

    @property
    def baseline_value(self) -> float:
        """The target at the reference."""
        return float(self.values[1])

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
    def per_patch(self) -> Float64[Tensor, " P"]:
        """Features, error and bias together at each patch."""
        return self._per_row[self.special :]

    @property
    def at_special_tokens(self) -> float:
        """The part of `total` at special tokens."""
        return float(self._per_row[: self.special].sum())

    @property
    def counted(self) -> Int64[np.ndarray, " n"]:
        """The features that contribute or could: those that fire in the picture or in the
        reference."""
        fires = self.codes.indices[self.codes.values > 0]
        return np.unique(torch.cat([fires, self.per_feature.nonzero()[:, 0]]).numpy())

    def strongest(self, limit: int) -> Int64[np.ndarray, " n"]:
        """The features that contribute most by magnitude, at most ``limit``."""
        counted = self.counted
        order = np.argsort(-np.abs(self.per_feature.numpy()[counted]), kind="stable")
        return counted[order[:limit]]

    def parts(self, limit: int) -> list[FeaturePart]:
        """What the `strongest` features contributed."""
        shown, special = self.strongest(limit), self.special
        contributed, fires = maps_of(self.contributions, shown), maps_of(self.codes, shown)
        if self.mean is not None:
            contributed += self.mean.at(torch.from_numpy(shown)).numpy()
        return [
            FeaturePart(
                feature,
                float(self.per_feature[feature]),
                float(contributions[:special].sum()),
                float(activations.max()),
                contributions[special:],
                activations[special:],
            )
            for feature, contributions, activations in zip(
                shown.tolist(), contributed, fires, strict=True
            )
        ]

    @property
    def _per_row(self) -> Tensor:
        of_codes = self.contributions.values.sum(1) + self.error + self.bias
        return of_codes if self.mean is None else of_codes + self.mean.per_row().cpu()


def attribute(
    model: Model,
    site_dictionary: SiteDictionary,
    image: Float[Tensor, "C H W"],
    target: Target,
    *,
    nodes: int = 1,
    reference: Reference | None = None,
    special_tokens: bool = False,
) -> Ledger:
    """Attribute ``target`` of one picture to the features at a site.

    ``nodes`` 1 is act x grad (one backward pass); more are Gauss-Legendre integrated gradients.
    The default ``reference`` is the zero code. ``special_tokens`` attributes to the codes of
    special tokens too; at the last block of a model that reads only its class token, nothing else
    counts.
    """
    observation = Observation(
        model, image, target, [site_dictionary.site], special_tokens=special_tokens
    )
    return ledger(observation, site_dictionary, nodes=nodes, reference=reference)


def ledger(
    observation: Observation,
    site_dictionary: SiteDictionary,
    *,
    nodes: int = 1,
    reference: Reference | None = None,
) -> Ledger:
    """`attribute` for an existing `Observation`."""
    update = observation.updates[site_dictionary.site]
    dictionary = resident(site_dictionary.dictionary, update.device)
    wide = finest_float(update.device)
    reference = zero_code(dictionary) if reference is None else reference.to(update.device)
    start = reference.update.expand_as(update)
    gradient = observation.gradient(site_dictionary.site, start, nodes)
    codes = dictionary.encode(update)

    def along(some: Codes) -> Tensor:
        """The contribution of each code (R, k)."""
        gradients = sampled_dot(some.indices, gradient, dictionary.decoder)
        return some.values.to(wide) * gradients.to(wide)

    parts = [Codes(codes.indices, along(codes))]
    reference_decoded = dictionary.bias.expand_as(update)
    if reference.codes is not None:
        parts.append(Codes(reference.codes.indices, -along(reference.codes)))
        reference_decoded = dictionary.decode(reference.codes)
    contributions = Codes(*(torch.cat(side, dim=1) for side in zip(*parts, strict=True)))
    per_feature = update.new_zeros(dictionary.width, dtype=wide)
    add_rows_(per_feature, contributions.indices.flatten(), contributions.values.flatten())
    mean = None
    if reference.mean_code is not None:
        reference_decoded = reference_decoded + reference.mean_code @ dictionary.decoder
        mean = MeanPart(reference.mean_code, gradient, dictionary.decoder)
        per_feature += mean.per_feature()
    bias = update.new_zeros(len(update), dtype=wide)
    error = update - dictionary.decode(codes)
    if reference.biased:
        error = error - (start - reference_decoded)
    else:
        bias += gradient.to(wide) @ dictionary.bias.to(wide)
    error = (error.to(wide) * gradient.to(wide)).sum(1)
    baseline = observation.measured_at(site_dictionary.site, start[None])
    return Ledger(
        values=torch.cat([observation.measured[None], baseline]),
        update=update,
        codes=codes,
        per_feature=per_feature,
        contributions=contributions,
        mean=mean,
        error=error,
        bias=bias,
        nodes=nodes,
        special=observation.special,
    ).on_host()
