"""What every call passes through: measurement, admission, validation, errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio
import protovalidate
from google.protobuf.message import Message

from vision_sae.config import ServeConfig
from vision_sae.errors import InvalidInputError, OverloadedError, VisionSaeError
from vision_sae_server.errors import to_status
from vision_sae_server.metrics import measured

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_OURS = "/vision_sae.v1."
_LOG = logging.getLogger("vision_sae_server")


class Admission:
    """How many calls, and how many of their bytes, may be inside at once."""

    def __init__(self, config: ServeConfig) -> None:
        self._calls, self._bytes = config.max_queue, config.max_queue_bytes

    @contextmanager
    def place(self, size: int) -> Iterator[None]:
        """Hold a place for a call; raises `OverloadedError` at once when there is none."""
        if self._calls < 1 or self._bytes < size:
            raise OverloadedError("the server is full; try again in a second")
        self._calls -= 1
        self._bytes -= size
        try:
            yield
        finally:
            self._calls += 1
            self._bytes += size


def _path(violation: Any) -> str:
    """``image.data`` or ``dictionaries[0]`` from a protovalidate field path."""
    text = ""
    for element in violation.proto.field.elements:
        text += ("." if text else "") + element.field_name
        subscript = element.subscript
        if isinstance(getattr(subscript, "value", None), int):
            text += f"[{subscript.value}]"
    return text


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


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Guards all calls of ``vision_sae.v1``; health and reflection pass untouched."""

    def __init__(self, config: ServeConfig) -> None:
        self._admission = Admission(config)
        self._watching = Admission(config)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler of one call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_OURS):
            return handler
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                self._guarded_stream(handler.unary_stream, method.removeprefix(_OURS)),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                self._guarded_items(handler.stream_stream, method.removeprefix(_OURS)),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        if handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._guarded(handler.unary_unary, method.removeprefix(_OURS)),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guarded(
        self, answer: Callable[[Any, Any], Awaitable[Any]], method: str
    ) -> Callable[..., Any]:
        async def guarded(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            async with _refused(method, context):
                with self._admission.place(request.ByteSize()):
                    validate(request)
                    return await answer(request, context)

        return guarded

    def _guarded_stream(
        self, answers: Callable[[Any, Any], Any], method: str
    ) -> Callable[..., Any]:
        """Streams wait for news most of the time, so they take no places from other calls."""

        async def guarded(
            request: Message, context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            async with _refused(method, context):
                with self._watching.place(request.ByteSize()):
                    validate(request)
                    async for answer in answers(request, context):
                        yield answer

        return guarded

    def _guarded_items(self, answers: Callable[[Any, Any], Any], method: str) -> Callable[..., Any]:
        """A stream of items holds one place; the servicer checks its items one by one."""

        async def guarded(
            requests: AsyncIterator[Message], context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            async with _refused(method, context):
                with self._admission.place(0):
                    async for answer in answers(requests, context):
                        yield answer

        return guarded


@asynccontextmanager
async def _refused(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
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
