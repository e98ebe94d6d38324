"""SearchPatches over a real channel: edited codes, examples, filters."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.worlds import serving
from tests.worlds import tiny as worlds
from tests.worlds.serving import DICTIONARY, refusal
from vision_sae.labels.store import LabelStore
from vision_sae.v1 import edit_pb2, image_pb2
from vision_sae.v1 import search_service_pb2 as pb
from vision_sae.v1 import search_service_pb2_grpc as search_grpc

INVALID = grpc.StatusCode.INVALID_ARGUMENT
# In the zoo feature 0 fires in pictures 0, 2, ..., 38 with 1 + the number, at patch number % 4;
# feature 1 likewise in the odd ones; feature 2 in picture 40, at patch 2.


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    bundle = serving.zoo(tmp_path_factory.mktemp("search"))
    held = serving.state(bundle, LabelStore("sqlite://"))
    with serving.serving(held) as channel:
        yield search_grpc.SearchServiceStub(channel)


def search(service: Any, **asked: Any) -> pb.SearchPatchesResponse:
    given = {"dictionary": DICTIONARY, "omit_thumbnails": True} | asked
    answer: pb.SearchPatchesResponse = service.SearchPatches(pb.SearchPatchesRequest(**given))
    return answer


def refused(service: Any, **asked: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        search(service, **asked)
    return refusal(caught.value)


def patch(image: int) -> pb.IndexedPatch:
    """The patch of a picture on which its feature fires."""
    place = 2 if image == 40 else image % 4
    return pb.IndexedPatch(image=f"{image}.png", row=place // 2, col=place % 2)


def edit(feature: int, operation: str, value: float | None = None) -> edit_pb2.Edit:
    return edit_pb2.Edit(
        feature=f"{DICTIONARY}/features/{feature}",
        operation=f"EDIT_OPERATION_{operation}",
        value=value,
        unit=edit_pb2.EDIT_UNIT_RAW,
    )


def images(answer: pb.SearchPatchesResponse) -> list[int]:
    return [int(hit.patch.image.removesuffix(".png")) for hit in answer.hits]


def by_code(service: Any, start: int, *edits: edit_pb2.Edit, **asked: Any) -> Any:
    query = pb.EditedCodeQuery(patch=patch(start), edits=edits)
    return search(service, edited_code=query, page_size=100, **asked)


def test_a_code_with_one_feature_off_and_another_up(service: Any) -> None:
    # A cat's patch with the cat taken out and a dog put in is a dog's.
    answer = by_code(service, 4, edit(0, "ABLATE"), edit(1, "CLAMP", 3.0))
    assert sorted(images(answer)) == list(range(1, 40, 2))
    assert all(hit.score == pytest.approx(1, abs=1e-6) for hit in answer.hits)
    assert (answer.space, answer.recall_at_10) == (pb.SEARCH_SPACE_CODE, 1.0)


def test_operations_on_a_code(service: Any) -> None:
    assert set(images(by_code(service, 4, edit(2, "REPLACE", 1.0)))) == {40}
    cats = set(range(0, 40, 2))
    assert set(images(by_code(service, 4, edit(0, "SCALE", 2.0)))) == cats
    both = by_code(service, 4, edit(1, "ADD", 5.0))  # the cat fires with 5: half and half
    assert set(images(both)) == set(range(40))
    assert both.hits[0].score == pytest.approx(2**-0.5, abs=1e-6)


def test_nothing_left_of_a_code_is_refused(service: Any) -> None:
    query = pb.EditedCodeQuery(patch=patch(4), edits=[edit(0, "ABLATE")])
    assert refused(service, edited_code=query) == (INVALID, "INVALID_INPUT", "edited_code.edits")


def test_examples_to_resemble_and_not_to(service: Any) -> None:
    like = [pb.SearchExample(patch=patch(7)), pb.SearchExample(patch=patch(9))]
    unlike = [pb.SearchExample(feature=f"{DICTIONARY}/features/0")]
    query = pb.ExamplesQuery(positives=like, negatives=unlike, negative_weight=1.0)
    found = images(search(service, examples=query, page_size=10))
    assert all(image % 2 for image in found)
    only = pb.ExamplesQuery(positives=[pb.SearchExample(feature=f"{DICTIONARY}/features/2")])
    assert images(search(service, examples=only, page_size=1)) == [40]


def test_a_patch_that_is_not_in_the_index(service: Any) -> None:
    for unknown in (pb.IndexedPatch(image="none.png"), pb.IndexedPatch(image="4.png", row=2)):
        query = pb.EditedCodeQuery(patch=unknown, edits=[edit(0, "SCALE", 2.0)])
        assert refused(service, edited_code=query)[1:] == ("NOT_FOUND", "patch")


def test_a_region_may_be_compared_by_its_code(service: Any) -> None:
    buffer = io.BytesIO()
    worlds.noise_image(16, 16).save(buffer, "PNG")
    region = pb.ImageRegion(image=image_pb2.Image(data=buffer.getvalue()))
    answer = search(service, region=region, space=pb.SEARCH_SPACE_CODE)
    assert answer.space == pb.SEARCH_SPACE_CODE
    assert search(service, region=region).space == pb.SEARCH_SPACE_VECTOR


class TestFilter:
    def found(self, service: Any, **conditions: Any) -> list[int]:
        feature = f"{DICTIONARY}/features/0"
        only = pb.PatchFilter(**conditions)
        return images(search(service, feature=feature, filter=only, page_size=100))

    def test_of_a_feature(self, service: Any) -> None:
        assert self.found(service, min_activation=35) == [38, 36, 34]
        assert self.found(service, min_activation=35, exclude_images=["36.png"]) == [38, 34]
        assert self.found(service, image_labels=["a dog"]) == []
        assert len(self.found(service, image_labels=["a cat", "a dog"])) == 20

    def test_of_likeness(self, service: Any) -> None:
        only = pb.PatchFilter(
            min_activation=30, activation_feature=f"{DICTIONARY}/features/1", image_labels=["a dog"]
        )
        like = pb.ExamplesQuery(positives=[pb.SearchExample(patch=patch(4))])
        answer = search(service, examples=like, filter=only, page_size=100)
        assert sorted(images(answer)) == [29, 31, 33, 35, 37, 39]
        # With what the filter's feature does there: it fires with 1 + the number.
        assert [hit.patch.activation for hit in answer.hits] == [1 + i for i in images(answer)]

    def test_where_a_feature_is_silent_it_is_at_least_0(self, service: Any) -> None:
        only = pb.PatchFilter(min_activation=0, activation_feature=f"{DICTIONARY}/features/1")
        like = pb.ExamplesQuery(positives=[pb.SearchExample(patch=patch(4))])
        cats = images(search(service, examples=like, filter=only, page_size=100))
        assert cats == images(search(service, examples=like, page_size=100))

    def test_an_activation_is_of_a_feature(self, service: Any) -> None:
        like = pb.ExamplesQuery(positives=[pb.SearchExample(patch=patch(4))])
        found = refused(service, examples=like, filter=pb.PatchFilter(min_activation=1))
        assert found == (INVALID, "INVALID_INPUT", "filter.activation_feature")


def test_near_duplicates_are_counted(service: Any) -> None:
    like = pb.ExamplesQuery(positives=[pb.SearchExample(patch=patch(40))])
    asked = {"examples": like, "page_size": 200}
    whole = search(service, **asked)
    once = search(service, collapse_near_duplicates=True, **asked)
    assert len(once.hits) < len(whole.hits)
    assert sum(1 + hit.collapsed_count for hit in once.hits) == len(whole.hits)


def test_texts_need_patches_in_their_space(service: Any) -> None:
    assert refused(service, text="a cat") == (INVALID, "INVALID_INPUT", "space")
