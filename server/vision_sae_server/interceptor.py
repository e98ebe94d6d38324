"""What every call passes through: measurement, admission, validation, errors."""

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
from vision_sae.errors import InvalidInputError, VisionSaeError
from vision_sae_server.admission import Admission, Messages
from vision_sae_server.errors import to_status
from vision_sae_server.metrics import measured

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_OURS = "/vision_sae.v1."
_LOG = logging.getLogger("vision_sae_server")


_FIELDS = {
    "search_patches.dictionary": "dictionary",
    "attribute.contrast_image": "baseline.image",
    "edit.value": "value",
}
"""The field that a rule over a whole message is about."""


def _path(violation: Any) -> str:
    """``image.data`` or ``dictionaries[0]`` from a protovalidate field path; of the whole request
    it has none."""
    text = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        text += ("." if text else "") + element.field_name
        subscript = element.subscript
        if isinstance(getattr(subscript, "value", None), int):
            text += f"[{subscript.value}]"
    about = _FIELDS.get(violation.proto.rule_id, "")
    return f"{text}.{about}" if text and about else text or about


def validate(message: Message) -> None:
    """Check the rules that the contract itself states; raises `InvalidInputError`."""
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
    """The fields of a message whose text holds a null character, which no database keeps."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for each in value if field.is_repeated else (value,):
            if isinstance(each, Message):
                yield from (f"{field.name}.{beneath}" for beneath in _nulls(each))
            elif "\0" in each:
                yield field.name


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Guards all calls. Those of health and reflection take no places from ours."""

    def __init__(self, config: ServeConfig) -> None:
        self._calls = Admission(config.max_queue, config.max_queue_bytes)
        # Answered by a stream, they wait for news most of the time.
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
        guard = _GUARDS[handler.request_streaming, inspect.isasyncgenfunction(answer)]
        wrapped: Handler = getattr(grpc, f"{kind}_rpc_method_handler")(
            guard(answer, admission, method.removeprefix(_OURS)),
            request_deserializer=_read_or_mark(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return wrapped


class _Unreadable:
    """Stands for bytes that are no message of the call: a deserializer cannot refuse a call."""

    def ByteSize(self) -> int:  # as of a message
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


def _answering(answer: Any, admission: Admission, method: str) -> Callable[..., Any]:
    """One message, one answer."""

    async def guarded(request: Any, context: Context) -> Any:
        async with _refused(method, context):
            with admission.place(request.ByteSize()):
                validate(_message(request))
                return await answer(request, context)

    return guarded


def _telling(answer: Any, admission: Admission, method: str) -> Callable[..., Any]:
    """One message, many answers."""

    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
        async with _refused(method, context):
            with admission.place(request.ByteSize()):
                validate(_message(request))
                async for told in answer(request, context):
                    yield told

    return guarded


def _collecting(answer: Any, admission: Admission, method: str) -> Callable[..., Any]:
    """Many messages, one answer."""

    async def valid(requests: AsyncIterator[Any], held: Messages) -> AsyncIterator[Any]:
        async for request in held.read(_messages(requests)):
            validate(request)
            yield request
            held.answered()

    async def guarded(requests: AsyncIterator[Any], context: Context) -> Any:
        async with _refused(method, context):
            with admission.place(), closing(Messages(admission)) as held:
                return await answer(valid(requests, held), context)

    return guarded


def _conversing(answer: Any, admission: Admission, method: str) -> Callable[..., Any]:
    """Many messages with an answer each; the servicer checks them one by one."""

    async def guarded(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async with _refused(method, context):
            with admission.place(), closing(Messages(admission)) as held:
                async for told in answer(held.read(_messages(requests)), context):
                    yield told
                    held.answered()

    return guarded


_GUARDS = {
    (False, False): _answering,
    (False, True): _telling,
    (True, False): _collecting,
    (True, True): _conversing,
}
"""By whether a call sends a stream, and whether its servicer yields answers."""


@asynccontextmanager
async def _refused(method: str, context: Context) -> AsyncIterator[None]:
    """Measure a call, and turn what it raises into a status."""
    with measured(method) as outcome:
        try:
            yield
        except VisionSaeError as error:
            outcome.code = error.reason
            await context.abort_with_status(to_status(error))
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:
            _LOG.exception("%s failed unexpectedly", method)
            outcome.code = "INTERNAL"
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the log")
