"""The server as a client sees it: real answers, sums that check, and clear refusals."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from PIL import Image

from tests.conftest import ServedBundle
from vision_sae.bundles.read import read_bundle
from vision_sae.demo import CORPUS
from vision_sae.tensors import from_proto
from vision_sae.v1 import (
    attribution_service_pb2,
    attribution_service_pb2_grpc,
    catalog_service_pb2,
    catalog_service_pb2_grpc,
    description_service_pb2,
    description_service_pb2_grpc,
    feature_pb2,
    image_pb2,
    search_service_pb2,
    search_service_pb2_grpc,
    target_pb2,
)

PICTURES = sorted((CORPUS / "heldout" / "photographs").glob("*.webp"))
DICTIONARY = "dictionaries/tiny"


@pytest.fixture(scope="module")
def channel(served: ServedBundle) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(
        served.address, options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        yield channel


@pytest.fixture(scope="module")
def attribution(channel: grpc.Channel) -> attribution_service_pb2_grpc.AttributionServiceStub:
    return attribution_service_pb2_grpc.AttributionServiceStub(channel)


@pytest.fixture(scope="module")
def catalog(channel: grpc.Channel) -> catalog_service_pb2_grpc.CatalogServiceStub:
    return catalog_service_pb2_grpc.CatalogServiceStub(channel)


@pytest.fixture(scope="module")
def search(channel: grpc.Channel) -> search_service_pb2_grpc.SearchServiceStub:
    return search_service_pb2_grpc.SearchServiceStub(channel)


def picture(index: int = 0) -> image_pb2.Image:
    return image_pb2.Image(data=PICTURES[index].read_bytes())


def encode_request(data: bytes, **rest: object) -> attribution_service_pb2.EncodeRequest:
    return attribution_service_pb2.EncodeRequest(
        image=image_pb2.Image(data=data), dictionary=DICTIONARY, **rest
    )


def refusal(call: grpc.RpcError) -> tuple[grpc.StatusCode, str, str]:
    """(code, reason, field) of an error."""
    info = error_details_pb2.ErrorInfo()
    for detail in rpc_status.from_call(call).details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    return call.code(), info.reason, info.metadata["field"]


def test_encode_lists_the_strongest_features_with_places_and_evidence(attribution) -> None:
    answer = attribution.Encode(
        encode_request(picture().data, top_k=5, view=feature_pb2.FEATURE_VIEW_FULL)
    )
    activations = [f.max_activation for f in answer.features]
    assert len(activations) == 5
    assert activations == sorted(activations, reverse=True)
    for feature in answer.features:
        heatmap = from_proto(feature.heatmap)
        best = feature.patches[0]
        assert heatmap.shape == (16, 16)
        assert heatmap[best.row, best.col] == heatmap.max()
        assert best.activation == pytest.approx(feature.max_activation)
        assert 0 <= best.box.x0 < best.box.x1 <= answer.grid.image_width
        assert feature.feature.exemplars[0].activation == pytest.approx(
            feature.feature.statistics.max, rel=1e-3
        )
        assert Image.open(io.BytesIO(feature.feature.exemplars[0].thumbnail.data)).size[0] > 16


def test_codes_reconstruct_the_explained_variance(attribution, served: ServedBundle) -> None:
    """EV recomputed from the sent codes, the bundle's decoder and an own forward pass."""
    import torch

    from vision_sae.models.loading import load_model
    from vision_sae.pictures.decode import decode_image

    data = picture().data
    answer = attribution.Encode(encode_request(data, include_codes=True))
    bundle, model = read_bundle(served.bundle), load_model("demo:dinov2-s")
    with torch.no_grad(), model.capture([bundle.site]) as captured:
        model.forward(model.preprocess(decode_image(data))[None])
    x = captured[bundle.site][0, 1:].numpy()
    indptr, indices, values = (
        from_proto(t) for t in (answer.codes.indptr, answer.codes.indices, answer.codes.values)
    )
    x_hat = np.tile(bundle.dictionary.bias.numpy(), (256, 1))
    for row in range(256):
        for entry in range(indptr[row], indptr[row + 1]):
            x_hat[row] += values[entry] * bundle.dictionary.decoder[indices[entry]].numpy()
    expected = 1 - ((x - x_hat) ** 2).sum() / ((x - bundle.site_mean) ** 2).sum()
    assert answer.explained_variance == pytest.approx(expected, abs=1e-4)


def test_region_limits_what_is_ranked(attribution) -> None:
    whole = attribution.Encode(encode_request(picture().data))
    corner = image_pb2.Region(box=image_pb2.Box(x0=0, y0=0, x1=60, y1=60))
    part = attribution.Encode(encode_request(picture().data, region=corner))
    assert part.active_count < whole.active_count
    for feature in part.features:
        assert all(p.box.x0 < 60 and p.box.y0 < 60 for p in feature.patches)


@pytest.mark.parametrize("method", ["ACT_X_GRAD", "INTEGRATED_GRADIENTS"])
@pytest.mark.parametrize("reference", ["ZERO", "BLOCK_REMOVED"])
def test_the_ledger_adds_up(attribution, method: str, reference: str) -> None:
    answer = attribution.Attribute(
        attribution_service_pb2.AttributeRequest(
            image=picture(),
            dictionaries=[DICTIONARY],
            target=target_pb2.Target(mean_embedding=target_pb2.MeanEmbeddingTarget()),
            method=f"ATTRIBUTION_METHOD_{method}",
            baseline=attribution_service_pb2.AttributionBaseline(
                reference=f"REFERENCE_CODE_{reference}"
            ),
            top_k=7,
            heatmap_format=image_pb2.HEATMAP_FORMAT_FLOAT32,
        )
    )
    (site,) = answer.sites
    ledger = site.ledger
    shown = sum(f.contribution for f in site.features)
    assert shown + ledger.remainder == pytest.approx(ledger.features_total, abs=1e-9)
    assert ledger.features_total + ledger.sae_error + ledger.bias == pytest.approx(
        ledger.total, abs=1e-9
    )
    assert ledger.target_value - ledger.baseline_value - ledger.total == pytest.approx(
        ledger.completeness_gap, abs=1e-9
    )
    assert from_proto(site.total_map).sum() == pytest.approx(ledger.total, abs=1e-4)
    for feature in site.features:
        assert from_proto(feature.heatmap).sum() == pytest.approx(feature.contribution, abs=1e-4)
    if method == "INTEGRATED_GRADIENTS":
        moved = abs(ledger.target_value - ledger.baseline_value)
        assert abs(ledger.completeness_gap) < 0.01 * moved
    assert (ledger.bias == 0) == (reference == "ZERO")


def test_similarity_of_a_picture_to_itself_is_one(attribution) -> None:
    answer = attribution.Attribute(
        attribution_service_pb2.AttributeRequest(
            image=picture(),
            dictionaries=[DICTIONARY],
            target=target_pb2.Target(image=target_pb2.ImageTarget(image=picture())),
        )
    )
    assert answer.sites[0].ledger.target_value == pytest.approx(1, abs=1e-5)


def test_patches_of_a_feature_come_strongest_first_in_pages(search, served) -> None:
    bundle = read_bundle(served.bundle)
    index = int(np.argmax(bundle.statistics.count))
    request = search_service_pb2.SearchPatchesRequest(
        feature=f"{DICTIONARY}/features/{index}", page_size=30
    )
    first = search.SearchPatches(request)
    request.page_token = first.next_page_token
    second = search.SearchPatches(request)
    scores = [h.score for h in [*first.hits, *second.hits]]
    assert len(scores) == 60
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(float(bundle.statistics.max[index]))


def test_a_region_of_an_indexed_picture_finds_itself(search, served) -> None:
    bundle = read_bundle(served.bundle)
    record = bundle.images[3]
    data = (CORPUS / "train" / record.id).read_bytes()
    x0, y0, x1, y1 = bundle.box(3 * 256 + 120)
    region = image_pb2.Region(box=image_pb2.Box(x0=x0, y0=y0, x1=x1, y1=y1))
    answer = search.SearchPatches(
        search_service_pb2.SearchPatchesRequest(
            dictionary=DICTIONARY,
            region=search_service_pb2.ImageRegion(image=image_pb2.Image(data=data), region=region),
        )
    )
    best = answer.hits[0]
    assert (best.patch.image, best.patch.row, best.patch.col) == (record.id, 7, 8)
    assert best.score == pytest.approx(1, abs=0.01)


def test_describe_returns_the_stored_text_or_an_abstention(channel, served) -> None:
    stub = description_service_pb2_grpc.DescriptionServiceStub(channel)
    bundle = read_bundle(served.bundle)
    for index in (0, 1, 2):
        answer = stub.DescribeFeature(
            description_service_pb2.DescribeFeatureRequest(feature=f"{DICTIONARY}/features/{index}")
        )
        stored = bundle.descriptions[index]
        assert answer.from_store
        assert answer.description.abstained == (stored["text"] is None)
        assert answer.description.text == (stored["text"] or "")


def test_catalog_lists_filters_and_orders_features(catalog, served) -> None:
    counts = read_bundle(served.bundle).statistics.count
    answer = catalog.ListFeatures(
        catalog_service_pb2.ListFeaturesRequest(
            parent=DICTIONARY, filter="count >= 50", order_by="count desc", page_size=10
        )
    )
    assert answer.total_size == int((counts >= 50).sum())
    assert [f.statistics.count for f in answer.features] == sorted(counts, reverse=True)[:10]


def test_catalog_names_models_and_dictionaries(catalog) -> None:
    (model,) = catalog.ListModels(catalog_service_pb2.ListModelsRequest()).models
    (dictionary,) = catalog.ListDictionaries(
        catalog_service_pb2.ListDictionariesRequest()
    ).dictionaries
    assert model.name == dictionary.model == "models/demo-dinov2-s"
    assert len(model.sites) == 48
    assert dictionary.name == DICTIONARY
    assert dictionary.patch_index.recall_at_10 >= 0.9
    assert catalog.GetModel(catalog_service_pb2.GetModelRequest(name=model.name)).model == model


def test_health_and_capabilities(channel, catalog) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "vision_sae.v1.AttributionService"):
        status = health.Check(health_pb2.HealthCheckRequest(service=service)).status
        assert status == health_pb2.HealthCheckResponse.SERVING
    info = catalog.GetServerInfo(catalog_service_pb2.GetServerInfoRequest())
    assert all(capability.served for capability in info.capabilities)
    notes = {f"{c.service}/{c.rpc}": c.note for c in info.capabilities}
    assert notes["AttributionService/Encode"] == ""
    assert "none of the models makes pictures" in notes["GenerationService/Generate"]


def one_colour_png(width: int, height: int) -> bytes:
    """A PNG that decodes to width x height pixels and is small."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (width + 1) * height, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello, I am not a picture", "INVALID_IMAGE"),
        (PICTURES[0].read_bytes()[:900], "INVALID_IMAGE"),
        (one_colour_png(13_000, 13_000), "IMAGE_TOO_LARGE"),
        (b"", "INVALID_INPUT"),
        (b"\0" * 17 * 2**20, "IMAGE_TOO_LARGE"),
    ],
    ids=["not-an-image", "truncated", "169-megapixel-bomb", "zero-bytes", "too-many-bytes"],
)
def test_bad_pictures_are_refused_and_the_server_lives(attribution, data, reason) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        attribution.Encode(encode_request(data))
    code, found, field = refusal(caught.value)
    assert (code, found) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert field.startswith("image")
    assert attribution.Encode(encode_request(picture().data)).features


def test_an_oversized_message_is_refused_and_the_server_lives(attribution) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        attribution.Encode(encode_request(b"\0" * 21 * 2**20))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert attribution.Encode(encode_request(picture().data)).features


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("dictionaries/tiny/features/99999", grpc.StatusCode.NOT_FOUND, "FEATURE_NOT_FOUND"),
        ("dictionaries/other/features/1", grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
        ("dictionaries/tiny/features/-1", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"),
        ("../../etc/passwd", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"),
    ],
)
def test_wrong_feature_names_are_refused(catalog, name, code, reason) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        catalog.GetFeature(catalog_service_pb2.GetFeatureRequest(name=name))
    assert refusal(caught.value)[:2] == (code, reason)


def test_a_bad_filter_names_the_ways_out(catalog) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        catalog.ListFeatures(
            catalog_service_pb2.ListFeaturesRequest(parent=DICTIONARY, filter="size > 3")
        )
    assert refusal(caught.value)[1:] == ("INVALID_INPUT", "filter")
    assert "firing_rate" in caught.value.details()


def test_the_same_answer_whoever_asks_at_the_same_time(attribution) -> None:
    requests = [encode_request(picture(i).data, include_codes=True) for i in range(4)]
    alone = [attribution.Encode(request) for request in requests]
    together = [call.result() for call in [attribution.Encode.future(r) for r in requests * 2]]
    assert together == alone * 2


def test_calls_are_counted_by_method_and_status(catalog) -> None:
    from prometheus_client import REGISTRY

    def counted(code: str) -> float:
        labels = {"method": "CatalogService/GetModel", "code": code}
        return REGISTRY.get_sample_value("vision_sae_calls_total", labels) or 0.0

    before = counted("OK"), counted("NOT_FOUND")
    catalog.GetModel(catalog_service_pb2.GetModelRequest(name="models/demo-dinov2-s"))
    with pytest.raises(grpc.RpcError):
        catalog.GetModel(catalog_service_pb2.GetModelRequest(name="models/other"))
    wanted = (before[0] + 1, before[1] + 1)
    deadline = time.monotonic() + 10  # a refusal reaches the client before it is counted
    while (counted("OK"), counted("NOT_FOUND")) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (counted("OK"), counted("NOT_FOUND")) == wanted
