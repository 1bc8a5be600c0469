"""Waits survive an outage of the backend; a release waits no longer than its lease lasts."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

import ailf
from ailf.engine.outages import OutageLog
from ailf.runtime import run
from ailf_memory import AsyncMemoryBackend, MemoryBackend

AWAY = ailf.ConnectionLostError("no connection")


class Outage:
    """Makes every request of a backend's lock and limiter drivers fail while it is on.

    Attributes:
        on: Whether the backend is unavailable.
        refused: The number of requests that have failed.
        error: The error of these requests.
    """

    def __init__(self, backend: Any, error: Exception = AWAY) -> None:
        self.on = True
        self.refused = 0
        self.error = error
        driver = backend.engine.driver
        for name in ("lock", "rate_limiter"):
            setattr(driver, name, self._cut(getattr(driver, name)))
        with_runtime = driver.with_runtime

        def cut(runtime: Any) -> Any:
            made = with_runtime(runtime)
            made.lock = self._cut(made.lock)
            return made

        driver.with_runtime = cut

    def _cut(self, make: Callable[[], Any]) -> Callable[[], Any]:
        def made() -> Any:
            driver = make()
            for name in ("acquire", "release", "extend", "decide", "settle"):
                if hasattr(driver, name):
                    setattr(driver, name, self._failing(getattr(driver, name)))
            return driver

        return made

    def _failing(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def request(*args: Any) -> Any:
            if self.on:
                self.refused += 1
                raise self.error
            return await method(*args)

        return request


def _impatient(backend: Any) -> Any:
    backend.engine.retry_for = 0.05
    return backend


def _limiter(backend: Any) -> Any:
    return backend.rate_limiter("r", "1/hour")


def _lock(backend: Any) -> Any:
    return backend.lock("l")


both = pytest.mark.parametrize("make", [_lock, _limiter], ids=["lock", "limiter"])


@both
def test_acquire_survives_an_outage(make: Callable[[Any], Any], caplog: pytest.LogCaptureFixture) -> None:
    """Without a timeout, on threads: acquire returns when the backend is back; the log has a line for each end."""
    with _impatient(MemoryBackend()) as backend:
        outage, got = Outage(backend), list[Any]()
        waiting = threading.Thread(target=lambda: got.append(make(backend).acquire()), daemon=True)
        with caplog.at_level(logging.WARNING):
            waiting.start()
            waiting.join(0.9)
            assert waiting.is_alive(), "it waits"
            assert outage.refused > 2
            outage.on = False
            waiting.join(5)
        assert len(got) == 1
        lines = [each.getMessage() for each in caplog.records]
        assert len(lines) == 2
        assert lines[0].startswith(
            "the backend memory://: it is unavailable, and failed operations are retried: acquire "
        )
        assert lines[1].startswith("the backend memory://: it is back after ")
        got[0].release()


@both
def test_acquire_survives_an_outage_on_asyncio(make: Callable[[Any], Any]) -> None:
    """The same on asyncio, where the wait can be cancelled."""

    async def main() -> None:
        async with _impatient(AsyncMemoryBackend()) as backend:
            outage = Outage(backend)
            thing = make(backend)
            waiting, leaving = asyncio.ensure_future(thing.acquire()), asyncio.ensure_future(thing.acquire())
            await asyncio.sleep(0.3)
            leaving.cancel()
            await asyncio.wait([leaving], timeout=2)
            assert leaving.cancelled()
            outage.on = False
            await (await asyncio.wait_for(waiting, 5)).release()

    asyncio.run(main())


@pytest.mark.parametrize(("make", "error"), [(_lock, ailf.LockTimeoutError), (_limiter, ailf.RateLimitedError)])
def test_a_timeout_in_an_outage(make: Callable[[Any], Any], error: type[Exception]) -> None:
    """A timeout ends the wait in time, with the backend's error as the cause; 0 is one try, which raises the error."""
    with MemoryBackend() as backend:
        outage = Outage(backend)
        thing, begin = make(backend), time.monotonic()
        with pytest.raises(error, match=r"not.* within 0.2 s; the backend is unavailable \(no connection\)") as raised:
            thing.acquire(timeout=0.2)
        assert 0.2 <= time.monotonic() - begin < 2
        assert raised.value.__cause__ is AWAY
        backend.engine.retry_for = 0.0
        with pytest.raises(ailf.ConnectionLostError):
            thing.acquire(timeout=0)
        outage.on = False
        thing.acquire(timeout=5).release()


@both
@pytest.mark.parametrize("error", [ailf.PermissionDeniedError("no"), ailf.BackendFullError("full")])
def test_other_errors_end_a_wait(make: Callable[[Any], Any], error: Exception) -> None:
    """Any other error ends a wait at once."""
    with MemoryBackend() as backend:
        Outage(backend, error)
        with pytest.raises(type(error)):
            make(backend).acquire()


@both
def test_closing_ends_a_wait_in_an_outage(make: Callable[[Any], Any]) -> None:
    """B3: a call that waits for an unavailable backend raises when the backend is closed."""
    backend = _impatient(MemoryBackend())
    Outage(backend)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            make(backend).acquire()
        except ailf.AilfError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(0.3)
    backend.close()
    waiting.join(5)
    assert [type(each) for each in errors] == [ailf.ClosedError]


@pytest.mark.parametrize("error", [AWAY, ailf.ConnectionLostError("sent", maybe_applied=True)])
@pytest.mark.parametrize("body", [None, ValueError("mine")])
def test_a_release_in_an_outage(error: Exception, body: Exception | None) -> None:
    """L9: a lease that ends in an outage is lost at its deadline, not after `retry_for`; the body's error is kept."""
    with MemoryBackend() as backend:
        outage, begin = Outage(backend, error), time.monotonic()
        outage.on = False
        with pytest.raises(ailf.LeaseLostError if body is None else ValueError), backend.lock("l", ttl=0.3).hold():
            outage.on = True
            if body is not None:
                raise body
        assert time.monotonic() - begin < 1
        outage.on = False


def test_a_release_in_an_outage_on_asyncio() -> None:
    """L9: the same on asyncio."""

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            outage = Outage(backend)
            outage.on = False
            with pytest.raises(ailf.LeaseLostError):
                async with asyncio.timeout(2), backend.lock("l", ttl=0.3).hold():
                    outage.on = True
            outage.on = False

    asyncio.run(main())


def test_a_release_that_fails_while_the_lease_lasts() -> None:
    """The release raises the backend's error, and can be repeated when the backend is back."""
    with _impatient(MemoryBackend()) as backend:
        outage = Outage(backend)
        outage.on = False
        lease = backend.lock("l", ttl=60).acquire()
        outage.on = True
        with pytest.raises(ailf.ConnectionLostError):
            lease.release()
        assert not lease.lost
        outage.on = False
        lease.release()
        assert run(backend.lock("l")._flow.inspect()) == ailf.LockInfo()


class _Driver:
    """The part of a driver that the log of outages needs, with a clock that a test moves."""

    url, timeout = "test://", 5.0

    def __init__(self) -> None:
        self.time = 1000.0
        self.runtime = SimpleNamespace(now=lambda: self.time)


def test_the_lines_of_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    """One at the beginning, one at the end, and one every ten seconds, whatever the number of reports."""
    driver: Any = _Driver()
    outages = OutageLog(driver)
    for _ in range(2):
        caplog.clear()
        for _ in range(300):
            outages.failed("fetch", AWAY)
            outages.failed("subscribe", AWAY)
            driver.time += 0.1
        outages.worked()
        outages.worked()
        assert [each.getMessage() for each in caplog.records] == [
            "the backend test://: it is unavailable, and failed operations are retried: fetch: no connection",
            "the backend test://: it is still unavailable after 10 s: fetch: no connection",
            "the backend test://: it is still unavailable after 20 s: fetch: no connection",
            "the backend test://: it is back after 30.00 s",
        ]
        driver.time += 5.1


def test_a_request_that_outlasts_its_outage(caplog: pytest.LogCaptureFixture) -> None:
    """A failure just after the end belongs to a request from before it, and begins no outage; a later one does."""
    driver: Any = _Driver()
    outages = OutageLog(driver)
    outages.failed("fetch", AWAY)
    outages.worked()
    caplog.clear()
    driver.time += 4.9
    outages.failed("subscribe", AWAY)
    assert not caplog.records
    driver.time += 0.2
    outages.failed("subscribe", AWAY)
    driver.time += 61  # no request was made meanwhile
    outages.failed("fetch", AWAY)
    assert ["is unavailable" in each.getMessage() for each in caplog.records] == [True, True]


def test_a_limiter_that_decides_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A hundred decisions without the backend are not a hundred lines."""
    with _impatient(MemoryBackend()) as backend:
        outage = Outage(backend)
        limiter = backend.rate_limiter("r", "5 parallel", on_backend_error="allow")
        for _ in range(100):
            assert limiter.try_acquire("k").allowed
        outage.on = False
        limiter.acquire("k").release()
    lines = [each.getMessage() for each in caplog.records]
    assert len(lines) == 2
    assert "rate limiter 'r', which allows every call meanwhile" in lines[0]
    assert "is back" in lines[1]
