"""Leases are renewed whatever else the process does, and marked lost in time when they can't be."""

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ailf import Concurrency
from ailf.driver import BackendDriver, Capability, Receipt
from ailf.engine.outages import OutageLog
from ailf.engine.renewal import HEARTBEATS, Renewer
from ailf.engine.spread_renewer import SpreadRenewer
from ailf.errors import ClosedError, ConnectionLostError
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime
from ailf.stream.lease import ALIVE, ConsumerLiveness, DeliveryLease
from ailf.testing import ManualClock
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

    def server_of(self, stream: str) -> str:
        """Return the server of a stream: each has one of its own."""
        return stream

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        """Note the request, and answer by the script."""
        self.of.requests.append((time.monotonic(), [each.id for each in receipts]))
        self.of.threads.add(threading.current_thread().name)
        return self.of.answer(self, receipts)

    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        """Note the heartbeats, and answer by the same script."""
        self.of.heartbeats.append((time.monotonic(), list(consumers)))
        self.of.answer(self, [])


def liveness(name: str = "c", takeover: float = 600.0, stream: str = "s") -> ConsumerLiveness:
    """Return the liveness of a consumer that has just fetched."""
    made = ConsumerLiveness(stream, "g", name, takeover)
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


def test_a_late_check_renews_no_lease_beyond_max_processing() -> None:
    """S4: a lease that is due for renewal when max_processing has passed ends by itself, however late the check is."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        stream = backend.stream("s")
        stream.add(1)
        group = stream.group("g", lease=0.25, takeover=60, max_processing=0.25)
        with group.consumer() as slow, group.consumer() as other:
            delivery = slow.get(5)
            clock.advance(0.125)  # it is renewed, until 0.375
            clock.advance(0.175)
            assert delivery is not None
            assert not delivery.lost
            clock.advance(0.08)
            assert delivery.lost
            again = other.get(0)
            assert again is not None
            assert again.attempt == 2
            again.ack()


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


def test_the_thread_ends_with_the_last_lost_lease() -> None:
    """A process whose only lease was lost has no renewal thread either."""
    driver = FakeDriver()
    driver.answer = lambda _, receipts: [False] * len(receipts)
    renewer = Renewer(driver)
    renewer.add([lease_of(lease=0.15)])
    assert soon(lambda: driver.requests)
    assert soon(lambda: renewing() == [], within=2)


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


# --- many leases -------------------------------------------------------------------------------------------------

PAGE = DeliveryLease.page


def many(count: int, **options: Any) -> list[DeliveryLease]:
    """Return leases of one consumer that began together."""
    since, of = time.monotonic() - options.pop("since_ago", 0.0), options.pop("of", None) or liveness()
    return [lease_of(f"{number}-0", since=since, of=of, **options) for number in range(count)]


def test_leases_are_renewed_in_pages() -> None:
    """S4: however many leases are due, a request renews a page of them, in the order in which they were fetched."""
    driver, held = FakeDriver(), many(2 * PAGE + 1, lease=3)
    renewer = Renewer(driver)
    renewer.add(held)
    assert soon(lambda: len(driver.requests) >= 3)
    assert [len(ids) for _, ids in driver.requests[:3]] == [PAGE, PAGE, 1]
    assert [each for _, ids in driver.requests[:3] for each in ids] == [each.receipt.id for each in held]
    assert not any(each.lost for each in held)
    asyncio.run(renewer.close())


def test_a_step_looks_only_at_leases_that_are_due() -> None:
    """The work of a step doesn't grow with the leases that aren't due yet."""
    looked_at: list[str] = []

    class Watched(DeliveryLease):
        """A lease that notes each look at it."""

        __slots__ = ()

        def due(self) -> float:
            """Return the time of the next renewal."""
            looked_at.append(self.receipt.id)
            return super().due()

    driver, of = FakeDriver(), liveness()
    renewer, since = Renewer(driver), time.monotonic()
    longest = [Watched(of, Receipt(f"{n}-0", "c", 1), lease=600, since=since, longest=600) for n in range(5000)]
    renewer.add(longest)
    renewer.add([lease_of("short", lease=0.3, of=of)])
    assert soon(lambda: len(driver.requests) >= 4)
    assert len(looked_at) < 10
    asyncio.run(renewer.close())


def test_a_lease_that_ends_first_is_renewed_first() -> None:
    """S4: a short lease that is due later than many long ones isn't lost while a slow backend renews these."""
    driver = FakeDriver()

    def slowly(_: FakeDriver, receipts: Sequence[Receipt]) -> list[bool]:
        time.sleep(0.1 if len(receipts) > 1 else 0)
        return [True] * len(receipts)

    driver.answer = slowly
    renewer, long = Renewer(driver), many(20 * PAGE, lease=6, since_ago=1.9)
    short = lease_of("short", lease=0.5)
    renewer.add(long)
    renewer.add([short])
    assert soon(lambda: sum(len(ids) for _, ids in driver.requests) >= 20 * PAGE, within=20)
    assert not short.lost
    assert [ids for _, ids in driver.requests].count(["short"]) >= 3
    assert not any(each.lost for each in long)
    asyncio.run(renewer.close())


def test_heartbeats_are_given_between_pages() -> None:
    """S12: a consumer is alive while the renewal of its many leases takes longer than `takeover`."""
    driver, of = FakeDriver(), liveness("slow", 1.5)

    def slowly(_: FakeDriver, receipts: Sequence[Receipt]) -> list[bool]:
        time.sleep(0.2 if receipts else 0)
        return [True] * len(receipts)

    driver.answer = slowly
    renewer, held = Renewer(driver), many(10 * PAGE, lease=12, of=of, since_ago=3.9)
    of.confirm(time.monotonic())
    renewer.add(held)
    assert soon(lambda: sum(len(ids) for _, ids in driver.requests) >= 10 * PAGE)
    assert len([at for at, _ in driver.heartbeats if at < driver.requests[9][0]]) >= 3
    assert not any(each.lost for each in held)
    asyncio.run(renewer.close())


def test_heartbeats_are_given_in_pages() -> None:
    """S12: however many consumers have messages, a request gives a page of heartbeats."""
    driver = FakeDriver()
    renewer = Renewer(driver)
    for number in range(HEARTBEATS + 1):
        renewer.add([lease_of("1-0", lease=60, of=liveness(f"{number}", 2))])
    assert soon(lambda: sum(len(names) for _, names in driver.heartbeats) >= HEARTBEATS + 1)
    assert max(len(names) for _, names in driver.heartbeats) <= HEARTBEATS
    asyncio.run(renewer.close())


def test_a_batch_that_fails_does_not_hold_up_another() -> None:
    """A page that fails is tried again after a pause; leases of other groups are renewed meanwhile."""
    driver = FakeDriver()

    def refuse(_: FakeDriver, receipts: Sequence[Receipt]) -> list[bool]:
        if receipts and receipts[0].consumer == "broken":
            raise ValueError("its key holds another type")
        return [True] * len(receipts)

    driver.answer = refuse
    renewer, of = Renewer(driver), liveness()
    of.group = "another"
    since = time.monotonic()
    broken = [
        DeliveryLease(liveness(), Receipt(f"{n}-0", "broken", 1), lease=LEASE, since=since, longest=60)
        for n in range(2 * PAGE)
    ]
    sound = lease_of("sound", of=of)
    renewer.add(broken)
    renewer.add([sound])
    assert soon(lambda: all(each.lost for each in broken))
    assert not sound.lost
    assert len(driver.requests) < 30, "a request that fails is not repeated at once"
    asyncio.run(renewer.close())


def test_lost_leases_are_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Leases that are lost together make one line, with their number and the first ids; each `on_lost` is called."""
    driver = FakeDriver()
    called: list[str] = []
    driver.answer = lambda _, receipts: [False] * len(receipts)
    renewer, held = Renewer(driver), many(2 * PAGE, lease=0.3)
    for each in held:
        each.on_lost = functools.partial(called.append, each.receipt.id)
    renewer.add(held)
    assert soon(lambda: caplog.messages)
    assert soon(lambda: len(called) == len(held))
    assert caplog.messages == [
        "the leases on 0-0, 1-0, 2-0 and 997 more of group 'g', stream 's': lost: another consumer or holder has it"
    ]
    asyncio.run(renewer.close())


def test_a_lease_that_was_extended_is_not_shortened() -> None:
    """A user's `extend` of a lease that waits for its page makes its renewal due later."""
    driver, held = FakeDriver(), many(2 * PAGE, lease=3)

    def extend_last(_: FakeDriver, receipts: Sequence[Receipt]) -> list[bool]:
        if len(driver.requests) == 1:
            held[-1].confirm(time.monotonic(), 600)
        return [True] * len(receipts)

    driver.answer = extend_last
    renewer = Renewer(driver)
    renewer.add(held)
    assert soon(lambda: len(driver.requests) >= 3)
    assert len(driver.requests[1][1]) == PAGE - 1
    assert held[-1].ends > time.monotonic() + 500
    asyncio.run(renewer.close())


# --- heartbeats --------------------------------------------------------------------------------------------------


def test_consumers_with_messages_give_heartbeats() -> None:
    """S12: one request gives the heartbeats of all consumers with messages, long before they are taken for dead."""
    driver, first, second = FakeDriver(), liveness("first", 0.8), liveness("second", 0.8)
    began, renewer = time.monotonic(), Renewer(driver)
    held = [lease_of(str(number), lease=60, of=each) for number, each in enumerate((first, first, second))]
    renewer.add(held[:2])
    renewer.add(held[2:])
    assert soon(lambda: len(driver.heartbeats) >= 5)
    assert sorted(driver.heartbeats[0][1]) == ["first", "second"]
    assert 0.8 / 4 * 0.9 <= driver.heartbeats[0][0] - began < 0.8 * ALIVE
    assert not any(each.lost for each in held)
    assert driver.requests == [], "leases of a minute need no renewal yet"
    asyncio.run(renewer.close())


def test_heartbeats_go_on_in_a_new_thread() -> None:
    """S12: a consumer that gets messages after the thread has ended gives heartbeats, however long its leases."""
    driver, holder = FakeDriver(), liveness("first", 0.8)
    renewer = Renewer(driver)
    renewer.add([first := lease_of("1", lease=60, of=holder)])
    renewer.discard(first)
    assert soon(lambda: renewing() == [])
    holder.confirm(holder.now())
    renewer.add([lease_of("2", lease=60, of=holder)])
    assert soon(lambda: len(driver.heartbeats) >= 2)
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
    renewer.add([own])
    renewer.add([other])
    assert soon(lambda: own.lost, within=2)
    late.set()
    assert soon(lambda: own.revoked)
    time.sleep(0.1)
    assert own.lost
    assert not other.lost
    asyncio.run(renewer.close())


def test_a_consumer_that_counts_as_dead_gives_no_heartbeat() -> None:
    """S12: it has given up its leases, so a heartbeat would only keep its messages from other consumers."""
    driver, of = FakeDriver(), liveness("dead", 0.4)
    renewer, held = Renewer(driver), lease_of(lease=60, of=of)
    of.ends = time.monotonic()
    renewer.add([held])
    assert soon(lambda: held.revoked)
    assert soon(lambda: renewing() == [])
    assert driver.heartbeats == []


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


def test_a_retired_holder_lives_until_its_leases_are_discarded() -> None:
    """S5, S12: the leases of a consumer that leaves are not renewed and not logged as lost, but it stays alive."""
    driver, of = FakeDriver(), liveness("leaves", 0.4)
    driver.answer = lambda _, receipts: [False] * len(receipts)
    renewer, held = Renewer(driver), many(3, lease=0.3, of=of)
    renewer.add(held)
    renewer.retire(of)
    assert soon(lambda: len(driver.heartbeats) >= 3)
    assert driver.requests == []
    assert not any(each.revoked for each in held)
    for each in held:
        renewer.discard(each)
    assert soon(lambda: renewing() == [])
    asyncio.run(renewer.close())


# --- several servers ---------------------------------------------------------------------------------------------


def test_a_server_that_hangs_costs_no_lease_on_another() -> None:
    """S4, S12: each server is renewed by a thread of its own; the threads end with the last lease, or on close."""
    driver = FakeDriver()

    def answer(driver: FakeDriver, receipts: Sequence[Receipt]) -> list[bool]:
        if receipts and receipts[0].id == "stuck":
            driver.closed.wait(10)
            raise ClosedError("closed")
        return [True] * len(receipts)

    driver.answer = answer
    renewer = SpreadRenewer(driver, OutageLog(driver))
    stuck, sound = (lease_of(each, of=liveness(each, 0.8, each)) for each in ("stuck", "sound"))
    renewer.add([stuck])
    renewer.add([sound])
    assert soon(lambda: stuck.lost)
    until = time.monotonic() + 3 * LEASE
    while time.monotonic() < until:
        assert not sound.lost
        time.sleep(0.02)
    assert len(renewing()) == 2
    renewer.discard(sound)
    assert soon(lambda: len(renewing()) == 1)
    asyncio.run(renewer.close())
    assert renewing() == []


def test_servers_without_leases_are_forgotten() -> None:
    """In the long run a cluster may have had many addresses; a lease may come after `close`."""
    renewer = SpreadRenewer(driver := FakeDriver(), OutageLog(driver))
    for number in range(5):
        held = lease_of(of=liveness(stream=f"server-{number}"))
        renewer.add([held])
        assert len(renewer._renewers) == 1
        renewer.limit(held, held.ends)
        renewer.reschedule(held)
        renewer.discard(held)
        assert soon(lambda: renewing() == [])
    asyncio.run(renewer.close())
    renewer.add([late := lease_of(of=liveness(stream="late"))])
    renewer.retire(late.liveness)
    assert soon(lambda: renewing() == [])
    assert driver.requests == []
