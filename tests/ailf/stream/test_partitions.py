"""The parts of a partitioned stream: hash, ids, what is asked of which partition, errors, waiters of their own."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import ailf
from ailf.driver import Action, Claim, Fetched, Outcome, Receipt, Record, Settlement, Waiter
from ailf.errors import BackendTimeoutError, InvalidArgumentError, OutcomeUnknownError
from ailf.runtime import AsyncioRuntime, ThreadRuntime, run
from ailf.stream.partitions import partition_of_key
from ailf.stream.partitions.driver import PartitionedDriver, Partitions
from ailf.stream.partitions.group import GroupPartitions
from ailf.stream.partitions.ids import join_id, position_in, split_id
from ailf.stream.partitions.waiter import SeparateWaiters
from ailf_memory import AsyncMemoryBackend, MemoryBackend
from ailf_memory.stream import MemoryStreamDriver

VECTORS = {
    "": 0,
    "a": 3904355907,
    "order-1": 3769860079,
    "customer-7": 42760520,
    "größe": 1540598153,
    "日本": 3350711756,
}
"""Keys and their CRC-32; `zlib.crc32` in Python and Java, `crc32` in PHP, `crc32.ChecksumIEEE` in Go."""


@pytest.mark.parametrize("key", VECTORS)
def test_the_hash_of_keys(key: str) -> None:
    """The partition of a key is the documented one, whatever the number of partitions."""
    for partitions in (1, 2, 16, 100, 256):
        assert partition_of_key(key, partitions) == VECTORS[key] % partitions


def test_keys_are_spread() -> None:
    """Keys as programs use them fall into all partitions about evenly."""
    for form in ("customer-{}", "{}", "a/{}/b", "{:08x}"):
        counts = Counter(partition_of_key(form.format(each), 16) for each in range(16_000))
        assert len(counts) == 16
        assert min(counts.values()) > 800
        assert max(counts.values()) < 1200


def test_ids() -> None:
    """An id is split into what it was joined from; anything else is refused by name."""
    for partition, inner in ((0, "1-0"), (15, "1700000000000-7"), (3, "a:b")):
        assert split_id(join_id(partition, inner), 16) == (partition, inner)
    for bad in ("16:1-0", "1-0", "-1:1-0", "007:1-0", "1:", ":", "", "x:1-0", " 1:1-0", "\uff11:1-0"):
        with pytest.raises(InvalidArgumentError) as raised:
            split_id(bad, 16)
        assert repr(bad) in str(raised.value)


def test_positions_in_partitions() -> None:
    """A position of the whole stream lies in each partition where its time and the partition's number say."""
    driver = MemoryBackend().engine.driver.stream()
    largest = 2**64 - 1
    assert [position_in(driver, each, "1:1000-7", 3) for each in range(3)] == [
        f"1000-{largest}", "1000-7", f"999-{largest}",
    ]  # fmt: skip
    assert [position_in(driver, each, ailf.LATEST, 3) for each in range(3)] == [ailf.LATEST] * 3


# --- which partitions are asked ------------------------------------------------------------------------------------


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def idle(next_due: float | None = None) -> Fetched:
    """Return the result of a fetch that found nothing."""
    return Fetched([], position=object(), next_due=next_due)


def rested(clock: Clock, number: int = 8) -> GroupPartitions:
    """Return a state after a fetch from each partition that found nothing."""
    state = GroupPartitions(number, clock)
    for each in state.to_fetch(30.0, 7.0):
        state.record(each, idle(), clock.now, 30.0, 7.0)
    assert not state.more()
    return state


def test_an_idle_group_asks_one_partition_at_a_time() -> None:
    """While nothing is known to be due, each interval asks one partition, each of them in turn."""
    clock = Clock()
    state = rested(clock)
    asked: list[int] = []
    for _ in range(16):
        clock.now += 2.5
        partitions = state.to_fetch(30.0, 7.0)
        assert len(partitions) == 1
        state.record(partitions[0], idle(), clock.now, 30.0, 7.0)
        asked += partitions
    assert Counter(asked) == dict.fromkeys(range(8), 2)


def test_a_busy_group_asks_each_partition_in_turn() -> None:
    """A partition that always has messages doesn't keep the others from being asked in turn."""
    clock = Clock()
    state = rested(clock)
    busy = Fetched([Claim(Record("1-0", b"", {}), Receipt("1-0", "c", 1), 1)])
    asked: set[int] = set()
    for _ in range(8):
        clock.now += 2.5
        state.record(0, busy, clock.now, 30.0, 7.0)
        first, *_ = state.to_fetch(30.0, 7.0)  # the others may not be reached
        asked.add(first)
    assert asked == set(range(8))


def test_partitions_with_leases_are_asked_at_each_interval() -> None:
    """A partition with a leased message is asked at each interval, one with a delayed message when that is due."""
    clock = Clock()
    state = rested(clock)
    state.record(3, idle(next_due=25.0), clock.now, 30.0, 7.0)
    state.record(5, idle(next_due=60.0), clock.now, 30.0, 7.0)
    assert state.next_due() == 2.5
    for step in range(24):
        clock.now += 2.5
        asked = set(state.to_fetch(30.0, 7.0))
        assert 3 in asked
        assert len(asked) <= 3
        left = 60.0 - 2.5 * (step + 1)
        assert left > 0 or 5 in asked
        for each in asked:
            due = {3: 25.0, 5: left if left > 0 else None}.get(each)
            state.record(each, idle(due), clock.now, 30.0, 7.0)


def test_an_arrival_asks_its_own_partition() -> None:
    """After an arrival the partition is asked that it came to, unless a later fetch has seen it already."""
    clock = Clock()
    state = rested(clock)
    waited = tuple(state.positions)
    state.record(6, idle(), clock.now, 30.0, 7.0)
    state.came(waited, {2, 6})
    assert state.to_fetch(30.0, 7.0) == [2]
    assert state.more()
    assert sorted(state.all()) == list(range(8))
    assert state.all()[0] == 2


@pytest.mark.parametrize("probed", [True, False])
def test_partitions_of_a_silent_server_are_set_aside(*, probed: bool) -> None:
    """They are asked again when a wait shows that the server replies; without such waits, after a pause."""
    clock = Clock()
    state = rested(clock)
    state.probed = probed
    error = BackendTimeoutError("silent")
    state.set_aside({2, 5}, "behind", error, 5.0)
    assert (state.failure(), state.more()) == (error, False)
    assert state.positions[2] == state.positions[5] == "behind"
    asked = set(state.all())
    for _ in range(8):
        clock.now += 2.4
        asked.update(state.to_fetch(30.0, 7.0))
    assert asked == {0, 1, 3, 4, 6, 7}
    clock.now += 1.0
    assert set(state.all()) == set(range(8)), "a fetch without a wait asks after the pause"
    assert state.more() != probed
    if not probed:
        assert {2, 5} <= set(state.to_fetch(30.0, 7.0))
    state.came(tuple(state.positions), {2})
    assert 2 in state.to_fetch(30.0, 7.0)
    for each in (2, 5):
        state.record(each, idle(), clock.now, 30.0, 7.0)
    assert (state.failure(), state.more()) == (None, False)


def test_if_all_servers_are_silent_all_partitions_are_asked() -> None:
    """Then nothing is kept waiting by them, and a fetch tells when one replies."""
    clock = Clock()
    state = rested(clock)
    state.set_aside(range(8), "behind", BackendTimeoutError("silent"), 5.0)
    state.forget()
    assert state.positions == ["behind"] * 8
    assert set(state.all()) == set(range(8))
    assert state.to_fetch(30.0, 7.0)
    assert [state.raises(), state.raises()] == [True, False]


# --- errors --------------------------------------------------------------------------------------------------------


class FailingDriver(MemoryStreamDriver):
    """A driver whose calls fail in one partition.

    Attributes:
        fail: What to do before a call, given the method and the stream; it may raise.
    """

    fail: Any = staticmethod(lambda _method, _stream: None)

    async def fetch(self, stream: str, *args: Any, **options: Any) -> Fetched:
        """Fetch, or fail."""
        self.fail("fetch", stream)
        return await super().fetch(stream, *args, **options)

    async def settle(self, stream: str, *args: Any, **options: Any) -> list[Outcome]:
        """Settle, and lose the reply."""
        outcomes = await super().settle(stream, *args, **options)
        self.fail("settle", stream)
        return outcomes


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[FailingDriver]:
    """Let memory backends have failing drivers."""
    monkeypatch.setattr("ailf_memory.driver.MemoryStreamDriver", FailingDriver)
    return FailingDriver


def test_a_lost_reply_concerns_one_partition(failing: type[FailingDriver], monkeypatch: pytest.MonkeyPatch) -> None:
    """If the reply for one partition is lost, the deliveries of the others are settled for certain."""

    def lose_reply(method: str, stream: str) -> None:
        if method == "settle" and stream == "s/1":
            raise BackendTimeoutError("no reply", maybe_applied=True)

    with MemoryBackend() as backend:
        stream = backend.stream("s", partitions=3)
        for number in range(6):
            stream.add(number)
        flow = stream.group("g")._flow
        run(flow.open())
        receipts = [claim.receipt for _ in range(6) for claim in run(flow.fetch("c", 1)).claims]
        monkeypatch.setattr(failing, "fail", staticmethod(lose_reply))
        monkeypatch.setattr(backend.engine, "retry_for", 0.0)
        results = run(flow.settle_many([Settlement(each, Action.ACK) for each in receipts]))
        for receipt, result in zip(receipts, results, strict=True):
            if receipt.id.startswith("1:"):
                assert isinstance(result, BackendTimeoutError | OutcomeUnknownError)
            else:
                assert result is Outcome.DONE


def test_a_repetition_concerns_one_partition(failing: type[FailingDriver], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a lost reply only that partition's request is repeated: its outcome is unknown, the others' are not."""
    lost: list[str] = []

    def lose_reply(method: str, stream: str) -> None:
        if method == "settle" and stream == "s/1" and not lost:
            lost.append(stream)
            raise BackendTimeoutError("no reply", maybe_applied=True)

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s", partitions=3)
            for number in range(6):
                await stream.add(number)
            flow = stream.group("g")._flow
            await flow.open()
            receipts = [claim.receipt for _ in range(6) for claim in (await flow.fetch("c", 1)).claims]
            monkeypatch.setattr(failing, "fail", staticmethod(lose_reply))
            backend.engine.in_loop = False  # as over a network: the requests of all partitions are under way at once
            results = await flow.settle_many([Settlement(each, Action.ACK) for each in receipts])
            for receipt, result in zip(receipts, results, strict=True):
                if receipt.id.startswith("1:"):
                    assert isinstance(result, OutcomeUnknownError)
                else:
                    assert result is Outcome.DONE

    asyncio.run(main())
    assert lost


def test_a_failing_fetch_loses_nothing(failing: type[FailingDriver], monkeypatch: pytest.MonkeyPatch) -> None:
    """What one partition has given is returned before another is asked, so its failure costs no delivery."""
    with MemoryBackend() as backend:
        stream = backend.stream("s", partitions=4)
        for number in range(8):
            stream.add(number)
        with stream.group("g").consumer(prefetch=100) as consumer:
            broken: list[str] = []

            def fail(method: str, stream: str) -> None:
                if method == "fetch" and stream == "s/2" and len(broken) < 3:
                    broken.append(stream)
                    raise BackendTimeoutError("no reply", maybe_applied=True)

            monkeypatch.setattr(failing, "fail", staticmethod(fail))
            got = [consumer.get(timeout=5) for _ in range(8)]
            assert all(each is not None and each.attempt == 1 for each in got)
            assert broken


def test_a_failing_partition_hides_no_other(failing: type[FailingDriver], monkeypatch: pytest.MonkeyPatch) -> None:
    """While one partition fails, the messages of the others are delivered; then the error is raised."""

    def fail(method: str, stream: str) -> None:
        if method == "fetch" and stream == "s/2":
            raise BackendTimeoutError("no reply", maybe_applied=True)

    with MemoryBackend() as backend:
        monkeypatch.setattr(backend.engine, "retry_for", 0.3)
        stream = backend.stream("s", partitions=4)
        for number in range(16):
            stream.add(number)
        with stream.group("g").consumer() as consumer:
            monkeypatch.setattr(failing, "fail", staticmethod(fail))
            got = [consumer.get(timeout=5) for _ in range(12)]
            assert not any(each is None or each.id.startswith("2:") for each in got)
            with pytest.raises(BackendTimeoutError):
                consumer.get(timeout=5)
            monkeypatch.undo()
            rest = [consumer.get(timeout=5) for _ in range(4)]
            assert all(each is not None and each.id.startswith("2:") for each in rest)


def test_a_slow_fetch_stops_between_partitions() -> None:
    """A fetch that has taken a second asks no further partition; the next one goes on, and asks all of them."""
    asked: list[str] = []
    offset = 0.0

    class Slow(MemoryStreamDriver):
        async def fetch(self, stream: str, *args: Any, **options: Any) -> Fetched:
            nonlocal offset
            asked.append(stream)
            offset += 0.6
            return await super().fetch(stream, *args, **options)

    backend = MemoryBackend()
    runtime = backend.engine.runtime
    inner = Slow(backend.engine.driver.handle)  # type: ignore[attr-defined]  # the memory driver's
    driver = PartitionedDriver(inner, Partitions("s", 6, runtime.lease_now), runtime)
    run(driver.open_group("s", "g", ailf.EARLIEST))
    now = runtime.now
    runtime.now = lambda: now() + offset
    options: dict[str, Any] = {"count": 1, "lease": 30.0, "alive": 7.0, "max_deliveries": 5}
    fetched = run(driver.fetch("s", "g", "c", **options))
    assert (len(asked), fetched.position) == (2, None)
    while fetched.position is None:
        fetched = run(driver.fetch("s", "g", "c", **options))
    assert set(asked) == {f"s/{each}" for each in range(6)}
    backend.close()


# --- the time of a call --------------------------------------------------------------------------------------------


class SlowDriver(MemoryStreamDriver):
    """A driver for which requests that go together take three seconds, on the clock of the test.

    Attributes:
        late: Seconds that all of these took.
        asked: How many there were.
    """

    late = 0.0
    asked = 0

    async def together(self, requests: Sequence[Any]) -> list[Any]:
        """Take three seconds."""
        SlowDriver.late += 3.0
        SlowDriver.asked += len(requests)
        return await super().together(requests)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryBackend]:
    """A backend with such a driver."""
    monkeypatch.setattr("ailf_memory.driver.MemoryStreamDriver", SlowDriver)
    monkeypatch.setattr(SlowDriver, "late", 0.0)
    monkeypatch.setattr(SlowDriver, "asked", 0)
    with MemoryBackend() as backend:
        runtime = backend.engine.runtime
        now = runtime.now
        monkeypatch.setattr(runtime, "now", lambda: now() + SlowDriver.late)
        monkeypatch.setattr(backend.engine, "retry_for", 0.0)
        yield backend


def test_a_slow_first_use_goes_on(slow: MemoryBackend) -> None:
    """A first use over a slow network ends in time; the next call goes on, so that some call succeeds."""
    stream = slow.stream("s", partitions=256)
    for done in (2, 4, 6):
        before = SlowDriver.late
        with pytest.raises(
            BackendTimeoutError, match=rf"'s' with partitions=256.* {done} of 8 steps.*goes on"
        ) as raised:
            stream.add(1)
        assert SlowDriver.late - before <= slow.engine.driver.timeout + 3
        assert not raised.value.maybe_applied
        assert slow.engine.driver.handle.store.streams.get("s") is None  # type: ignore[attr-defined]  # the memory driver's
    stream.add(1)
    assert SlowDriver.asked == 2 * 256
    assert len(slow.stream("s", partitions=256).read(limit=1)) == 1


def test_what_concerns_all_partitions_ends_in_time(slow: MemoryBackend) -> None:
    """B10: if the first partitions have taken the time of the request, no other one is asked."""
    stream = slow.stream("s", partitions=64)
    stream.add(1)
    wide = PartitionedDriver(
        slow.engine.driver.stream(), Partitions("w", 256, slow.engine.runtime.lease_now), slow.engine.runtime, 5.0
    )
    with pytest.raises(BackendTimeoutError, match="only 128 of 256 partitions of stream 'w'") as raised:
        run(wide.info("w", "g"))
    assert raised.value.maybe_applied
    assert stream.group("g").info().length == 1


# --- a waiter for each partition -----------------------------------------------------------------------------------


STREAMS: Sequence[str] = ("a", "b", "c")


def threads() -> set[str]:
    """Return the names of the threads that wait for streams."""
    return {each.name for each in threading.enumerate() if each.name.startswith("ailf-wait-")}


class OneArrival(Waiter):
    """A driver's waiter for one stream, which something comes to when a test says so.

    Attributes:
        begun: How many waits have begun.
        arrival: Set when something comes.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.arrival = threading.Event()
        self.interrupted = threading.Event()

    async def wait(self, position: Any, timeout: float) -> bool:
        """Wait until something comes."""
        self.begun += 1
        until = time.monotonic() + timeout
        while not (self.arrival.is_set() or self.interrupted.is_set()) and time.monotonic() < until:
            time.sleep(0.005)  # noqa: ASYNC251 - on the thread runtime
        return self.arrival.is_set()

    def interrupt(self) -> None:
        """End the wait."""
        self.interrupted.set()

    async def close(self) -> None:
        """Do nothing."""


class Arrivals(MemoryStreamDriver):
    """A driver with such waiters."""

    def __init__(self) -> None:
        self.waiters = {each: OneArrival() for each in STREAMS}

    def waiter(self, stream: str, group: str | None) -> Any:
        """Return the waiter of a stream."""
        return self.waiters[stream]


def test_separate_waiters_on_threads() -> None:
    """An arrival is told of its own stream; the other waits go on, and no thread is left after `close`."""
    driver = Arrivals()
    waiters = SeparateWaiters(driver, ThreadRuntime(), STREAMS, "g")
    positions = (1, 2, 3)
    assert list(run(waiters.wait(positions, 0.05))) == []
    threading.Timer(0.05, driver.waiters["b"].arrival.set).start()
    assert list(run(waiters.wait(positions, 5.0))) == [1]
    driver.waiters["b"].arrival.clear()
    assert list(run(waiters.wait(positions, 0.05))) == []
    assert [each.begun for each in driver.waiters.values()] == [1, 2, 1]
    threading.Timer(0.05, waiters.interrupt).start()
    assert list(run(waiters.wait(positions, 5.0))) == []
    driver.waiters["a"].arrival.set()
    assert list(run(waiters.wait(positions, 5.0))) == [0]
    assert threads() == {"ailf-wait-b", "ailf-wait-c"}
    run(waiters.close())
    assert threads() == set()
    run(waiters.close())


def test_separate_waiters_end_when_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no caller has waited for a while, the waits end by themselves, and a later one begins anew."""
    monkeypatch.setattr("ailf.stream.partitions.waiter.SLICE", 0.05)

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            driver = backend.engine.driver.stream()
            before = asyncio.all_tasks()
            waiters = SeparateWaiters(driver, AsyncioRuntime(), STREAMS, None)
            positions = [await driver.last_id(each) for each in STREAMS]
            assert list(await waiters.wait(positions, 0.01)) == []
            assert len(asyncio.all_tasks() - before) == 3
            await asyncio.wait(asyncio.all_tasks() - before, timeout=5)
            assert asyncio.all_tasks() == before
            await backend.stream("a").add(1)
            assert 0 in await waiters.wait(positions, 1.0)
            await waiters.close()
            assert asyncio.all_tasks() == before

    asyncio.run(main())


def test_an_error_of_a_separate_waiter() -> None:
    """An error of one stream's wait is the caller's; the next wait begins anew."""

    class Failing(MemoryStreamDriver):
        def waiter(self, stream: str, group: str | None) -> Any:
            waiter = super().waiter(stream, group)
            if stream == "b":
                wait = waiter.wait

                async def fail_once(position: Any, timeout: float) -> bool:
                    waiter.wait = wait  # type: ignore[method-assign]
                    raise BackendTimeoutError("gone")

                waiter.wait = fail_once  # type: ignore[method-assign]
            return waiter

    with MemoryBackend() as backend:
        driver = Failing(backend.engine.driver.handle)  # type: ignore[attr-defined]  # the memory driver's
        waiters = SeparateWaiters(driver, ThreadRuntime(), STREAMS, None)
        positions = [run(driver.last_id(each)) for each in STREAMS]
        with pytest.raises(BackendTimeoutError):
            run(waiters.wait(positions, 5.0))
        backend.stream("b").add(1)
        assert 1 in run(waiters.wait(positions, 1.0))
        run(waiters.close())
        assert threads() == set()
