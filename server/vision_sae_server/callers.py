"""Who calls, as far as the server knows."""

from __future__ import annotations

from typing import Any

import grpc

_NAME = "x509_common_name"


def caller(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The name on the caller's certificate; empty without one."""
    names = context.auth_context().get(_NAME, [])
    return b", ".join(names).decode(errors="replace")
