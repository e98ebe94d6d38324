"""What SearchPatches looks for, and among which patches, in the terms of the library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.bundles.patch_search import Mask, vector_of
from vision_sae.errors import InvalidInputError, NotFoundError, NotServedError
from vision_sae.v1 import edit_pb2
from vision_sae.v1 import search_service_pb2 as pb
from vision_sae.vectors import normalised
from vision_sae_server.edits import feature_edit
from vision_sae_server.encodings import site_vectors
from vision_sae_server.regions import region_mask
from vision_sae_server.state import Served, State

_NEGATIVE_WEIGHT = 0.5


class Query(NamedTuple):
    """What to compare patches with: a vector, or a code."""

    vector: NDArray[np.float32] | None = None
    """Centred (D)."""
    code: Mapping[int, float] | None = None
    """{feature: activation}"""


class PatchQueries:
    """The queries of one request."""

    def __init__(self, state: State, served: Served) -> None:
        self._state, self._served = state, served

    async def query(self, request: pb.SearchPatchesRequest) -> Query:
        """Raises `NotServedError` for a space or a kind of query that is not served."""
        kind, space = request.WhichOneof("query"), request.space
        if space == pb.SEARCH_SPACE_TEXT_ALIGNED or kind == "text":
            raise NotServedError(
                "patches are not compared in the space of texts by this version; find features by "
                "text with SearchFeatures, and then their patches",
                field="text" if kind == "text" else "space",
            )
        if kind == "edited_code":
            if space == pb.SEARCH_SPACE_VECTOR:
                raise InvalidInputError("an edited code is compared with codes", field="space")
            return Query(code=await self._edited(request.edited_code))
        in_code = space == pb.SEARCH_SPACE_CODE
        if kind == "region":
            vectors = await self._vectors(request.region)
            if in_code:
                return Query(code=self._code(vectors))
            return Query(vector=self._direction(vectors))
        if in_code:
            raise NotServedError("examples are compared as vectors", field="space")
        return Query(vector=await self._examples(request.examples))

    async def _vectors(self, region: pb.ImageRegion) -> NDArray[np.float32]:
        """The site vectors (n, D) of part of a picture."""
        bundle, model = self._served.bundle, self._served.model
        picture = await self._state.picture(region.image.data, model)
        chosen = region.region if region.HasField("region") else None
        mask = region_mask(chosen, bundle.grid, picture.geometry)
        if not mask.any():
            raise InvalidInputError("the region selects no patch", field="region.region")
        vectors = await model.lane.run(
            lambda: site_vectors(model.model, bundle.site, picture.pixels)
        )
        return np.asarray(vectors.numpy()[mask])

    def _direction(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean of unit vectors: every patch counts the same."""
        mean: NDArray[np.float32] = normalised(vectors, self._served.bundle.site_mean).mean(axis=0)
        return mean

    def _code(self, vectors: NDArray[np.float32]) -> dict[int, float]:
        """The mean code of some site vectors."""
        codes = self._served.bundle.dictionary.encode(torch.from_numpy(vectors))
        total = np.bincount(codes.indices.flatten().numpy(), codes.values.flatten().numpy())
        return {int(i): float(total[i]) / len(vectors) for i in np.flatnonzero(total)}

    async def _edited(self, asked: pb.EditedCodeQuery) -> dict[int, float]:
        bundle = self._served.bundle
        if asked.WhichOneof("start") == "region":
            code = self._code(await self._vectors(asked.region))
        else:
            features, values = bundle.codes.row(self.patch(asked.patch))
            code = dict(zip(features.tolist(), values.astype(float).tolist(), strict=True))
        for edit in asked.edits:
            code = self._with(code, edit)
        code = {feature: value for feature, value in code.items() if value}
        if not code:
            raise InvalidInputError(
                "nothing is left of the code; turn a feature up", field="edited_code.edits"
            )
        return code

    def _with(self, code: dict[int, float], edit: edit_pb2.Edit) -> dict[int, float]:
        """A code with one edit."""
        if edit.HasField("where") or edit.HasField("when"):
            raise InvalidInputError(
                "a code has no place and no time; leave `where` and `when` out",
                field="edited_code.edits",
            )
        self._own(edit.feature, "edited_code.edits.feature")
        geometry = self._served.model.model.preprocessing.geometry(1, 1)
        translated, _ = feature_edit(edit, self._served, self._served.bundle.grid, geometry)
        feature, value = translated.feature, translated.value
        match translated.operation:
            case "replace":
                return {feature: value}
            case "ablate":
                return code | {feature: 0.0}
            case "add":
                return code | {feature: max(0.0, code.get(feature, 0.0) + value)}
            case "scale":
                return code | {feature: max(0.0, code.get(feature, 0.0) * value)}
            case _:
                return code | {feature: max(0.0, value)}

    def _own(self, feature: str, field: str) -> int:
        served, index = self._state.feature(feature)
        if served is not self._served:
            raise InvalidInputError(f"{feature} is not of {self._served.resource}", field=field)
        return index

    async def _examples(self, asked: pb.ExamplesQuery) -> NDArray[np.float32]:
        weight = asked.negative_weight if asked.HasField("negative_weight") else _NEGATIVE_WEIGHT
        positive = await self._mean(asked.positives)
        if not asked.negatives:
            return positive
        return positive - np.float32(weight) * await self._mean(asked.negatives)

    async def _mean(self, examples: Iterable[pb.SearchExample]) -> NDArray[np.float32]:
        vectors = [await self._example(example) for example in examples]
        mean: NDArray[np.float32] = normalised(np.stack(vectors)).mean(axis=0)
        return mean

    async def _example(self, example: pb.SearchExample) -> NDArray[np.float32]:
        bundle = self._served.bundle
        match example.WhichOneof("kind"):
            case "region":
                return self._direction(await self._vectors(example.region))
            case "patch":
                return vector_of(bundle, self.patch(example.patch))
            case "feature":
                index = self._own(example.feature, "examples.feature")
                return np.asarray(bundle.dictionary.decoder[index].numpy())
            case _:
                raise NotServedError(
                    "texts are no examples of patches in this version; give a region, a patch or a "
                    "feature",
                    field="examples.text",
                )

    def patch(self, asked: pb.IndexedPatch) -> int:
        """The row of a patch of the index; raises `NotFoundError` for one that is not in it."""
        bundle = self._served.bundle
        image = bundle.image_rows.get(asked.image)
        if image is None or asked.row >= bundle.grid.rows or asked.col >= bundle.grid.cols:
            raise NotFoundError(
                f"{self._served.resource} has no patch ({asked.row}, {asked.col}) of "
                f"{asked.image!r}",
                field="patch",
            )
        return image * bundle.grid.patches + asked.row * bundle.grid.cols + asked.col

    def allowed(self, request: pb.SearchPatchesRequest, feature: int | None) -> Mask | None:
        """The patches that may be found; None for all. ``feature`` is that of a feature query."""
        asked, bundle = request.filter, self._served.bundle
        if asked.data_sets:
            raise NotServedError(
                "a bundle is of one data set in this version; leave filter.data_sets out",
                field="filter.data_sets",
            )
        mask: Mask | None = None
        if asked.image_labels or asked.exclude_images:
            labels, excluded = set(asked.image_labels), set(asked.exclude_images)
            images = [
                (not labels or bool(labels & {record.caption, *record.tags}))
                and record.id not in excluded
                for record in bundle.images
            ]
            mask = np.repeat(np.array(images), bundle.grid.patches)
        if asked.HasField("min_activation"):
            if asked.activation_feature:
                feature = self._own(asked.activation_feature, "filter.activation_feature")
            if feature is None:
                raise InvalidInputError(
                    "min_activation is about a feature; name it in filter.activation_feature",
                    field="filter.activation_feature",
                )
            rows, values = bundle.postings.row(feature)
            fires = np.zeros(len(bundle.codes.indptr) - 1, dtype=bool)
            fires[rows[values.astype(np.float32) >= asked.min_activation]] = True
            mask = fires if mask is None else mask & fires
        return mask
