"""AttributionService: which features fire in a picture, and what they contribute to a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.attribution import targets
from vision_sae.attribution.ledger import Ledger, attribute
from vision_sae.attribution.targets import Target
from vision_sae.dictionaries.metrics import explained_variance
from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import NotServedError
from vision_sae.models.grid import PatchGrid
from vision_sae.models.noised import NoisedPictures, Noising
from vision_sae.models.protocol import Model
from vision_sae.tensors import to_proto
from vision_sae.v1 import (
    attribution_service_pb2 as pb,
)
from vision_sae.v1 import (
    attribution_service_pb2_grpc,
    ledger_pb2,
    target_pb2,
    tensor_pb2,
)
from vision_sae_server import messages
from vision_sae_server.regions import region_mask
from vision_sae_server.state import Picture, Served, State

_DEFAULT_TOP_K = 20
_DEFAULT_PATCHES = 5
_DEFAULT_NODES = 8
_METHODS = (
    ledger_pb2.ATTRIBUTION_METHOD_ACT_X_GRAD,
    ledger_pb2.ATTRIBUTION_METHOD_INTEGRATED_GRADIENTS,
)


class _Encoded(NamedTuple):
    """The codes of one picture."""

    codes: Codes
    """Codes of the patches (P, k)."""
    explained_variance: float


def site_vectors(model: Model, site: str, pixels: Tensor) -> Tensor:
    """The vectors of a site's patches (P, D) for one picture; later blocks are not computed."""
    with torch.inference_mode(), model.capture([site], stop=True) as captured:
        model.forward(pixels[None])
    return captured[site][0, model.grid.special :].float().cpu()


def _noising(asked: pb.Noising) -> Noising:
    strength = asked.strength if asked.HasField("strength") else Noising.strength
    return Noising(strength, asked.prompt, asked.seed)


def _encode(served: Served, pixels: Tensor, noising: Noising | None) -> _Encoded:
    model = served.model.model
    if noising is not None and isinstance(model, NoisedPictures):
        model = model.noised(noising)
    vectors = site_vectors(model, served.bundle.site, pixels)
    codes = served.bundle.dictionary.encode(vectors)
    return _Encoded(codes, explained(served, vectors, served.bundle.dictionary.decode(codes)))


def explained(served: Served, vectors: Tensor, decoded: Tensor) -> float:
    """Share of site vectors (N, D) that the dictionary explains, measured from the data's mean."""
    return explained_variance(vectors, decoded, torch.from_numpy(served.bundle.site_mean))


def _maps(codes: Codes, values: Tensor, features: NDArray[np.int64]) -> NDArray[np.float64]:
    """``values`` (P, k) of some features as maps (len(features), P)."""
    position = {int(feature): row for row, feature in enumerate(features)}
    maps = np.zeros((len(features), len(codes.indices)))
    patch, slot = np.nonzero(np.isin(codes.indices.numpy(), features))
    rows = np.array([position[i] for i in codes.indices.numpy()[patch, slot].tolist()], dtype=int)
    np.add.at(maps, (rows, patch), values.numpy()[patch, slot])
    return maps


def _sparse(codes: Codes, width: int) -> tensor_pb2.SparseCodes:
    active = (codes.values > 0).numpy()
    indptr = np.concatenate([[0], np.cumsum(active.sum(1))]).astype(np.int64)
    return tensor_pb2.SparseCodes(
        indptr=to_proto(indptr),
        indices=to_proto(codes.indices.numpy()[active].astype(np.int32)),
        values=to_proto(codes.values.numpy()[active]),
        rows=len(active),
        columns=width,
    )


class AttributionServicer(attribution_service_pb2_grpc.AttributionServiceServicer):
    """See ``attribution_service.proto``."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def Encode(
        self, request: pb.EncodeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.EncodeResponse:
        """The features that fire in a picture, and where."""
        served = self._state.dictionary(request.dictionary)
        picture = await self._state.picture(request.image.data, served.model)
        mask = region_mask(
            request.region if request.HasField("region") else None,
            served.bundle.grid,
            picture.geometry,
        )
        noising = _noising(request.noising) if request.HasField("noising") else None
        encoded = await served.model.lane.run(lambda: _encode(served, picture.pixels, noising))
        return await self._state.searching.run(
            lambda: encode_response(served, picture, request, *encoded, mask, served.bundle.grid)
        )

    async def Attribute(
        self, request: pb.AttributeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.AttributeResponse:
        """What the features of a picture contribute to a target, with books that add up."""
        method, nodes = _method(request)
        reference = request.baseline.reference or ledger_pb2.REFERENCE_CODE_ZERO
        if request.baseline.WhichOneof("kind") == "image" or (
            reference == ledger_pb2.REFERENCE_CODE_MEAN
        ):
            raise NotServedError(
                "this version measures from the zero code or the removed block; set "
                "baseline.reference to ZERO or BLOCK_REMOVED",
                field="baseline",
            )
        if request.faithfulness or len(request.dictionaries) > 1:
            raise NotServedError(
                "this version attributes one dictionary a call and measures no faithfulness",
                field="faithfulness" if request.faithfulness else "dictionaries",
            )
        served = self._state.dictionary(request.dictionaries[0])
        if isinstance(served.model.model, NoisedPictures):
            raise NotServedError(
                f"{served.resource} is of a text-to-image model, whose output has no target yet; "
                "use Encode, or steer it with Generate",
                field="dictionaries",
            )
        picture = await self._state.picture(request.image.data, served.model)
        target = await self._target(request.target, served)
        removed = reference == ledger_pb2.REFERENCE_CODE_BLOCK_REMOVED
        ledger = await served.model.lane.run(
            lambda: attribute(
                served.model.model,
                served.bundle.dictionary,
                served.bundle.site,
                picture.pixels,
                target,
                nodes=nodes,
                reference="block_removed" if removed else "zero",
            )
        )
        site = await self._state.searching.run(
            lambda: _site_attribution(served, picture, request, ledger)
        )
        site.ledger.method = method
        site.ledger.reference = reference
        return pb.AttributeResponse(sites=[site])

    async def _target(self, target: target_pb2.Target, served: Served) -> Target:
        """The scalar to explain."""
        kind = target.WhichOneof("kind")
        if kind == "mean_embedding":
            return targets.similarity(torch.from_numpy(served.bundle.embeddings.mean(axis=0)))
        if kind == "image":
            other = await self._state.picture(target.image.image.data, served.model)
            embedding = await served.model.lane.run(
                lambda: _embedding(served.model.model, other.pixels)
            )
            return targets.similarity(embedding)
        if kind == "class_logit" and target.class_logit.WhichOneof("class") == "index":
            return targets.class_logit(target.class_logit.index)
        if kind == "contrast":
            return targets.contrast(
                await self._target(target.contrast.positive, served),
                await self._target(target.contrast.negative, served),
            )
        raise NotServedError(
            f"targets of kind {kind} are not served by this version; use image, mean_embedding, "
            "class_logit.index or a contrast of these",
            field=f"target.{kind}",
        )


def _method(request: pb.AttributeRequest) -> tuple[ledger_pb2.AttributionMethod.ValueType, int]:
    """(method, nodes)"""
    method = request.method or ledger_pb2.ATTRIBUTION_METHOD_ACT_X_GRAD
    if method not in _METHODS:
        name = ledger_pb2.AttributionMethod.Name(method)
        raise NotServedError(
            f"{name} is not served by this version; use ACT_X_GRAD or INTEGRATED_GRADIENTS",
            field="method",
        )
    if method == ledger_pb2.ATTRIBUTION_METHOD_ACT_X_GRAD:
        return method, 1
    return method, max(2, request.nodes or _DEFAULT_NODES)


def _embedding(model: Model, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.forward(pixels[None]).embedding[0]


_ORDERS: dict[int, Callable[[NDArray[np.float64], Served, NDArray[np.int64]], NDArray[np.float64]]]
_ORDERS = {
    pb.ENCODE_ORDER_MAX_ACTIVATION: lambda maps, _served, _features: maps.max(axis=1),
    pb.ENCODE_ORDER_TOTAL_ACTIVATION: lambda maps, _served, _features: maps.sum(axis=1),
    pb.ENCODE_ORDER_RELATIVE_ACTIVATION: lambda maps, served, features: (
        maps.max(axis=1) / np.maximum(served.bundle.statistics.max[features], 1e-12)
    ),
}


def encode_response(
    served: Served,
    picture: Picture,
    request: pb.EncodeRequest,
    codes: Codes,
    explained_variance: float,
    mask: NDArray[np.bool_],
    grid: PatchGrid,
) -> pb.EncodeResponse:
    """What codes (P, k) of a picture say, within ``mask`` (P) of its ``grid``."""
    inside = codes.indices.numpy()[mask][codes.values.numpy()[mask] > 0]
    features = np.unique(inside)
    maps = _maps(codes, codes.values, features)
    within = maps * mask
    kept = within.max(axis=1, initial=0) >= max(request.min_activation, 1e-12)
    features, maps, within = features[kept], maps[kept], within[kept]
    order = request.order or pb.ENCODE_ORDER_MAX_ACTIVATION
    ranking = np.argsort(-_ORDERS[order](within, served, features), kind="stable")
    limit = request.max_patches if request.HasField("max_patches") else _DEFAULT_PATCHES
    usual = served.bundle.manifest["usual_explained_variance"]
    response = pb.EncodeResponse(
        dictionary=served.resource,
        grid=messages.patch_grid(grid, picture.geometry),
        explained_variance=explained_variance,
        l0=float((codes.values > 0).sum() / grid.patches),
        active_count=len(features),
        unusual_picture=explained_variance < usual,
    )
    shown = ranking[: request.top_k or _DEFAULT_TOP_K]
    found = messages.features(served, features[shown].tolist(), request.view, request.exemplars)
    for row, message in zip(shown, found, strict=True):
        strongest = np.argsort(-within[row], kind="stable")[:limit]
        strongest = strongest[within[row][strongest] > 0]
        response.features.append(
            pb.FeatureActivation(
                feature=message,
                max_activation=float(within[row].max()),
                total_activation=float(within[row].sum()),
                patch_count=int((within[row] > 0).sum()),
                patches=messages.patches(grid, picture.geometry, strongest, within[row][strongest]),
                heatmap=messages.heatmap(
                    maps[row].reshape(grid.rows, grid.cols), request.heatmap_format
                ),
            )
        )
    if request.include_codes:
        response.codes.CopyFrom(_sparse(codes, served.bundle.dictionary.width))
    return response


def _site_attribution(
    served: Served, picture: Picture, request: pb.AttributeRequest, ledger: Ledger
) -> ledger_pb2.SiteAttribution:
    grid, codes = served.bundle.grid, ledger.codes
    per_feature = ledger.per_feature(served.bundle.dictionary.width).numpy()
    active = np.unique(codes.indices.numpy()[codes.values.numpy() > 0])
    shown = active[np.argsort(-np.abs(per_feature[active]), kind="stable")]
    shown = shown[: request.top_k or _DEFAULT_TOP_K]
    maps = _maps(codes, ledger.contributions, shown)
    activations = _maps(codes, codes.values, shown)
    limit = request.max_patches if request.HasField("max_patches") else _DEFAULT_PATCHES
    everything = (ledger.contributions.sum(1) + ledger.error + ledger.bias).numpy()
    total_map = messages.heatmap(everything.reshape(grid.rows, grid.cols), request.heatmap_format)
    features_total = float(ledger.contributions.sum())
    site = ledger_pb2.SiteAttribution(
        dictionary=served.resource,
        grid=messages.patch_grid(grid, picture.geometry),
        explained_variance=explained_variance(
            ledger.update,
            served.bundle.dictionary.decode(codes),
            torch.from_numpy(served.bundle.site_mean),
        ),
        ledger=ledger_pb2.Ledger(
            target_value=ledger.target_value,
            baseline_value=ledger.baseline_value,
            total=ledger.total,
            features_total=features_total,
            sae_error=float(ledger.error.sum()),
            bias=float(ledger.bias.sum()),
            remainder=features_total - float(per_feature[shown].sum()),
            remainder_count=len(active) - len(shown),
            completeness_gap=ledger.completeness_gap,
            nodes=ledger.nodes,
        ),
        total_map=total_map,
    )
    shown_features = messages.features(served, shown.tolist(), request.view, request.exemplars)
    for row, (index, feature) in enumerate(zip(shown.tolist(), shown_features, strict=True)):
        strongest = np.argsort(-np.abs(maps[row]), kind="stable")[:limit]
        strongest = strongest[activations[row][strongest] > 0]
        site.features.append(
            ledger_pb2.FeatureContribution(
                feature=feature,
                contribution=float(per_feature[index]),
                heatmap=messages.heatmap(
                    maps[row].reshape(grid.rows, grid.cols), request.heatmap_format
                ),
                max_activation=float(activations[row].max()),
                patches=messages.patches(
                    grid, picture.geometry, strongest, activations[row][strongest]
                ),
            )
        )
    return site
