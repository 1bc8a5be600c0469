"""An app that runs in this process: handlers, subscribers, hooks, and schedules on a clock that is moved."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import ailf
from ailf.testing import ManualClock
from ailf_memory import AsyncMemoryBackend, MemoryBackend, MemoryStore
from contract_tests.helpers.tasks import cancel

HOUR = 3600.0


async def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        await asyncio.sleep(0.005)


def plain_until(condition: Callable[[], Any]) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.005)


# --- both flavours -----------------------------------------------------------------------------------------------


def test_on_threads() -> None:
    """Plain functions get deliveries and messages of the blocking backend, and hooks run around them."""
    seen: list[Any] = []

    @contextlib.contextmanager
    def around(app: ailf.App) -> Iterator[None]:
        seen.append(("around", app.backend is backend))
        yield
        seen.append("around ends")

    app = ailf.App(lifespan=around)
    app.on_startup(lambda: seen.append("begins"))
    app.on_shutdown(lambda: seen.append("ends"))

    @app.handler("tasks", group="workers", type=int)
    def handle(delivery: ailf.Delivery[int]) -> None:
        app.backend.pubsub().publish("results", delivery.data)

    @app.subscriber("res*", pattern=True, type=int)
    def listen(message: ailf.Message[int]) -> None:
        seen.append(message.data)

    with MemoryBackend() as backend:
        with app.running(backend) as running:
            backend.stream("tasks").add_many([1, 2, 3])
            assert running.wait_idle()
            plain_until(lambda: 3 in seen)
        assert not backend.closed
    assert seen == [("around", True), "begins", 1, 2, 3, "ends", "around ends"]
    with pytest.raises(ailf.InvalidArgumentError, match="isn't running"):
        _ = app.backend


async def test_body_on_asyncio() -> None:
    """Coroutine functions get those of the asyncio backend."""
    seen: list[Any] = []

    @contextlib.asynccontextmanager
    async def around(app: ailf.App) -> AsyncIterator[None]:
        seen.append("around")
        yield
        seen.append("around ends")

    app = ailf.App("memory://", lifespan=around)
    app.on_startup(lambda: seen.append("begins"))

    @app.on_shutdown
    async def end() -> None:
        seen.append("ends")

    @app.handler("tasks", group="workers", batch=10, linger=0.01, type=int)
    async def handle(deliveries: list[ailf.AsyncDelivery[int]]) -> None:
        seen.append([each.data for each in deliveries])

    async with app.running() as running:
        await app.backend.stream("tasks").add_many([1, 2, 3])
        assert await running.wait_idle()
        inside = app.backend
    assert inside.closed, "the app has opened it"
    assert seen == ["around", "begins", [1, 2, 3], "ends", "around ends"]


def test_on_asyncio() -> None:
    """As above."""
    asyncio.run(test_body_on_asyncio())


test_body_on_asyncio.__test__ = False  # type: ignore[attr-defined]


def test_cancelled_at_each_step() -> None:
    """An app whose task is cancelled again while it ends cancels its handlers, leaves the lifespan, and closes."""
    seen: list[str] = []

    @contextlib.asynccontextmanager
    async def around(_: ailf.App) -> AsyncIterator[None]:
        try:
            yield
        finally:
            seen.append("around ends")

    app = ailf.App("memory://", lifespan=around)
    app.on_shutdown(lambda: seen.append("ends"))

    @app.handler("tasks", group="workers", drain=60)
    async def handle(_: ailf.AsyncDelivery[Any]) -> None:
        seen.append("handles")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("is cancelled")

    opened: list[ailf.AsyncBackend] = []

    async def block() -> None:
        async with app.running():
            opened.append(app.backend)
            await app.backend.stream("tasks").add(1)
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.ensure_future(block())
        await until(lambda: seen)
        await cancel(task, at_each_step=True)
        assert task.cancelled()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(main())
    assert sorted(seen) == ["around ends", "ends", "handles", "is cancelled"]
    assert opened[0].closed


def test_the_wrong_flavour() -> None:
    """A backend, or a `with`, of the other flavour is refused, and so is an app without functions."""
    app, other = ailf.App("memory://"), ailf.App("memory://")
    app.every(60)(lambda: None)

    @other.every(60)
    async def nothing() -> None: ...

    with pytest.raises(ailf.InvalidArgumentError, match="has nothing to run"):
        ailf.App().running()
    with pytest.raises(ailf.InvalidArgumentError, match=r"open it with ailf\.connect$"):
        app.running(AsyncMemoryBackend())
    with pytest.raises(ailf.InvalidArgumentError, match="use `async with`"), other.running():
        pass

    async def enter() -> None:
        async with app.running():
            pass

    with pytest.raises(ailf.InvalidArgumentError, match="use `with`"):
        asyncio.run(enter())


def test_a_startup_that_fails() -> None:
    """Its error is raised, the lifespan is left with it, the backend is closed, and nothing was handled."""
    seen: list[Any] = []

    @contextlib.contextmanager
    def around(app: ailf.App) -> Iterator[None]:
        try:
            yield
        finally:
            seen.append(app.backend)

    app = ailf.App("memory://", lifespan=around)
    app.every(60)(lambda: None)
    app.on_startup(lambda: 1 // 0)
    app.on_shutdown(lambda: seen.append("never"))
    with pytest.raises(ZeroDivisionError), app.running():
        pass
    (backend,) = seen
    assert backend.closed


def test_a_shutdown_that_fails() -> None:
    """The other shutdown functions are called, and the first error is raised."""
    seen: list[str] = []
    app = ailf.App("memory://")
    app.every(60)(lambda: None)
    app.on_shutdown(lambda: 1 // 0)
    app.on_shutdown(lambda: seen.append("called"))
    with pytest.raises(ZeroDivisionError), app.running():
        pass
    assert seen == ["called"]


class Panic(BaseException):
    """An error that isn't an `Exception`."""


@pytest.mark.parametrize("flavour", ["threads", "asyncio"])
def test_an_error_that_ends_a_handler_ends_the_app(flavour: str) -> None:
    """The other handlers drain, and `run` raises the error."""
    app, ended = ailf.App("memory://"), []

    def fails(_: Any) -> None:
        raise Panic

    async def fails_async(_: Any) -> None:
        raise Panic

    async def nothing(_: Any) -> None: ...

    if flavour == "threads":
        app.handler("bad", group="g")(fails)
        app.subscriber("c")(lambda _: None)
        app.on_startup(lambda: app.backend.stream("bad").add(1))
    else:
        app.handler("bad", group="g")(fails_async)
        app.subscriber("c")(nothing)
        app.on_startup(lambda: app.backend.stream("bad").add(1))
    app.on_shutdown(lambda: ended.append(True))
    with pytest.raises(Panic):
        app.run()
    assert ended == [True]


def test_the_backend_is_closed() -> None:
    """An app whose backend was closed ends with that error."""
    app = ailf.App("memory://")
    app.handler("tasks", group="workers")(lambda _: None)
    app.on_startup(lambda: threading.Timer(0.2, app.backend.close).start())
    with pytest.raises(ailf.ClosedError):
        app.run()


# --- schedules ---------------------------------------------------------------------------------------------------


class Replicas:
    """Several apps that are replicas, on one store whose clock is moved."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_700_000_100.0)  # 22:15:00 UTC
        self.store = MemoryStore(self.clock)
        self.runs: list[tuple[int, float]] = []

    def time(self) -> float:
        """Return the seconds since the beginning."""
        return self.clock.now_ms() / 1000 - 1_700_000_100.0

    @contextlib.asynccontextmanager
    async def running(self, declare: Callable[[ailf.App, int], object], count: int = 3) -> AsyncIterator[None]:
        """Run replicas within a context."""
        async with contextlib.AsyncExitStack() as stack:
            for number in range(count):
                app = ailf.App()
                declare(app, number)
                backend = await stack.enter_async_context(AsyncMemoryBackend(store=self.store))
                await stack.enter_async_context(app.running(backend))
            await asyncio.sleep(0.02)
            yield

    async def move(self, seconds: float) -> None:
        """Move the clock, and let everything happen that is due."""
        self.clock.advance(seconds)
        await asyncio.sleep(0.05)


def test_cron_once_over_all_replicas() -> None:
    """Of three replicas one runs a function at each time of its expression."""

    async def main() -> None:
        replicas = Replicas()

        def declare(app: ailf.App, number: int) -> None:
            @app.cron("0 3 * * *", name="nightly")
            async def nightly() -> None:
                replicas.runs.append((number, replicas.time()))

        async with replicas.running(declare):
            await replicas.move(4 * HOUR)  # 02:15
            assert replicas.runs == []
            await replicas.move(HOUR)
            assert len(replicas.runs) == 1
            await replicas.move(23 * HOUR)
            assert len(replicas.runs) == 1
            await replicas.move(HOUR)
            assert len(replicas.runs) == 2

    asyncio.run(main())


def test_missed_runs() -> None:
    """While no replica runs, the next run waits and takes place at the start; the others are skipped."""

    async def main() -> None:
        replicas = Replicas()

        def declare(app: ailf.App, number: int) -> None:
            @app.every(60.0, name="minutely")
            async def minutely() -> None:
                replicas.runs.append((number, replicas.time()))

        async with replicas.running(declare):
            await replicas.move(60)
            assert len(replicas.runs) == 1
        await replicas.move(10 * 60 + 5)
        assert len(replicas.runs) == 1
        async with replicas.running(declare):
            await until(lambda: len(replicas.runs) == 2)
            await replicas.move(1)
            assert len(replicas.runs) == 2
            await replicas.move(60)
            assert len(replicas.runs) == 3, "and then as usual"

    asyncio.run(main())


def test_runs_never_overlap() -> None:
    """A run that takes longer than the period delays the next one, and those between are skipped."""

    async def main() -> None:
        replicas, running, gate = Replicas(), 0, asyncio.Event()

        def declare(app: ailf.App, number: int) -> None:
            @app.every(60.0, name="slow")
            async def slow() -> None:
                nonlocal running
                running += 1
                assert running == 1
                replicas.runs.append((number, replicas.time()))
                await gate.wait()
                running -= 1

        async with replicas.running(declare):
            for _ in range(18):
                await replicas.move(20)  # less than the lease, which is renewed
            assert len(replicas.runs) == 1
            gate.set()
            await until(lambda: len(replicas.runs) == 2)
            await asyncio.sleep(0.05)
            assert len(replicas.runs) == 2, "four were skipped"
            await replicas.move(1)
            await replicas.move(59)
            assert len(replicas.runs) == 3, "and then as usual"

    asyncio.run(main())


@pytest.mark.parametrize(("error", "expected"), [(ValueError("no"), 1), (ailf.Retry("again", delay=5), 3)])
def test_runs_that_fail(error: Exception, expected: int, caplog: pytest.LogCaptureFixture) -> None:
    """A run that raises is logged and not repeated; with Retry it is repeated, three times in all."""

    async def main() -> None:
        replicas = Replicas()

        def declare(app: ailf.App, number: int) -> None:
            @app.every(600.0, name="failing")
            async def failing() -> None:
                replicas.runs.append((number, replicas.time()))
                raise error

        async with replicas.running(declare):
            await replicas.move(600)
            for _ in range(8):
                await replicas.move(6)
            assert len(replicas.runs) == expected

    asyncio.run(main())
    assert "scheduled function 'failing' (every 600 s)" in caplog.text or expected > 1
