"""How much may be inside of the server at once."""

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
    """So many calls, and so many bytes of their requests together."""

    def __init__(self, calls: int, size: int) -> None:
        self._calls, self._bytes, self._most = calls, size, size
        self._freed = asyncio.Event()

    @contextmanager
    def place(self, size: int = 0) -> Iterator[None]:
        """Hold a place for a call; raises `OverloadedError` at once when there is none."""
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
        """Take so many bytes once others have freed them; raises `OverloadedError` for more than
        there are."""
        if size > self._most:
            raise OverloadedError("this message is more than the server holds; send a smaller one")
        while self._bytes < size:
            self._freed.clear()
            await self._freed.wait()
        self._bytes -= size

    def free(self, size: int) -> None:
        """Give back what `take` took."""
        self._bytes += size
        self._freed.set()


class Messages:
    """The messages that a caller sends on one stream. Their bytes are held until they are answered:
    where others hold too much the next one is not read, and so the caller waits."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._sizes = deque[int]()

    async def read(self, messages: AsyncIterator[M]) -> AsyncIterator[M]:
        """The messages as they come."""
        async for message in messages:
            await self._admission.take(message.ByteSize())
            self._sizes.append(message.ByteSize())
            yield message

    def answered(self) -> None:
        """One more has its answer."""
        if self._sizes:
            self._admission.free(self._sizes.popleft())

    def close(self) -> None:
        """No answer is to come."""
        while self._sizes:
            self.answered()
