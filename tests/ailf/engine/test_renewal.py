"""Leases are renewed whatever else the process does, and marked lost in time when they can't be."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ailf import Concurrency
from ailf.driver import BackendDriver, Capability, Receipt
from ailf.engine.renewal import Renewer
from ailf.errors import ClosedError, ConnectionLostError
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime
from ailf.stream.lease import ALIVE, ConsumerLiveness, DeliveryLease
from ailf_memory import MemoryBackend

LEASE = 0.3


class FakeDriver(BackendDriver):
    """A backend that only extends leases and takes heartbeats, by a script.

    Attributes:
        requests: The time of each request, and its entries.
        answer: The script: it returns the reply to a request, or raises.
        heartbeats: The time of each request with heartbeats, and its consumers.
        thread_drivers: The drivers that were made for the renewal thread.
        threads: The names of the threads that made requests.
    """

    capabilities = frozenset({Capability.STREAM})

    def __init__(self, runtime: Runtime | None = None, of: "FakeDriver | None" = None) -> None:
        self.runtime = runtime or AsyncioRuntime()
        self.url = "fake://"
        self.max_payload = 1
        self.of = of or self
        self.closed = threading.Event()
        self.requests: list[tuple[float, list[str]]] = []
        self.heartbeats: list[tuple[float, list[str]]] = []
        self.threads: set[str] = set()
        self.thread_drivers: list[FakeDriver] = []
        self.answer: Callable[[FakeDriver, Sequence[Receipt]], list[bool]] = lambda _, receipts: [True] * len(receipts)

    async def ping(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Note that it was closed."""
        self.closed.set()

    def interrupt(self) -> None:
        """Wake a request that hangs."""
        self.closed.set()

    def with_runtime(self, runtime: Runtime) -> "FakeDriver":
        """Return a driver for the renewal thread."""
        self.thread_drivers.append(FakeDriver(runtime, self))
        return self.thread_drivers[-1]

    def stream(self) -> Any:
        """Return the driver that extends: this one."""
        return self

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        """Note the request, and answer by the script."""
        self.of.requests.append((time.monotonic(), [each.id for each in receipts]))
        self.of.threads.add(threading.current_thread().name)
        return self.of.answer(self, receipts)

    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        """Note the heartbeats, and answer by the same script."""
        self.of.heartbeats.append((time.monotonic(), list(consumers)))
        self.of.answer(self, [])


def liveness(name: str = "c", takeover: float = 600.0) -> ConsumerLiveness:
    """Return the liveness of a consumer that has just fetched."""
    made = ConsumerLiveness("s", "g", name, takeover)
    made.confirm(time.monotonic())
    return made


def lease_of(
    name: str = "1-0",
    *,
    lease: float = LEASE,
    longest: float = 60.0,
    since: float | None = None,
    of: ConsumerLiveness | None = None,
) -> DeliveryLease:
    """Return a lease from `since` (default: now) of the consumer `of` (default: one that lives long)."""
    began = time.monotonic() if since is None else since
    return DeliveryLease(of or liveness(), Receipt(name, "c", 1), lease=lease, since=began, longest=longest)


def soon(condition: Callable[[], object], within: float = 5.0) -> bool:
    """Wait for a condition; return whether it came true."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.005)
    return bool(condition())


others: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _threads_of_earlier_tests() -> None:
    others.clear()
    others.update(threading.enumerate())


def renewing() -> list[threading.Thread]:
    """Return the renewal threads of this test."""
    return [each for each in threading.enumerate() if each.name == "ailf-renewal" and each not in others]


def test_a_lease_is_renewed_after_a_third() -> None:
    """It lasts much longer than its length: a thread renews it about every third of that."""
    driver, held, began = FakeDriver(), lease_of(), time.monotonic()
    renewer = Renewer(driver)
    renewer.add([held])
    assert soon(lambda: len(driver.requests) >= 5)
    first = driver.requests[0][0] - began
    assert LEASE / 3 * 0.9 <= first < LEASE * 0.9
    assert not held.lost
    assert held.ends > began + LEASE
    assert driver.threads == {"ailf-renewal"}
    assert [type(each.runtime) for each in driver.thread_drivers] == [ThreadRuntime]
    asyncio.run(renewer.close())


def test_leases_of_one_group_are_renewed_in_one_request() -> None:
    """Many messages need no more requests than one."""
    driver, fetched = FakeDriver(), time.monotonic()
    renewer = Renewer(driver)
    renewer.add([lease_of(str(number), since=fetched) for number in range(20)])
    assert soon(lambda: driver.requests)
    assert len(driver.requests[0][1]) == 20
    asyncio.run(renewer.close())


def test_a_shorter_lease_wakes_the_thread_earlier() -> None:
    """A lease that is added later and due earlier is renewed in time."""
    driver = FakeDriver()
    renewer = Renewer(driver)
    renewer.add([lease_of("long", lease=30)])
    renewer.add([lease_of("short", lease=0.15)])
    assert soon(lambda: driver.requests, within=2)
    assert driver.requests[0][1] == ["short"]
    asyncio.run(renewer.close())


def test_renewing_survives_errors() -> None:
    """Requests that fail are repeated within the lease, which isn't lost; no error ends the thread."""
    driver, held = FakeDriver(), lease_of()
    failures: list[Exception] = [ConnectionLostError("away"), ValueError("a bug")]

    def answer(_: FakeDriver, receipts: Sequence[Receipt]) -> list[bool]:
        if failures:
            raise failures.pop()
        return [True] * len(receipts)

    driver.answer = answer
    renewer = Renewer(driver)
    renewer.add([held])
    before = held.ends
    assert soon(lambda: held.ends > before)
    assert failures == []
    assert not held.lost
    asyncio.run(renewer.close())


def test_a_lease_that_another_holder_has_is_lost_alone() -> None:
    """The backend's refusal ends one lease and not the others."""
    fetched = time.monotonic()
    driver, own, theirs = FakeDriver(), lease_of("own", since=fetched), lease_of("theirs", since=fetched)
    driver.answer = lambda _, receipts: [each.id == "own" for each in receipts]
    renewer = Renewer(driver)
    renewer.add([own, theirs])
    assert soon(lambda: theirs.lost)
    assert not own.lost
    assert soon(lambda: driver.requests[-1][1] == ["own"])
    asyncio.run(renewer.close())


def test_a_lease_is_lost_by_our_own_clock_while_the_driver_hangs() -> None:
    """A request without a reply doesn't keep a lease: it is lost before it ends at the backend."""
    driver, held, began = FakeDriver(), lease_of(), time.monotonic()

    def hang(driver: FakeDriver, _: Sequence[Receipt]) -> list[bool]:
        driver.closed.wait(10)
        raise ClosedError("closed")

    driver.answer = hang
    renewer = Renewer(driver)
    renewer.add([held])
    assert soon(lambda: driver.requests)
    assert not held.lost
    assert soon(lambda: held.lost, within=2)
    assert time.monotonic() - began >= LEASE * 0.9
    assert began + LEASE * 0.9 <= held.ends < began + LEASE + 0.05
    asyncio.run(renewer.close())
    assert renewing() == []


def test_a_reply_counts_from_when_the_request_was_sent() -> None:
    """A slow reply doesn't make a lease longer than the backend has granted."""
    driver, held = FakeDriver(), lease_of()

    def slowly(_: FakeDriver, receipts: Sequence[Receipt]) -> list[bool]:
        time.sleep(0.1)
        return [True] * len(receipts)

    driver.answer = slowly
    renewer = Renewer(driver)
    renewer.add([held])
    before = held.ends
    assert soon(lambda: held.ends > before)
    assert held.ends <= driver.requests[0][0] + LEASE
    asyncio.run(renewer.close())


def test_renewing_stops_at_max_processing() -> None:
    """A lease is renewed for `longest` seconds, so a handler that never ends doesn't keep its message."""
    driver, held = FakeDriver(), lease_of(longest=0.05)
    renewer = Renewer(driver)
    renewer.add([held])
    assert soon(lambda: held.lost, within=2)
    assert driver.requests == []
    asyncio.run(renewer.close())


def test_the_thread_ends_without_leases_and_starts_again() -> None:
    """A process without leases has no renewal thread and no connection for it."""
    driver, held = FakeDriver(), lease_of(lease=0.15)
    renewer = Renewer(driver)
    renewer.add([held])
    assert soon(lambda: driver.requests)
    renewer.discard(held)
    assert soon(lambda: renewing() == [])
    assert driver.thread_drivers[0].closed.is_set()
    renewer.add([again := lease_of("again", lease=0.15)])
    assert soon(lambda: driver.requests[-1][1] == ["again"])
    assert not again.lost
    asyncio.run(renewer.close())


def test_a_discarded_lease_is_not_renewed() -> None:
    """The lease of a settled message is in no further request."""
    fetched = time.monotonic()
    driver, kept, gone = FakeDriver(), lease_of("kept", since=fetched), lease_of("gone", since=fetched)
    renewer = Renewer(driver)
    renewer.add([kept, gone])
    renewer.discard(gone)
    assert soon(lambda: driver.requests)
    assert driver.requests[0][1] == ["kept"]
    asyncio.run(renewer.close())


@pytest.mark.parametrize("lease", [30.0, 0.03])
def test_close_joins_the_thread(lease: float) -> None:
    """After `close` there is no thread, and its driver is closed."""
    driver = FakeDriver()
    renewer = Renewer(driver)
    renewer.add([lease_of(lease=lease)])
    time.sleep(0.05)
    asyncio.run(renewer.close())
    assert renewing() == []
    assert all(each.closed.is_set() for each in driver.thread_drivers)
    asyncio.run(renewer.close())


def test_close_waits_beside_the_event_loop() -> None:
    """A request that can't be interrupted blocks neither the event loop nor, past its deadline, `close`."""
    driver, over = FakeDriver(), threading.Event()

    def hang(_: FakeDriver, receipts: Sequence[Receipt]) -> list[bool]:
        over.wait(10)
        return [True] * len(receipts)

    async def main() -> int:
        steps = 0
        closing = asyncio.ensure_future(renewer.close(time.monotonic() + 0.3))
        async with asyncio.timeout(5):
            while not closing.done():
                await asyncio.sleep(0.01)
                steps += 1
        return steps

    driver.answer = hang
    renewer = Renewer(driver)
    renewer.add([lease_of(lease=0.3)])
    assert soon(lambda: driver.requests)
    assert asyncio.run(main()) > 5
    over.set()
    assert soon(lambda: not renewing())


# --- heartbeats --------------------------------------------------------------------------------------------------


def test_consumers_with_messages_give_heartbeats() -> None:
    """S12: one request gives the heartbeats of all consumers with messages, long before they are taken for dead."""
    driver, first, second = FakeDriver(), liveness("first", 0.8), liveness("second", 0.8)
    began, renewer = time.monotonic(), Renewer(driver)
    held = [lease_of(str(number), lease=60, of=each) for number, each in enumerate((first, first, second))]
    renewer.add(held)
    assert soon(lambda: len(driver.heartbeats) >= 5)
    assert sorted(driver.heartbeats[0][1]) == ["first", "second"]
    assert 0.8 / 4 * 0.9 <= driver.heartbeats[0][0] - began < 0.8 * ALIVE
    assert not any(each.lost for each in held)
    assert driver.requests == [], "leases of a minute need no renewal yet"
    asyncio.run(renewer.close())


def test_a_consumer_without_messages_gives_none() -> None:
    """S12: heartbeats end with the last message."""
    driver, first = FakeDriver(), liveness("first", 0.4)
    renewer, held = Renewer(driver), lease_of(lease=60, of=first)
    renewer.add([held])
    assert soon(lambda: driver.heartbeats)
    renewer.discard(held)
    given = len(driver.heartbeats)
    time.sleep(0.3)
    assert len(driver.heartbeats) <= given + 1
    asyncio.run(renewer.close())


def test_a_consumer_with_a_late_heartbeat_has_lost_its_leases() -> None:
    """S12: a consumer that may have been taken for dead marks its leases lost, whatever a late reply says."""
    driver, first, second = FakeDriver(), liveness("first", 0.3), liveness("second")
    late = threading.Event()

    def answer(_: FakeDriver, receipts: Sequence[Receipt]) -> list[bool]:
        late.wait(5)
        return [True] * len(receipts)

    driver.answer = answer
    renewer, own, other = Renewer(driver), lease_of("own", lease=60, of=first), lease_of("other", lease=60, of=second)
    renewer.add([own, other])
    assert soon(lambda: own.lost, within=2)
    late.set()
    assert soon(lambda: own.revoked)
    time.sleep(0.1)
    assert own.lost
    assert not other.lost
    asyncio.run(renewer.close())


def test_dropped_leases_and_permits_end_by_themselves() -> None:
    """A lease or permit that is dropped without being released is no longer renewed."""
    with MemoryBackend() as backend:
        lock, limiter = backend.lock("l", ttl=LEASE), backend.rate_limiter("r", Concurrency(1, ttl=LEASE))
        lease, permit = lock.acquire(0), limiter.try_acquire().permit
        time.sleep(3 * LEASE)
        assert lock.try_acquire() is None
        assert not limiter.try_acquire()
        assert not lease.lost
        del lease, permit
        lock.acquire(10 * LEASE).release()
        limiter.acquire(timeout=10 * LEASE).release()
