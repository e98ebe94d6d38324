"""Streams of items: answers in the order they were asked for, and no more under way than fit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from google.rpc import code_pb2

from vision_sae.errors import VisionSaeError
from vision_sae.v1.measure_pb2 import ItemError
from vision_sae_server.errors import code_of, told

_LOG = logging.getLogger("vision_sae_server")
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


async def in_order(
    items: AsyncIterator[Asked], answer: Callable[[Asked], Awaitable[Answer]], ahead: int
) -> AsyncIterator[Answer]:
    """``answer`` of each item, in order; at most ``ahead`` items have been read and not answered.

    A caller may wait for one answer before it sends the next item. When it goes away, work that has
    not started is dropped.
    """
    places = asyncio.Semaphore(ahead)
    under_way: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()
    tasks = set[asyncio.Task[Answer]]()

    async def read() -> None:
        try:
            await places.acquire()
            async for item in items:
                task = asyncio.ensure_future(answer(item))
                tasks.add(task)
                under_way.put_nowait(task)
                await places.acquire()
        finally:
            under_way.put_nowait(None)

    reader = asyncio.ensure_future(read())
    try:
        while (task := await under_way.get()) is not None:
            yield await task
            tasks.discard(task)
            places.release()
        await reader
    finally:
        for unwanted in (reader, *tasks):
            unwanted.cancel()


def item_error(error: Exception) -> ItemError:
    """Why one item has no answer; what was not foreseen is logged, not told."""
    if isinstance(error, VisionSaeError):
        return ItemError(
            code=code_of(type(error)), reason=error.reason, message=told(error), field=error.field
        )
    _LOG.error("an item of a stream failed unexpectedly", exc_info=error)
    return ItemError(
        code=code_pb2.INTERNAL, reason="INTERNAL", message="internal error; see the log"
    )
