"""`process(batch=n)`: what a batch costs, and how it ends: by its timeout, lost leases, interruptions and errors."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import ailf
from ailf import Backoff
from ailf.driver import Outcome
from ailf.errors import ConnectionLostError
from ailf.stream.batch_worker import BatchWorker
from ailf.tracing import carried
from ailf_memory import AsyncMemoryBackend, MemoryBackend
from ailf_memory.stream import MemoryStreamDriver

AT_ONCE = Backoff(initial=0.0, jitter=0.0)


def seen(deliveries: list[Any]) -> list[tuple[Any, int]]:
    """Return the data and attempts of deliveries."""
    return sorted((each.data, each.attempt) for each in deliveries)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, in a task."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a store has no event to wait for
            await asyncio.sleep(0.002)


class Requests:
    """Counts the requests of a stream's driver that fetch and settle; may let those that settle fail.

    Attributes:
        fetched: The `count` of each fetch.
        settled: The size of each request that settles.
        failure: Raised by requests that settle, if not None.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fetched: list[int] = []
        self.settled: list[int] = []
        self.failure: Exception | None = None
        fetch, settle = MemoryStreamDriver.fetch, MemoryStreamDriver.settle

        async def fetching(driver: MemoryStreamDriver, *args: Any, **options: Any) -> Any:
            self.fetched.append(options["count"])
            return await fetch(driver, *args, **options)

        async def settling(driver: MemoryStreamDriver, *args: Any, **options: Any) -> list[Outcome]:
            self.settled.append(len(args[2]))
            if self.failure is not None:
                raise self.failure
            return await settle(driver, *args, **options)

        monkeypatch.setattr(MemoryStreamDriver, "fetch", fetching)
        monkeypatch.setattr(MemoryStreamDriver, "settle", settling)


# --- cost --------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_fetch_and_one_ack(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred messages take one fetch, one call of the handler and one request that acks."""
    requests = Requests(monkeypatch)
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        stream.add_many(range(100))
        group = stream.group("g")

        def handler(deliveries: list[ailf.Delivery[int]]) -> None:
            assert len(deliveries) == 100
            group.stop()

        group.process(handler, batch=100)
    assert requests.fetched == [100]
    assert requests.settled == [100]


def test_a_large_batch_is_settled_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request settles more than a hundred messages."""
    requests = Requests(monkeypatch)
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        stream.add_many(range(250))
        group = stream.group("g")
        group.process(lambda _: group.stop(), batch=250)
        assert group.info().pending == 0
    assert requests.settled == [100, 100, 50]


def test_a_fetch_takes_no_more_than_a_lingering_batch_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a batch lingers it asks for what it lacks, so that it takes no message from other workers."""
    requests = Requests(monkeypatch)

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g")
            await stream.add_many(range(3))
            working = asyncio.create_task(group.process(lambda _: group.stop(), batch=5, linger=5))
            await until(lambda: len(requests.fetched) >= 2)
            await stream.add_many(range(10))
            await working
            assert (await group.info()).lag == 8
        assert max(requests.fetched[1:]) == 2

    asyncio.run(scenario())


def test_an_outage_ends_no_batch_that_has_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """`get_many` returns the messages of its buffer when the fetch of further ones fails."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        stream.add_many(range(3))
        with stream.group("g").consumer(prefetch=3) as consumer:
            assert consumer.get(1) is not None

            async def fail(*_: Any, **__: Any) -> None:
                raise ConnectionLostError("away")

            monkeypatch.setattr(MemoryStreamDriver, "fetch", fail)
            assert [each.data for each in consumer.get_many(5)] == [1, 2]


def test_an_outage_ends_the_linger_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that lingers while the backend goes away is handled when `linger` has passed."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        stream.add_many(range(3))
        group = stream.group("g")
        fetch, fetched = MemoryStreamDriver.fetch, []
        batches: list[list[tuple[int, int]]] = []

        async def fail_later(driver: MemoryStreamDriver, *args: Any, **options: Any) -> Any:
            fetched.append(1)
            if len(fetched) > 1:
                raise ConnectionLostError("away")
            return await fetch(driver, *args, **options)

        def handler(deliveries: list[ailf.Delivery[int]]) -> None:
            batches.append(seen(deliveries))
            group.stop()

        monkeypatch.setattr(MemoryStreamDriver, "fetch", fail_later)
        group.process(handler, batch=5, linger=0.3)
    assert batches == [[(0, 1), (1, 1), (2, 1)]]
    assert len(fetched) > 1


@pytest.mark.parametrize("linger", [0.0, 60.0])
def test_a_cancelled_batch_is_the_next_callers(monkeypatch: pytest.MonkeyPatch, linger: float) -> None:
    """S6: messages that `get_many` or a lingering batch has in hand when it is cancelled are delivered in order."""
    fetch = MemoryStreamDriver.fetch

    async def fetch_slowly(driver: MemoryStreamDriver, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(0.05)
        return await fetch(driver, *args, **options)

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            await stream.add_many(range(3))
            async with stream.group("g").consumer(prefetch=3) as consumer:
                assert await consumer.get() is not None
                monkeypatch.setattr(MemoryStreamDriver, "fetch", fetch_slowly)
                taking = asyncio.create_task(consumer._flow.next_many(5, None, linger))
                await asyncio.sleep(0.02)
                assert not consumer._flow._buffer
                taking.cancel()
                assert seen(await consumer.get_many(5)) == [(1, 1), (2, 1)]

    asyncio.run(scenario())


# --- ends of a handler -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entered", [False, True])
def test_a_batch_that_takes_too_long_fails(caplog: pytest.LogCaptureFixture, entered: bool) -> None:
    """On asyncio the handler is cancelled, and each message that it has not settled fails, also one that it entered."""

    async def scenario() -> list[tuple[str, str]]:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", max_deliveries=1)
            await stream.add_many(["done", "first", "second"])

            async def handler(deliveries: list[ailf.AsyncDelivery[str]]) -> None:
                await deliveries[0].ack()
                group.stop()
                if entered:
                    async with deliveries[1]:
                        await asyncio.sleep(60)
                await asyncio.sleep(60)

            await group.process(handler, batch=3, timeout=0.05)
            return [(each.body.decode(), each.error) for each in await group.dead_letters.list()]

    error = "TimeoutError: the handler took longer than its timeout of 0.05 s"
    assert asyncio.run(scenario()) == [('"first"', error), ('"second"', error)]
    lines = [each for each in caplog.messages if each.startswith("a batch of 3 ")]
    assert len(lines) == 1
    assert lines[0].endswith(f"{error}; dead letters: {1 if entered else 2}")


def test_a_batch_that_takes_too_long_in_a_thread_gives_up_its_leases(caplog: pytest.LogCaptureFixture) -> None:
    """A thread can't be cancelled: after the timeout all of its messages are lost, in one line of the log."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        stream.add_many(range(3))
        group = stream.group("g")
        lost: list[bool] = []

        def handler(deliveries: list[ailf.Delivery[int]]) -> None:
            time.sleep(0.4)
            lost.extend(each.lost for each in deliveries)
            group.stop()

        group.process(handler, batch=3, timeout=0.1)
        assert lost == [True] * 3
    (renewal,) = [each.message for each in caplog.records if each.name == "ailf.renewal"]
    assert "the leases on" in renewal
    assert renewal.endswith(": lost: its handler's timeout is over")
    assert caplog.messages[-1].endswith("of group 'g' of stream 's': lease lost: 3")


@pytest.mark.parametrize("on_lost", ailf.OnLost)
def test_a_batch_is_cancelled_when_all_of_its_leases_are_lost(on_lost: ailf.OnLost) -> None:
    """S18: one lost message cancels no handler; it is cancelled when all are lost that it has not settled."""

    async def scenario() -> list[str]:
        events: list[str] = []
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", on_event=lambda event: events.append(type(event).__name__))
            await stream.add_many(range(3))

            async def handler(deliveries: list[ailf.AsyncDelivery[int]]) -> None:
                await deliveries[1].ack()
                deliveries[0]._state.lease.take()
                await asyncio.sleep(0.05)
                events.append("one is lost")
                group.stop()
                deliveries[2]._state.lease.take()
                await asyncio.sleep(0.05)
                events.append("went on")

            await group.process(handler, batch=3, on_lost=on_lost)
        return events

    cancelled = on_lost is ailf.OnLost.CANCEL
    assert asyncio.run(scenario()) == ["one is lost", *([] if cancelled else ["went on"]), "LeaseLost", "LeaseLost"]


def test_an_interrupted_batch_is_released() -> None:
    """Ctrl-C in a handler ends `process` and releases what the handler has not settled."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        group = stream.group("g")
        stream.add_many(range(3))

        def handler(deliveries: list[ailf.Delivery[int]]) -> None:
            deliveries[0].ack()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            group.process(handler, batch=3)
        with group.consumer() as consumer:
            assert seen(consumer.get_many(3, 0)) == [(1, 1), (2, 1)]


def test_a_panic_fails_the_batch_and_ends_process() -> None:
    """An error that is no `Exception` counts against each message, and ends `process` after they are settled."""

    class PanicError(BaseException):
        pass

    def panic(_: object) -> None:
        raise PanicError

    with MemoryBackend() as backend:
        stream = backend.stream("s")
        group = stream.group("g", backoff=AT_ONCE)
        stream.add_many(range(2))
        with pytest.raises(PanicError):
            group.process(panic, batch=2)
        with group.consumer() as consumer:
            assert seen(consumer.get_many(2, 0)) == [(0, 2), (1, 2)]


def test_cancelling_process_releases_the_batch() -> None:
    """The messages of a running batch are available at once, and their delivery doesn't count."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", lease=60, takeover=60)
            await stream.add_many(range(3))
            started = asyncio.Event()

            async def handler(_: Any) -> None:
                started.set()
                await asyncio.sleep(60)

            task = asyncio.create_task(group.process(handler, batch=3))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with group.consumer() as consumer:
                assert seen(await consumer.get_many(3, 0)) == [(0, 1), (1, 1), (2, 1)]

    asyncio.run(scenario())


def test_a_cancellation_of_its_own_fails_the_batch() -> None:
    """A `CancelledError` that a handler raises by itself is an error like any other."""

    async def scenario() -> list[str]:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", max_deliveries=1)
            await stream.add_many(range(2))

            async def handler(_: Any) -> None:
                group.stop()
                raise asyncio.CancelledError("its own")

            await group.process(handler, batch=2)
            return [each.error for each in await group.dead_letters.list()]

    assert asyncio.run(scenario()) == ["CancelledError: its own"] * 2


class Odd(Backoff):
    """A backoff of the user's that fails for one attempt."""

    def delay(self, attempt: int, chance: Any = None) -> float:
        """Return no delay, or raise."""
        if attempt == 2:
            raise ZeroDivisionError
        return 0.0


def test_a_backoff_that_fails_affects_its_own_message(caplog: pytest.LogCaptureFixture) -> None:
    """One message of a batch whose delay can't be computed leaves the others unharmed; the log counts both."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        group = stream.group("g", backoff=Odd(), lease=0.3)
        stream.add("older")
        with group.consumer() as consumer:
            consumer.get_many(1, 1)[0].nack(0)
        stream.add("newer")
        batches: list[list[tuple[str, int]]] = []

        def handler(deliveries: list[ailf.Delivery[str]]) -> bool:
            batches.append(seen(deliveries))
            if sum(map(len, batches)) == 4:
                group.stop()
            return len(batches) > 1

        group.process(handler, batch=2)
    assert batches[0] == [("newer", 1), ("older", 2)]
    assert sorted(batches[1] + batches[2]) == [("newer", 2), ("older", 3)]
    text = "the handler returned False; delivered again: 1, not settled (nack failed: ZeroDivisionError"
    assert any(text in each for each in caplog.messages)


def test_a_failed_ack_of_a_batch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The worker goes on after an ack that failed; the leases end, because they are no longer renewed."""
    requests = Requests(monkeypatch)
    with MemoryBackend() as backend:
        backend.engine.retry_for = 0.0
        stream = backend.stream("s")
        group = stream.group("g", lease=0.2)
        stream.add_many(range(2))
        batches: list[list[tuple[int, int]]] = []

        def handler(deliveries: list[ailf.Delivery[int]]) -> None:
            batches.append(seen(deliveries))
            requests.failure = ConnectionLostError("away") if len(batches) == 1 else None
            if len(batches) == 2:
                group.stop()

        group.process(handler, batch=2)
        assert group.info().pending == 0
    assert batches == [[(0, 1), (1, 1)], [(0, 2), (1, 2)]]
    (line,) = [each for each in caplog.messages if "not settled (ack failed" in each]
    assert line.startswith("a batch of 2 ")
    assert line.endswith(": 2")


# --- beside it ---------------------------------------------------------------------------------------------------


def test_a_batch_belongs_to_no_trace() -> None:
    """What a batch handler sends joins no trace, except within the context of one delivery."""
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        stream.add("traced", headers=trace)
        group = stream.group("g")
        carried_then: list[dict[str, str]] = []

        def handler(deliveries: list[ailf.Delivery[str]]) -> None:
            carried_then.append(dict(carried()))
            with deliveries[0]:
                carried_then.append(dict(carried()))
            group.stop()

        group.process(handler, batch=2)
    assert carried_then == [{}, trace]


def test_a_message_whose_earlier_attempt_still_runs_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A message that comes back while a batch with it still runs here is in no second batch before that has ended."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        group = stream.group("g", lease=0.5, takeover=0.2)
        stream.add("slow")
        go_on = threading.Event()
        batches: list[list[tuple[str, int]]] = []

        def handler(deliveries: list[ailf.Delivery[str]]) -> None:
            batches.append(seen(deliveries))
            if len(batches) == 1:
                go_on.wait(5)
            elif deliveries[0].attempt > 1:
                group.stop()

        options: dict[str, Any] = {"batch": 2, "timeout": 0.1, "concurrency": 2}
        worker = threading.Thread(target=group.process, args=(handler,), kwargs=options)
        worker.start()
        deadline = time.monotonic() + 5
        while "an earlier attempt still runs here" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        go_on.set()
        worker.join(10)
        assert not worker.is_alive()
    assert "an earlier attempt still runs here" in caplog.text
    assert batches == [[("slow", 1)], [("slow", 2)]]


def test_the_tally_counts_messages(caplog: pytest.LogCaptureFixture) -> None:
    """The last line of a worker's log counts messages, not batches."""
    caplog.set_level("INFO", "ailf.worker")
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        group = stream.group("g", max_deliveries=1)
        stream.add_many(range(5))

        def handler(deliveries: list[ailf.Delivery[int]]) -> bool:
            deliveries[0].ack()
            group.stop()
            return False

        group.process(handler, batch=5)
    assert caplog.messages[-1].endswith("has stopped: 5 handled, 4 failed, 4 dead letters")


def test_linger_without_batch_is_refused() -> None:
    """The error says that `linger` is for batches."""
    with MemoryBackend() as backend, pytest.raises(ailf.InvalidArgumentError, match="give batch="):
        backend.stream("s").group("g").process(print, linger=1.0)  # type: ignore[call-overload]


def test_a_batch_has_a_worker_of_its_own() -> None:
    """The classes differ in what they take and how they settle; a single message takes no step of a batch."""
    assert {each for each in vars(BatchWorker) if not each.startswith("__")} == {
        "_failed", "_handle_batch", "_release", "_settle_all", "_settle_batch", "_settle_page", "_show", "_steps",
        "_take",
    }  # fmt: skip
