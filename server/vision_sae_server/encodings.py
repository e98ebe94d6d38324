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
_DENSE = 1 / 5
"""A feature that fires in a larger share of the pictures says little about any of them."""


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


class _Firing(NamedTuple):
    """The features (n) that fire in a part of a picture."""

    features: NDArray[np.int64]
    strongest: NDArray[np.float64]
    """Largest activation of each."""
    total: NDArray[np.float64]
    """Sum of its activations."""


def information(
    image_counts: NDArray[Any], pictures: int, relative: NDArray[Any]
) -> NDArray[np.float64]:
    """How much features (n) say about a picture in which they fire, in nats.

    That is the surprise of its firing, -ln of the share of the data's ``pictures`` in which it
    fires, with one picture more of those and one more of the others so that it is finite, weighed
    by how strongly it fires: its activation over its own largest, at most 1. A feature that never
    fired in the data has none to compare with, and a relative activation of 0.
    """
    surprise = -np.log((image_counts + 1) / (pictures + 2))
    return np.asarray(surprise * np.minimum(relative, 1))


def _informative(served: Served, firing: _Firing) -> NDArray[np.int64]:
    """Places of the features that say most first; see ``ENCODE_ORDER_INFORMATIVE``."""
    bundle, features = served.bundle, firing.features
    largest, counts = bundle.statistics.max[features], bundle.image_counts[features]
    kept = len(bundle.images) - (0 if bundle.deleted is None else int(bundle.deleted.sum()))
    relative = np.where(largest > 0, firing.strongest / np.maximum(largest, 1e-12), 0)
    judges = served.labels.judges(served.evidence.name, features.tolist())
    guessed = np.array([feature not in judges for feature in features.tolist()], dtype=np.bool_)
    return np.lexsort((-information(counts, kept, relative), counts > _DENSE * kept, guessed))


def _ranking(served: Served, order: int, firing: _Firing) -> NDArray[np.int64]:
    """Places of the features by an order of the contract; equals stay in the order of numbers."""
    match order:
        case pb.ENCODE_ORDER_INFORMATIVE:
            return _informative(served, firing)
        case pb.ENCODE_ORDER_TOTAL_ACTIVATION:
            worth = firing.total
        case pb.ENCODE_ORDER_RELATIVE_ACTIVATION:
            usual = served.bundle.statistics.max[firing.features]
            worth = firing.strongest / np.maximum(usual, 1e-12)
        case _:
            worth = firing.strongest
    return np.argsort(-worth, kind="stable")


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
    firing = _Firing(features[kept].astype(np.int64), strongest[kept], total[kept])
    ranking = _ranking(served, request.order, firing)
    limit = request.max_patches if request.HasField("max_patches") else DEFAULT_PATCHES
    usual = served.bundle.manifest["usual_explained_variance"]
    response = pb.EncodeResponse(
        dictionary=served.resource,
        grid=messages.patch_grid(
            grid, picture.geometry, served.model.model.special_tokens, encoded.artifacts
        ),
        explained_variance=share_explained,
        l0=float((codes.values > 0).sum() / grid.patches),
        active_count=len(firing.features),
        unusual_picture=share_explained < usual,
    )
    shown = firing.features[ranking[: request.top_k or DEFAULT_TOP_K]]
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
