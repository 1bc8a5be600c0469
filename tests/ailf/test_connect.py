"""`connect` and `connect_async`: which URL they open, and how long they wait for the backend to be there."""

import asyncio
import logging
from collections.abc import Callable

import pytest

import ailf
from ailf_memory import MemoryBackend, MemoryLock
from ailf_memory.driver import MemoryDriver
from ailf_redis import AsyncRedisBackend, RedisBackend, RedisLock

Open = Callable[..., str]


def open_blocking(*url: str | None, **options: float) -> str:
    """Open a backend and close it; return its URL."""
    with ailf.connect(*url, **options) as backend:
        return backend.url


def open_asyncio(*url: str | None, **options: float) -> str:
    """Do the same on asyncio."""

    async def main() -> str:
        async with ailf.connect_async(*url, **options) as backend:
            return backend.url

    return asyncio.run(main())


@pytest.fixture(params=[open_blocking, open_asyncio], ids=["blocking", "asyncio"])
def opened(request: pytest.FixtureRequest) -> Open:
    """Open a backend by URL, in a flavour."""
    chosen: Open = request.param
    return chosen


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as a warning under the library's name."""
    return [each.getMessage() for each in caplog.records if each.name == "ailf" and each.levelno >= logging.WARNING]


# --- which URL -----------------------------------------------------------------------------------------------------


def test_without_a_url_it_is_memory_and_says_so(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each call logs one warning: a program in production that was told nothing must not lose messages silently."""
    monkeypatch.delenv("AILF_URL", raising=False)
    for calls in (1, 2):
        assert opened() == "memory://"
        said = warnings_of(caplog)
        assert len(said) == calls
        assert "AILF_URL is not set" in said[0]


def test_a_chosen_url_is_silent(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory may be asked for, by the argument or by the environment."""
    monkeypatch.delenv("AILF_URL", raising=False)
    assert opened("memory://") == "memory://"
    monkeypatch.setenv("AILF_URL", "memory://shop")
    assert opened() == "memory://shop"
    assert opened(None) == "memory://shop"
    assert not warnings_of(caplog)


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_url_is_an_error(opened: Open, monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    """A variable that a deployment forgot to fill is not a choice of memory."""
    with pytest.raises(ailf.InvalidArgumentError, match="empty"):
        opened(empty)
    monkeypatch.setenv("AILF_URL", empty)
    with pytest.raises(ailf.InvalidArgumentError, match="AILF_URL is set but empty"):
        opened()


def test_a_redis_object_made_alone_takes_no_other_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """AILF_URL of another backend is an error: localhost is not what was asked for."""
    monkeypatch.setenv("AILF_URL", "memory://")
    for make in (RedisBackend, AsyncRedisBackend, lambda: RedisLock("l").try_acquire()):
        with pytest.raises(ailf.InvalidArgumentError, match="AILF_URL is a memory:// URL"):
            make()
    monkeypatch.setenv("AILF_URL", "")
    with pytest.raises(ailf.InvalidArgumentError, match="AILF_URL is set but empty"):
        RedisBackend()
    monkeypatch.setenv("AILF_URL", "redis://app:secret@h:7/1")
    assert RedisBackend().url == "redis://h:7/1"
    monkeypatch.delenv("AILF_URL")
    assert RedisBackend().url == "redis://localhost:6379/0"


def test_a_memory_object_made_alone_is_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its class says where it is."""
    monkeypatch.delenv("AILF_URL", raising=False)
    with MemoryLock("l") as lease:
        assert lease.fence
    MemoryBackend().close()
    assert not warnings_of(caplog)


# --- waiting -------------------------------------------------------------------------------------------------------


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What the memory backend answers a ping with, one after another, before it is there."""
    errors: list[Exception] = []

    async def ping(self: MemoryDriver) -> None:
        if errors:
            raise errors.pop(0)

    monkeypatch.setattr(MemoryDriver, "ping", ping)
    return errors


def test_it_waits_for_what_waiting_can_mend(
    opened: Open, away: list[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """A server that starts later than the program is waited for, and the log says so once."""
    away += [ailf.ConnectionLostError("it is not there"), ailf.BackendTimeoutError("it is silent")]
    assert opened("memory://", wait=30) == "memory://"
    assert not away
    assert warnings_of(caplog) == ["memory:// doesn't answer yet; retrying for up to 30 s: it is not there"]


def test_without_wait_the_first_error_is_raised(
    opened: Open, away: list[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """B1: opening fails at once unless it was told to wait."""
    away += [ailf.ConnectionLostError("it is not there")]
    with pytest.raises(ailf.ConnectionLostError, match="it is not there"):
        opened("memory://")
    assert not warnings_of(caplog)


@pytest.mark.parametrize("error", [ailf.PermissionDeniedError("wrong password"), ailf.UnsupportedError("too old")])
def test_what_waiting_cannot_mend_is_raised_at_once(opened: Open, away: list[Exception], error: Exception) -> None:
    """A refused password stays refused."""
    away += [error, error]
    with pytest.raises(type(error)):
        opened("memory://", wait=30)
    assert len(away) == 1


def test_the_wait_ends(opened: Open, away: list[Exception]) -> None:
    """Its end raises the last error."""
    away += [ailf.ConnectionLostError(f"try {number}") for number in range(1000)]
    with pytest.raises(ailf.ConnectionLostError, match=r"try [1-9]"):
        opened("memory://", wait=0.25)


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), "3", None, True])
def test_a_wait_that_is_no_number_of_seconds(opened: Open, wait: float) -> None:
    """It is refused like every other time."""
    with pytest.raises(ailf.InvalidArgumentError, match="wait must be"):
        opened("memory://", wait=wait)
