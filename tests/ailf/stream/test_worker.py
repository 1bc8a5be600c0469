"""`process` settles each message by how its handler ended, and loses none, however it ends itself."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

import ailf
from ailf import Backoff, Reject, Retry
from ailf.driver import Action, Receipt
from ailf.stream.delivery import choose_action
from ailf.testing import ManualClock
from ailf_memory import AsyncMemoryBackend, MemoryBackend, MemoryStore

AT_ONCE = Backoff(initial=0.0, jitter=0.0)
Handler = Callable[[Any], Any]


# --- how a message is settled ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "error", "action", "text"),
    [
        (None, None, Action.ACK, ""),
        (True, None, Action.ACK, ""),
        (0, None, Action.ACK, ""),
        ("", None, Action.ACK, ""),
        (False, None, Action.NACK, "the handler returned False"),
        (None, ValueError("no"), Action.NACK, "ValueError: no"),
        (None, Reject("no such customer"), Action.REJECT, "no such customer"),
        (None, ailf.ClosedError("x"), Action.NACK, "ClosedError: x"),
        (None, Retry("busy", delay=7), Action.NACK, "busy"),
    ],
)
def test_how_a_message_is_settled(result: object, error: Exception | None, action: Action, text: str) -> None:
    """Only False and errors fail a message, and only `Reject` makes a dead letter at once."""
    assert choose_action(result, error) == (action, text, getattr(error, "delay", None))


def _raise(error: BaseException) -> Handler:
    def handler(_: Any) -> None:
        raise error

    return handler


@pytest.mark.parametrize(
    ("handler", "letters"),
    [
        (lambda _: None, []),
        (lambda _: False, [("max_deliveries", "the handler returned False", 2)]),
        (_raise(KeyError("x")), [("max_deliveries", "KeyError: 'x'", 2)]),
        (_raise(Reject("why")), [("rejected", "why", 1)]),
        (lambda delivery: delivery.reject("own"), [("rejected", "own", 1)]),
        (lambda delivery: (delivery.ack(), False)[1], []),
    ],
    ids=["returns", "returns False", "raises", "rejects", "settles", "acks and returns False"],
)
def test_a_message_ends_as_its_handler_did(handler: Handler, letters: list[tuple[str, str, int]]) -> None:
    """A message is acked, retried up to its last delivery, or a dead letter with the reason (S15)."""
    with MemoryBackend() as backend:
        stream = backend.stream("tasks")
        group = stream.group("g", max_deliveries=2, backoff=AT_ONCE)
        stream.add("a task")
        worker = threading.Thread(target=group.process, args=(handler,))
        worker.start()
        assert soon(lambda: all_settled(backend.store))
        group.stop()
        worker.join(5)
        assert not worker.is_alive()
        listed = [(each.reason, each.error, each.attempts) for each in group.dead_letters.list()]
    assert listed == letters


def all_settled(store: MemoryStore) -> bool:
    """Tell whether the group has fetched every message and has none pending."""
    with store.lock:
        state = store.streams["tasks"]
        group = state.groups.get("g")
        return group is not None and group.position == state.keys[-1] and not group.pending


def soon(condition: Callable[[], object], timeout: float = 5.0) -> bool:
    """Wait for a condition for `timeout` seconds; return whether it came true."""
    until = time.monotonic() + timeout
    while not condition() and time.monotonic() < until:
        time.sleep(0.002)
    return bool(condition())


def test_a_failed_message_waits_for_its_backoff() -> None:
    """The next delivery comes when the delay is over on the backend's clock, and counts one more attempt."""
    clock = ManualClock()
    with MemoryBackend(clock) as backend:
        stream = backend.stream("tasks")
        group = stream.group("g", backoff=Backoff(initial=50.0, jitter=0.0), lease=1000)
        stream.add("a task")
        attempts: list[int] = []

        def handler(delivery: ailf.Delivery[str]) -> bool:
            attempts.append(delivery.attempt)
            if delivery.attempt == 2:
                group.stop()
            return delivery.attempt == 2

        worker = threading.Thread(target=group.process, args=(handler,))
        worker.start()
        assert soon(lambda: attempts == [1])
        time.sleep(0.05)
        assert attempts == [1]
        assert soon(lambda: backend.store.streams["tasks"].groups["g"].next_due()[0] == clock.now_ms() + 50_000)  # type: ignore[index]
        clock.advance(50)
        worker.join(5)
        assert attempts == [1, 2]


# --- handlers that take long -------------------------------------------------------------------------------------


def test_a_handler_that_blocks_its_event_loop_keeps_its_message() -> None:
    """A handler blocks for three lease times and no other consumer gets its message: a thread renews the lease."""
    store, lease = MemoryStore(), 0.3
    taken: list[Any] = []
    started = threading.Event()

    async def work() -> list[int]:
        async with AsyncMemoryBackend(store=store) as backend:
            group = backend.stream("tasks").group("g", lease=lease)
            await backend.stream("tasks").add("a task")
            attempts = []

            def handler(delivery: ailf.AsyncDelivery[str]) -> None:
                started.set()
                time.sleep(3 * lease)
                attempts.append(delivery.attempt)
                assert not delivery.lost
                group.stop()

            await group.process(handler)
            return attempts

    def steal() -> None:
        started.wait(5)
        with MemoryBackend(store=store) as other, other.stream("tasks").group("g", lease=lease).consumer() as thief:
            taken.append(thief.get(2.5 * lease))

    thief = threading.Thread(target=steal)
    thief.start()
    assert asyncio.run(work()) == [1]
    thief.join(5)
    assert taken == [None]
    assert all_settled(store)


def test_concurrency_handlers_run_at_once() -> None:
    """`concurrency` handlers run at once, and never more (S15)."""
    with MemoryBackend() as backend:
        stream = backend.stream("tasks")
        group = stream.group("g")
        stream.add_many(range(12))
        lock, running, most, done = threading.Lock(), 0, 0, 0

        def handler(_: Any) -> None:
            nonlocal running, most, done
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.02)
            with lock:
                running -= 1
                done += 1
                if done == 12:
                    group.stop()

        group.process(handler, concurrency=3)
        assert (most, done) == (3, 12)


class Slow(AsyncMemoryBackend):
    """A backend that settles only when allowed to.

    Attributes:
        allowed: Set to let it settle.
        sizes: The number of deliveries of each settle request.
    """

    def __init__(self) -> None:
        super().__init__()
        self.engine.in_loop = False
        self.allowed = asyncio.Event()
        self.sizes: list[int] = []
        real = self.engine.driver.stream

        def stream() -> Any:
            driver = real()
            settle = driver.settle

            async def late(stream: str, group: str, settlements: Any, **options: Any) -> Any:
                self.sizes.append(len(settlements))
                await self.allowed.wait()
                return await settle(stream, group, settlements, **options)

            driver.settle = late  # type: ignore[method-assign]
            return driver

        self.engine.driver.stream = stream  # type: ignore[method-assign]


@pytest.mark.parametrize(("concurrency", "begun"), [(1, 1), (4, 7), (50, 20)])
def test_acks_are_not_waited_for_where_there_is_room(concurrency: int, begun: int) -> None:
    """With `concurrency` acks under way each loop runs one more handler; few requests ack all messages."""

    async def scenario() -> None:
        async with Slow() as backend:
            stream = backend.stream("tasks")
            group = stream.group("g")
            await stream.add_many(range(20))
            handled: list[int] = []
            working = asyncio.create_task(
                group.process(lambda delivery: handled.append(delivery.data), concurrency=concurrency, prefetch=20)
            )
            await asyncio.sleep(0.05)
            so_far = list(handled)
            backend.allowed.set()
            assert so_far == list(range(begun))
            await until(lambda: all_settled(backend.store))
            group.stop()
            await working
            assert handled == list(range(20))
            assert sum(backend.sizes) == 20
            assert len(backend.sizes) <= -(-20 // concurrency) + 1

    asyncio.run(scenario())


def test_process_ends_when_its_acks_are_answered() -> None:
    """Handled messages are settled when `process` has returned, also when it was cancelled."""

    async def scenario(*, cancel: bool) -> None:
        async with Slow() as backend:
            stream = backend.stream("tasks")
            group = stream.group("g")
            await stream.add_many(range(3))
            working = asyncio.create_task(group.process(lambda _: None, concurrency=5))
            await until(lambda: backend.sizes)
            working.cancel() if cancel else group.stop()
            await asyncio.sleep(0.05)
            assert not working.done()
            backend.allowed.set()
            await asyncio.wait([working])
            assert all_settled(backend.store)

    asyncio.run(scenario(cancel=False))
    asyncio.run(scenario(cancel=True))


def test_a_failed_ack_is_logged_and_the_message_comes_again(caplog: pytest.LogCaptureFixture) -> None:
    """The worker goes on; the message's lease ends, because it is no longer renewed."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("tasks")
            group = stream.group("g", lease=0.2)
            await stream.add_many(["first", "second"])
            attempts: list[tuple[str, int]] = []

            def handler(delivery: ailf.AsyncDelivery[str]) -> None:
                attempts.append((delivery.data, delivery.attempt))
                if delivery.data == "first" and delivery.attempt == 1:
                    state = delivery._state
                    state.claim = replace(state.claim, receipt=Receipt("9-9", "nobody", 0))

            working = asyncio.create_task(group.process(handler, concurrency=2))
            await until(lambda: len(attempts) == 3)
            group.stop()
            await working
            assert attempts == [("first", 1), ("second", 1), ("first", 2)]
            assert all_settled(backend.store)

    asyncio.run(scenario())
    assert "ack failed: cannot ack delivery" in caplog.text


def test_a_lost_message_is_not_acked(caplog: pytest.LogCaptureFixture) -> None:
    """A delivery that its handler has seen as lost isn't acked, even if the backend would still do it (S4)."""

    async def scenario() -> None:
        async with Slow() as backend:
            stream = backend.stream("tasks")
            group = stream.group("g")
            await stream.add("a task")

            def handler(delivery: ailf.AsyncDelivery[str]) -> None:
                delivery._state.lease.revoked = True
                assert delivery.lost
                group.stop()

            await group.process(handler)
            assert backend.sizes == []

    asyncio.run(scenario())
    assert "its lease has ended" in caplog.text


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, in a task."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a store has no event to wait for
            await asyncio.sleep(0.002)


# --- ends --------------------------------------------------------------------------------------------------------


def test_cancelling_process_gives_messages_back() -> None:
    """Messages in a handler or in the buffer are available at once, and their delivery doesn't count."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("tasks")
            group = stream.group("g")
            await stream.add_many(["a", "b", "c"])
            started = asyncio.Event()

            async def handler(_: Any) -> None:
                started.set()
                await asyncio.sleep(60)

            task = asyncio.create_task(group.process(handler, prefetch=3))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with group.consumer(prefetch=3) as consumer:
                got = [await consumer.get(0) for _ in range(3)]
                assert sorted((each.data, each.attempt) for each in got if each) == [("a", 1), ("b", 1), ("c", 1)]

    asyncio.run(scenario())


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_handler_releases_its_message(error: type[BaseException], concurrency: int) -> None:
    """Ctrl-C in a handler ends `process` with `KeyboardInterrupt` and releases the message.

    So does `sys.exit` in the main thread; in another thread it is an error of the handler.
    """
    with MemoryBackend() as backend:
        stream = backend.stream("tasks")
        group = stream.group("g", backoff=AT_ONCE)
        stream.add("a task")
        threads: list[threading.Thread] = []

        def handler(_: Any) -> None:
            threads.append(threading.current_thread())
            raise error

        with pytest.raises(error):
            group.process(handler, concurrency=concurrency)
        counts = error is SystemExit and threads[-1] is not threading.main_thread()
        with group.consumer() as consumer:
            delivery = consumer.get(0)
            assert delivery is not None
            assert delivery.attempt == len(threads) + counts


def test_an_interrupted_asyncio_handler_releases_its_message() -> None:
    """On asyncio too `process` raises the interruption in its caller's task."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("tasks")
            group = stream.group("g")
            await stream.add("a task")
            with pytest.raises(KeyboardInterrupt):
                await group.process(_raise(KeyboardInterrupt()))
            async with group.consumer() as consumer:
                delivery = await consumer.get(0)
                assert delivery is not None
                assert delivery.attempt == 1

    asyncio.run(scenario())


def test_stopping_lets_the_running_handler_finish_and_hands_back_the_rest() -> None:
    """A handler that stops its worker has its message acked; messages not begun are available at once (S14)."""
    with MemoryBackend() as backend:
        stream = backend.stream("tasks")
        group = stream.group("g")
        stream.add_many(["a", "b", "c"])
        handled = []

        def handler(delivery: ailf.Delivery[str]) -> None:
            group.stop()
            handled.append(delivery.data)

        group.process(handler, prefetch=3)
        assert handled == ["a"]
        with group.consumer(prefetch=3) as consumer:
            got = [consumer.get(0) for _ in range(3)]
        assert [(each.data, each.attempt) for each in got if each] == [("b", 1), ("c", 1)]


def test_a_handler_that_outlasts_the_drain_keeps_its_message() -> None:
    """A stopped worker doesn't release a message whose handler still runs: two handlers would work on it at once."""
    with MemoryBackend() as backend:
        stream = backend.stream("tasks")
        group = stream.group("g")
        stream.add_many([1, 2])
        started, finish = threading.Event(), threading.Event()
        behind: list[threading.Thread] = []

        def handler(_: ailf.Delivery[int]) -> None:
            if threading.current_thread() is threading.main_thread():
                started.wait(5)
                group.stop()
            else:
                behind.append(threading.current_thread())
                started.set()
                finish.wait(5)

        group.process(handler, concurrency=2, drain=0.05)
        with group.consumer() as consumer:
            assert consumer.get(0) is None
        finish.set()
        behind[0].join(5)


def test_a_dropped_consumer_loses_its_leases() -> None:
    """The leases of a consumer that is dropped without `close` end by themselves."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        stream.add(1)
        group = stream.group("g", lease=0.3)
        dropped = group.consumer()
        assert dropped.get(timeout=1) is not None
        del dropped
        gc.collect()
        with group.consumer() as other:
            delivery = other.get(timeout=5)
            assert delivery is not None
            assert delivery.attempt == 2
