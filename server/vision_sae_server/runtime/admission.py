"""Limits on the calls, and the bytes of their requests, that are in the server at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from google.protobuf.message import Message

from vision_sae.errors import OverloadedError

M = TypeVar("M", bound=Message)


class Admission:
    """A limit on concurrent calls and on the total bytes of their requests."""

    def __init__(self, calls: int, size: int) -> None:
        self._calls, self._bytes, self._most = calls, size, size
        self._freed = asyncio.Event()

    @contextmanager
    def place(self, size: int = 0) -> Iterator[None]:
        """Hold a place for a call; raises `OverloadedError` at once when the server is full."""
        if self._calls < 1 or self._bytes < size:
            raise OverloadedError("the server is full; try again in a second")
        self._calls -= 1
        self._bytes -= size
        try:
            yield
        finally:
            self._calls += 1
            self.free(size)

    async def take(self, size: int) -> None:
        """Reserve ``size`` bytes, after waiting for other calls to free them if needed. Raises
        `OverloadedError` for more bytes than the limit."""
        if size > self._most:
            raise OverloadedError("this message is more than the server holds; send a smaller one")
        while self._bytes < size:
            self._freed.clear()
            await self._freed.wait()
        self._bytes -= size

    def free(self, size: int) -> None:
        """Release bytes that `take` reserved."""
        self._bytes += size
        self._freed.set()


class Messages:
    """The messages of one client stream, whose bytes stay reserved until they are answered.

    While other calls hold too many bytes, the next message is not read, so the caller waits.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._sizes = deque[int]()

    async def read(self, messages: AsyncIterator[M]) -> AsyncIterator[M]:
        """The messages in the order of their arrival."""
        async for message in messages:
            await self._admission.take(message.ByteSize())
            self._sizes.append(message.ByteSize())
            yield message

    def answered(self) -> None:
        """Release the bytes of the oldest unanswered message."""
        if self._sizes:
            self._admission.free(self._sizes.popleft())

    def close(self) -> None:
        """Release the bytes of all messages that remain unanswered."""
        while self._sizes:
            self.answered()
