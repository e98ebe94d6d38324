"""The client against a small server of hand-written answers in the same process."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from PIL import Image
from vision_sae_client import AsyncClient, Client, ClientError, targets
from vision_sae_client.images import image_bytes
from vision_sae_client.jobs import label_job
from vision_sae_client.requests.description import update_description
from vision_sae_client.requests.search import search_patches

from vision_sae.errors import InvalidImageError, InvalidInputError
from vision_sae.v1 import attribution_service_pb2 as attribution_pb
from vision_sae.v1 import attribution_service_pb2_grpc as attribution_grpc
from vision_sae.v1 import catalog_service_pb2 as catalog_pb
from vision_sae.v1 import catalog_service_pb2_grpc as catalog_grpc
from vision_sae.v1 import label_job_service_pb2 as jobs_pb
from vision_sae.v1 import label_job_service_pb2_grpc as jobs_grpc
from vision_sae.v1.description_pb2 import Description
from vision_sae.v1.dictionary_pb2 import Dictionary
from vision_sae.v1.feature_pb2 import Feature
from vision_sae.v1.image_pb2 import Box
from vision_sae.v1.target_pb2 import Target


class Catalog(catalog_grpc.CatalogServiceServicer):
    """Two dictionaries; five features in pages of two; may be away for some calls."""

    def __init__(self) -> None:
        self.away = 0
        self.metadata: dict[str, Any] = {}

    def GetServerInfo(self, request: Any, context: Any) -> Any:
        self.metadata = dict(context.invocation_metadata())
        if self.away:
            self.away -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        return catalog_pb.GetServerInfoResponse(version="1.2.3")

    def ListDictionaries(self, request: Any, context: Any) -> Any:
        page = int(request.page_token or 0)
        return catalog_pb.ListDictionariesResponse(
            dictionaries=[Dictionary(name=f"dictionaries/{'ab'[page]}")],
            next_page_token="" if page else "1",
        )

    def ListFeatures(self, request: Any, context: Any) -> Any:
        start = int(request.page_token or 0)
        return catalog_pb.ListFeaturesResponse(
            features=[Feature(index=i) for i in range(start, min(start + 2, 5))],
            next_page_token=str(start + 2) if start + 2 < 5 else "",
        )

    def GetFeature(self, request: Any, context: Any) -> Any:
        info = error_details_pb2.ErrorInfo(reason="FEATURE_NOT_FOUND", metadata={"field": "name"})
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(1500)
        status = status_pb2.Status(code=code_pb2.NOT_FOUND, message="a has 5 features; use 0 to 4")
        status.details.add().Pack(info)
        status.details.add().Pack(retry)
        context.abort_with_status(rpc_status.to_status(status))


class Attribution(attribution_grpc.AttributionServiceServicer):
    """Answers with the dictionary and the order it was asked about, and with many bytes."""

    def Encode(self, request: Any, context: Any) -> Any:
        answer = attribution_pb.EncodeResponse(dictionary=request.dictionary)
        answer.active_count = request.order
        answer.features.add().heatmap.data = bytes(10 * 2**20)
        return answer


@pytest.fixture
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def address(catalog: Catalog) -> Iterator[str]:
    with serving(catalog, Attribution()) as address:
        yield address


@contextmanager
def serving(catalog: Catalog, attribution: Attribution) -> Iterator[str]:
    server = grpc.server(
        futures.ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)]
    )
    catalog_grpc.add_CatalogServiceServicer_to_server(catalog, server)
    attribution_grpc.add_AttributionServiceServicer_to_server(attribution, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_importing_the_client_is_light() -> None:
    program = (
        "import sys, vision_sae_client, vision_sae_client.cli, vision_sae_client.overlay\n"
        "print([m for m in ('torch', 'gradio', 'faiss', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_listings_follow_the_pages(address: str) -> None:
    with Client(address) as client:
        assert [d.name for d in client.dictionaries()] == ["dictionaries/a", "dictionaries/b"]
        assert [f.index for f in client.features()] == [0, 1, 2, 3, 4]


def test_no_dictionary_means_the_first_and_answers_may_be_large(address: str) -> None:
    with Client(address) as client:
        assert client.encode(b"picture").dictionary == "dictionaries/a"
        informative = attribution_pb.ENCODE_ORDER_INFORMATIVE
        assert client.encode(b"picture", order=informative).active_count == informative
        answer = client.encode(b"picture", "b")
    assert answer.dictionary == "dictionaries/b"
    assert len(answer.features[0].heatmap.data) == 10 * 2**20  # over gRPC's default of 4 MiB


def test_an_error_says_what_where_and_what_to_do(address: str) -> None:
    with Client(address) as client, pytest.raises(ClientError) as caught:
        client.feature("dictionaries/a/features/9")
    error = caught.value
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert (error.reason, error.field) == ("FEATURE_NOT_FOUND", "name")
    assert str(error) == error.message == "a has 5 features; use 0 to 4"
    assert error.retry_after == 1.5


def test_calls_are_retried_while_the_server_is_away(address: str, catalog: Catalog) -> None:
    catalog.away = 2
    with Client(address) as client:
        assert client.server_info().version == "1.2.3"
    assert catalog.away == 0


def test_a_missing_server_is_named_with_the_command_that_starts_one() -> None:
    with Client("127.0.0.1:1", timeout=5) as client, pytest.raises(ClientError) as caught:
        client.server_info()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert "no server answers at 127.0.0.1:1" in str(caught.value)
    assert "vision-sae serve BUNDLE" in str(caught.value)


def test_every_call_has_a_deadline() -> None:
    class Slow(Catalog):
        def GetServerInfo(self, request: Any, context: Any) -> Any:
            futures.wait([futures.Future()], timeout=0.01)  # gRPC rounds a deadline up by some ms
            assert context.time_remaining() < 0.3
            futures.wait([futures.Future()], timeout=1)

    with (
        serving(Slow(), Attribution()) as address,
        Client(address, timeout=0.3) as client,
        pytest.raises(ClientError) as caught,
    ):
        client.server_info()
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "within 0.3 s" in str(caught.value)


def test_the_token_travels_as_a_bearer(address: str, catalog: Catalog) -> None:
    with Client(address, token="secret") as client:
        client.server_info()
    assert catalog.metadata["authorization"] == "Bearer secret"


async def test_the_async_client_gives_the_same_answers(address: str) -> None:
    async with AsyncClient(address) as client:
        assert (await client.server_info()).version == "1.2.3"
        assert [d.name for d in await client.dictionaries()] == [
            "dictionaries/a",
            "dictionaries/b",
        ]
        assert [f.index async for f in client.features()] == [0, 1, 2, 3, 4]
        assert (await client.encode(b"picture")).dictionary == "dictionaries/a"
        with pytest.raises(ClientError) as caught:
            await client.feature("dictionaries/a/features/9")
    assert (caught.value.reason, caught.value.retry_after) == ("FEATURE_NOT_FOUND", 1.5)


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    def methods(client: type) -> dict[str, list[str]]:
        found = inspect.getmembers(client, inspect.isfunction)
        return {n: list(inspect.signature(f).parameters) for n, f in found if n[0] != "_"}

    assert methods(Client) == methods(AsyncClient)
    assert inspect.signature(Client.__init__) == inspect.signature(AsyncClient.__init__)


def test_search_needs_one_query(address: str) -> None:
    with Client(address) as client:
        with pytest.raises(InvalidInputError, match="one of a text, a feature or an image"):
            client.search_patches()
        with pytest.raises(InvalidInputError, match="a box needs the image"):
            client.search_patches(feature="dictionaries/a/features/1", box=(0, 0, 1, 1))
        with pytest.raises(InvalidInputError, match="one of a text, a feature or an image"):
            client.search_features(text="dog", feature="dictionaries/a/features/1")
        with pytest.raises(InvalidInputError, match="a box needs the image"):
            client.search_features(text="dog", box=(0, 0, 1, 1))


def test_a_search_request_carries_the_box_of_the_picture() -> None:
    request = search_patches(source=b"x", box=(1, 2, 3, 4), dictionary="a")
    assert request.WhichOneof("query") == "region"
    assert request.region.region.box == Box(x0=1, y0=2, x1=3, y1=4)
    assert request.dictionary == "dictionaries/a"


def test_a_text_or_its_absence_is_written_with_the_version_that_was_seen() -> None:
    written = update_description("dictionaries/a/features/1", "dog", etag="v1")
    assert written.description == Description(
        name="dictionaries/a/features/1/description", text="dog", etag="v1"
    )
    withdrawn = update_description("dictionaries/a/features/1", None, reason="mixed")
    assert not withdrawn.description.HasField("text")
    assert withdrawn.description.abstained
    assert withdrawn.description.abstention_reason == "mixed"


def test_a_label_job_is_about_features_or_neurons_within_limits() -> None:
    job = label_job(dictionary="a", filter="count > 3", max_units=5, max_seconds=1.5)
    assert (job.features.dictionary, job.features.filter) == ("dictionaries/a", "count > 3")
    assert (job.budget.max_units, job.budget.max_duration.nanos) == (5, 500_000_000)
    job = label_job(model="m", sites=["blocks.*.mlp"])
    assert (job.neurons.model, list(job.neurons.sites)) == ("models/m", ["blocks.*.mlp"])
    assert not job.HasField("budget")
    for wrong in ({}, {"dictionary": "a", "model": "m"}):
        with pytest.raises(InvalidInputError, match="either a dictionary or a model"):
            label_job(**wrong)


class Jobs(jobs_grpc.LabelJobServiceServicer):
    """Two jobs in two pages; one that is watched from any unit, and one that breaks."""

    def ListLabelJobs(self, request: Any, context: Any) -> Any:
        last = bool(request.page_token)
        return jobs_pb.ListLabelJobsResponse(
            label_jobs=[jobs_pb.LabelJob(name=f"labelJobs/{'one' if last else 'two'}")],
            next_page_token="" if last else "1",
        )

    def WatchLabelJob(self, request: Any, context: Any) -> Iterator[Any]:
        for number in range(int(request.resume_token or 0) + 1, 4):
            if request.name == "labelJobs/broken" and number == 2:
                context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
            yield jobs_pb.WatchLabelJobResponse(resume_token=str(number))


@pytest.fixture
def jobs_address() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    jobs_grpc.add_LabelJobServiceServicer_to_server(Jobs(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_jobs_are_listed_and_watched_from_any_token(jobs_address: str) -> None:
    with Client(jobs_address) as client:
        assert [job.name for job in client.label_jobs()] == ["labelJobs/two", "labelJobs/one"]
        messages = client.watch_label_job("zoo", resume_token="1")
        assert [message.resume_token for message in messages] == ["2", "3"]
        broken = client.watch_label_job("broken")
        assert next(broken).resume_token == "1"
        with pytest.raises(ClientError, match="restarting"):
            next(broken)


async def test_jobs_are_watched_asynchronously(jobs_address: str) -> None:
    async with AsyncClient(jobs_address) as client:
        assert len(await client.label_jobs()) == 2
        messages = client.watch_label_job("zoo", resume_token="1")
        assert [message.resume_token async for message in messages] == ["2", "3"]
        with pytest.raises(ClientError, match="restarting"):
            async for _ in client.watch_label_job("broken"):
                pass


def test_pictures_come_as_paths_bytes_or_pil_images(tmp_path) -> None:
    picture = Image.new("CMYK", (3, 2))
    data = image_bytes(picture)
    assert Image.open(io.BytesIO(data)).size == (3, 2)
    (tmp_path / "p.png").write_bytes(data)
    assert image_bytes(tmp_path / "p.png") == image_bytes(str(tmp_path / "p.png")) == data
    with pytest.raises(InvalidImageError, match=r"nothing\.png cannot be read"):
        image_bytes(tmp_path / "nothing.png")


def test_targets_are_written_as_people_write_them(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    assert targets.parse("mean") == targets.mean_embedding()
    assert targets.parse("class:281") == targets.class_logit(281)
    assert targets.parse("class:tabby").class_logit.label == "tabby"
    part = targets.parse("class:281@0,10,96,64.5")
    assert part == targets.region_class((0, 10, 96, 64.5), 281)
    assert part.region.region.box.y1 == 64.5
    assert targets.parse("text:a cat") == targets.text("a cat")
    name = "dictionaries/late/features/7"
    assert targets.parse(f"feature:{name}") == targets.feature(name)
    versus = targets.contrast(targets.text("a cat"), targets.class_logit(3))
    assert targets.parse("text:a cat vs class:3") == versus
    assert targets.parse(f"image:{tmp_path / 'a.png'}").image.image.data == b"picture"
    both = targets.contrast(targets.class_logit(1), targets.class_logit(2))
    assert both.contrast.negative == Target(class_logit={"index": 2})
    with pytest.raises(InvalidInputError, match="no target"):
        targets.parse("class:")


def test_importing_the_package_imports_neither_grpc_nor_numpy_before_a_name_is_used() -> None:
    program = (
        "import sys, vision_sae_client\n"
        "print(sorted({'grpc', 'numpy', 'PIL', 'typer'} & sys.modules.keys()))\n"
        "from vision_sae_client import Client\n"
        "print(Client.__name__, 'grpc' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "Client True"]
