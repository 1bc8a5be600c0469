"""`PubSub.run(concurrency=…)`: handlers of several messages at once, and how they end."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ailf
from ailf.instruments import Instrument, MessagesDropped
from ailf.pubsub import concurrent
from ailf.tracing import carried
from ailf_memory import AsyncMemoryBackend, MemoryBackend
from tests.support.flavours import Flavour, flavours

flavour = pytest.fixture(params=["memory-blocking", "memory-asyncio", "redis-blocking", "redis-asyncio"])(flavours)


class Panic(BaseException):
    """An error that is no Exception."""


def soon(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.002)


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true, on asyncio."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - threads set some of them
            await asyncio.sleep(0.002)


def threads() -> list[str]:
    """Return the names of the threads that handle messages."""
    return [each.name for each in threading.enumerate() if each.name.startswith("ailf-subscriber-")]


class Around(Instrument):
    """Notes each handler that begins and ends, and each dropped message."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.dropped = 0

    @contextlib.contextmanager
    def handling(self, message: Any) -> Iterator[None]:
        """Note the beginning and the end, in the thread or task of the handler."""
        self.seen.append(("begin", message.data))
        yield
        self.seen.append(("end", message.data))

    def messages_dropped(self, event: MessagesDropped) -> None:
        """Count."""
        self.dropped += 1


def test_each_handler_has_a_context_of_its_own(flavour: Flavour) -> None:
    """Instruments surround each handler, and what it sends continues the trace of its own message."""
    around, traces = Around(), dict[int, Any]()

    async def scenario(backend: Any) -> None:
        pubsub, barrier = backend.pubsub(), threading.Barrier(3)
        inside = 0

        def finish(message: Any) -> None:
            traces[message.data] = carried()
            if len(traces) == 3:
                pubsub.stop()

        def handle(message: Any) -> None:
            barrier.wait(5)
            finish(message)

        async def handle_async(message: Any) -> None:
            nonlocal inside
            inside += 1
            await until(lambda: inside == 3)
            finish(message)

        await flavour.wait(pubsub.subscribe("c", handle_async if flavour.is_async else handle))
        for number in range(3):
            headers = {"traceparent": f"00-{'0' * 31}{number + 1}-{'0' * 15}1-01"}
            await flavour.wait(pubsub.publish("c", number, headers=headers))
        await flavour.wait(pubsub.run(concurrency=3))

    flavour.run(scenario, around)
    assert [kind for kind, _ in around.seen] == 3 * ["begin"] + 3 * ["end"]
    assert {number: trace["traceparent"][34] for number, trace in traces.items()} == {0: "1", 1: "2", 2: "3"}


def test_idle_handlers_end_at_a_stop() -> None:
    """Any number of idle threads ends promptly, and none is left."""
    with MemoryBackend() as backend:
        pubsub = backend.pubsub()
        pubsub.subscribe("c", print)
        running = pubsub.run_in_thread(concurrency=40)
        soon(lambda: len(threads()) == 39)
        begin = time.monotonic()
        pubsub.stop()
        running.join(5)
        assert not running.is_alive()
        assert time.monotonic() < begin + 2
        assert threads() == []


def test_a_message_wakes_few_idle_handlers() -> None:
    """A message wakes two idle tasks at most, and not all of them."""

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            pubsub, handled = backend.pubsub(), list[int]()
            await pubsub.subscribe("c", lambda message: handled.append(message.data))
            running = asyncio.create_task(pubsub.run(concurrency=50))
            await asyncio.sleep(0.02)
            buffer = pubsub._flow._buffer
            assert buffer is not None
            tries, take = 0, buffer.take

            def counted() -> Any:
                nonlocal tries
                tries += 1
                return take()

            buffer.take = counted  # type: ignore[method-assign]
            for number in range(10):
                await pubsub.publish("c", number)
                await until(lambda: len(handled) == number + 1)  # noqa: B023 - called at once
            assert tries <= 40
            pubsub.stop()
            await running

    asyncio.run(main())


def test_the_buffer_is_bounded() -> None:
    """While all handlers are busy the buffer takes as many messages as fit, and the oldest are dropped."""
    around, may_end, handled = Around(), threading.Event(), list[int]()

    def handle(message: Any) -> None:
        may_end.wait(10)
        handled.append(message.data)

    with MemoryBackend() as backend:
        backend.instrument(around)
        pubsub = backend.pubsub()
        pubsub.subscribe("c", handle)
        running = pubsub.run_in_thread(concurrency=2)
        pubsub.publish_many([("c", number) for number in range(2)])
        soon(lambda: len(around.seen) == 2)
        with pubsub.listen("c", buffer=5_000) as all_of_them:
            pubsub.publish_many([("c", number) for number in range(2, 1_102)])
            for _ in range(1_100):
                all_of_them.get(timeout=5)
        may_end.set()
        pubsub.stop()
        running.join(10)
    assert around.dropped == 76
    assert sorted(handled) == [0, 1, *range(78, 1_102)]


def test_a_fatal_error_ends_run(flavour: Flavour) -> None:
    """An error that is no Exception ends `run` when the other handlers have ended; the next `run` goes on."""
    handled, failed = list[int](), threading.Event()

    async def scenario(backend: Any) -> None:
        pubsub = backend.pubsub()

        def handle(message: Any) -> None:
            if message.data == 0:
                failed.set()
                raise Panic
            assert failed.wait(5)
            time.sleep(0.05)
            handled.append(message.data)
            if message.data == 2:
                pubsub.stop()

        async def handle_async(message: Any) -> None:
            if message.data:
                await until(failed.is_set)
                await asyncio.sleep(0.05)
            handle(message)

        await flavour.wait(pubsub.subscribe("c", handle_async if flavour.is_async else handle))
        await flavour.wait(pubsub.publish_many([("c", 1), ("c", 0)]))
        with pytest.raises(Panic):
            await flavour.wait(pubsub.run(concurrency=2))
        assert handled == [1]
        assert pubsub.errors == 1
        await flavour.wait(pubsub.publish("c", 2))
        await flavour.wait(pubsub.run(concurrency=2))
        assert handled == [1, 2]

    flavour.run(scenario)


def test_a_cancelled_run_leaves_no_task() -> None:
    """On asyncio the cancellation of `run` cancels the handlers, whose cleanup runs, and no task is left."""
    cleaned = list[int]()

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            pubsub, inside = backend.pubsub(), list[int]()

            async def handle(message: Any) -> None:
                inside.append(message.data)
                try:
                    await asyncio.sleep(60)
                finally:
                    await asyncio.sleep(0)
                    cleaned.append(message.data)

            await pubsub.subscribe("c", handle)
            before = asyncio.all_tasks()
            running = asyncio.create_task(pubsub.run(concurrency=5))
            await pubsub.publish_many([("c", 1), ("c", 2)])
            await until(lambda: len(inside) == 2)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await asyncio.sleep(0.01)
            assert asyncio.all_tasks() == before

    asyncio.run(main())
    assert sorted(cleaned) == [1, 2]


def test_a_cancelled_loop_ends_run() -> None:
    """Other code that cancels the task of a handler ends `run` with an error, and not silently."""

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            pubsub = backend.pubsub()

            async def handle(_: Any) -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(1)

            await pubsub.subscribe("c", handle)
            await pubsub.publish("c", 1)
            with pytest.raises(ailf.AilfError, match="cancelled a task"):
                await asyncio.wait_for(pubsub.run(concurrency=3), 5)

    asyncio.run(main())


def test_ctrl_c_ends_run_at_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Ctrl-C in the main thread's handler ends `run`, although another handler never ends; the log says so."""
    monkeypatch.setattr(concurrent, "_CANCELLED_WITHIN", 0.1)
    both, never = threading.Barrier(2), threading.Event()

    def handle(_: Any) -> None:
        both.wait(5)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        never.wait(30)

    with MemoryBackend() as backend:
        pubsub = backend.pubsub()
        pubsub.subscribe("c", handle)
        pubsub.publish_many([("c", 1), ("c", 2)])
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            pubsub.run(concurrency=2)
        assert time.monotonic() < begin + 5
    assert "still runs" in caplog.text
    never.set()
    soon(lambda: threads() == [])


def test_a_closed_backend_ends_run(flavour: Flavour, caplog: pytest.LogCaptureFixture) -> None:
    """Closing the backend ends `run` with ClosedError, once for all handlers."""

    async def scenario(backend: Any) -> None:
        pubsub = backend.pubsub()
        await flavour.wait(pubsub.subscribe("c", print))
        if flavour.is_async:
            asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(backend.aclose()))
        else:
            threading.Timer(0.05, backend.close).start()
        with pytest.raises(ailf.ClosedError):
            await flavour.wait(pubsub.run(concurrency=8))

    flavour.run(scenario)
    gc.collect()
    assert "has failed, too" not in caplog.text


@pytest.mark.parametrize("on_asyncio", [False, True])
def test_a_subscriber_of_an_app(on_asyncio: bool) -> None:
    """`@app.subscriber(concurrency=…)` handles that many messages at once, and drains when the app ends."""
    app, inside, handled = ailf.App(), list[int](), list[int]()

    def handle(message: Any) -> None:
        inside.append(message.data)
        soon(lambda: len(inside) == 2)
        time.sleep(0.05)
        handled.append(message.data)

    async def handle_async(message: Any) -> None:
        inside.append(message.data)
        await until(lambda: len(inside) == 2)
        await asyncio.sleep(0.05)
        handled.append(message.data)

    app.subscriber("c", concurrency=2)(handle_async if on_asyncio else handle)

    async def main() -> None:
        async with AsyncMemoryBackend() as backend, app.running(backend):
            await backend.pubsub().publish_many([("c", 1), ("c", 2)])
            await until(lambda: len(inside) == 2)

    if on_asyncio:
        asyncio.run(main())
    else:
        with MemoryBackend() as backend, app.running(backend):
            backend.pubsub().publish_many([("c", 1), ("c", 2)])
            soon(lambda: len(inside) == 2)
    assert sorted(handled) == [1, 2]
    with pytest.raises(ailf.InvalidArgumentError, match="concurrency"):
        app.subscriber("d", concurrency=0)
