"""Where a trap is sprung: a stream on a real server, queues of a kind on it, and the proof that a naive kind is caught.

A test here is a body that is run on ours, which must pass, and on naive queues (``naive.py``), each of which fell into
the trap that the test is for and must fail, for the reason that the test names. So a test that sees nothing fails.
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
    "later",
    "nothing",
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
"""Seconds for what needs no lease to end."""

PATIENCE = 1.0
"""Seconds for what should come at once, or when a lease has ended."""


class Gate(Proxy):
    """A network that lets so many more requests through, and holds the next ones until it is opened."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self._left: int | None = None

    def hold(self, after: int) -> None:
        """Hold requests after so many."""
        with self._changed:
            self._left = after

    def open(self) -> None:
        """Let all through."""
        with self._changed:
            self._left = None
            self._changed.notify_all()

    def may_pass(self, link: Any, *, is_reply: bool) -> bool:
        """Wait for leave to pass."""
        if not is_reply:
            with self._changed:
                self._changed.wait_for(lambda: link.closed or self._left != 0)
                if self._left:
                    self._left -= 1
        return super().may_pass(link, is_reply=is_reply)


class Scene:
    """What a test plays with.

    Attributes:
        kind: The class of its queues.
        server: The server.
        stream: The key of its stream.
        redis: redis-py's client, for what other programs do.
    """

    def __init__(self, kind: type[Queue], server: Server, stream: str) -> None:
        self.kind = kind
        self.server = server
        self.stream = stream
        self.redis: Any = aredis.Redis(port=server.port, protocol=2, retry=Retry(NoBackoff(), 0))
        self._stack = AsyncExitStack()

    def queue(self, group: str = "g", **options: Any) -> Queue:
        """Return a queue with a connection of its own, as another process would have it."""
        queue = self.kind(Options(**{"port": self.server.port, "stream": self.stream, "group": group, **options}))
        self._stack.push_async_callback(queue.close)
        return queue

    def gate(self) -> Gate:
        """Return a network in between."""
        return self._stack.enter_context(Gate(self.server.port))

    def task(self, work: Awaitable[Any]) -> "asyncio.Future[Any]":
        """Let something run beside the test, until its end."""
        task = asyncio.ensure_future(work)
        self._stack.push_async_callback(_end, task)
        return task

    async def pending(self) -> int:
        """Return how many entries the group "g" has not done with."""
        summary = await self.redis.xpending(self.stream, "g")
        return int(summary["pending"])

    async def close(self) -> None:
        """Leave nothing."""
        await self._stack.aclose()
        keys = [key async for key in self.redis.scan_iter(match=f"*{self.stream}*", count=1000)]
        if keys:
            await self.redis.delete(*keys)
        await self.redis.aclose()


async def _end(task: "asyncio.Future[Any]") -> None:
    await end([task])


async def take(member: Member, timeout: float = PATIENCE) -> Message:
    """Return the next message, which must come."""
    try:
        message = await member.get(timeout)
    except Exception as error:
        raise AssertionError(f"receiving failed: {error!r}") from error
    assert message is not None, "nothing came"
    return message


async def nothing(member: Member, timeout: float = 0.05) -> None:
    """See that nothing comes."""
    message = await member.get(timeout)
    assert message is None, f"{message and message.data} came, attempt {message and message.attempt}"


Body = Callable[[Scene], Awaitable[None]]


@attrs.frozen
class Case:
    """A kind of queue that a test is put to.

    Attributes:
        kind: Its class.
        says: What the test says of it; "" where it must pass.
        passes_on: The servers where it must pass nevertheless: the trap is not theirs.
    """

    kind: type[Queue]
    says: str = ""
    passes_on: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.kind.__name__

    def play(self, body: Body, server: Server, stream: str) -> None:
        """Run a test's body, and see that it passes, or says what it should."""
        if not self.says or server.version in self.passes_on:
            asyncio.run(self._run(body, server, stream))
            return
        for number in range(TRIES):
            try:
                asyncio.run(self._run(body, server, f"{stream}-{number}"))
            except AssertionError as error:  # and for the reason that the test is there for
                assert self.says in str(error), f"{self} was caught, but not because {self.says!r}"  # noqa: PT017 - on purpose
                return
        pytest.fail(f"{self} passes: the test does not see the trap")

    async def _run(self, body: Body, server: Server, stream: str) -> None:
        scene = Scene(self.kind, server, stream)
        try:
            await body(scene)
        finally:
            await scene.close()


def trap(*naive: Case, private: bool = False) -> Callable[[Body], Callable[..., None]]:
    """Turn the body into a test that ours passes, on each server, and that catches each naive one.

    Arguments:
        naive: The naive ones.
        private: Whether the body does to its server what others would notice.
    """

    def make(body: Body) -> Callable[..., None]:
        def test(server: Server, new_server: NewServer, namespace: str, case: Case) -> None:
            case.play(body, new_server(version=server.version) if private else server, namespace)

        for name in ("__name__", "__qualname__", "__doc__", "__module__"):
            setattr(test, name, getattr(body, name))
        return pytest.mark.parametrize("case", [Case(Ours), *naive], ids=str)(test)

    return make


async def later(seconds: float, work: Callable[[], Awaitable[Any]]) -> None:
    """Do something after a while."""
    await asyncio.sleep(seconds)
    await work()


def clock() -> float:
    """Return the time, in seconds."""
    return time.monotonic()
