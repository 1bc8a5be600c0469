"""The rate limiter for LangChain: what its chat models are charged, in both flavours, and what closing leaves."""

import asyncio
import itertools
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.rate_limiters import BaseRateLimiter

import ailf
from ailf.bridges.langchain import SharedRateLimiter
from ailf.testing import ManualClock
from ailf_memory import AsyncMemoryBackend, MemoryBackend
from ailf_redis import AsyncRedisBackend, RedisBackend
from tests.support.servers import NewServer, Server


def model_with(limiter: BaseRateLimiter) -> GenericFakeChatModel:
    """Return a chat model of LangChain that answers for ever."""
    return GenericFakeChatModel(messages=itertools.repeat("Hello there"), rate_limiter=limiter)


@pytest.fixture(params=["blocking", "asyncio"])
def backend(request: pytest.FixtureRequest) -> Any:
    """A backend in memory, of each flavour."""
    return (MemoryBackend if request.param == "blocking" else AsyncMemoryBackend)(ManualClock())


def used(limiter: SharedRateLimiter, key: str = "") -> int:
    """Return how many calls were charged."""
    peeked = limiter._on_threads().peek(key)
    return limiter._limits[""].capacity - peeked.remaining


def close(backend: Any) -> None:
    """Close a backend of either flavour."""
    asyncio.run(backend.aclose()) if isinstance(backend, ailf.AsyncBackend) else backend.close()


def test_every_way_to_call_a_model(backend: Any) -> None:
    """Each call of a model waits and is charged once, blocking or on asyncio, whichever flavour the backend has."""
    limiter = SharedRateLimiter(backend, "llm", "100/day")
    model = model_with(limiter)
    assert model.invoke("Hi").content == "Hello there"
    assert used(limiter) == 1
    assert "".join(str(each.content) for each in model.stream("Hi")) == "Hello there"
    assert used(limiter) == 2
    assert len(model.batch(["Hi", "Ho", "He"])) == 3
    assert used(limiter) == 5

    async def main() -> None:
        assert (await model.ainvoke("Hi")).content == "Hello there"
        assert used(limiter) == 6
        assert "".join([str(each.content) async for each in model.astream("Hi")]) == "Hello there"
        assert used(limiter) == 7
        assert len(await model.abatch(["Hi", "Ho", "He"])) == 3
        assert used(limiter) == 10

    asyncio.run(main())
    limiter.close()
    assert not backend.closed
    close(backend)


def test_both_flavours_wait(backend: Any) -> None:
    """A call waits until the quota allows it, on threads and on asyncio."""
    clock = backend.engine.runtime.clock
    limiter = SharedRateLimiter(backend, "llm", "1/minute")
    model = model_with(limiter)
    assert limiter.acquire(blocking=False)
    assert not limiter.acquire(blocking=False)
    thread = threading.Thread(target=model.invoke, args=["Hi"])
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    clock.advance(60)
    thread.join(5)
    assert not thread.is_alive()

    async def main() -> None:
        assert not await limiter.aacquire(blocking=False)
        call = asyncio.create_task(model.ainvoke("Hi"))
        await asyncio.sleep(0.2)
        assert not call.done()
        clock.advance(60)
        await asyncio.wait_for(call, 5)

    asyncio.run(main())
    limiter.close()
    close(backend)


def test_a_wait_that_is_too_long(backend: Any) -> None:
    """A model isn't called if its turn doesn't come within `max_wait`: the error says why."""
    with SharedRateLimiter(backend, "llm", "1/day", max_wait=0.1) as limiter:
        model = model_with(limiter)
        model.invoke("Hi")
        for call in (model.invoke, lambda text: asyncio.run(model.ainvoke(text))):
            since = time.monotonic()
            with pytest.raises(ailf.RateLimitedError, match="allows it in"):
                call("Hi")
            assert 0.1 <= time.monotonic() - since < 3
    close(backend)


def test_keys_and_several_limits(backend: Any) -> None:
    """A function chooses the key of each call; of several limits each is charged."""
    user = "ann"
    with SharedRateLimiter(backend, "llm", key=lambda: user, minute="1/minute", day="5/day") as limiter:
        assert limiter.acquire(blocking=False)
        assert not limiter.acquire(blocking=False)
        user = "bob"
        assert limiter.acquire(blocking=False)
        assert limiter._on_threads().peek("bob").limits["day"].remaining == 4
        assert repr(limiter) == "<SharedRateLimiter 'llm': minute 1/minute, day 5/day>"
    close(backend)


def test_one_event_loop_after_another(backend: Any) -> None:
    """The same model works in any number of event loops, and those that have ended leave nothing."""
    limiter = SharedRateLimiter(backend, "llm", "1000/day")
    model = model_with(limiter)
    for _ in range(5):
        asyncio.run(model.ainvoke("Hi"))
    assert len(limiter._of_loops) == 1
    limiter.close()
    close(backend)


def test_event_loops_at_once(any_server: Server, namespace: str) -> None:
    """Event loops in several threads use the same model at once; closing it closes what each of them has opened."""
    with RedisBackend(f"{any_server.url}?namespace={namespace}") as backend:
        limiter = SharedRateLimiter(backend, "llm", "1000/day")
        model = model_with(limiter)
        together, done, errors = threading.Barrier(3), threading.Event(), []

        async def main() -> None:
            await model.ainvoke("Hi")
            await asyncio.to_thread(together.wait, 10)
            await asyncio.to_thread(done.wait, 10)
            try:
                await model.ainvoke("Hi")
            except ailf.ClosedError as error:
                errors.append(error)

        threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(2)]
        for each in threads:
            each.start()
        together.wait(10)
        opened = [each for each, _ in limiter._of_loops]
        assert len(opened) == 2
        limiter.close()
        assert all(each.closed for each in opened)
        done.set()
        for each in threads:
            each.join(10)
        assert len(errors) == 2
        assert not backend.closed


@pytest.mark.parametrize("opening", [RedisBackend, AsyncRedisBackend])
def test_closing_leaves_nothing(new_server: NewServer, opening: Callable[[str], Any]) -> None:
    """After close and aclose no connection is left but those of the given backend, which the user closes."""
    server = new_server()

    def connections() -> int:
        with server.client() as client:
            return len(client.client_list()) - 1

    async def main() -> None:
        backend = opening(server.url)
        async with SharedRateLimiter(backend, "llm", "1000/day") as limiter:
            await limiter.aacquire()
            await asyncio.to_thread(limiter.acquire)
            assert connections() >= 2
            with pytest.raises(ailf.InvalidArgumentError, match="await aclose"):
                limiter.close()
        for call in (limiter.acquire, lambda: asyncio.run(limiter.aacquire())):
            with pytest.raises(ailf.ClosedError):
                await asyncio.to_thread(call)
        await backend.aclose() if isinstance(backend, ailf.AsyncBackend) else backend.close()

    asyncio.run(main())
    until = time.monotonic() + 5
    while connections():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_backend_that_is_away(new_server: NewServer) -> None:
    """While the backend is away a call waits, `max_wait` at most; with "allow" it is made at once."""
    server = new_server()
    with RedisBackend(server.url) as backend:
        waiting = SharedRateLimiter(backend, "llm", "1000/day", max_wait=0.3)
        allowing = SharedRateLimiter(backend, "llm", "1000/day", on_backend_error="allow")
        waiting.acquire()
        server.stop()
        with pytest.raises(ailf.RateLimitedError, match="unavailable"):
            waiting.acquire()
        assert allowing.acquire()


@pytest.mark.parametrize(
    ("args", "options", "words"),
    [
        (("memory://", "llm", "1/day"), {}, "an opened backend, not str"),
        ((None, "llm"), {}, "needs one limit"),
        ((None, "llm", "8 parallel"), {}, "'8 parallel ttl .*doesn't tell when a call ends.*ailf.llm.quota"),
        ((None, "llm", "1/day"), {"key": 5}, "key must be text"),
        ((None, "llm", "1/day"), {"max_wait": -1}, "max_wait"),
        ((None, "", "1/day"), {}, "must not be empty"),
    ],
)
def test_wrong_arguments(args: tuple[Any, ...], options: dict[str, Any], words: str) -> None:
    """A wrong argument is named when the limiter is made."""
    with MemoryBackend() as backend, pytest.raises(ailf.InvalidArgumentError, match=words):
        SharedRateLimiter(args[0] or backend, *args[1:], **options)


CALLING = """
    import asyncio, itertools, sys, ailf
    from ailf.bridges.langchain import SharedRateLimiter
    from langchain_core.language_models import GenericFakeChatModel

    url, name, flavour = sys.argv[1:]
    with ailf.connect(url) as backend, SharedRateLimiter(backend, name, "40/day", max_wait=0.2) as limiter:
        model = GenericFakeChatModel(messages=itertools.repeat("Hello"), rate_limiter=limiter)
        model.invoke("Hi")
        calls = 1
        print("ready", flush=True)
        sys.stdin.readline()

        async def main():
            global calls
            while True:
                await model.ainvoke("Hi")
                calls += 1

        try:
            while flavour == "blocking":
                model.invoke("Hi")
                calls += 1
            asyncio.run(main())
        except ailf.RateLimitedError:
            print(calls)
"""


def test_two_processes(any_server: Server) -> None:
    """Two processes, one blocking and one on asyncio, make together exactly as many calls as the quota allows."""
    name = uuid.uuid4().hex
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CALLING), any_server.url, name, flavour],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for flavour in ("blocking", "asyncio")
    ]
    for each in started:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in started:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    calls = [int(each.communicate(timeout=30)[0]) for each in started]
    assert sum(calls) == 40
    assert [each.returncode for each in started] == [0, 0]


def test_options_are_no_limits(backend: Any) -> None:
    """An option of a limiter that makes no sense here is refused where it is given."""
    with pytest.raises(ailf.InvalidArgumentError, match="no option 'root'"):
        SharedRateLimiter(backend, "llm", root="acme", run="5/minute")
    close(backend)
