"""What every call passes through: bytes that are no message, places, bytes held, what is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from vision_sae_server.requests.label_jobs import duration_seconds
from vision_sae_server.runtime import interceptor
from vision_sae_server.runtime.admission import Admission, Messages
from vision_sae_server.runtime.errors import status_message
from vision_sae_server.runtime.interceptor import Gate, validate

from tests.worlds import fuzz, serving
from tests.worlds.serving import DICTIONARY
from tests.worlds.wire import of
from vision_sae.config import ServeConfig
from vision_sae.errors import InvalidInputError, OverloadedError, VisionSaeError
from vision_sae.labels.store import LabelStore
from vision_sae.v1 import attribution_service_pb2 as attribution
from vision_sae.v1 import catalog_service_pb2 as catalog
from vision_sae.v1 import edit_pb2, intervention_service_pb2, search_service_pb2

MALFORMED = b"\x0a\xff\xff\xff\xff\x0f"  # a field that is longer than the message
NOT_UTF8 = b"\x0a\x01\xff"


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    bundle = serving.zoo(tmp_path_factory.mktemp("gate"), described=False)
    with serving.serving(serving.state(bundle, LabelStore("sqlite://"))) as opened:
        yield opened


@pytest.mark.parametrize(
    ("method", "data"),
    [*((m, MALFORMED) for m in fuzz.METHODS), (fuzz.method("GetModel"), NOT_UTF8)],
    ids=lambda given: getattr(given, "name", ""),
)
def test_bytes_that_are_no_message_are_refused(
    channel: grpc.Channel, method: Any, data: bytes
) -> None:
    outcome = fuzz.Wire(channel).send(method, [data])
    assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message of this call" in outcome.message


def test_health_refuses_them_too(channel: grpc.Channel) -> None:
    call: Any = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
    with pytest.raises(grpc.RpcError) as refused:
        call(MALFORMED)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert call(b"") == b"\x08\x01"  # SERVING
    watching: Any = channel.unary_stream("/grpc.health.v1.Health/Watch", None, None)
    assert next(watching(b"")) == b"\x08\x01"
    with pytest.raises(grpc.RpcError) as refused:
        next(watching(MALFORMED))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_is_unforeseen_is_told_without_a_class(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr("vision_sae_server.services.catalog.model_message", fail)
    request = catalog.GetModelRequest(name=serving.MODEL).SerializeToString()
    outcome = fuzz.Wire(channel).send(fuzz.method("GetModel"), [request])
    assert (outcome.code.name, outcome.message) == ("INTERNAL", "internal error; see the log")
    assert len(outcome.faults) == 1


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (search_service_pb2.SearchPatchesRequest(text="striped"), "dictionary"),
        (
            of(
                attribution.AttributeRequest,
                image={"data": b"x"},
                dictionaries=[DICTIONARY],
                target={"mean_embedding": {}},
                method="ATTRIBUTION_METHOD_CONTRAST_IMAGE",
            ),
            "baseline.image",
        ),
        (
            intervention_service_pb2.InterventionPlan(
                edits=[
                    of(
                        edit_pb2.Edit,
                        feature=f"{DICTIONARY}/features/1",
                        operation="EDIT_OPERATION_ADD",
                    )
                ]
            ),
            "edits[0].value",
        ),
        (catalog.ListFeaturesRequest(parent=DICTIONARY, filter='text:"\0"'), "filter"),
        (
            of(
                intervention_service_pb2.InterventionPlan,
                edits=[{"feature": f"{DICTIONARY}/features/1", "operation": 1}],
                targets=[{"id": "a", "target": {"text": {"text": "a\0b"}}}],
            ),
            "targets.target.text.text",
        ),
    ],
)
def test_a_rule_names_its_field(request_: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        validate(request_)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "duration",
    [
        Duration(seconds=2**63 - 1),
        Duration(seconds=-(2**63)),
        Duration(seconds=1, nanos=-5),
        Duration(seconds=1, nanos=2**31 - 1),
    ],
)
def test_a_duration_that_is_none_is_refused(duration: Duration) -> None:
    with pytest.raises(InvalidInputError) as refused:
        duration_seconds(duration)
    assert refused.value.field == "label_job.budget.max_duration"


def test_durations_areduration_seconds() -> None:
    assert duration_seconds(Duration(seconds=2, nanos=500_000_000)) == 2.5
    assert duration_seconds(Duration(seconds=315_576_000_000)) == 315_576_000_000


def test_a_long_message_keeps_its_ends_and_fits_into_the_headers(channel: grpc.Channel) -> None:
    assert status_message(VisionSaeError("short")) == "short"
    long = status_message(VisionSaeError("first" + "\U0001f600" * 1000 + "last"))
    assert long.startswith("first")
    assert long.endswith("last")
    assert len(long.encode()) < 820
    method = fuzz.method("ListModels")
    request = catalog.ListModelsRequest(page_token="\U0001f600" * 1024).SerializeToString()
    outcome = fuzz.Wire(channel).send(method, [request])
    assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT
    assert outcome.message.endswith("start without one")


async def test_a_stream_holds_the_bytes_of_what_is_not_answered() -> None:
    admission = Admission(2, 100)
    item = attribution.StreamAttributeRequest(id="x" * 38)  # 40 bytes

    async def sent() -> AsyncIterator[attribution.StreamAttributeRequest]:
        for _ in range(3):
            yield item

    held = Messages(admission)
    reading = held.read(sent())
    await anext(reading)
    await anext(reading)
    third = asyncio.ensure_future(anext(reading))
    await asyncio.sleep(0.01)
    assert not third.done()  # 20 bytes are left
    held.answered()
    await asyncio.wait_for(third, 1)
    with pytest.raises(OverloadedError), admission.place(21):
        pass
    held.close()
    with admission.place(100):
        pass
    with pytest.raises(OverloadedError, match="smaller"):
        await admission.take(101)


class Context:
    """Takes the status of a call that is refused."""

    async def abort_with_status(self, status: Any) -> None:
        raise grpc.aio.AbortError(status.code, status.details)


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_calls_of_every_kind_need_a_place(kind: str) -> None:
    """A server with one place, in which the same call is under way."""
    inside, leave = asyncio.Event(), asyncio.Event()

    async def one(request: Any, context: Any) -> str:
        inside.set()
        await leave.wait()
        return "done"

    async def many(request: Any, context: Any) -> AsyncIterator[str]:
        yield await one(request, context)

    answer = many if kind.endswith("_stream") else one
    handler = getattr(grpc, f"{kind}_rpc_method_handler")(answer)

    async def continuation(_: Any) -> Any:
        return handler

    details = SimpleNamespace(method="/vision_sae.v1.Any/Call")
    gate = Gate(ServeConfig(max_queue=1))
    wrapped = await gate.intercept_service(continuation, details)  # type: ignore[arg-type]
    guarded = getattr(wrapped, kind)

    async def call() -> Any:
        request: Any = catalog.ListModelsRequest()
        if kind.startswith("stream"):
            request = _nothing()
        if kind.endswith("_stream"):
            return [told async for told in guarded(request, Context())]
        return await guarded(request, Context())

    first = asyncio.ensure_future(call())
    await asyncio.wait_for(inside.wait(), 1)
    with pytest.raises(grpc.aio.AbortError, match="full"):
        await call()
    leave.set()
    assert await first in ("done", ["done"])


async def _nothing() -> AsyncIterator[Any]:
    for message in list[Any]():
        yield message


async def test_the_messages_of_a_stream_with_one_answer_are_checked() -> None:
    async def collect(requests: AsyncIterator[Any], context: Any) -> int:
        return len([request async for request in requests])

    async def sent(*messages: Any) -> AsyncIterator[Any]:
        for message in messages:
            yield message

    guarded = interceptor._client_streaming(collect, Admission(1, 1000), "Any/Call")
    right = catalog.ListModelsRequest(page_size=1)
    assert await guarded(sent(right, right), Context()) == 2
    with pytest.raises(grpc.aio.AbortError, match="page_size"):
        await guarded(sent(right, catalog.ListModelsRequest(page_size=-1)), Context())


def plain(request: Any, context: Any) -> str:
    return "unguarded"


async def yielding(request: Any, context: Any) -> AsyncIterator[str]:
    yield "unguarded"


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        *((kind, plain) for kind in ("unary_unary", "unary_stream", "stream_unary")),
        *((kind, yielding) for kind in ("unary_unary", "stream_unary")),
    ],
)
async def test_a_call_of_an_unknown_shape_is_refused(kind: str, answer: Any) -> None:
    handler = getattr(grpc, f"{kind}_rpc_method_handler")(answer)

    async def continuation(_: Any) -> Any:
        return handler

    details = SimpleNamespace(method="/vision_sae.v1.Any/Call")
    wrapped = await Gate(ServeConfig()).intercept_service(continuation, details)  # type: ignore[arg-type]
    request: Any = _nothing() if kind.startswith("stream") else catalog.ListModelsRequest()
    with pytest.raises(grpc.aio.AbortError, match="does not guard") as refused:
        await getattr(wrapped, kind)(request, Context())
    assert refused.value.args[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_messages_of_a_conversation_are_checked_unless_the_servicer_checks_them() -> None:
    async def echo(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request

    async def sent() -> AsyncIterator[Any]:
        yield catalog.ListModelsRequest(page_size=-1)

    checked = interceptor._bidirectional(echo, Admission(1, 1000), "Any/Call")
    with pytest.raises(grpc.aio.AbortError, match="page_size"):
        await anext(checked(sent(), Context()))
    item_by_item = "AttributionService/StreamAttribute"
    passed = interceptor._bidirectional(echo, Admission(1, 1000), item_by_item)
    assert (await anext(passed(sent(), Context()))).page_size == -1
