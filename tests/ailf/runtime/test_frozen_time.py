"""Libraries that freeze time in tests replace functions of the module `time`; no wait of ours depends on them."""

import sys
import threading
import time
from collections.abc import Iterator

import pytest

import ailf
from ailf.runtime.clock import SystemClock

NAMES = ("monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time", "time_ns")


@pytest.fixture
def _frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Freeze time as freezegun does: in `time`, and in each module of ours that has imported one of its functions."""
    for name in NAMES:
        real = getattr(time, name)
        stopped = real()
        frozen = lambda stopped=stopped: stopped  # noqa: E731 - one for each name
        ours = [each for key, each in sys.modules.items() if key.startswith("ailf")]
        copies = [(each, key) for each in ours for key, value in list(vars(each).items()) if value is real]
        for module, key in [(time, name), *copies]:
            monkeypatch.setattr(module, key, frozen)
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("_frozen")
def test_waits_end_while_time_is_frozen() -> None:
    """Every wait with a timeout ends, and frozen time ends no lease."""
    with ailf.connect("memory://") as backend:
        assert backend.stream("s").group("g").consumer().get(timeout=0.05) is None
        with backend.pubsub().listen("c") as subscription:
            assert subscription.get(timeout=0.05) is None
        lease = backend.lock("l", ttl=0.3).acquire().hand_over()
        with pytest.raises(ailf.LockTimeoutError):
            backend.lock("l").acquire(timeout=0.05)
        time.sleep(0.6)
        assert not lease.lost, "it is renewed"
        lease.release()
        limiter = backend.rate_limiter("r", "1/hour")
        limiter.acquire()
        with pytest.raises(ailf.RateLimitedError):
            limiter.acquire(timeout=0.05)


@pytest.mark.usefixtures("_frozen")
def test_a_worker_works_while_time_is_frozen() -> None:
    """A message is handled, and one that failed is retried after its delay."""
    with ailf.connect("memory://") as backend:
        stream = backend.stream("s")
        group = stream.group("g", backoff=ailf.Backoff(initial=0.05, jitter=0))
        attempts: list[int] = []

        def handler(delivery: ailf.Delivery[int]) -> bool:
            attempts.append(delivery.attempt)
            if len(attempts) == 2:
                group.stop()
            return len(attempts) == 2

        stream.add(1)
        working = threading.Thread(target=group.process, args=(handler,), daemon=True)
        working.start()
        working.join(5)
        assert not working.is_alive()
        assert attempts == [1, 2]


@pytest.mark.usefixtures("_frozen")
def test_the_clocks_advance() -> None:
    """Our clocks return the real time."""
    begin = SystemClock.wait_time(), SystemClock().now_ms()
    time.sleep(0.01)
    assert SystemClock.wait_time() > begin[0]
    assert SystemClock().now_ms() > begin[1]
