"""The name of a caller, from a certificate or from a proxy."""

from __future__ import annotations

from typing import Any

import grpc

_NAME = "x509_common_name"
_MOST_CHARACTERS = 200


def caller(context: grpc.aio.ServicerContext[Any, Any], key: str | None = None) -> str:
    """The name on the caller's certificate; without a certificate, the name that a proxy wrote
    under ``key`` of the metadata; empty without both."""
    names = context.auth_context().get(_NAME, [])
    if names:
        return b", ".join(names).decode(errors="replace")
    sent = dict(context.invocation_metadata() or ()).get(key or "", "")
    return (sent.decode(errors="replace") if isinstance(sent, bytes) else sent)[:_MOST_CHARACTERS]
