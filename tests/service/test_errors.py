"""Errors as gRPC statuses."""

from __future__ import annotations

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from vision_sae_server.runtime.errors import to_status

from vision_sae.errors import OverloadedError, StorageFullError, VisionSaeError


@pytest.mark.parametrize(
    ("error", "advised"),
    [(OverloadedError("full"), True), (StorageFullError("the disk is full"), False)],
)
def test_only_what_passes_by_itself_is_worth_trying_again(
    error: VisionSaeError, advised: bool
) -> None:
    (packed,) = (value for key, value in to_status(error).trailing_metadata if key.endswith("-bin"))
    status = status_pb2.Status.FromString(packed)
    assert status.code == code_pb2.RESOURCE_EXHAUSTED
    assert any(d.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for d in status.details) == advised
