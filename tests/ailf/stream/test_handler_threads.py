"""`process(threads=True)` on asyncio runs a plain function in threads; other plain functions run in the event loop."""

import asyncio
import logging
import threading
import time
from contextvars import ContextVar
from typing import Any

import pytest

import ailf
from tests.support.servers import Server

VAR: ContextVar[str] = ContextVar("var", default="")


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest, namespace: str) -> str:
    """The URL of a backend."""
    if request.param == "memory":
        return f"memory://{namespace}"
    server: Server = request.getfixturevalue("any_server")
    return f"{server.url}?namespace={namespace}"


def play(url: str, handler: Any, items: list[Any], *, until: Any, group: Any = None, **options: Any) -> ailf.GroupInfo:
    """Process messages with a handler in threads until a condition holds, and return the state of the group."""

    async def main() -> ailf.GroupInfo:
        async with ailf.connect_async(url) as backend:
            await backend.stream("s").add_many(items)
            workers = backend.stream("s").group("g", **(group or {}))
            options.setdefault("threads", True)
            working = asyncio.create_task(workers.process(handler, **options))
            async with asyncio.timeout(20):
                while not until() and not working.done():  # noqa: ASYNC110 - a thread changes it
                    await asyncio.sleep(0.01)
            workers.stop()
            await working
            return await workers.info()

    return asyncio.run(main())


def test_handlers_run_at_once_in_threads(url: str) -> None:
    """`concurrency` handlers run at once, each in a thread that isn't the event loop's."""
    together, names = threading.Barrier(3), []

    def handler(delivery: ailf.Delivery[Any]) -> None:
        together.wait(10)
        names.append(threading.current_thread().name)

    info = play(url, handler, list(range(6)), until=lambda: len(names) == 6, concurrency=3)
    assert {name.rpartition("-")[0] for name in names} == {"ailf-handler"}
    assert len(set(names)) == 3
    assert (info.lag, info.pending) == (0, 0)


@pytest.mark.parametrize("way", ["ack", "nack", "reject", "release", "extend", "with", "raise", "false"])
def test_a_delivery_in_a_thread_blocks(url: str, way: str) -> None:
    """The handler settles by a blocking delivery, which `current_delivery` returns too, or by how it ends."""
    seen: list[tuple[int, bool, str]] = []

    def handler(delivery: ailf.Delivery[Any]) -> object:
        seen.append((delivery.attempt, delivery == ailf.current_delivery(), type(ailf.current_delivery()).__name__))
        if delivery.attempt == 1 and len(seen) == 1:
            if way == "with":
                with pytest.raises(ZeroDivisionError), delivery as entered:
                    assert ailf.current_delivery() == entered
                    1 / 0  # noqa: B018
                assert delivery.settled
            elif way == "raise":
                raise ValueError("no")
            elif way == "false":
                return False
            elif way == "extend":
                delivery.extend(60)
                raise ailf.Retry(delay=0)
            else:
                getattr(delivery, way)(**{"nack": {"delay": 0}, "reject": {"reason": "bad"}}.get(way, {}))
                assert delivery.settled
        return None

    count = 1 if way in ("ack", "reject") else 2
    backoff = ailf.Backoff(initial=0.01, maximum=0.01)
    info = play(url, handler, ["a"], until=lambda: len(seen) == count, group={"backoff": backoff})
    attempts = {"release": [1, 1]}.get(way, [1, 2][:count])
    assert seen == [(attempt, True, "ThreadDelivery") for attempt in attempts]
    assert (info.lag, info.pending, info.dead) == (0, 0, 1 if way == "reject" else 0)


def test_a_batch_in_a_thread(url: str) -> None:
    """A handler of batches gets a list of blocking deliveries."""
    done: list[Any] = []

    def handler(deliveries: list[ailf.Delivery[Any]]) -> None:
        with deliveries[0] as first:
            assert ailf.current_delivery() == first
        done.extend(each.data for each in deliveries)

    info = play(url, handler, [1, 2, 3], until=lambda: len(done) == 3, batch=10)
    assert (done, info.pending) == ([1, 2, 3], 0)


def test_a_thread_has_the_context_of_the_worker(namespace: str) -> None:
    """The handler sees the context variables of the code that called `process`, and changes none of them."""
    seen: list[str] = []

    def handler(delivery: ailf.Delivery[Any]) -> None:
        seen.append(VAR.get())
        VAR.set("changed")

    token = VAR.set("outer")
    play(f"memory://{namespace}", handler, [1, 2], until=lambda: len(seen) == 2)
    VAR.reset(token)
    assert seen == ["outer", "outer"]


def test_a_slow_handler_leaves_the_loop_free_and_loses_its_lease(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """After `timeout` the lease is given up, the loop runs on, and the message comes again after the handler ended."""
    running, most, attempts = [0], [0], []

    def handler(delivery: ailf.Delivery[Any]) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        attempts.append(delivery.attempt)
        if len(attempts) == 1:
            until = time.monotonic() + 10
            while not delivery.lost and time.monotonic() < until:
                time.sleep(0.01)
            assert delivery.lost
        running[0] -= 1

    group = {"lease": 2.0, "takeover": 1.0}
    play(url, handler, ["a"], until=lambda: len(attempts) == 2, group=group, timeout=0.2, concurrency=2)
    assert most == [1]
    assert attempts == [1, 2]


def test_a_handler_that_never_ends_is_abandoned_after_the_drain(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """`process` returns after `drain` seconds, and gives the message back."""
    begun, end, late = threading.Event(), threading.Event(), []

    def handler(delivery: ailf.Delivery[Any]) -> None:
        begun.set()
        end.wait(20)
        try:
            delivery.ack()
        except ailf.AilfError as error:
            late.append(error)

    begin = time.monotonic()
    info = play(url, handler, ["a"], until=begun.is_set, drain=0.2)
    assert time.monotonic() - begin < 10
    assert (info.pending, info.lag + info.delayed) == (0, 1)
    assert "a handler is abandoned" in caplog.text
    end.set()
    until = time.monotonic() + 10
    while not late and time.monotonic() < until:
        time.sleep(0.01)
    assert isinstance(late[0], ailf.ClosedError)


def test_a_cancelled_process_returns_at_once(namespace: str) -> None:
    """Cancelling `process` doesn't wait for the threads."""
    begun, end = threading.Event(), threading.Event()

    def handler(_: ailf.Delivery[Any]) -> None:
        begun.set()
        end.wait(20)

    async def main() -> None:
        async with ailf.connect_async(f"memory://{namespace}") as backend:
            await backend.stream("s").add("a")
            group = backend.stream("s").group("g")
            working = asyncio.create_task(group.process(handler, threads=True))
            while not begun.is_set():  # noqa: ASYNC110 - a thread sets it
                await asyncio.sleep(0.01)
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(working, 5)
            assert (await group.info()).pending == 0

    asyncio.run(main())
    end.set()


def test_what_a_thread_cannot_run_is_refused(namespace: str) -> None:
    """A coroutine function, and a flag that is none, are refused; a returned coroutine is a failure."""

    async def coroutine(_: Any) -> None: ...

    async def main() -> None:
        async with ailf.connect_async(f"memory://{namespace}") as backend:
            group = backend.stream("s").group("g")
            with pytest.raises(ailf.InvalidArgumentError, match="coroutine function"):
                await group.process(coroutine, threads=True)
            with pytest.raises(ailf.InvalidArgumentError, match="threads must be True or False"):
                await group.process(print, threads="yes")  # type: ignore[call-overload]

    asyncio.run(main())


def test_an_exit_in_a_thread_ends_the_worker(namespace: str) -> None:
    """`SystemExit` of a handler gives the message back and ends `process`, as in the event loop."""

    def handler(_: ailf.Delivery[Any]) -> None:
        raise SystemExit(3)

    async def main() -> ailf.GroupInfo:
        async with ailf.connect_async(f"memory://{namespace}") as backend:
            await backend.stream("s").add("a")
            group = backend.stream("s").group("g")
            with pytest.raises(SystemExit):
                await group.process(handler, threads=True)
            return await group.info()

    info = asyncio.run(main())
    assert (info.lag + info.delayed, info.dead) == (1, 0)


@pytest.mark.parametrize("threads", [False, True])
def test_a_handler_that_blocks_the_loop_is_named_once(
    namespace: str, caplog: pytest.LogCaptureFixture, threads: bool
) -> None:
    """A plain function that blocks the event loop for over 0.1 s is named in the log, once; in a thread it isn't."""
    handled = []

    def slow_handler(delivery: Any) -> None:
        time.sleep(0.15)
        handled.append(delivery.data)

    with caplog.at_level(logging.WARNING, "ailf"):
        play(f"memory://{namespace}", slow_handler, [1, 2, 3], until=lambda: len(handled) == 3, threads=threads)
    named = [each for each in caplog.messages if "slow_handler has blocked the event loop for 0." in each]
    assert len(named) == (0 if threads else 1)
