"""A clock that is moved by hand: leases end within the move, and waits end with it."""

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

import ailf
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime, run
from ailf.testing import ManualClock
from ailf_memory import AsyncMemoryBackend, MemoryBackend, MemoryStore
from ailf_memory.stream import MemoryStreamDriver

HOUR = 3600.0


class Waiting:
    """A blocking call that runs in a thread of its own.

    Attributes:
        result: The value that it returned or the error that it raised.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()
        self._thread.join(0.1)
        assert self._thread.is_alive(), "it waits"

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self.result = call()
        except ailf.AilfError as error:
            self.result = error

    def ended(self) -> Any:
        """Return its result; it must end soon."""
        self._thread.join(5)
        assert not self._thread.is_alive()
        return self.result


# --- leases ------------------------------------------------------------------------------------------------------


def test_a_lease_is_lost_at_once() -> None:
    """When a move beyond a lease returns, its holder knows that it is lost; a shorter move ends no lease."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        leases = [backend.lock(f"{renew}", ttl=30, renew=renew).acquire() for renew in (True, False)]
        permit = backend.rate_limiter("r", ailf.Concurrency(1, ttl=30)).acquire()
        backend.stream("s").add(1)
        delivery = backend.stream("s").group("g", lease=30).consumer().get(timeout=1)
        held = [*leases, permit, delivery]
        clock.advance(25)
        assert not any(each.lost for each in held)
        clock.advance(31)
        assert all(each.lost for each in held)
        assert [each.remaining() for each in leases] == [0, 0]
        assert all(backend.lock(f"{renew}").try_acquire() for renew in (True, False))


def test_time_stands_still_for_leases() -> None:
    """The remaining time of a lease is exact to the millisecond, and counts from its last renewal."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        lease = backend.lock("l", ttl=100, renew=False).acquire()
        assert lease.remaining() == pytest.approx(95)
        clock.advance(10)
        assert lease.remaining() == pytest.approx(85)
        lease.extend()
        assert lease.remaining() == pytest.approx(95)


def test_a_living_holder_renews_through_many_moves() -> None:
    """Moves that are each shorter than a lease never end it, because its process is alive and renews it."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        lease = backend.lock("l", ttl=30).acquire()
        for _ in range(20):
            clock.advance(20)
            assert not lease.lost
            assert backend.lock("l").try_acquire() is None
        lease.release()


def test_a_broken_lease_is_lost_at_once() -> None:
    """The holder of a broken lock knows at once, whether its lease is renewed or not, on any backend of the store."""
    store = MemoryStore(ManualClock())
    with MemoryBackend(store=store) as own, MemoryBackend(store=store) as other:
        for lock in (own.lock("l"), own.lock("l", renew=False), own.lock("l", "m")):
            lease = lock.acquire()
            assert other.lock("l").break_(lease.fence)
            assert lease.lost
            assert lease.remaining() == 0
            other.lock("l").acquire(timeout=0).release()


@pytest.mark.parametrize("renew", [True, False])
def test_a_body_is_cancelled_by_a_move(renew: bool) -> None:
    """On asyncio the body of `hold` is cancelled when the clock passes the end of its lease."""

    async def main() -> None:
        clock = ManualClock()
        async with AsyncMemoryBackend(clock=clock) as backend:
            with pytest.raises(ailf.LeaseLostError):
                async with backend.lock("l", ttl=30, renew=renew).hold():
                    clock.advance(10)
                    await asyncio.sleep(0.05)
                    clock.advance(31)
                    await asyncio.sleep(5)
                    pytest.fail("the body went on")

    asyncio.run(main())


# --- consumers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [11.0, 50.0])
def test_a_living_consumer_keeps_its_messages(step: float) -> None:
    """A move past `takeover` in one step leaves a consumer of this process alive."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        backend.stream("s").add(1)
        group = backend.stream("s").group("g", lease=60, takeover=10)
        with group.consumer() as consumer, group.consumer() as other:
            delivery = consumer.get(timeout=1)
            for _ in range(3):
                clock.advance(step)
                assert other.get(timeout=0) is None
                assert not delivery.lost
            delivery.ack()


def test_a_lease_that_ends_in_a_move_is_another_consumers() -> None:
    """A move beyond the lease itself ends it, so that a test can simulate a crash."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        backend.stream("s").add(1)
        group = backend.stream("s").group("g", lease=60)
        crashed = group.consumer()
        delivery = crashed.get(timeout=1)
        clock.advance(61)
        assert delivery.lost
        with group.consumer() as other:
            assert other.get(timeout=1).attempt == 2
        with pytest.raises(ailf.LeaseLostError):
            delivery.ack()


def test_a_consumer_that_is_dropped_is_dead() -> None:
    """A consumer that was garbage-collected gives no heartbeats: others get its messages after `takeover`."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        backend.stream("s").add(1)
        group = backend.stream("s").group("g", lease=60, takeover=10)
        crashed = group.consumer()
        delivery = crashed.get(timeout=1)
        del crashed, delivery
        gc.collect()
        clock.advance(11)
        with group.consumer() as other:
            assert other.get(timeout=1).attempt == 2


def test_a_worker_lives_through_moves() -> None:
    """A handler that runs while the clock is moved past `takeover` keeps its message, and acks it."""
    clock, begun, over = ManualClock(), threading.Event(), threading.Event()
    store = MemoryStore(clock)
    with MemoryBackend(store=store) as backend, MemoryBackend(store=store) as rival:
        backend.stream("s").add(1)
        group = backend.stream("s").group("g", lease=60, takeover=10)
        seen: list[tuple[int, bool]] = []

        def handler(delivery: ailf.Delivery[Any]) -> None:
            begun.set()
            over.wait(5)
            seen.append((delivery.attempt, delivery.lost))
            group.stop()

        working = threading.Thread(target=group.process, args=(handler,))
        working.start()
        assert begun.wait(5)
        with rival.stream("s").group("g").consumer() as consumer:
            for _ in range(10):
                clock.advance(25)
                assert consumer.get(timeout=0) is None
        over.set()
        working.join(5)
        assert seen == [(1, False)]
        assert group.info().pending == 0


# --- waits -------------------------------------------------------------------------------------------------------


kept: list[Any] = []


def _again(lock: ailf.Lock) -> ailf.Lock:
    kept.append(lock.acquire().hand_over())
    return lock


def _limiter(backend: ailf.Backend) -> ailf.RateLimiter:
    limiter = backend.rate_limiter("r", ailf.TokenBucket(1, per=9 * HOUR))
    limiter.acquire()
    return limiter


def _reserved(backend: ailf.Backend) -> ailf.Permit:
    limiter = backend.rate_limiter("r", ailf.TokenBucket(1, per=HOUR))
    limiter.acquire()
    return limiter.reserve()


def _two(backend: ailf.Backend) -> Callable[[], Any]:
    consumer = backend.stream("s").group("g").consumer()
    kept.append(Waiting(lambda: consumer.get(timeout=9 * HOUR)))  # the leader
    return lambda: consumer.get(timeout=HOUR)


WAITS: dict[str, Callable[[MemoryBackend], Callable[[], Any]]] = {
    "consumer": lambda backend: lambda: backend.stream("s").group("g").consumer().get(timeout=HOUR),
    "two of a consumer": _two,
    "subscription": lambda backend: lambda: backend.pubsub().listen("c").__enter__().get(timeout=HOUR),
    "lock": lambda backend: lambda: _again(backend.lock("l", ttl=9 * HOUR)).acquire(timeout=HOUR),
    "fair lock": lambda backend: lambda: _again(backend.lock("l", ttl=9 * HOUR, fair=True)).acquire(timeout=HOUR),
    "limiter": lambda backend: lambda: _limiter(backend).acquire(timeout=HOUR),
    "permit": lambda backend: lambda: _reserved(backend).wait(),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_wait_ends_when_the_clock_passes_it(wait: Callable[[MemoryBackend], Callable[[], Any]]) -> None:
    """Every wait with a timeout ends when the clock passes it, without sleeping, and not before."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        waiting = Waiting(wait(backend))
        clock.advance(HOUR / 2)
        waiting._thread.join(0.05)
        assert waiting._thread.is_alive()
        clock.advance(HOUR / 2 + 1)
        assert waiting.ended() is None or isinstance(waiting.result, ailf.LockTimeoutError | ailf.RateLimitedError)
    kept.clear()


def test_waits_end_by_real_time_too() -> None:
    """A clock that isn't moved hangs no test: a timeout also counts the time that really passes."""
    with MemoryBackend(clock=ManualClock()) as backend:
        held = backend.lock("l").acquire().hand_over()
        with pytest.raises(ailf.LockTimeoutError):
            backend.lock("l").acquire(timeout=0.05)
        with backend.stream("s").group("g").consumer() as consumer:
            assert consumer.get(timeout=0.05) is None
        held.release()


def test_what_comes_due_in_a_move_is_delivered() -> None:
    """A move that makes a message due and also passes the timeout of a wait for it delivers the message."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend, backend.stream("s").group("g").consumer() as consumer:
        backend.stream("s").add(7, delay=100)
        waiting = Waiting(lambda: consumer.get(timeout=5))
        clock.advance(100)
        assert waiting.ended().data == 7


clock = ManualClock()


def _on_threads(flow: Any) -> None:
    run(flow(ThreadRuntime(clock)))


def _on_asyncio(flow: Any) -> None:
    asyncio.run(flow(AsyncioRuntime(clock)))


@pytest.mark.parametrize("play", [_on_threads, _on_asyncio])
def test_an_event_on_a_moved_clock(play: Callable[[Any], None]) -> None:
    """An event wakes its waiter when it is set, even if it is cleared at once, and when its timeout is over."""

    async def flow(runtime: Runtime) -> None:
        event = runtime.event()
        assert not await event.wait(0)
        assert not await event.wait(0.01)
        for act, seconds, woken in (
            (event.set, None, True),
            (lambda: (event.set(), event.clear()), None, True),
            (lambda: clock.advance(HOUR), HOUR, False),
        ):
            event.clear()
            timer = threading.Timer(0.05, act)
            timer.start()
            assert await event.wait(seconds) is woken
            timer.join()
        event.set()
        assert await event.wait(0)
        assert event.is_set()
        assert clock._callbacks == []

    play(flow)


def test_stepping_back_changes_no_lease() -> None:
    """Setting the clock back makes no lease longer."""
    moved = ManualClock()
    with MemoryBackend(clock=moved) as backend:
        lease = backend.lock("l", ttl=30, renew=False).acquire()
        moved.step_back(HOUR)
        moved.advance(29)
        assert lease.lost


def test_a_consumer_that_holds_many_messages_keeps_them(caplog: pytest.LogCaptureFixture) -> None:
    """S4: moves of the clock lose none of 50 000 leases; the steps of the store that renew them are of bounded size."""
    clock, count = ManualClock(), 50_000
    with MemoryBackend(clock=clock) as backend:
        steps: list[int] = []
        extend = MemoryStreamDriver.extend

        async def counted(self: MemoryStreamDriver, *args: Any, **options: Any) -> list[bool]:
            steps.append(len(args[2]))
            return await extend(self, *args, **options)

        backend.stream("s").add_many(range(count))
        with pytest.MonkeyPatch.context() as patch, backend.stream("s").group("g").consumer(prefetch=count) as consumer:
            patch.setattr(MemoryStreamDriver, "extend", counted)
            held = [consumer.get(0) for _ in range(count)]
            for _ in range(4):
                clock.advance(15)
                assert not any(each is None or each.lost for each in held)
        assert sum(steps) == 4 * count
        assert max(steps) <= 500
    assert caplog.messages == []
