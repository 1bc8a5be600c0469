"""The fixture of the trap tests: a stream on a real server, queues of one class on it, and proof that a trap is seen.

The body of a test runs on ailf, where it must pass, and on naive queues (``naive.py``), where it must fail for the
reason that the test names. So a test that doesn't see its trap fails.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import attrs
import pytest
from redis import asyncio as aredis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.effort import TRIES
from tests.support.proxy import Proxy
from tests.support.servers import NewServer, Server
from tests.traps.queues import Member, Message, Options, Ours, Queue, end

__all__ = [
    "LEASE",
    "LONG",
    "PATIENCE",
    "SLOW",
    "SOON",
    "Case",
    "Gate",
    "Scene",
    "clock",
    "expect_none",
    "later",
    "take",
    "trap",
]

LEASE = 0.3
"""Seconds of a lease, unless a test says otherwise."""

SLOW = 2 * LEASE
"""Seconds that a slow handler takes."""

LONG = 60.0
"""Seconds of a lease that doesn't end in any test."""

SOON = 0.5
"""Seconds within which something happens that doesn't wait for the end of a lease."""

PATIENCE = 1.0
"""Seconds to wait for a message that comes at once, or after the end of a lease."""


class Gate(Proxy):
    """A proxy that passes a number of requests, and holds the next ones until it is opened."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self._left: int | None = None

    def hold(self, after: int) -> None:
        """Pass `after` more requests, and hold the next ones."""
        with self._changed:
            self._left = after

    def open(self) -> None:
        """Pass all requests."""
        with self._changed:
            self._left = None
            self._changed.notify_all()

    def may_pass(self, link: Any, *, is_reply: bool) -> bool:
        """Wait until these bytes may pass."""
        if not is_reply:
            with self._changed:
                self._changed.wait_for(lambda: link.closed or self._left != 0)
                if self._left:
                    self._left -= 1
        return super().may_pass(link, is_reply=is_reply)


class Scene:
    """The fixture of one test.

    Attributes:
        kind: The class of its queues.
        server: The server.
        stream: The key of its stream.
        redis: A redis-py client, for the actions of other programs.
    """

    def __init__(self, kind: type[Queue], server: Server, stream: str) -> None:
        self.kind = kind
        self.server = server
        self.stream = stream
        self.redis: Any = aredis.Redis(port=server.port, protocol=2, retry=Retry(NoBackoff(), 0))
        self._stack = AsyncExitStack()

    def queue(self, group: str = "g", **options: Any) -> Queue:
        """Return a queue with its own connections, like one in another process."""
        queue = self.kind(Options(**{"port": self.server.port, "stream": self.stream, "group": group, **options}))
        self._stack.push_async_callback(queue.close)
        return queue

    def gate(self) -> Gate:
        """Return a proxy in front of the server."""
        return self._stack.enter_context(Gate(self.server.port))

    def task(self, work: Awaitable[Any]) -> "asyncio.Future[Any]":
        """Run an awaitable beside the test, at most until the end of the test."""
        task = asyncio.ensure_future(work)
        self._stack.push_async_callback(_end, task)
        return task

    async def pending(self) -> int:
        """Return the number of pending entries of the group "g"."""
        summary = await self.redis.xpending(self.stream, "g")
        return int(summary["pending"])

    async def close(self) -> None:
        """Close the queues, and delete all keys."""
        await self._stack.aclose()
        keys = [key async for key in self.redis.scan_iter(match=f"*{self.stream}*", count=1000)]
        if keys:
            await self.redis.delete(*keys)
        await self.redis.aclose()


async def _end(task: "asyncio.Future[Any]") -> None:
    await end([task])


async def take(member: Member, timeout: float = PATIENCE) -> Message:
    """Return the next message; fail if there is none."""
    try:
        message = await member.get(timeout)
    except Exception as error:
        raise AssertionError(f"get() failed: {error!r}") from error
    assert message is not None, "no message came"
    return message


async def expect_none(member: Member, timeout: float = 0.05) -> None:
    """Fail if a message comes."""
    message = await member.get(timeout)
    assert message is None, f"{message and message.data} came, attempt {message and message.attempt}"


Body = Callable[[Scene], Awaitable[None]]


@attrs.frozen
class Case:
    """A class of queues on which a test runs.

    Attributes:
        kind: The class.
        says: A part of the failure's message; "" where the test must pass.
        passes_on: The versions of servers without this trap, on which the test must pass.
    """

    kind: type[Queue]
    says: str = ""
    passes_on: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.kind.__name__

    def play(self, body: Body, server: Server, stream: str) -> None:
        """Run the body of a test, and check that it passes, or fails with the right message."""
        if not self.says or server.version in self.passes_on:
            asyncio.run(self._run(body, server, stream))
            return
        for number in range(TRIES):
            try:
                asyncio.run(self._run(body, server, f"{stream}-{number}"))
            except AssertionError as error:  # it must fail for the right reason
                assert self.says in str(error), f"{self} failed, but not with {self.says!r}"  # noqa: PT017 - the failure is expected
                return
        pytest.fail(f"{self} passes, so the test doesn't see the trap")

    async def _run(self, body: Body, server: Server, stream: str) -> None:
        scene = Scene(self.kind, server, stream)
        try:
            await body(scene)
        finally:
            await scene.close()


def trap(*naive: Case, private: bool = False) -> Callable[[Body], Callable[..., None]]:
    """Turn a body into a test that passes on ailf, on each server, and fails on each naive queue.

    Arguments:
        naive: The naive queues.
        private: Whether the body needs a server of its own, as it would disturb other tests.
    """

    def make(body: Body) -> Callable[..., None]:
        def test(server: Server, new_server: NewServer, namespace: str, case: Case) -> None:
            case.play(body, new_server(version=server.version) if private else server, namespace)

        for name in ("__name__", "__qualname__", "__doc__", "__module__"):
            setattr(test, name, getattr(body, name))
        return pytest.mark.parametrize("case", [Case(Ours), *naive], ids=str)(test)

    return make


async def later(seconds: float, work: Callable[[], Awaitable[Any]]) -> None:
    """Await a call after `seconds`."""
    await asyncio.sleep(seconds)
    await work()


def clock() -> float:
    """Return the monotonic time in seconds."""
    return time.monotonic()
