"""One site of an answer of Attribute: translates the result of each family of methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.attribution.faithfulness import Faithfulness
from vision_sae.attribution.ledger import FeaturePart, Ledger
from vision_sae.attribution.maps import Factorisation, PatchMap
from vision_sae.models.artifacts import artifacts
from vision_sae.tensors import to_proto
from vision_sae.v1 import attribution_service_pb2 as pb
from vision_sae.v1 import ledger_pb2, tensor_pb2
from vision_sae_server.answers.encodings import DEFAULT_PATCHES, DEFAULT_TOP_K
from vision_sae_server.answers.features import feature_messages
from vision_sae_server.answers.images import add_patches, patch_grid, write_heatmap
from vision_sae_server.served import Served
from vision_sae_server.state import PreparedPicture

_SPACES = {
    "code": ledger_pb2.FAITHFULNESS_SPACE_CODE,
    "pixel": ledger_pb2.FAITHFULNESS_SPACE_PIXEL,
}
_TESTS = {
    "deletion": ledger_pb2.FAITHFULNESS_TEST_DELETION,
    "insertion": ledger_pb2.FAITHFULNESS_TEST_INSERTION,
}


@dataclass(frozen=True)
class SiteAnswer:
    """Fills the message of a site; the attributes are the inputs that all methods share."""

    request: pb.AttributeRequest
    served: Served
    picture: PreparedPicture
    update: Tensor
    """The site vectors of the picture's patches (P, D)."""

    def of_map(
        self, answer: PatchMap, tested: Sequence[Faithfulness]
    ) -> ledger_pb2.SiteAttribution:
        """The message of a method that gives one map."""
        return self._message(answer.per_patch, tested)

    def of_components(
        self, answer: Factorisation, tested: Sequence[Faithfulness]
    ) -> ledger_pb2.SiteAttribution:
        """The message of a factorisation: a map for each component."""
        site = self._message(answer.per_patch, tested)
        pairs = zip(answer.components, answer.effects, strict=True)
        for index, (component, effect) in enumerate(pairs):
            added = site.components.add(index=index, contribution=effect)
            self._write(added.heatmap, component.maps[0].double().numpy())
        return site

    def of_ledger(
        self,
        ledger: Ledger,
        tested: Sequence[Faithfulness],
        method: ledger_pb2.AttributionMethod.ValueType,
        reference: ledger_pb2.ReferenceCode.ValueType,
    ) -> ledger_pb2.SiteAttribution:
        """The message of a method that gives a ledger: its sums and its strongest features."""
        site = self._message(ledger.per_patch, tested)
        site.special_tokens = ledger.at_special_tokens
        parts = ledger.parts(self.request.top_k or DEFAULT_TOP_K)
        site.ledger.CopyFrom(_sums(ledger, parts, method, reference))
        self._add_features(site, parts)
        return site

    def _message(self, total: Tensor, tested: Sequence[Faithfulness]) -> ledger_pb2.SiteAttribution:
        """The part of the message that all methods share; ``total`` is the map of patches (P)."""
        bundle = self.served.bundle
        decoded = bundle.dictionary.decode(bundle.dictionary.encode(self.update))
        site = ledger_pb2.SiteAttribution(
            dictionary=self.served.resource,
            grid=patch_grid(
                bundle.grid,
                self.picture.geometry,
                self.served.model.model.special_tokens,
                artifacts(self.update).numpy(),
            ),
            explained_variance=bundle.explained_variance(self.update, decoded),
            faithfulness=map(_faithfulness, tested),
        )
        self._write(site.total_map, total.numpy())
        return site

    def _write(self, heatmap: tensor_pb2.Tensor, values: NDArray[np.float64]) -> None:
        grid, format_ = self.served.bundle.grid, self.request.heatmap_format
        write_heatmap(heatmap, values.reshape(grid.rows, grid.cols), format_)

    def _add_features(self, site: ledger_pb2.SiteAttribution, parts: Sequence[FeaturePart]) -> None:
        """Add features with their maps and the patches where they contribute most."""
        request, shown = self.request, [part.feature for part in parts]
        limit = request.max_patches if request.HasField("max_patches") else DEFAULT_PATCHES
        features = feature_messages(self.served, shown, request.view, request.exemplars)
        for part, feature in zip(parts, features, strict=True):
            strongest = np.argsort(-np.abs(part.contributions), kind="stable")[:limit]
            strongest = strongest[part.activations[strongest] > 0]
            added = site.features.add(
                contribution=part.contribution,
                special_tokens=part.at_special_tokens,
                max_activation=part.activation,
            )
            added.feature.CopyFrom(feature)
            self._write(added.heatmap, part.contributions)
            add_patches(
                added.patches,
                self.served.bundle.grid,
                self.picture.geometry,
                strongest,
                part.activations[strongest],
            )


def _sums(
    ledger: Ledger,
    shown: Sequence[FeaturePart],
    method: ledger_pb2.AttributionMethod.ValueType,
    reference: ledger_pb2.ReferenceCode.ValueType,
) -> ledger_pb2.Ledger:
    """The sums of a ledger; the features that are not ``shown`` become the remainder."""
    return ledger_pb2.Ledger(
        target_value=ledger.target_value,
        baseline_value=ledger.baseline_value,
        total=ledger.total,
        features_total=ledger.features_total,
        sae_error=float(ledger.error.sum()),
        bias=float(ledger.bias.sum()),
        remainder=ledger.features_total - sum(part.contribution for part in shown),
        remainder_count=len(ledger.counted) - len(shown),
        completeness_gap=ledger.completeness_gap,
        method=method,
        nodes=ledger.nodes,
        reference=reference,
    )


def _faithfulness(test: Faithfulness) -> ledger_pb2.Faithfulness:
    return ledger_pb2.Faithfulness(
        space=_SPACES[test.space],
        test=_TESTS[test.test],
        area=test.area,
        area_random=test.area_random,
        area_activation=test.area_activation,
        curve=to_proto(test.curve),
    )
