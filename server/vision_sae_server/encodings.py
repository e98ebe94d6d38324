"""What fires in a picture: the codes of its patches, as answers of the contract."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.dictionaries.metrics import explained_variance
from vision_sae.dictionaries.protocol import Codes
from vision_sae.models.grid import PatchGrid
from vision_sae.tensors import to_proto
from vision_sae.v1 import attribution_service_pb2 as pb
from vision_sae.v1 import tensor_pb2
from vision_sae_server import messages
from vision_sae_server.served import Served
from vision_sae_server.state import Picture

DEFAULT_TOP_K = 20
DEFAULT_PATCHES = 5


class Encoded(NamedTuple):
    """What a dictionary says of one picture."""

    codes: Codes
    """Codes of the patches (P, k)."""
    explained_variance: float
    artifacts: NDArray[np.bool_] | None = None
    """Patches (P) that hold no local content; see `vision_sae.models.artifacts`."""


def explained(served: Served, vectors: Tensor, decoded: Tensor) -> float:
    """Share of site vectors (N, D) that the dictionary explains, measured from the data's mean."""
    return explained_variance(vectors, decoded, torch.from_numpy(served.bundle.site_mean))


def maps_of(codes: Codes, features: NDArray[np.int64]) -> NDArray[np.float64]:
    """What codes (P, k) say of some features, as maps (len(features), P)."""
    row_of = np.full(max(int(codes.indices.max()), int(features.max(initial=0))) + 1, -1)
    row_of[features] = np.arange(len(features))
    rows = row_of[codes.indices.numpy()]
    patch, slot = np.nonzero(rows >= 0)
    maps = np.zeros((len(features), len(rows)))
    np.add.at(maps, (rows[patch, slot], patch), codes.values.numpy()[patch, slot])
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


def _worth(
    order: int, strongest: NDArray[np.float64], total: NDArray[np.float64], usual: NDArray[Any]
) -> NDArray[np.float64]:
    """What features are ordered by: ``usual`` are their largest activations in the data."""
    match order:
        case pb.ENCODE_ORDER_TOTAL_ACTIVATION:
            return total
        case pb.ENCODE_ORDER_RELATIVE_ACTIVATION:
            return np.asarray(strongest / np.maximum(usual, 1e-12))
        case _:
            return strongest


def encode_response(
    served: Served,
    picture: Picture,
    request: pb.EncodeRequest,
    encoded: Encoded,
    mask: NDArray[np.bool_],
    grid: PatchGrid,
) -> pb.EncodeResponse:
    """What the codes of a picture say, within ``mask`` (P) of its ``grid``."""
    codes, share_explained = encoded.codes, encoded.explained_variance
    inside = (codes.values.numpy() > 0) & mask[:, None]
    features, place = np.unique(codes.indices.numpy()[inside], return_inverse=True)
    activations = codes.values.numpy()[inside].astype(np.float64)
    strongest, total = np.zeros((2, len(features)))
    np.maximum.at(strongest, place, activations)
    np.add.at(total, place, activations)
    kept = strongest >= max(request.min_activation, 1e-12)
    features, strongest, total = features[kept], strongest[kept], total[kept]
    largest = served.bundle.statistics.max[features]
    ranking = np.argsort(-_worth(request.order, strongest, total, largest), kind="stable")
    limit = request.max_patches if request.HasField("max_patches") else DEFAULT_PATCHES
    usual = served.bundle.manifest["usual_explained_variance"]
    response = pb.EncodeResponse(
        dictionary=served.resource,
        grid=messages.patch_grid(
            grid, picture.geometry, served.model.model.special_tokens, encoded.artifacts
        ),
        explained_variance=share_explained,
        l0=float((codes.values > 0).sum() / grid.patches),
        active_count=len(features),
        unusual_picture=share_explained < usual,
    )
    shown = features[ranking[: request.top_k or DEFAULT_TOP_K]]
    found = messages.features(served, shown.tolist(), request.view, request.exemplars)
    for message, map_ in zip(found, maps_of(codes, shown), strict=True):
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
        messages.write_heatmap(added.heatmap, on_grid, request.heatmap_format)
        messages.add_patches(added.patches, grid, picture.geometry, patches, within[patches])
    if request.include_codes:
        response.codes.CopyFrom(_sparse(codes, served.bundle.dictionary.width))
    return response
