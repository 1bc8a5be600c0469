"""The raw ``redis.asyncio`` client that `unwrap` returns. Its connections belong to the event loop that made them."""

import asyncio
from asyncio import _get_running_loop
from collections.abc import Mapping
from os import getpid
from typing import Any

from redis import asyncio as aredis

from ailf.runtime.aio import check_ended
from ailf_redis.connection.aio_link import discard
from ailf_redis.versions import connections_of

__all__ = ["RawClient"]


class RawClient:
    """A ``redis.asyncio`` client; a new one is made in each event loop and in a forked child."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._client: aredis.Redis | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._pid = getpid()
        self._inherited: list[aredis.Redis] = []  # the parent's: kept alive, as collecting them would close them

    def get(self) -> aredis.Redis:
        """Return the client of the running loop.

        Raises:
            InvalidArgumentError: The client belongs to another event loop that still runs.
        """
        running = _get_running_loop()
        if running is not None and running is not self._home:
            self._move()
            self._home, self._pid = running, getpid()
        if self._client is None:
            self._client = aredis.Redis(**self._options)
        return self._client

    def _move(self) -> None:
        if self._client is None or self._home is None:
            return
        if self._pid != getpid():
            self._inherited.append(self._client)
        else:
            check_ended(self._home, "the client")
            pool = self._client.connection_pool
            for connection in connections_of(pool):
                discard(connection, self._home)
        self._client = None

    async def aclose(self) -> None:
        """Close the client; the next `get` makes a new one."""
        if self._client is not None:
            await self.get().aclose()
        self._client = None
