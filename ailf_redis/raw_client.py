"""The raw clients that `unwrap` returns. The connections of an asyncio one belong to the event loop that made them."""

import asyncio
from asyncio import _get_running_loop
from collections.abc import Callable
from os import getpid
from typing import Any

import redis
from redis import asyncio as aredis
from redis.asyncio import sentinel as asentinel
from redis.sentinel import Sentinel

from ailf.runtime.aio import check_ended
from ailf_redis.connection.aio_link import discard
from ailf_redis.settings import Settings
from ailf_redis.versions import connections_of, quiet

__all__ = ["RawClient", "asyncio_client", "blocking_client", "close_blocking"]


def blocking_client(settings: Settings) -> redis.Redis:
    """Return a blocking client of the server, or of the Sentinels' master."""
    options = settings.client_options(on_asyncio=False)
    return _of_master(Sentinel, settings, options) if settings.sentinels else redis.Redis(**options)


def asyncio_client(settings: Settings) -> aredis.Redis:
    """Return an asyncio client of the server, or of the Sentinels' master."""
    options = settings.client_options(on_asyncio=True)
    return _of_master(asentinel.Sentinel, settings, options) if settings.sentinels else aredis.Redis(**options)


def close_blocking(client: redis.Redis) -> None:
    """Close a blocking client, and those of its Sentinels."""
    for each in _clients(client):
        each.close()


def _clients(client: Any) -> list[Any]:
    """Return a client with those of its Sentinels, which redis-py leaves open."""
    return [client, *getattr(getattr(client.connection_pool, "sentinel_manager", None), "sentinels", ())]


def _of_master(kind: Any, settings: Settings, options: dict[str, Any]) -> Any:
    of_sentinels = {**settings.sentinel_options(), **quiet(on_asyncio=kind is asentinel.Sentinel), "ssl": settings.tls}
    for each in (options, of_sentinels):
        del each["host"], each["port"]
    return kind(settings.sentinels, sentinel_kwargs=of_sentinels, **options).master_for(settings.master)


class RawClient:
    """A ``redis.asyncio`` client; a new one is made in each event loop and in a forked child."""

    def __init__(self, make: Callable[[], aredis.Redis]) -> None:
        self._make = make
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
            self._client = self._make()
        return self._client

    def _move(self) -> None:
        if self._client is None or self._home is None:
            return
        if self._pid != getpid():
            self._inherited.append(self._client)
        else:
            check_ended(self._home, "the client")
            for client in _clients(self._client):
                for connection in connections_of(client.connection_pool):
                    discard(connection, self._home)
        self._client = None

    async def aclose(self) -> None:
        """Close the client; the next `get` makes a new one."""
        if self._client is not None:
            for each in _clients(self.get()):
                await each.aclose()
        self._client = None
