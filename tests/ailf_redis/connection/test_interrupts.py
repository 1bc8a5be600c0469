"""Ctrl-C between any two lines of a call leaks no connection, thread, or permit of the pool."""

import _thread
import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import ailf_redis
from ailf.errors import ConnectionLostError
from ailf.runtime import run
from ailf_redis import RedisBackend
from ailf_redis.connection import blocking as blocking_calls
from ailf_redis.connection.aio import AsyncioExecutor
from ailf_redis.connection.blocking import BlockingExecutor
from ailf_redis.settings import Settings
from tests.support.interruption import Interruption
from tests.support.servers import Server

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")

PACKAGE = Path(ailf_redis.__file__ or "").parent
CONNECTION = (f"{PACKAGE}/connection/", f"{PACKAGE}/pooled/")

SPARED = ("<genexpr>", "_Permit.__del__")
"""Code that runs when an object is collected: Python only reports an exception that is raised there."""


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Leave what earlier tests have imported out of the collections: there is one for each moment of an act."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def interruptions(act: Callable[[], object], *, within: tuple[str, ...] = CONNECTION) -> Iterator[str]:
    """Interrupt an act at its first line, then at its second, and so on; yield each time where that was."""
    moment = 0
    while True:
        moment += 1
        with Interruption(moment, within=within, spared=SPARED) as interruption, contextlib.suppress(KeyboardInterrupt):
            act()
        if not interruption.at:
            break
        yield interruption.at
    assert moment > 10


def settled(condition: Callable[[], bool], seconds: float = 2.0) -> bool:
    """Wait for a condition, as other threads need a moment; return whether it holds."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return condition()


def check_whole(executor: Any, permits: int, at: str, threads: int) -> None:
    """Check that a pool has all of its permits, that no connection is in use, and that calls get their own replies."""
    assert not executor._busy, at
    assert len(executor._idle) <= permits, at
    free = executor._permits.qsize if isinstance(executor, BlockingExecutor) else executor._permits.free
    assert free() == permits, at
    assert run(executor.call("ECHO", at)) == at.encode(), at
    assert settled(lambda: _thread._count() <= threads), at


@pytest.mark.parametrize("database", [0, 1], ids=["silent", "signs in"])
def test_ctrl_c_while_a_connection_is_made(any_server: Server, database: int) -> None:
    """The pool is whole afterwards, wherever Ctrl-C comes."""
    settings = Settings("127.0.0.1", any_server.port, db=database, max_connections=1, timeout=1.0)
    executor = BlockingExecutor(settings)
    threads = _thread._count()

    def act() -> None:
        executor._disconnect_idle()
        run(executor.call("ECHO", "an interrupted one"))

    for at in interruptions(act):
        check_whole(executor, 1, at, threads)
    run(executor.close())


def test_ctrl_c_during_a_call(any_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is whole, wherever Ctrl-C comes: on a connection that works, is checked first, or is closed."""
    executor = BlockingExecutor(Settings("127.0.0.1", any_server.port, max_connections=1, timeout=1.0))
    threads = _thread._count()

    def call() -> None:
        run(executor.call("ECHO", "an interrupted one"))

    def call_after_close() -> None:
        with any_server.client() as admin:
            for connection in executor._idle:
                admin.client_kill_filter(addr="{}:{}".format(*connection._socket.getsockname()))
        call()

    run(executor.call("PING"))
    for act in (call, call_after_close):
        for at in interruptions(act):
            check_whole(executor, 1, at, threads)
    monkeypatch.setattr(blocking_calls, "IDLE", 0.0)  # so that each connection is checked first
    for at in interruptions(call):
        check_whole(executor, 1, at, threads)
    run(executor.close())


def test_ctrl_c_while_a_call_waits_for_a_permit(any_server: Server, namespace: str) -> None:
    """The permit that the call waited for is there for the next call, wherever Ctrl-C comes."""
    executor = BlockingExecutor(Settings("127.0.0.1", any_server.port, max_connections=1, timeout=2.0))
    threads = _thread._count()

    def act() -> None:
        other = threading.Thread(target=run, args=(executor.call("BLPOP", namespace, 0.01),))
        other.start()
        try:
            while not executor._busy:
                time.sleep(0.0001)
            run(executor.call("ECHO", "an interrupted one"))
        finally:
            other.join(5)

    for at in interruptions(act):
        check_whole(executor, 1, at, threads)
    run(executor.close())


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "waits"])
def test_ctrl_c_during_a_call_of_a_client(any_server: Server, namespace: str, waits: bool) -> None:
    """The pool for a user's client is whole too, wherever Ctrl-C comes."""
    client = redis.Redis(port=any_server.port)
    backend = RedisBackend.from_client(client, timeout=2.0, max_connections=1)
    executor: Any = backend.engine.driver.executor
    threads = _thread._count()

    def act() -> None:
        other = threading.Thread(target=lambda: run(executor.call("BLPOP", namespace, 0.01)))
        if waits:
            other.start()
        try:
            while waits and not executor._busy:
                time.sleep(0.0001)
            run(executor.call("ECHO", "an interrupted one"))
        finally:
            if waits:
                other.join(5)

    for at in interruptions(act):
        check_whole(executor, 1, at, threads)
    backend.close()
    client.close()


def test_ctrl_c_on_a_link(any_server: Server) -> None:
    """A link that Ctrl-C interrupts leaks no socket and no thread."""
    executor = BlockingExecutor(Settings("127.0.0.1", any_server.port, timeout=1.0))
    sockets: list[Any] = []
    threads = _thread._count()

    def act() -> None:
        link: Any = run(executor.link())
        sockets.append(link._socket)
        run(link.send([("ECHO", "a")]))
        assert run(link.receive(1.0)) == [b"a"]
        run(link.close())

    for at in interruptions(act):
        gc.collect()
        assert all(each.fileno() == -1 for each in sockets), at
        assert settled(lambda: _thread._count() <= threads), at
    run(executor.close())


@pytest.mark.parametrize("part", ["send", "receive"])
def test_ctrl_c_within_a_request_on_a_link(any_server: Server, part: str) -> None:
    """A request or a reply that was interrupted half-way is never continued by the next one."""
    executor = BlockingExecutor(Settings("127.0.0.1", any_server.port, timeout=2.0))
    large = b"x" * (8_000_000 if part == "send" else 100_000)
    links: list[Any] = [run(executor.link())]

    def act() -> None:
        link = links[-1]
        if part == "send":
            run(link.send([("ECHO", large)]))
        else:
            run(link.receive(1.0))

    def prepare() -> None:
        links.append(run(executor.link()))
        if part == "receive":
            run(links[-1].send([("ECHO", large)]))

    def next_replies() -> list[bytes]:
        run(links[-1].send([("ECHO", b"next")]))
        replies: list[bytes] = []
        while replies[-1:] != [b"next"] and (more := run(links[-1].receive(2.0))):
            replies += more
        return replies

    prepare()
    for at in interruptions(act, within=(f"{PACKAGE}/connection/blocking_link.py",)):
        with contextlib.suppress(ConnectionLostError):
            replies = next_replies()
            assert replies == [large, b"next"] or (part == "send" and replies == [b"next"]), at
        run(links[-1].close())
        prepare()
    for link in links:
        run(link.close())
    run(executor.close())


def test_ctrl_c_during_a_call_on_asyncio(any_server: Server) -> None:
    """The next request gets its own reply, or loses its connection, wherever Ctrl-C comes."""
    executor = AsyncioExecutor(Settings("127.0.0.1", any_server.port, timeout=0.5))
    loop = asyncio.new_event_loop()

    async def echo(word: str) -> Any:
        return await asyncio.wait_for(executor.call("ECHO", word), 5)

    loop.run_until_complete(echo("first"))
    for at in interruptions(
        lambda: loop.run_until_complete(echo("an interrupted one")), within=(f"{PACKAGE}/connection/aio.py",)
    ):
        for word in ("next", "last"):
            with contextlib.suppress(ConnectionLostError):
                assert loop.run_until_complete(echo(word)) == word.encode(), at
    loop.run_until_complete(executor.close())
    loop.close()


def test_the_only_permit_returns_itself_from_a_cycle(any_server: Server) -> None:
    """The collector clears weak references that are garbage themselves, before it calls `__del__`."""
    executor = BlockingExecutor(Settings("127.0.0.1", any_server.port, max_connections=1, timeout=0.1))
    for _ in range(2):  # the permit that has replaced the first one too
        cycle: list[Any] = [executor._permits.get(block=False)]
        cycle.append(cycle)
        del cycle
        gc.collect()
        assert executor._permits.qsize() == 1
    assert run(executor.call("PING")) == b"PONG"
    run(executor.close())
