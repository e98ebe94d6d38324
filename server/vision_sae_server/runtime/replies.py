"""Idempotent calls: a call repeated with the same request id gets the kept answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from cachetools import TTLCache
from google.protobuf.message import Message

from vision_sae.errors import InvalidInputError

R = TypeVar("R", bound=Message)

KEPT_SECONDS = 900.0
"""The contract promises ten minutes."""


class _Reply(NamedTuple):
    request: Message
    answer: asyncio.Task[Any]


class Replies:
    """The answers of one rpc, kept by request id for `KEPT_SECONDS`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._replies: TTLCache[str, _Reply] = TTLCache(math.inf, KEPT_SECONDS, timer=clock)

    async def once(self, request: Any, answer: Callable[[], Awaitable[R]]) -> R:
        """The answer to ``request``, computed now or kept from an earlier call. Errors are not
        kept.

        A repeated call joins the first one while this is under way, and gets its answer even when
        the first call is cancelled. Raises `InvalidInputError` for an id of a different request.
        """
        if not request.request_id:
            return await answer()
        known = self._replies.get(request.request_id)
        if known is None:
            task = asyncio.ensure_future(answer())
            known = _Reply(request, task)
            self._replies[request.request_id] = known
            task.add_done_callback(lambda done: self._drop_failed(request.request_id, done))
        elif known.request != request:
            raise InvalidInputError(
                "this request id came with another request before; make a new one",
                field="request_id",
            )
        reply: R = await asyncio.shield(known.answer)
        return reply

    def _drop_failed(self, request_id: str, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._replies.pop(request_id, None)
