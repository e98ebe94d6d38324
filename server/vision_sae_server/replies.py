"""Answers that are given again: a call repeated with the same request id changes nothing twice."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message

from vision_sae.errors import InvalidInputError

R = TypeVar("R", bound=Message)

KEPT_SECONDS = 900.0
"""The contract promises ten minutes."""


class _Reply(NamedTuple):
    since: float
    request: Message
    answer: asyncio.Task[Any]


class Replies:
    """The answers of one rpc by request id, as long as this server runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._replies: OrderedDict[str, _Reply] = OrderedDict()

    async def once(self, request: Any, answer: Callable[[], Awaitable[R]]) -> R:
        """The answer to ``request``, made now or found; errors are not kept.

        A call that joins one under way shares its answer, and outlives its cancellation.
        """
        if not request.request_id:
            return await answer()
        self._forget()
        known = self._replies.get(request.request_id)
        if known is None:
            task = asyncio.ensure_future(answer())
            known = _Reply(self._clock(), request, task)
            self._replies[request.request_id] = known
            task.add_done_callback(lambda done: self._drop_failed(request.request_id, done))
        elif known.request != request:
            raise InvalidInputError(
                "this request id came with another request before; make a new one",
                field="request_id",
            )
        found: R = await asyncio.shield(known.answer)
        return found

    def _drop_failed(self, request_id: str, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._replies.pop(request_id, None)

    def _forget(self) -> None:
        oldest = self._clock() - KEPT_SECONDS
        while self._replies and next(iter(self._replies.values())).since < oldest:
            self._replies.popitem(last=False)
