"""Translates the queries and filters of SearchPatches to vectors, codes and masks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.bundles.patch_queries import (
    Query,
    mean_code,
    mean_direction,
    region_vector,
    text_aligned_model,
    text_vector,
)
from vision_sae.bundles.patch_search import PatchMask, text_aligned_index, vector_of
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.models.vectors import site_vectors
from vision_sae.steering.edits import edited_code
from vision_sae.v1 import edit_pb2
from vision_sae.v1 import search_service_pb2 as pb
from vision_sae.v1.measure_pb2 import UnreadText
from vision_sae.vectors import normalised
from vision_sae_server.requests.edits import feature_edit
from vision_sae_server.requests.regions import region_mask
from vision_sae_server.requests.unread import unread_texts
from vision_sae_server.served import Served
from vision_sae_server.state import State

_NEGATIVE_WEIGHT = 0.5
VectorOf = Callable[[pb.SearchExample], Awaitable[NDArray[np.float32]]]
_SPACES: dict[str, tuple[pb.SearchSpace.ValueType, ...]] = {
    "text": (pb.SEARCH_SPACE_TEXT_ALIGNED,),
    "edited_code": (pb.SEARCH_SPACE_CODE,),
    "examples": (pb.SEARCH_SPACE_VECTOR, pb.SEARCH_SPACE_TEXT_ALIGNED),
    "region": (pb.SEARCH_SPACE_VECTOR, pb.SEARCH_SPACE_CODE, pb.SEARCH_SPACE_TEXT_ALIGNED),
}
"""{kind of query: the spaces in which its hits can be compared}"""


class PatchQueries:
    """The queries of one request."""

    def __init__(self, state: State, served: Served) -> None:
        self._state, self._served, self._model = state, served, served.model.free()
        self.unread: list[UnreadText] = []
        """The ends of the request's texts that the model's text encoder does not read."""

    async def query(self, request: pb.SearchPatchesRequest) -> Query:
        """The query of a request; raises `InvalidInputError` for a space that does not fit it."""
        kind = request.WhichOneof("query")
        space = request.space or self._usual_space(request)
        if space not in _SPACES[kind or ""]:
            known = ", ".join(pb.SearchSpace.Name(known) for known in _SPACES[kind or ""])
            raise InvalidInputError(f"a query by {kind} is compared in {known}", field="space")
        if kind == "text":
            return Query(aligned=await self._text(request.text, "text"))
        if kind == "edited_code":
            return Query(code=await self._edited(request.edited_code))
        if kind == "examples":
            if space == pb.SEARCH_SPACE_TEXT_ALIGNED:
                return Query(aligned=await self._examples(request.examples, self._aligned_example))
            return Query(vector=await self._examples(request.examples, self._example))
        if space == pb.SEARCH_SPACE_TEXT_ALIGNED:
            return Query(aligned=await self._aligned(request.region))
        vectors = await self._vectors(request.region)
        if space == pb.SEARCH_SPACE_CODE:
            return Query(code=mean_code(self._served.bundle.dictionary, vectors))
        return Query(vector=mean_direction(self._served.bundle, vectors))

    @staticmethod
    def _usual_space(request: pb.SearchPatchesRequest) -> pb.SearchSpace.ValueType:
        """The default space: TEXT_ALIGNED for a query with a text, CODE for an edited code."""
        examples = [*request.examples.positives, *request.examples.negatives]
        if request.HasField("text") or any(example.HasField("text") for example in examples):
            return pb.SEARCH_SPACE_TEXT_ALIGNED
        if request.HasField("edited_code"):
            return pb.SEARCH_SPACE_CODE
        return pb.SEARCH_SPACE_VECTOR

    def _contrastive(self) -> ContrastiveModel:
        """The bundle's contrastive model; raises for a bundle without a text-aligned index."""
        return text_aligned_model(self._served.bundle, self._model.model)

    async def _text(self, text: str, field: str) -> NDArray[np.float32]:
        model = self._contrastive()

        def embed() -> tuple[NDArray[np.float32], list[UnreadText]]:
            unread = unread_texts(model.unread_text, [(field, text)])
            return text_vector(model, text), unread

        embedding, unread = await self._model.lane.run(embed)
        self.unread += unread
        return embedding

    async def _aligned(self, region: pb.ImageRegion) -> NDArray[np.float32]:
        """The embedding (E) of part of a picture in the space of texts; see `PatchEmbeddings`."""
        model = self._contrastive()
        pixels, mask = await self._selected(region)
        return await self._model.lane.run(lambda: region_vector(model, pixels, mask))

    async def _selected(self, region: pb.ImageRegion) -> tuple[Tensor, NDArray[np.bool_]]:
        """(pixels of the preprocessed picture (3, H, W), mask of the region's patches (P))"""
        bundle, model = self._served.bundle, self._served.model
        picture = await self._state.picture(region.image.data, model)
        chosen = region.region if region.HasField("region") else None
        mask = region_mask(chosen, bundle.grid, picture.geometry, "region.region")
        return picture.pixels, mask

    async def _vectors(self, region: pb.ImageRegion) -> NDArray[np.float32]:
        """The site vectors (N, D) of the patches in part of a picture."""
        bundle, model = self._served.bundle, self._model
        pixels, mask = await self._selected(region)
        vectors = await model.lane.run(lambda: site_vectors(model.model, bundle.site, pixels).cpu())
        return np.asarray(vectors.numpy()[mask])

    async def _edited(self, query: pb.EditedCodeQuery) -> dict[int, float]:
        bundle = self._served.bundle
        if query.WhichOneof("start") == "region":
            code = mean_code(bundle.dictionary, await self._vectors(query.region))
        else:
            features, values = bundle.codes.row(self.patch(query.patch))
            code = dict(zip(features.tolist(), values.astype(float).tolist(), strict=True))
        for edit in query.edits:
            code = self._with(code, edit)
        code = {feature: value for feature, value in code.items() if value}
        if not code:
            raise InvalidInputError(
                "nothing is left of the code; turn a feature up", field="edited_code.edits"
            )
        return code

    def _with(self, code: dict[int, float], edit: edit_pb2.Edit) -> dict[int, float]:
        """A code after one edit."""
        if edit.HasField("where") or edit.HasField("when"):
            raise InvalidInputError(
                "a code has no place and no time; leave `where` and `when` out",
                field="edited_code.edits",
            )
        self._own(edit.feature, "edited_code.edits.feature")
        geometry = self._served.model.model.preprocessing.geometry(1, 1)
        translated = feature_edit(edit, self._served, self._served.bundle.grid, geometry)
        return edited_code(code, translated)

    def _own(self, feature: str, field: str) -> int:
        served, index = self._state.feature(feature)
        if served.resource != self._served.resource:
            raise InvalidInputError(f"{feature} is not of {self._served.resource}", field=field)
        return index

    async def _examples(
        self, query: pb.ExamplesQuery, vector_of_example: VectorOf
    ) -> NDArray[np.float32]:
        weight = query.negative_weight if query.HasField("negative_weight") else _NEGATIVE_WEIGHT
        positive = await self._mean(query.positives, vector_of_example)
        if not query.negatives:
            return positive
        negative = await self._mean(query.negatives, vector_of_example)
        return positive - np.float32(weight) * negative

    @staticmethod
    async def _mean(
        examples: Iterable[pb.SearchExample], vector_of_example: VectorOf
    ) -> NDArray[np.float32]:
        vectors = [await vector_of_example(example) for example in examples]
        mean: NDArray[np.float32] = normalised(np.stack(vectors)).mean(axis=0)
        return mean

    async def _example(self, example: pb.SearchExample) -> NDArray[np.float32]:
        bundle = self._served.bundle
        match example.WhichOneof("kind"):
            case "region":
                return mean_direction(bundle, await self._vectors(example.region))
            case "patch":
                return vector_of(bundle, self.patch(example.patch))
            case "feature":
                index = self._own(example.feature, "examples.feature")
                return np.asarray(bundle.dictionary.decoder[index].numpy())
            case _:
                raise InvalidInputError(
                    "a text has no site vector; leave space out to compare the text with patches "
                    "in the space of texts",
                    field="space",
                )

    async def _aligned_example(self, example: pb.SearchExample) -> NDArray[np.float32]:
        match example.WhichOneof("kind"):
            case "text":
                return await self._text(example.text, "examples.text")
            case "region":
                return await self._aligned(example.region)
            case "patch":
                index = text_aligned_index(self._served.bundle)
                (vector,) = index.vectors(np.array([self.patch(example.patch)]))
                return np.asarray(vector)
            case _:
                raise InvalidInputError(
                    "a feature is a direction of the site, not of the space of texts; give texts, "
                    "regions or patches beside it",
                    field="examples.feature",
                )

    def patch(self, named: pb.IndexedPatch) -> int:
        """The row of a patch in the index; raises `NotFoundError` for a patch that is not there."""
        bundle = self._served.bundle
        image = bundle.image_rows.get(named.image)
        if image is None or named.row >= bundle.grid.rows or named.col >= bundle.grid.cols:
            raise NotFoundError(
                f"{self._served.resource} has no patch ({named.row}, {named.col}) of "
                f"{named.image!r}",
                field="patch",
            )
        return image * bundle.grid.patches + named.row * bundle.grid.cols + named.col

    def filtered_by(self, request: pb.SearchPatchesRequest) -> int | None:
        """The feature that the filter names; None without one."""
        name = request.filter.activation_feature
        return self._own(name, "filter.activation_feature") if name else None

    def allowed(self, request: pb.SearchPatchesRequest, feature: int | None) -> PatchMask | None:
        """A mask of the patches that pass the filter; None when all pass. ``feature`` is the
        feature of a feature query."""
        condition, bundle = request.filter, self._served.bundle
        mask: PatchMask | None = None
        if condition.data_sets:
            unknown = set(condition.data_sets).difference(bundle.data_sets.tolist())
            if unknown:
                raise NotFoundError(
                    f"{self._served.resource} has no data set {min(unknown)!r}; GetDictionary "
                    "lists those it has in patch_index.data_sets",
                    field="filter.data_sets",
                )
            of_sets = np.isin(bundle.data_sets, list(condition.data_sets))
            mask = np.repeat(of_sets, bundle.grid.patches)
        if condition.image_labels or condition.exclude_images:
            labels, excluded = set(condition.image_labels), set(condition.exclude_images)
            images = [
                (not labels or bool(labels & {record.caption, *record.tags}))
                and record.id not in excluded
                for record in bundle.images
            ]
            of_images = np.repeat(np.array(images), bundle.grid.patches)
            mask = of_images if mask is None else mask & of_images
        if condition.HasField("min_activation"):
            feature = self.filtered_by(request) if condition.activation_feature else feature
            if feature is None:
                raise InvalidInputError(
                    "min_activation is about a feature; name it in filter.activation_feature",
                    field="filter.activation_feature",
                )
            if condition.min_activation <= 0:  # silent patches pass, too
                return mask
            rows, values = bundle.postings.row(feature)
            fires = np.zeros(len(bundle.codes.indptr) - 1, dtype=bool)
            fires[rows[values.astype(np.float32) >= condition.min_activation]] = True
            mask = fires if mask is None else mask & fires
        return mask
