"""The hot path is pinned: requests, bytes and Python calls of an add, a publish, a decision, and fetch + handle + ack.

`CALLS` counts the calls of functions of the three packages, as `sys.setprofile` reports them in the calling thread; the
event loop's and redis-py's own are not counted, so that the table holds on every Python. `SENT` counts what the server
receives. A number that rises needs a commit of its own that says why; one that falls is recorded here.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar

import pytest

import ailf
import ailf_memory
import ailf_redis
from tests.support.servers import NewServer, Server

T = TypeVar("T")

PACKAGES: Final = tuple(str(Path(each.__file__ or "").parent) for each in (ailf, ailf_memory, ailf_redis))

CALLS: Final = {
    ("redis", "blocking"): {"add": 25, "publish": 28, "decision": 28, "message": 79},
    ("redis", "asyncio"): {"add": 21, "publish": 24, "decision": 35, "message": 111},
    ("memory", "blocking"): {"add": 18, "publish": 16, "decision": 13, "message": 75},
    ("memory", "asyncio"): {"add": 17, "publish": 15, "decision": 12, "message": 101},
}
"""Python calls of one operation."""

HANDLED: Final = {
    ("redis", "blocking"): 94,
    ("redis", "asyncio"): 149,
    ("memory", "blocking"): 89,
    ("memory", "asyncio"): 135,
}
"""Python calls of a worker for one message: fetch, handle, ack."""

BATCHED: Final = {
    ("redis", "blocking"): 16,
    ("redis", "asyncio"): 16,
    ("memory", "blocking"): 20,
    ("memory", "asyncio"): 20,
}
"""Python calls of a worker for one message in a batch of a hundred."""

SENT: Final = {"add": (1, 65), "publish": (1, 45), "decision": (1, 263), "message": (2, 886)}
"""Requests of one operation, and their bytes."""

REQUESTS: Final = ("evalsha", "publish", "xadd")

INLINED: Final = ("<listcomp>", "<dictcomp>", "<setcomp>")
"""Calls until Python 3.11, and none since 3.12."""

ROUNDS: Final = 20


class Operations:
    """One call of each operation, options off, on an opened backend of either flavour."""

    def __init__(self, backend: Any) -> None:
        self._work = backend.stream("work")
        self._consumer = self._work.group("g").consumer("c")
        stream, pubsub, limiter = backend.stream("s"), backend.pubsub(), backend.rate_limiter("l", "1000000/day")
        self._named: dict[str, Callable[[], Any]] = {
            "add": lambda: stream.add(1),
            "publish": lambda: pubsub.publish("c", 1),
            "decision": lambda: limiter.try_acquire("k"),
            "message": self._message,
        }

    async def _message(self) -> None:
        delivery = await waited(self._consumer.get(timeout=0))
        await waited(delivery.ack())

    async def least(self, count: Callable[[Callable[[], Any]], Awaitable[Any]]) -> dict[str, Any]:
        """Return the cost of each operation: the least of several rounds, as the first ones fill caches."""
        await waited(self._work.add_many(range(ROUNDS)))
        return {name: min([await count(each) for _ in range(ROUNDS)]) for name, each in self._named.items()}


async def waited(result: Any) -> Any:
    """Return a result, awaited if it is awaitable."""
    return await result if isinstance(result, Awaitable) else result


async def opened(url: str, flavour: str, measure: Callable[[Any], Awaitable[T]]) -> T:
    """Open a backend, and return what `measure` returns for it."""
    if flavour == "asyncio":
        async with ailf.connect_async(url) as backend:
            return await measure(backend)
    with ailf.connect(url) as blocking:
        return await measure(blocking)


async def python_calls(operation: Callable[[], Any]) -> int:
    """Return how many of our functions an operation calls in this thread."""
    calls = 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        code = frame.f_code
        calls += event == "call" and code.co_filename.startswith(PACKAGES) and code.co_name not in INLINED

    sys.setprofile(profile)
    try:
        await waited(operation())
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(("backend_name", "flavour"), CALLS)
def test_python_calls(any_server: Server, namespace: str, backend_name: str, flavour: str) -> None:
    """Each operation takes the pinned number of Python calls."""
    url = f"memory://{namespace}" if backend_name == "memory" else f"{any_server.url}?namespace={namespace}"
    costs = asyncio.run(opened(url, flavour, lambda backend: Operations(backend).least(python_calls)))
    assert costs == CALLS[backend_name, flavour]


@pytest.mark.parametrize(("backend_name", "flavour"), HANDLED)
def test_python_calls_of_a_worker(
    any_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch, backend_name: str, flavour: str
) -> None:
    """A worker takes the pinned number of Python calls for each message."""
    # How often it yields to the loop depends on how busy the machine is.
    monkeypatch.setattr("ailf.stream.worker._YIELD_EVERY", 1000.0)
    url = f"memory://{namespace}" if backend_name == "memory" else f"{any_server.url}?namespace={namespace}"

    async def handled(backend: Any, count: int) -> int:
        work = backend.stream(f"handled-{count}")
        group = work.group("g")
        await waited(work.add_many(range(count)))

        def handler(delivery: Any) -> None:
            if delivery.data == count - 1:
                group.stop()

        return await python_calls(lambda: group.process(handler, prefetch=1))

    async def each(backend: Any) -> int:
        few, many = [min([await handled(backend, count) for _ in range(8)]) for count in (ROUNDS, 2 * ROUNDS)]
        return (many - few) // ROUNDS

    assert abs(asyncio.run(opened(url, flavour, each)) - HANDLED[backend_name, flavour]) <= 1


@pytest.mark.parametrize(("backend_name", "flavour"), BATCHED)
def test_python_calls_of_a_batch(any_server: Server, namespace: str, backend_name: str, flavour: str) -> None:
    """A message in a batch of a hundred takes a few Python calls: to decode, to lease, to settle; none to wait."""
    url = f"memory://{namespace}" if backend_name == "memory" else f"{any_server.url}?namespace={namespace}"

    async def handled(backend: Any, count: int) -> int:
        work = backend.stream(f"handled-{count}")
        group = work.group("g")
        await waited(work.add_many(range(count)))

        def handler(deliveries: Any) -> None:
            assert len(deliveries) == 100
            if deliveries[-1].data == count - 1:
                group.stop()

        return await python_calls(lambda: group.process(handler, batch=100))

    async def each(backend: Any) -> float:
        few, many = [min([await handled(backend, count) for _ in range(2)]) for count in (200, 600)]
        return (many - few) / 400

    assert abs(asyncio.run(opened(url, flavour, each)) - BATCHED[backend_name, flavour]) <= 1


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_requests_and_bytes(new_server: NewServer, flavour: str) -> None:
    """Each operation makes the pinned number of requests, of the pinned number of bytes."""
    server = new_server()

    def received() -> tuple[int, int]:
        with server.client() as admin:
            made: dict[str, dict[str, int]] = admin.info("commandstats")
            requests = sum(made.get(f"cmdstat_{each}", {}).get("calls", 0) for each in REQUESTS)
            return requests, int(admin.info("stats")["total_net_input_bytes"])

    async def traffic(operation: Callable[[], Any]) -> tuple[int, int]:
        before, between = received(), received()
        await waited(operation())
        requests, size = received()
        return requests - between[0], size - between[1] - (between[1] - before[1])

    assert asyncio.run(opened(server.url, flavour, lambda backend: Operations(backend).least(traffic))) == SENT
