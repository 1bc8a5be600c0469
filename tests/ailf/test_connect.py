"""`connect` and `connect_async`: which URL they open, and how long they retry until the backend answers."""

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
    """Return the warnings of the library's logger."""
    return [each.getMessage() for each in caplog.records if each.name == "ailf" and each.levelno >= logging.WARNING]


# --- which URL -----------------------------------------------------------------------------------------------------


def test_without_a_url_it_is_memory_and_says_so(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each call logs one warning: a program that was not configured must not lose messages silently."""
    monkeypatch.delenv("AILF_URL", raising=False)
    for calls in (1, 2):
        assert opened() == "memory://"
        warnings = warnings_of(caplog)
        assert len(warnings) == calls
        assert "AILF_URL is not set" in warnings[0]


def test_a_chosen_url_is_silent(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory chosen by the argument or by the environment logs no warning."""
    monkeypatch.delenv("AILF_URL", raising=False)
    assert opened("memory://") == "memory://"
    monkeypatch.setenv("AILF_URL", "memory://shop")
    assert opened() == "memory://shop"
    assert opened(None) == "memory://shop"
    assert not warnings_of(caplog)


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_url_is_an_error(opened: Open, monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    """A variable that a deployment left empty doesn't choose memory."""
    with pytest.raises(ailf.InvalidArgumentError, match="empty"):
        opened(empty)
    monkeypatch.setenv("AILF_URL", empty)
    with pytest.raises(ailf.InvalidArgumentError, match="AILF_URL is set but empty"):
        opened()


def test_a_redis_object_made_alone_takes_no_other_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """AILF_URL of another backend is an error, instead of the default localhost."""
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
    """A standalone memory object logs no warning: its class names the backend."""
    monkeypatch.delenv("AILF_URL", raising=False)
    with MemoryLock("l") as lease:
        assert lease.fence
    MemoryBackend().close()
    assert not warnings_of(caplog)


# --- options as keywords -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["memory://shop", "redis://127.0.0.1:1"])
def test_common_options_as_keywords(url: str) -> None:
    """A program passes `namespace` and `timeout` to any backend; None leaves the default."""
    ailf.connect_async(url, namespace="crew", timeout=3)
    ailf.connect_async(url, namespace=None, timeout=None)
    for options in ({"timeout": "3"}, {"timeout": -1}, {"namespace": 5}, {"nope": 1}):
        with pytest.raises(ailf.InvalidArgumentError, match=next(iter(options))):
            ailf.connect_async(url, **options)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ailf.InvalidArgumentError, match="namespace is given in the URL and as a keyword"):
        ailf.connect_async(f"{url}?namespace=a", namespace="b")


def test_a_namespace_as_a_keyword_is_that_of_the_url() -> None:
    """Backends of one namespace share what they store, however it was given."""
    with ailf.connect("memory://shop?namespace=a+b") as one, ailf.connect("memory://shop", namespace="a b") as other:
        one.stream("s").add(1)
        assert [each.data for each in other.stream("s").read()] == [1]
        with ailf.connect("memory://shop") as third:
            assert not list(third.stream("s").read())


# --- waiting -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ping_errors(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """The errors of the memory backend's first pings, in order."""
    errors: list[Exception] = []

    async def ping(self: MemoryDriver) -> None:
        if errors:
            raise errors.pop(0)

    monkeypatch.setattr(MemoryDriver, "ping", ping)
    return errors


def test_it_waits_for_what_waiting_can_mend(
    opened: Open, ping_errors: list[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """Opening waits for a server that starts later than the program, and logs that once."""
    ping_errors += [ailf.ConnectionLostError("it is not there"), ailf.BackendTimeoutError("it is silent")]
    assert opened("memory://", wait=30) == "memory://"
    assert not ping_errors
    assert warnings_of(caplog) == ["memory://: it doesn't answer yet; retrying for up to 30 s: it is not there"]


def test_without_wait_the_first_error_is_raised(
    opened: Open, ping_errors: list[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """B1: opening fails at once unless `wait` is given."""
    ping_errors += [ailf.ConnectionLostError("it is not there")]
    with pytest.raises(ailf.ConnectionLostError, match="it is not there"):
        opened("memory://")
    assert not warnings_of(caplog)


@pytest.mark.parametrize("error", [ailf.PermissionDeniedError("wrong password"), ailf.UnsupportedError("too old")])
def test_what_waiting_cannot_mend_is_raised_at_once(
    opened: Open, ping_errors: list[Exception], error: Exception
) -> None:
    """Errors that waiting can't resolve, such as a wrong password, are raised at once."""
    ping_errors += [error, error]
    with pytest.raises(type(error)):
        opened("memory://", wait=30)
    assert len(ping_errors) == 1


def test_the_wait_ends(opened: Open, ping_errors: list[Exception]) -> None:
    """After `wait` seconds the last error is raised."""
    ping_errors += [ailf.ConnectionLostError(f"try {number}") for number in range(1000)]
    with pytest.raises(ailf.ConnectionLostError, match=r"try [1-9]"):
        opened("memory://", wait=0.25)


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), "3", None, True])
def test_a_wait_that_is_no_number_of_seconds(opened: Open, wait: float) -> None:
    """A wait that is no number of seconds is refused."""
    with pytest.raises(ailf.InvalidArgumentError, match="wait must be"):
        opened("memory://", wait=wait)
