"""A driver that lets a fault script look at each request before the backend's own driver makes it."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, cast

from ailf.driver import (
    BackendDriver,
    Capability,
    Confirmed,
    Filter,
    Finding,
    Frame,
    Listener,
    LockDriver,
    PubSubDriver,
    RateLimiterDriver,
    Refused,
    StreamDriver,
)
from ailf.driver.backend import Revocable
from ailf.errors import ConnectionLostError
from ailf.runtime import Runtime

__all__ = ["REQUESTS", "FaultyDriver", "FaultyListener", "Script"]

INTERFACES: Final = {
    "stream": StreamDriver,
    "pubsub": PubSubDriver,
    "lock": LockDriver,
    "rate_limiter": RateLimiterDriver,
}


def _makes_request(method: object) -> bool:
    """Tell whether a method of a driver makes a request."""
    if not inspect.isfunction(method) or method.__name__.startswith("_"):
        return False
    return inspect.iscoroutinefunction(method) or "Awaitable" in str(method.__annotations__.get("return"))


REQUESTS: Final = {
    name: frozenset(each for each, method in vars(driver).items() if _makes_request(method)) - {"together"}
    for name, driver in INTERFACES.items()
}
"""By interface, the methods of its driver that make a request."""


class Script(Protocol):
    """Decides what happens to requests."""

    async def request(self, interface: str, name: str, runtime: Runtime, make: Callable[[], Awaitable[Any]]) -> Any:
        """Make a request, or raise an error before or after that; return its reply."""

    def listens(self, listener: "FaultyListener") -> None:
        """Note a new listener."""


class FaultyDriver(BackendDriver):
    """A root driver whose requests go through a script."""

    def __init__(self, inner: BackendDriver, script: Script) -> None:
        self.inner = inner
        self._script = script
        self.runtime = inner.runtime
        self.timeout = inner.timeout
        self.max_payload = inner.max_payload
        self.url = inner.url
        self.several_servers = inner.several_servers
        self.capabilities: frozenset[Capability] = inner.capabilities
        self.reasons = inner.reasons

    async def ping(self) -> None:
        await self._script.request("backend", "ping", self.runtime, self.inner.ping)
        self.capabilities, self.reasons = self.inner.capabilities, self.inner.reasons

    async def close(self) -> None:
        await self.inner.close()

    def interrupt(self) -> None:
        self.inner.interrupt()

    def abandon(self) -> bool:
        return self.inner.abandon()

    def with_runtime(self, runtime: Runtime) -> "FaultyDriver":
        return FaultyDriver(self.inner.with_runtime(runtime), self._script)

    def pubsub(self) -> PubSubDriver:
        return cast(PubSubDriver, _FaultyPubSub("pubsub", self.inner.pubsub(), self.runtime, self._script))

    def stream(self) -> StreamDriver:
        return cast(StreamDriver, _FaultyStream("stream", self.inner.stream(), self.runtime, self._script))

    def lock(self) -> LockDriver:
        return cast(LockDriver, _FaultyInterface("lock", self.inner.lock(), self.runtime, self._script))

    def rate_limiter(self) -> RateLimiterDriver:
        inner = self.inner.rate_limiter()
        return cast(RateLimiterDriver, _FaultyInterface("rate_limiter", inner, self.runtime, self._script))

    def watch(self, token: str, lease: Revocable) -> None:
        self.inner.watch(token, lease)

    async def diagnose(self) -> list[Finding]:
        return await self.inner.diagnose()

    async def remove_namespaces(self, prefix: str) -> int | None:
        return await self.inner.remove_namespaces(prefix)

    def unwrap(self, kind: type[Any]) -> Any:
        return self.inner.unwrap(kind)


class _FaultyInterface:
    """The driver of one interface; what makes no request is the inner driver's own method."""

    def __init__(self, interface: str, inner: Any, runtime: Runtime, script: Script) -> None:
        self._interface = interface
        self._inner = inner
        self._runtime = runtime
        self._script = script

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in REQUESTS[self._interface]:
            return method

        async def request(*args: Any, **options: Any) -> Any:
            make = functools.partial(method, *args, **options)
            return await self._script.request(self._interface, name, self._runtime, make)

        setattr(self, name, request)
        return request


class _FaultyStream(_FaultyInterface):
    """The driver of streams."""

    async def together(self, requests: Sequence[Any]) -> list[Any]:
        """Make requests one after another, each through the script."""
        return await StreamDriver.together(cast(StreamDriver, self), requests)


class _FaultyPubSub(_FaultyInterface):
    """The driver of pub/sub."""

    async def listen(self) -> Listener:
        """Return a listener that can be interrupted."""
        inner = await self._script.request("pubsub", "listen", self._runtime, self._inner.listen)
        listener = FaultyListener(inner)
        self._script.listens(listener)
        return listener


class FaultyListener(Listener):
    """A listener whose connection a test can break."""

    def __init__(self, inner: Listener) -> None:
        self._inner = inner
        self._broken = ""

    def break_(self, reason: str) -> None:
        """Let `receive` raise as for a broken connection, from any thread."""
        self._broken = reason
        self._inner.interrupt()

    def _check(self) -> None:
        if self._broken:
            raise ConnectionLostError(self._broken)

    async def change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        self._check()
        await self._inner.change(add, drop)

    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        self._check()
        try:
            received = await self._inner.receive(timeout)
        except Exception:
            self._check()
            raise
        self._check()
        return received

    def interrupt(self) -> None:
        self._inner.interrupt()

    async def close(self) -> None:
        await self._inner.close()
