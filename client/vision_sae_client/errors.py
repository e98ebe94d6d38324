"""The exception of failed calls, whether a server refused a call or is unavailable."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from vision_sae.v1.catalog_service_pb2 import ListDictionariesResponse
from vision_sae.v1.dictionary_pb2 import Dictionary


class ClientError(Exception):
    """A call failed. The message says what was wrong and what to do.

    Attributes:
        code: the gRPC status code.
        reason: the stable name of the error, ``INVALID_IMAGE``; empty for an error of gRPC itself.
        field: the field at fault, ``image``; empty when there is no single field.
        message: what was wrong, where, and what to do.
        retry_after: seconds to wait before another try, or None.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.retry_after = retry_after


def from_rpc_error(error: grpc.RpcError, *, address: str, timeout: float | None) -> ClientError:
    """The `ClientError` of a gRPC error, with the details of its ``google.rpc.Status``."""
    code: grpc.StatusCode = error.code()
    status: status_pb2.Status | None = rpc_status.from_call(error)
    reason, field, retry_after = _details(status) if status else ("", "", None)
    message = error.details() or code.name
    if not reason:
        message = _advice(code, message, address=address, timeout=timeout)
    return ClientError(code, message, reason=reason, field=field, retry_after=retry_after)


def _details(status: status_pb2.Status) -> tuple[str, str, float | None]:
    """(reason, field, retry_after)"""
    reason, field, retry_after = "", "", None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, field = info.reason, field or info.metadata.get("field", "")
        elif detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return reason, field, retry_after


def _advice(code: grpc.StatusCode, message: str, *, address: str, timeout: float | None) -> str:
    """A message with advice, for a status that carries no details of vision_sae."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return (
            f"no server answers at {address}; start one with `vision-sae serve BUNDLE`, or give "
            f"the address of another ({message})"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        within = "in time" if timeout is None else f"within {timeout:g} s"
        return f"{address} did not answer {within}; allow a longer timeout"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return _too_much(message, address)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return f"{address} requires a token, or does not accept this one ({message})"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"{address} does not serve this call ({message}); ask it what it serves"
    return message


def _too_much(message: str, address: str) -> str:
    """A message with advice, for RESOURCE_EXHAUSTED from gRPC itself."""
    if "larger than max" not in message:
        return f"{address} has too much to do ({message}); try again in a second"
    if "CLIENT" in message or "Sent message" in message:
        return (
            f"the answer of {address} is larger than a message may be ({message}); ask for less: "
            "fewer features, patches or hits, no heat maps, smaller thumbnails"
        )
    return (
        f"the request is larger than {address} takes ({message}); send pictures as JPEG or WebP, "
        "make them smaller, send fewer, or raise the server's max_message_bytes"
    )


def first_dictionary(answer: ListDictionariesResponse, address: str) -> Dictionary:
    """The first dictionary of a listing; raises `ClientError` for a server without dictionaries."""
    if not answer.dictionaries:
        raise ClientError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"{address} serves no dictionary; start it with one: `vision-sae serve BUNDLE`",
            field="dictionary",
        )
    return answer.dictionaries[0]
