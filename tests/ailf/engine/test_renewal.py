"""Leases are kept alive whatever happens around them, and called lost in time when they can't be."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ailf import Concurrency
from ailf.driver import BackendDriver, Capability, Receipt
from ailf.engine.renewal import Renewer
from ailf.errors import ClosedError, ConnectionLostError
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime, run
from ailf.stream.lease import ALIVE, ConsumerLiveness, DeliveryLease
from ailf_memory import MemoryBackend

LEASE = 0.3


class FakeDriver(BackendDriver):
    """A backend that only extends leases, by a script.

    Attributes:
        asked: When each request came, and for which entries.
        answer: What to do with a request; it may raise.
        beaten: When each sign of life came, and for which consumers.
        twins: Every driver made for the renewal thread.
        threads: The threads the requests came from.
    """

    capabilities = frozenset({Capability.STREAM})

    def __init__(self, runtime: Runtime | None = None, of: "FakeDriver | None" = None) -> None:
        self.runtime = runtime or AsyncioRuntime()
        self.url = "fake://"
        self.max_payload = 1
        self.of = of or self
        self.closed = threading.Event()
        self.asked: list[tuple[float, list[str]]] = []
        self.beaten: list[tuple[float, list[str]]] = []
        self.threads: set[str] = set()
        self.twins: list[FakeDriver] = []
        self.answer: Callable[[FakeDriver, Sequence[Receipt]], list[bool]] = lambda _, receipts: [True] * len(receipts)

    async def ping(self) -> None:
        """Answer."""

    async def close(self) -> None:
        """Remember it."""
        self.closed.set()

    def interrupt(self) -> None:
        """Wake up a request that hangs."""
        self.closed.set()

    def with_runtime(self, runtime: Runtime) -> "FakeDriver":
        """Make one for the thread."""
        self.twins.append(FakeDriver(runtime, self))
        return self.twins[-1]

    def stream(self) -> Any:
        """Return what extends."""
        return self

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        """Note the request and answer by the script."""
        self.of.asked.append((time.monotonic(), [each.id for each in receipts]))
        self.of.threads.add(threading.current_thread().name)
        return self.of.answer(self, receipts)

    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        """Note the sign of life, and answer it by the same script."""
        self.of.beaten.append((time.monotonic(), list(consumers)))
        self.of.answer(self, [])


def pulse(name: str = "c", takeover: float = 600.0) -> ConsumerLiveness:
    """Return the life of a consumer that has just fetched."""
    made = ConsumerLiveness("s", "g", name, takeover)
    made.confirm(time.monotonic())
    return made


def hold(
    name: str = "1-0",
    *,
    lease: float = LEASE,
    longest: float = 60.0,
    since: float | None = None,
    of: ConsumerLiveness | None = None,
) -> DeliveryLease:
    """Return a lease that begins now, unless told when, of a consumer that lives long, unless told whose."""
    began = time.monotonic() if since is None else since
    return DeliveryLease(of or pulse(), Receipt(name, "c", 1), lease=lease, since=began, longest=longest)


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
    """Return the threads that renew in this test."""
    return [each for each in threading.enumerate() if each.name == "ailf-renewal" and each not in others]


def test_a_lease_is_renewed_after_a_third() -> None:
    """It outlives its length by far, renewed by a thread of the thread runtime about each third."""
    driver, held, began = FakeDriver(), hold(), time.monotonic()
    renewer = Renewer(driver)
    renewer.add([held])
    assert soon(lambda: len(driver.asked) >= 5)
    first = driver.asked[0][0] - began
    assert LEASE / 3 * 0.9 <= first < LEASE * 0.9
    assert not held.lost
    assert held.ends > began + LEASE
    assert driver.threads == {"ailf-renewal"}
    assert [type(each.runtime) for each in driver.twins] == [ThreadRuntime]
    run(renewer.close())


def test_leases_of_one_group_are_renewed_in_one_request() -> None:
    """Many messages cost no more requests than one."""
    driver, fetched = FakeDriver(), time.monotonic()
    renewer = Renewer(driver)
    renewer.add([hold(str(number), since=fetched) for number in range(20)])
    assert soon(lambda: driver.asked)
    assert len(driver.asked[0][1]) == 20
    run(renewer.close())


def test_a_shorter_lease_wakes_the_thread_earlier() -> None:
    """A lease that is added later and due earlier isn't missed."""
    driver = FakeDriver()
    renewer = Renewer(driver)
    renewer.add([hold("long", lease=30)])
    renewer.add([hold("short", lease=0.15)])
    assert soon(lambda: driver.asked, within=2)
    assert driver.asked[0][1] == ["short"]
    run(renewer.close())


def test_renewing_survives_errors() -> None:
    """Requests that fail are tried again within the lease, which nobody notices; no error ends the thread."""
    driver, held = FakeDriver(), hold()
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
    run(renewer.close())


def test_a_lease_that_somebody_else_has_is_lost_alone() -> None:
    """The backend's no ends one lease and leaves the others."""
    fetched = time.monotonic()
    driver, mine, theirs = FakeDriver(), hold("mine", since=fetched), hold("theirs", since=fetched)
    driver.answer = lambda _, receipts: [each.id == "mine" for each in receipts]
    renewer = Renewer(driver)
    renewer.add([mine, theirs])
    assert soon(lambda: theirs.lost)
    assert not mine.lost
    assert soon(lambda: driver.asked[-1][1] == ["mine"])
    run(renewer.close())


def test_a_lease_is_lost_by_the_own_clock_while_the_driver_hangs() -> None:
    """A request without an answer doesn't keep a lease: it is lost before its time is over at the backend."""
    driver, held, began = FakeDriver(), hold(), time.monotonic()

    def hang(twin: FakeDriver, _: Sequence[Receipt]) -> list[bool]:
        twin.closed.wait(10)
        raise ClosedError("closed")

    driver.answer = hang
    renewer = Renewer(driver)
    renewer.add([held])
    assert soon(lambda: driver.asked)
    assert not held.lost
    assert soon(lambda: held.lost, within=2)
    assert time.monotonic() - began >= LEASE * 0.9
    assert began + LEASE * 0.9 <= held.ends < began + LEASE + 0.05
    run(renewer.close())
    assert renewing() == []


def test_an_answer_counts_from_when_the_request_was_sent() -> None:
    """A slow answer doesn't make a lease look longer than the backend grants."""
    driver, held = FakeDriver(), hold()

    def slowly(_: FakeDriver, receipts: Sequence[Receipt]) -> list[bool]:
        time.sleep(0.1)
        return [True] * len(receipts)

    driver.answer = slowly
    renewer = Renewer(driver)
    renewer.add([held])
    before = held.ends
    assert soon(lambda: held.ends > before)
    assert held.ends <= driver.asked[0][0] + LEASE
    run(renewer.close())


def test_renewing_stops_at_max_processing() -> None:
    """A handler that never ends doesn't keep its message for ever."""
    driver, held = FakeDriver(), hold(longest=0.05)
    renewer = Renewer(driver)
    renewer.add([held])
    assert soon(lambda: held.lost, within=2)
    assert driver.asked == []
    run(renewer.close())


def test_the_thread_ends_when_nothing_is_left_and_comes_again() -> None:
    """A process that holds no message has no thread for it and no connection."""
    driver, held = FakeDriver(), hold(lease=0.15)
    renewer = Renewer(driver)
    renewer.add([held])
    assert soon(lambda: driver.asked)
    renewer.discard(held)
    assert soon(lambda: renewing() == [])
    assert driver.twins[0].closed.is_set()
    renewer.add([again := hold("again", lease=0.15)])
    assert soon(lambda: driver.asked[-1][1] == ["again"])
    assert not again.lost
    run(renewer.close())


def test_what_was_given_up_is_not_renewed() -> None:
    """A settled message is not asked for again."""
    fetched = time.monotonic()
    driver, kept, gone = FakeDriver(), hold("kept", since=fetched), hold("gone", since=fetched)
    renewer = Renewer(driver)
    renewer.add([kept, gone])
    renewer.discard(gone)
    assert soon(lambda: driver.asked)
    assert driver.asked[0][1] == ["kept"]
    run(renewer.close())


@pytest.mark.parametrize("lease", [30.0, 0.03])
def test_close_joins_the_thread(lease: float) -> None:
    """After close there is no thread, and what it had opened is closed."""
    driver = FakeDriver()
    renewer = Renewer(driver)
    renewer.add([hold(lease=lease)])
    time.sleep(0.05)
    run(renewer.close())
    assert renewing() == []
    assert all(each.closed.is_set() for each in driver.twins)
    run(renewer.close())


# --- the life of consumers ---------------------------------------------------------------------------------------


def test_consumers_with_messages_give_signs_of_life() -> None:
    """S12: all consumers of a group that hold messages live by one request, long before they are taken for dead."""
    driver, anna, bert = FakeDriver(), pulse("anna", 0.8), pulse("bert", 0.8)
    began, renewer = time.monotonic(), Renewer(driver)
    held = [hold(str(number), lease=60, of=each) for number, each in enumerate((anna, anna, bert))]
    renewer.add(held)
    assert soon(lambda: len(driver.beaten) >= 5)
    assert sorted(driver.beaten[0][1]) == ["anna", "bert"]
    assert 0.8 / 4 * 0.9 <= driver.beaten[0][0] - began < 0.8 * ALIVE
    assert not any(each.lost for each in held)
    assert driver.asked == [], "leases of a minute need no renewal yet"
    run(renewer.close())


def test_a_consumer_without_messages_gives_none() -> None:
    """S12: the signs end with the last message."""
    driver, anna = FakeDriver(), pulse("anna", 0.4)
    renewer, held = Renewer(driver), hold(lease=60, of=anna)
    renewer.add([held])
    assert soon(lambda: driver.beaten)
    renewer.discard(held)
    given = len(driver.beaten)
    time.sleep(0.3)
    assert len(driver.beaten) <= given + 1
    run(renewer.close())


def test_who_is_late_with_his_sign_has_lost_everything() -> None:
    """S12: a consumer that may have been taken for dead calls its leases lost; a late answer mends nothing."""
    driver, anna, bert = FakeDriver(), pulse("anna", 0.3), pulse("bert")
    late = threading.Event()

    def answer(_: FakeDriver, receipts: Sequence[Receipt]) -> list[bool]:
        late.wait(5)
        return [True] * len(receipts)

    driver.answer = answer
    renewer, mine, other = Renewer(driver), hold("mine", lease=60, of=anna), hold("other", lease=60, of=bert)
    renewer.add([mine, other])
    assert soon(lambda: mine.lost, within=2)
    late.set()
    assert soon(lambda: mine.revoked)
    time.sleep(0.1)
    assert mine.lost
    assert not other.lost
    run(renewer.close())


def test_what_nobody_has_any_more_ends_by_itself() -> None:
    """A lease or a permit that is dropped without being released is renewed no more."""
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
