"""Who calls, as far as the server knows."""

from __future__ import annotations

from typing import Any

import grpc

_NAME = "x509_common_name"
_MOST_CHARACTERS = 200


def caller(context: grpc.aio.ServicerContext[Any, Any], key: str | None = None) -> str:
    """The name on the caller's certificate, or without one that which a proxy in front has put
    under ``key`` of the metadata; empty where neither is there."""
    names = context.auth_context().get(_NAME, [])
    if names:
        return b", ".join(names).decode(errors="replace")
    sent = dict(context.invocation_metadata() or ()).get(key or "", "")
    return (sent.decode(errors="replace") if isinstance(sent, bytes) else sent)[:_MOST_CHARACTERS]
