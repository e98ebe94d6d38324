"""The interceptor of all calls: it measures, admits and validates a call, and maps errors."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any, TypeAlias

import grpc
import grpc.aio
import protovalidate
from google.protobuf.message import DecodeError, Message

from vision_sae.config import ServeConfig
from vision_sae.errors import InvalidInputError, NotServedError, VisionSaeError
from vision_sae_server.runtime.admission import Admission, Messages
from vision_sae_server.runtime.errors import to_status
from vision_sae_server.runtime.metrics import measured

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_OURS = "/vision_sae.v1."
_LOG = logging.getLogger("vision_sae_server")


_FIELDS = {
    "search_patches.dictionary": "dictionary",
    "attribute.contrast_image": "baseline.image",
    "edit.value": "value",
}
"""{rule over a whole message: the field that an error of the rule names}"""


def _path(violation: Any) -> str:
    """The path of the field at fault, ``image.data`` or ``dictionaries[0]``; empty for a rule about
    the whole request."""
    text = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        text += ("." if text else "") + element.field_name
        subscript = element.subscript
        if isinstance(getattr(subscript, "value", None), int):
            text += f"[{subscript.value}]"
    about = _FIELDS.get(violation.proto.rule_id, "")
    return f"{text}.{about}" if text and about else text or about


def validate(message: Message) -> None:
    """Check the validation rules of the contract; raises `InvalidInputError`."""
    try:
        protovalidate.validate(message)
    except protovalidate.ValidationError as error:
        violation = error.violations[0]
        field = _path(violation)
        raise InvalidInputError(
            f"{field or 'request'}: {violation.proto.message}", field=field
        ) from error
    for field in _nulls(message):
        raise InvalidInputError(f"{field} holds a null character", field=field)


def _nulls(message: Message) -> Iterator[str]:
    """The text fields of a message that hold a null character, which databases cannot store."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for each in value if field.is_repeated else (value,):
            if isinstance(each, Message):
                yield from (f"{field.name}.{beneath}" for beneath in _nulls(each))
            elif "\0" in each:
                yield field.name


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Guards all calls. Health and reflection calls do not count against the limits."""

    def __init__(self, config: ServeConfig) -> None:
        self._calls = Admission(config.max_queue, config.max_queue_bytes)
        # Calls with a streamed answer are mostly idle, so they have a limit of their own.
        self._watching = Admission(config.max_queue, config.max_queue_bytes)
        self._others = Admission(sys.maxsize, sys.maxsize)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler of one call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kind = ("unary", "stream")[handler.request_streaming]
        kind += ("_unary", "_stream")[handler.response_streaming]
        answer, method = getattr(handler, kind), handler_call_details.method
        admission = self._others
        if method.startswith(_OURS):
            admission = self._watching if kind == "unary_stream" else self._calls
        guard = _guard(method.removeprefix(_OURS), kind, answer)
        wrapped: Handler = getattr(grpc, f"{kind}_rpc_method_handler")(
            guard(answer, admission, method.removeprefix(_OURS)),
            request_deserializer=_read_or_mark(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return wrapped


class _Unreadable:
    """A placeholder for bytes that are no message of the call: a deserializer cannot refuse
    calls."""

    def ByteSize(self) -> int:  # the interface of a protobuf message
        return 0


def _read_or_mark(read: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def marked(data: bytes) -> Any:
        try:
            return read(data) if read else data
        except DecodeError:
            return _Unreadable()

    return marked


def _message(sent: Any) -> Any:
    if isinstance(sent, _Unreadable):
        raise InvalidInputError(
            "the bytes of the request are no message of this call; encode it by the contract "
            "vision_sae.v1, texts in UTF-8"
        )
    return sent


async def _messages(sent: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for each in sent:
        yield _message(each)


def _unary(answer: Any, admission: Admission, method: str) -> Callable[..., Any]:
    """Guard a call with one request and one answer."""

    async def guarded(request: Any, context: Context) -> Any:
        async with _errors_as_statuses(method, context):
            with admission.place(request.ByteSize()):
                validate(_message(request))
                return await answer(request, context)

    return guarded


def _server_streaming(answer: Any, admission: Admission, method: str) -> Callable[..., Any]:
    """Guard a call with one request and a stream of answers."""

    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
        async with _errors_as_statuses(method, context):
            with admission.place(request.ByteSize()):
                validate(_message(request))
                async for message in answer(request, context):
                    yield message

    return guarded


def _client_streaming(answer: Any, admission: Admission, method: str) -> Callable[..., Any]:
    """Guard a call with a stream of requests and one answer."""

    async def valid(requests: AsyncIterator[Any], held: Messages) -> AsyncIterator[Any]:
        async for request in held.read(_messages(requests)):
            validate(request)
            yield request
            held.answered()

    async def guarded(requests: AsyncIterator[Any], context: Context) -> Any:
        async with _errors_as_statuses(method, context):
            with admission.place(), closing(Messages(admission)) as held:
                return await answer(valid(requests, held), context)

    return guarded


def _bidirectional(answer: Any, admission: Admission, method: str) -> Callable[..., Any]:
    """Guard a call with a stream of requests and an answer for each."""

    async def valid(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            if method not in _ITEM_BY_ITEM:
                validate(request)
            yield request

    async def guarded(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async with _errors_as_statuses(method, context):
            with admission.place(), closing(Messages(admission)) as held:
                async for message in answer(valid(held.read(_messages(requests))), context):
                    yield message
                    held.answered()

    return guarded


def _unguarded(answer: Any, admission: Admission, method: str) -> Callable[..., Any]:
    """Refuse a call of a shape that has no guard."""

    async def guarded(request: Any, context: Context) -> None:
        async with _errors_as_statuses(method, context):
            raise NotServedError(f"{method} is of a shape that this server does not guard")

    return guarded


_ITEM_BY_ITEM = {"AttributionService/StreamAttribute", "InterventionService/StreamIntervene"}
"""Calls whose servicer validates each message, so that an invalid message fails alone."""
_GUARDS = {
    ("unary_unary", False): _unary,
    ("unary_stream", False): _unary,
    ("unary_stream", True): _server_streaming,
    ("stream_unary", False): _client_streaming,
    ("stream_stream", False): _client_streaming,
    ("stream_stream", True): _bidirectional,
}
"""{(kind of call, whether the servicer yields its answers): guard}. A servicer that does not yield
may write answers to the context."""


def _guard(method: str, kind: str, answer: Any) -> Callable[[Any, Admission, str], Any]:
    """The guard of a call; a call whose shape is not in the table gets the guard that refuses."""
    yields = inspect.isasyncgenfunction(answer)
    if not (yields or inspect.iscoroutinefunction(answer)):
        return _unguarded
    return _GUARDS.get((kind, yields), _unguarded)


@asynccontextmanager
async def _errors_as_statuses(method: str, context: Context) -> AsyncIterator[None]:
    """Measure a call, and turn its exceptions into gRPC statuses."""
    with measured(method) as status:
        try:
            yield
        except VisionSaeError as error:
            status.code = error.reason
            await context.abort_with_status(to_status(error))
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:
            _LOG.exception("%s failed unexpectedly", method)
            status.code = "INTERNAL"
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the log")
