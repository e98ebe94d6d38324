"""Streams of items: answers in the order of the items, with a limit on items under way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from google.rpc import code_pb2

from vision_sae.errors import VisionSaeError
from vision_sae.v1.measure_pb2 import ItemError
from vision_sae_server.runtime.errors import code_of, status_message

_LOG = logging.getLogger("vision_sae_server")
Item = TypeVar("Item")
Answer = TypeVar("Answer")


async def in_order(
    items: AsyncIterator[Item], answer: Callable[[Item], Awaitable[Answer]], ahead: int
) -> AsyncIterator[Answer]:
    """The ``answer`` of each item, in order; at most ``ahead`` items are read and not yet answered.

    A caller may wait for one answer before it sends the next item. When the caller disconnects,
    work that has not started is dropped.
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
    """The error of one item; an unexpected exception is logged, and its message is not sent."""
    if isinstance(error, VisionSaeError):
        return ItemError(
            code=code_of(type(error)),
            reason=error.reason,
            message=status_message(error),
            field=error.field,
        )
    _LOG.error("an item of a stream failed unexpectedly", exc_info=error)
    return ItemError(
        code=code_pb2.INTERNAL, reason="INTERNAL", message="internal error; see the log"
    )
