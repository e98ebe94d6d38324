"""The catalogue of errors as gRPC statuses, with google.rpc details that programs can read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from vision_sae import errors
from vision_sae.errors import VisionSaeError

_CODES: dict[type[VisionSaeError], int] = {
    errors.InvalidInputError: code_pb2.INVALID_ARGUMENT,
    errors.NotFoundError: code_pb2.NOT_FOUND,
    errors.AlreadyExistsError: code_pb2.ALREADY_EXISTS,
    errors.ConflictError: code_pb2.ABORTED,
    errors.CorruptArtifactError: code_pb2.DATA_LOSS,
    errors.MismatchError: code_pb2.FAILED_PRECONDITION,
    errors.MissingDependencyError: code_pb2.FAILED_PRECONDITION,
    errors.NotConfiguredError: code_pb2.FAILED_PRECONDITION,
    errors.NotServedError: code_pb2.UNIMPLEMENTED,
    errors.OverloadedError: code_pb2.RESOURCE_EXHAUSTED,
    errors.RecallTooLowError: code_pb2.FAILED_PRECONDITION,
    errors.RemoteServerError: code_pb2.UNAVAILABLE,
    errors.StorageFullError: code_pb2.RESOURCE_EXHAUSTED,
    errors.WorkersEndedError: code_pb2.INTERNAL,
}
_RETRY_SECONDS = 1
_MOST_BYTES = 800
"""The most bytes of an error message. A status carries the message three times, and encodes each
byte that is not ASCII as three."""
DOMAIN = "vision_sae"


def code_of(kind: type[VisionSaeError]) -> int:
    """The google.rpc.Code of an error class."""
    known = (code for base, code in _CODES.items() if issubclass(kind, base))
    return next(known, code_pb2.INTERNAL)


def _kinds(base: type[VisionSaeError]) -> Iterator[type[VisionSaeError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _kinds(kind)


def grpc_code(reason: str) -> int:
    """The google.rpc.Code of an error's ``reason``."""
    return next(
        (code_of(k) for k in _kinds(VisionSaeError) if k.reason == reason), code_pb2.INTERNAL
    )


def status_message(error: VisionSaeError) -> str:
    """The message of an error, shortened in the middle where it is too long for a status: a status
    travels in HTTP/2 headers, and only 8 KiB of them are sure to arrive."""
    message = str(error).encode(errors="replace")
    if len(message) <= _MOST_BYTES:
        return message.decode()
    half = _MOST_BYTES // 2
    first, last = (part.decode(errors="ignore") for part in (message[:half], message[-half:]))
    return f"{first} ... {last}"


def to_status(error: VisionSaeError) -> Any:
    """``grpc.Status`` with ErrorInfo, and with BadRequest or RetryInfo where they apply."""
    code, message = code_of(type(error)), status_message(error)
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=DOMAIN, metadata={"field": error.field}
        )
    ]
    if code == code_pb2.INVALID_ARGUMENT and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.OverloadedError):
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=_RETRY_SECONDS)))
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return rpc_status.to_status(status)
