"""Answers of Encode: the codes of a picture's patches, and the features that fire."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_sae.attribution.firing import FiringFeatures, Order, firing, maps_of, ranking
from vision_sae.dictionaries.protocol import Codes
from vision_sae.models.grid import PatchGrid
from vision_sae.tensors import to_proto
from vision_sae.v1 import attribution_service_pb2 as pb
from vision_sae.v1 import tensor_pb2
from vision_sae_server.answers.features import feature_messages
from vision_sae_server.answers.images import add_patches, patch_grid, write_heatmap
from vision_sae_server.served import Served
from vision_sae_server.state import PreparedPicture

DEFAULT_TOP_K = 20
DEFAULT_PATCHES = 5
_ORDERS: dict[int, Order] = {
    pb.ENCODE_ORDER_TOTAL_ACTIVATION: "total",
    pb.ENCODE_ORDER_RELATIVE_ACTIVATION: "relative",
    pb.ENCODE_ORDER_INFORMATIVE: "informative",
}
"""{order of the contract: the library's name}; other orders rank by the largest activation."""


class Encoded(NamedTuple):
    """The codes of one picture by one dictionary."""

    codes: Codes
    """Codes of the patches (P, k)."""
    explained_variance: float
    artifacts: NDArray[np.bool_] | None = None
    """Mask of the patches (P) without local content; see `vision_sae.models.artifacts`."""


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


def _ranking(served: Served, order: int, fires: FiringFeatures) -> NDArray[np.int64]:
    """Positions (N) of the firing features, ranked by an order of the contract."""
    named = _ORDERS.get(order, "strongest")
    judges = {}
    if named == "informative":
        judges = served.labels.judges(served.evidence.name, fires.features.tolist())
    return ranking(fires, named, served.bundle, judges)


def encode_response(
    served: Served,
    picture: PreparedPicture,
    request: pb.EncodeRequest,
    encoded: Encoded,
    mask: NDArray[np.bool_],
    grid: PatchGrid,
) -> pb.EncodeResponse:
    """The answer of Encode: the features that fire within ``mask`` (P) of the picture's grid."""
    codes = encoded.codes
    fires = firing(codes, mask, request.min_activation)
    order = _ranking(served, request.order, fires)
    limit = request.max_patches if request.HasField("max_patches") else DEFAULT_PATCHES
    response = pb.EncodeResponse(
        dictionary=served.resource,
        grid=patch_grid(
            grid, picture.geometry, served.model.model.special_tokens, encoded.artifacts
        ),
        explained_variance=encoded.explained_variance,
        l0=float((codes.values > 0).sum() / grid.patches),
        active_count=len(fires.features),
        unusual_picture=served.bundle.is_unusual(encoded.explained_variance),
    )
    shown = fires.features[order[: request.top_k or DEFAULT_TOP_K]]
    messages = feature_messages(served, shown.tolist(), request.view, request.exemplars)
    for message, map_ in zip(messages, maps_of(codes, shown), strict=True):
        within = map_ * mask
        patches = np.argsort(-within, kind="stable")[:limit]
        patches = patches[within[patches] > 0]
        added = response.features.add(
            max_activation=float(within.max()),
            total_activation=float(within.sum()),
            patch_count=int((within > 0).sum()),
        )
        added.feature.CopyFrom(message)
        on_grid = map_.reshape(grid.rows, grid.cols)
        write_heatmap(added.heatmap, on_grid, request.heatmap_format)
        add_patches(added.patches, grid, picture.geometry, patches, within[patches])
    if request.include_codes:
        response.codes.CopyFrom(_sparse(codes, served.bundle.dictionary.width))
    return response
