"""Raw neurons on a server: what a job says of them is found and asked for like any feature."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from vision_sae_server import app
from vision_sae_server.labelling import Labelling

from tests.service.test_descriptions import Lengths, Numbered
from tests.worlds import serving
from tests.worlds import tiny as worlds
from tests.worlds.labels import made
from tests.worlds.serving import DICTIONARY, refusal
from vision_sae.activations.store import ImageRecord
from vision_sae.bundles.read import Bundle
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.labels.entries import Unit
from vision_sae.labels.store import LabelStore
from vision_sae.tensors import from_proto
from vision_sae.v1 import attribution_service_pb2 as attribution_pb
from vision_sae.v1 import attribution_service_pb2_grpc as attribution_grpc
from vision_sae.v1 import catalog_service_pb2 as catalog_pb
from vision_sae.v1 import catalog_service_pb2_grpc as catalog_grpc
from vision_sae.v1 import description_pb2, feature_pb2
from vision_sae.v1 import description_service_pb2 as description_pb
from vision_sae.v1 import description_service_pb2_grpc as description_grpc
from vision_sae.v1 import label_job_service_pb2 as jobs_pb
from vision_sae.v1 import label_job_service_pb2_grpc as jobs_grpc
from vision_sae.v1 import search_service_pb2 as search_pb
from vision_sae.v1 import search_service_pb2_grpc as search_grpc

SITE = "models/tiny/sites/blocks.1.mlp"
NEURONS = "dictionaries/tiny.blocks.1.mlp"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MAPS = [[0, 4, 0, 1], [0, 0, 2, 0]]
"""What neuron 1 does in pictures 2 and 0, strongest first; neurons 0 and 2 are silent."""


def thumbnail() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "white").save(file, "JPEG")
    return file.getvalue()


def evidence() -> ArrayEvidence:
    maps = np.zeros((3, 2, 4))
    maps[1] = MAPS
    return ArrayEvidence(
        name=SITE,
        identity="a" * 64,
        data_sha256="d" * 64,
        site="blocks.1.mlp",
        images=[ImageRecord(f"{i}.png", 16, 16, f"picture {i}", (), "") for i in range(3)],
        grid=worlds.GRID,
        preprocessing=worlds.PREPROCESSING,
        thumbnails=[thumbnail()] * 3,
        embeddings=np.zeros((3, 2), dtype=np.float32),
        all_peaks=np.array([[0, 0, 0], [2, 0, 4], [-1, 0, 0]]),
        firing_images=np.array([[-1, -1], [2, 0], [-1, -1]]),
        maps=maps,
        thresholds=np.array([0.0, 3.0, 0.0]),
    )


class Nearest:
    """Every text is nearest to the unit that has the number of its letters."""

    def nearest(self, text: str, evidence: Any, by: str) -> Sequence[tuple[int, float]]:
        return [(len(text), 0.5)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return serving.zoo(tmp_path_factory.mktemp("zoo"), described=False)


@pytest.fixture
def labels() -> LabelStore:
    store = LabelStore("sqlite://")
    store.add(SITE, [made(1, "white boxes"), made(2, None)], identity="a" * 64)
    return store


@pytest.fixture
def channel(
    bundle: Bundle, labels: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[grpc.Channel]:
    monkeypatch.setattr(app, "_LAME_DUCK_SECONDS", 0)
    labelling = Labelling(
        {"numbered": Numbered()}, Lengths(), neurons={SITE: evidence()}, meanings=Nearest().nearest
    )
    with serving.serving(serving.state(bundle, labels, labelling)) as channel:
        yield channel


@pytest.fixture
def catalog(channel: grpc.Channel) -> Any:
    return catalog_grpc.CatalogServiceStub(channel)


@pytest.fixture
def descriptions(channel: grpc.Channel) -> Any:
    return description_grpc.DescriptionServiceStub(channel)


def test_neurons_are_a_dictionary_behind_those_of_bundles(catalog: Any) -> None:
    listed = catalog.ListDictionaries(catalog_pb.ListDictionariesRequest()).dictionaries
    assert [d.name for d in listed] == [DICTIONARY, NEURONS]
    found = catalog.GetDictionary(catalog_pb.GetDictionaryRequest(name=NEURONS)).dictionary
    assert found == listed[1]
    assert (found.model, found.site) == ("models/tiny", "models/tiny/sites/blocks.1.mlp")
    assert (found.architecture, found.width, found.input_width) == ("neurons", 3, 3)
    assert not found.HasField("patch_index")
    assert (found.descriptions.described, found.descriptions.abstained) == (1, 1)


def test_a_neuron_shows_what_it_fires_on(catalog: Any) -> None:
    request = catalog_pb.GetFeatureRequest(
        name=f"{NEURONS}/features/1", view=feature_pb2.FEATURE_VIEW_FULL
    )
    request.exemplars.masks = True
    found = catalog.GetFeature(request).feature
    assert (found.name, found.index) == (f"{NEURONS}/features/1", 1)
    assert (found.statistics.max, found.statistics.image_count) == (4, 2)
    assert found.statistics.count == 0  # peaks do not tell on how many patches it fires
    assert found.description.text == "white boxes"
    assert found.description.name == f"{NEURONS}/features/1/description"
    shown = [(e.caption, e.row, e.col, e.activation, e.quantile) for e in found.exemplars]
    assert shown == [("picture 2", 0, 1, 4, 1), ("picture 0", 1, 0, 2, 0.5)]
    masks = [from_proto(e.mask).ravel().tolist() for e in found.exemplars]
    assert masks == [[False, True, False, False], [False, False, True, False]]
    (box, _) = (e.box for e in found.exemplars)
    assert (box.x0, box.y0, box.x1, box.y1) == (8, 0, 16, 8)


@pytest.mark.parametrize(
    ("asked", "indices"),
    [
        ({}, [0, 1, 2]),
        ({"filter": "max > 1"}, [1]),
        ({"filter": "count < 9"}, []),  # not measured
        ({"filter": "abstained = true"}, [2]),
        ({"order_by": "image_count desc, index desc"}, [1, 2, 0]),
    ],
)
def test_neurons_are_filtered_and_ordered(
    catalog: Any, asked: dict[str, str], indices: list[int]
) -> None:
    found = catalog.ListFeatures(catalog_pb.ListFeaturesRequest(parent=NEURONS, **asked))
    assert [feature.index for feature in found.features] == indices


def test_neurons_are_described_scored_and_edited(descriptions: Any, labels: LabelStore) -> None:
    unit = f"{NEURONS}/features/0"
    made_ = descriptions.DescribeFeature(description_pb.DescribeFeatureRequest(feature=unit))
    assert made_.description.text == "label 1 of 0"
    asked = description_pb.ScoreDescriptionRequest(feature=unit, text="seven")
    assert len(descriptions.ScoreDescription(asked).scores) > 0
    edit = description_pb2.Description(name=f"{unit}/description", text="a person's")
    descriptions.UpdateDescription(description_pb.UpdateDescriptionRequest(description=edit))
    entry = labels.current(Unit(SITE, 0))
    assert entry is not None
    assert (entry.description.text, entry.identity) == ("a person's", "a" * 64)


def test_neurons_are_found_by_words_and_when_named_by_meaning(channel: grpc.Channel) -> None:
    service = search_grpc.SearchServiceStub(channel)

    def found(text: str, **rest: Any) -> list[str]:
        request = search_pb.SearchFeaturesRequest(text=text, **rest)
        return [hit.feature.name for hit in service.SearchFeatures(request).hits]

    words = search_pb.FEATURE_MATCH_LABEL
    assert found("boxes", match=words) == [f"{NEURONS}/features/1"]
    assert found("ab") == [f"{DICTIONARY}/features/2"]  # by meaning, of bundles alone
    assert found("ab", dictionaries=[NEURONS]) == [f"{NEURONS}/features/2"]


def test_a_job_takes_some_neurons_and_its_units_can_be_asked_for(
    channel: grpc.Channel, catalog: Any
) -> None:
    service = jobs_grpc.LabelJobServiceStub(channel)
    units = jobs_pb.FeatureUnits(dictionary=NEURONS, indices=[2, 0])
    job = jobs_pb.LabelJob(features=units, force=True)
    made_ = service.CreateLabelJob(jobs_pb.CreateLabelJobRequest(label_job=job)).label_job
    watched = service.WatchLabelJob(jobs_pb.WatchLabelJobRequest(name=made_.name), timeout=20)
    names = [message.unit.feature for message in watched if message.HasField("unit")]
    assert names == [f"{NEURONS}/features/2", f"{NEURONS}/features/0"]
    for name in names:
        feature = catalog.GetFeature(catalog_pb.GetFeatureRequest(name=name)).feature
        assert feature.description.describer == "numbered"


def test_a_job_of_all_neurons_of_a_dictionary_takes_those_that_fire(channel: grpc.Channel) -> None:
    service = jobs_grpc.LabelJobServiceStub(channel)
    job = jobs_pb.LabelJob(features=jobs_pb.FeatureUnits(dictionary=NEURONS), force=True)
    made_ = service.CreateLabelJob(jobs_pb.CreateLabelJobRequest(label_job=job)).label_job
    assert made_.progress.total == 1


def test_neurons_that_are_not_there_are_refused(catalog: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        catalog.GetFeature(catalog_pb.GetFeatureRequest(name=f"{NEURONS}/features/3"))
    assert refusal(caught.value)[:2] == (grpc.StatusCode.NOT_FOUND, "FEATURE_NOT_FOUND")


def test_what_needs_codes_says_what_to_serve_instead(channel: grpc.Channel) -> None:
    service = attribution_grpc.AttributionServiceStub(channel)
    request = attribution_pb.EncodeRequest(dictionary=NEURONS)
    request.image.data = thumbnail()
    with pytest.raises(grpc.RpcError) as caught:
        service.Encode(request)
    assert refusal(caught.value) == (INVALID, "INVALID_INPUT", "dictionary")
    assert "architecture neurons" in (caught.value.details() or "")
