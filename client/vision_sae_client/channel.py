"""Opens channels to a server, with message limits, retries and credentials."""

from __future__ import annotations

import json

import grpc
import grpc.aio

from vision_sae.hosts import check_address
from vision_sae_client.values import bearer

MAX_RECEIVE_BYTES = 64 * 2**20
"""The largest accepted answer; gRPC's default of 4 MiB is too small for heat maps and pictures."""

IDEMPOTENT = (
    {"service": "vision_sae.v1.CatalogService"},
    {"service": "vision_sae.v1.AttributionService"},
    {"service": "vision_sae.v1.SearchService"},
    {"service": "vision_sae.v1.DescriptionService", "method": "DescribeFeature"},
    {"service": "vision_sae.v1.DescriptionService", "method": "ScoreDescription"},
    {"service": "vision_sae.v1.LabelJobService", "method": "GetLabelJob"},
    {"service": "vision_sae.v1.LabelJobService", "method": "ListLabelJobs"},
    {"service": "vision_sae.v1.LabelJobService", "method": "CancelLabelJob"},
)
"""Idempotent calls, which are retried while a server is unavailable."""

SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": list(IDEMPOTENT),
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # Failures use up tokens; below half of the tokens, retries stop, to spare an overloaded server.
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 1),
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """A channel for the blocking client, unencrypted without credentials. Raises
    `InvalidInputError` for an invalid address."""
    check_address(address)
    if credentials is None:
        return grpc.insecure_channel(address, options=OPTIONS)
    return grpc.secure_channel(address, credentials, options=OPTIONS)


def open_async_channel(
    address: str, credentials: grpc.ChannelCredentials | None
) -> grpc.aio.Channel:
    """A channel for the asyncio client, unencrypted without credentials. Raises
    `InvalidInputError` for an invalid address."""
    check_address(address)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=OPTIONS)


def call_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata of each call: the bearer token, if any."""
    return (("authorization", bearer(token)),) if token else ()
