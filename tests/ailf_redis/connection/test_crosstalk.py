"""Thousands of calls while faults are injected: no reply reaches another caller, and no call hangs.

Every call carries a token of its own, which its reply or its error repeats, so a wrong reply is recognized. The callers
inject a fault after every `EVERY` calls, in an order that a seed decides: they kill connections, flush scripts, or
freeze the server for longer than the deadline. Other calls are cancelled or interrupted. AILF_CAMPAIGN=1 makes ten
times as many calls.
"""

import asyncio
import itertools
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import redis

from ailf.errors import BackendError, BackendTimeoutError, ConnectionLostError
from ailf.runtime import run
from ailf_redis.connection.aio import AsyncioExecutor
from ailf_redis.connection.blocking import BlockingExecutor
from ailf_redis.connection.executor import Executor
from ailf_redis.scripts import Script
from ailf_redis.settings import Settings
from tests.support.effort import CAMPAIGN
from tests.support.servers import NewServer, Server

CALLS = 100_000 if CAMPAIGN else 10_000
EVERY = 50
"""The number of calls between two faults."""

TIMEOUT = 0.2
STOPPED = 0.3
DEADLINE = 50.0 * CALLS / 10_000
KINDS = ("echo", "script", "refused", "many")
ECHO = Script("echo", "return ARGV[1]", "098e0f0d1448c0a81dafe820f66d460eb09263da")


class GivenUpError(Exception):
    """The exception that a signal handler raises into a call."""


class Storm:
    """Injects faults, and counts how calls end."""

    def __init__(self, server: Server, admin: redis.Redis) -> None:
        self.server = server
        self.admin = admin
        self.chance = random.Random(11)
        self.numbers = itertools.count()
        self.outcomes: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.wrong: list[tuple[str, object]] = []
        self.extra: list[Callable[[], None]] = []
        self._one = threading.Lock()
        self._counting = threading.Lock()
        self._stopped: threading.Timer | None = None

    def token(self) -> str | None:
        """Return the next call's token, or None after the last; inject a fault before every `EVERY`-th call."""
        number = next(self.numbers)
        if number >= CALLS:
            return None
        if number % EVERY == EVERY - 1:
            with self._one:
                self._break()
        return f"token-{number}-end"

    def _break(self) -> None:
        ways = [self._kill, self._kill, self._flush, self._flush, *self.extra]
        way = self._stop if self.chance.random() < 0.05 else self.chance.choice(ways)
        way()
        self.done[way.__name__.strip("_")] += 1

    def _kill(self) -> None:
        self.admin.client_kill_filter(_type="normal", skipme=True)

    def _flush(self) -> None:
        self.admin.script_flush()

    def _stop(self) -> None:
        if self._stopped is not None:
            self._stopped.join()
        self.server.pause()
        self._stopped = threading.Timer(STOPPED, self.server.resume)
        self._stopped.start()

    def calm(self) -> None:
        """Wait until a frozen server has resumed."""
        if self._stopped is not None:
            self._stopped.join()

    async def call(self, executor: Executor, token: str, kind: str) -> None:
        """Make one call of a kind; count how it ends."""
        try:
            reply = await _call(executor, token, kind)
        except (ConnectionLostError, BackendTimeoutError) as error:
            self.note("timeout" if isinstance(error, BackendTimeoutError) else "lost")
        except BackendError as error:
            self._judge(kind == "refused" and token in str(error), token, error)
        else:
            self._judge(kind != "refused" and reply == token.encode(), token, reply)

    def note(self, outcome: str) -> None:
        """Count how a call ended."""
        with self._counting:
            self.outcomes[outcome] += 1

    def _judge(self, right: bool, token: str, reply: object) -> None:
        self.note("answered")
        if not right:
            self.wrong.append((token, reply))

    def check(self, *needed: str) -> None:
        """Check that every call is counted, that no reply was wrong, and that every kind of fault happened."""
        assert self.wrong == []
        assert self.outcomes.total() == CALLS
        assert self.outcomes["answered"] > CALLS / 4, self.outcomes
        missing = {"answered", "lost", "timeout", *needed} - set(self.outcomes)
        assert not missing, self.outcomes
        assert {"kill", "flush", "stop"} <= set(self.done), self.done


async def _call(executor: Executor, token: str, kind: str) -> Any:
    """Make one call; return its reply, which should be the token."""
    if kind == "script":
        return await ECHO.run(executor, [], [token], bytes)
    if kind == "refused":
        return await executor.call(f"NO-{token}")
    if kind == "many":
        replies = await executor.call_many([("ECHO", token), (f"NO-{token}",), ("ECHO", token)])
        right = replies[::2] == [token.encode()] * 2 and token in str(replies[1])
        return token.encode() if right else replies
    return await executor.call("ECHO", token)


@pytest.fixture
def storm(new_server: NewServer) -> Iterator[Storm]:
    """Faults on a server of the test's own."""
    server = new_server()
    with server.client() as admin:
        made = Storm(server, admin)
        yield made
        made.calm()


def _settings(server: Server) -> Settings:
    return Settings(host="127.0.0.1", port=server.port, timeout=TIMEOUT, max_connections=8)


@contextmanager
def _given_up_by_signal(storm: Storm) -> Iterator[None]:
    """Add a fault: a signal handler raises into the main thread's call while it sends or receives, as Ctrl-C does."""

    def give_up(_: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_name in {"send", "receive", "receive_one"}:
            raise GivenUpError

    main = threading.get_ident()

    def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, give_up)
    storm.extra += [interrupt] * 6
    try:
        yield
    finally:
        storm.extra.clear()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.timeout(DEADLINE + 20)
def test_no_thread_gets_anothers_reply_in_a_storm(storm: Storm) -> None:
    """B4: threads that share a pool get their own replies or an error, however the calls end."""
    executor = BlockingExecutor(_settings(storm.server))

    def caller(seed: int) -> None:
        chance = random.Random(seed)
        while (token := storm.token()) is not None:
            try:
                run(storm.call(executor, token, chance.choice(KINDS)))
            except GivenUpError:
                storm.note("given up")

    threads = [threading.Thread(target=caller, args=(seed,), daemon=True) for seed in range(11)]
    for thread in threads:
        thread.start()
    with _given_up_by_signal(storm):
        caller(11)
        for thread in threads:
            thread.join(DEADLINE)
    assert not [thread for thread in threads if thread.is_alive()], "these threads hang"
    storm.calm()
    assert run(executor.call("ECHO", "after")) == b"after"
    run(executor.close())
    storm.check("given up")


@pytest.mark.timeout(DEADLINE + 20)
def test_no_task_gets_anothers_reply_in_a_storm(storm: Storm) -> None:
    """B8: tasks that share a connection get their own replies or an error, however the calls end."""

    async def caller(executor: AsyncioExecutor, seed: int) -> None:
        chance = random.Random(seed)
        while (token := storm.token()) is not None:
            task = asyncio.ensure_future(storm.call(executor, token, chance.choice(KINDS)))
            await _perhaps_given_up(task, chance, storm)

    async def main() -> None:
        executor = AsyncioExecutor(_settings(storm.server))
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(caller(executor, seed) for seed in range(50)))
            storm.calm()
            assert await executor.call("ECHO", "after") == b"after"
            await executor.close()

    asyncio.run(main())
    storm.check("cancelled", "impatient")


async def _perhaps_given_up(task: "asyncio.Future[None]", chance: random.Random, storm: Storm) -> None:
    """Await a call; cancel some calls after a few turns of the loop, and give others too short a deadline."""
    lot = chance.random()
    try:
        if lot < 0.2:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
        async with asyncio.timeout(chance.random() * 0.002 if lot > 0.8 else None):
            await task
    except (asyncio.CancelledError, TimeoutError) as end:
        if task.cancelled():  # else the call has ended, and counted itself
            storm.note("impatient" if isinstance(end, TimeoutError) else "cancelled")
