"""What SearchPatches looks for, and among which patches, in the terms of the library."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.bundles.patch_search import Mask, text_aligned_index, vector_of
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.protocol import ContrastiveModel, PatchEmbeddings
from vision_sae.v1 import edit_pb2
from vision_sae.v1 import search_service_pb2 as pb
from vision_sae.v1.measure_pb2 import UnreadText
from vision_sae.vectors import normalised
from vision_sae_server.edits import feature_edit
from vision_sae_server.regions import region_mask
from vision_sae_server.served import Served
from vision_sae_server.state import State
from vision_sae_server.unread import unread_texts
from vision_sae_server.vectors import site_vectors

_NEGATIVE_WEIGHT = 0.5
VectorOf = Callable[[pb.SearchExample], Awaitable[NDArray[np.float32]]]
_SPACES: dict[str, tuple[pb.SearchSpace.ValueType, ...]] = {
    "text": (pb.SEARCH_SPACE_TEXT_ALIGNED,),
    "edited_code": (pb.SEARCH_SPACE_CODE,),
    "examples": (pb.SEARCH_SPACE_VECTOR, pb.SEARCH_SPACE_TEXT_ALIGNED),
    "region": (pb.SEARCH_SPACE_VECTOR, pb.SEARCH_SPACE_CODE, pb.SEARCH_SPACE_TEXT_ALIGNED),
}
"""What queries of each kind can be compared in."""


class Query(NamedTuple):
    """What to compare patches with: a vector, or a code."""

    vector: NDArray[np.float32] | None = None
    """Centred (D)."""
    code: Mapping[int, float] | None = None
    """{feature: activation}"""
    aligned: NDArray[np.float32] | None = None
    """In the space of texts (E)."""


class PatchQueries:
    """The queries of one request."""

    def __init__(self, state: State, served: Served) -> None:
        self._state, self._served = state, served
        self.unread: list[UnreadText] = []
        """The ends of the texts of the request that the model does not read."""

    async def query(self, request: pb.SearchPatchesRequest) -> Query:
        """Raises `NotServedError` for a space or a kind of query that is not served."""
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
            return Query(code=self._code(vectors))
        return Query(vector=self._direction(vectors))

    @staticmethod
    def _usual_space(request: pb.SearchPatchesRequest) -> pb.SearchSpace.ValueType:
        """What a query is compared in when it does not say: one with a text among the texts."""
        examples = [*request.examples.positives, *request.examples.negatives]
        if request.HasField("text") or any(example.HasField("text") for example in examples):
            return pb.SEARCH_SPACE_TEXT_ALIGNED
        if request.HasField("edited_code"):
            return pb.SEARCH_SPACE_CODE
        return pb.SEARCH_SPACE_VECTOR

    def _contrastive(self) -> ContrastiveModel:
        """The model of the bundle, whose patches are kept in the space of its texts."""
        text_aligned_index(self._served.bundle)
        model = self._served.model.model
        assert isinstance(model, ContrastiveModel)  # no other model's patches are kept there
        return model

    async def _text(self, text: str, field: str) -> NDArray[np.float32]:
        model = self._contrastive()

        def embed() -> tuple[Tensor, list[UnreadText]]:
            unread = unread_texts(model.unread_text, [(field, text)])
            return model.embed_texts([text])[0], unread

        found, unread = await self._served.model.lane.run(embed)
        self.unread += unread
        return np.asarray(found.float().cpu().numpy())

    async def _aligned(self, region: pb.ImageRegion) -> NDArray[np.float32]:
        """Part of a picture in the space of texts (E): see `PatchEmbeddings`."""
        model = self._contrastive()
        pixels, mask = await self._selected(region)

        def embed() -> PatchEmbeddings:
            with torch.inference_mode():
                return model.embed_patches(pixels[None])

        found = await self._served.model.lane.run(embed)
        chosen = torch.from_numpy(mask)
        mean = found.weights[0].cpu()[chosen] @ found.vectors[0].cpu()[chosen]
        return np.asarray(normalised(mean.numpy()[None])[0])

    async def _selected(self, region: pb.ImageRegion) -> tuple[Tensor, NDArray[np.bool_]]:
        """(a picture made ready for the model, which of its patches are meant)"""
        bundle, model = self._served.bundle, self._served.model
        picture = await self._state.picture(region.image.data, model)
        chosen = region.region if region.HasField("region") else None
        mask = region_mask(chosen, bundle.grid, picture.geometry, "region.region")
        return picture.pixels, mask

    async def _vectors(self, region: pb.ImageRegion) -> NDArray[np.float32]:
        """The site vectors (n, D) of part of a picture."""
        bundle, model = self._served.bundle, self._served.model
        pixels, mask = await self._selected(region)
        vectors = await model.lane.run(lambda: site_vectors(model.model, bundle.site, pixels))
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
        if served.resource != self._served.resource:
            raise InvalidInputError(f"{feature} is not of {self._served.resource}", field=field)
        return index

    async def _examples(
        self, asked: pb.ExamplesQuery, vector_of_example: VectorOf
    ) -> NDArray[np.float32]:
        weight = asked.negative_weight if asked.HasField("negative_weight") else _NEGATIVE_WEIGHT
        positive = await self._mean(asked.positives, vector_of_example)
        if not asked.negatives:
            return positive
        negative = await self._mean(asked.negatives, vector_of_example)
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
                return self._direction(await self._vectors(example.region))
            case "patch":
                return vector_of(bundle, self.patch(example.patch))
            case "feature":
                index = self._own(example.feature, "examples.feature")
                return np.asarray(bundle.dictionary.decoder[index].numpy())
            case _:
                raise InvalidInputError(
                    "a text is no vector of the site; leave space out, and it is compared with "
                    "patches in the space of texts",
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

    def filtered_by(self, request: pb.SearchPatchesRequest) -> int | None:
        """The feature that the filter is about, where it names one."""
        name = request.filter.activation_feature
        return self._own(name, "filter.activation_feature") if name else None

    def allowed(self, request: pb.SearchPatchesRequest, feature: int | None) -> Mask | None:
        """The patches that may be found; None for all. ``feature`` is that of a feature query."""
        asked, bundle = request.filter, self._served.bundle
        mask: Mask | None = None
        if asked.data_sets:
            unknown = set(asked.data_sets).difference(bundle.data_sets.tolist())
            if unknown:
                raise NotFoundError(
                    f"{self._served.resource} has no data set {min(unknown)!r}; GetDictionary "
                    "lists those it has in patch_index.data_sets",
                    field="filter.data_sets",
                )
            of_sets = np.isin(bundle.data_sets, list(asked.data_sets))
            mask = np.repeat(of_sets, bundle.grid.patches)
        if asked.image_labels or asked.exclude_images:
            labels, excluded = set(asked.image_labels), set(asked.exclude_images)
            images = [
                (not labels or bool(labels & {record.caption, *record.tags}))
                and record.id not in excluded
                for record in bundle.images
            ]
            of_images = np.repeat(np.array(images), bundle.grid.patches)
            mask = of_images if mask is None else mask & of_images
        if asked.HasField("min_activation"):
            feature = self.filtered_by(request) if asked.activation_feature else feature
            if feature is None:
                raise InvalidInputError(
                    "min_activation is about a feature; name it in filter.activation_feature",
                    field="filter.activation_feature",
                )
            if asked.min_activation <= 0:  # where it is silent, too
                return mask
            rows, values = bundle.postings.row(feature)
            fires = np.zeros(len(bundle.codes.indptr) - 1, dtype=bool)
            fires[rows[values.astype(np.float32) >= asked.min_activation]] = True
            mask = fires if mask is None else mask & fires
        return mask
