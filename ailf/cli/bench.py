"""``ailf bench URL``: how fast a backend is from here. It works in a namespace of its own, which it removes."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Final

import attrs
import typer
from rich.table import Table

from ailf.backend import Backend
from ailf.cli.command import Cli, command, group
from ailf.cli.namespaces import own_namespace, remove_namespaces
from ailf.cli.tables import table
from ailf.cli.text import duration
from ailf.connect import connect
from ailf.driver import Capability
from ailf.values import Retention

__all__ = ["APP", "Measured", "bench_table"]

APP: Final = group("", "")

MANY: Final = 100
BODY: Final = "x" * 100
UNLIMITED: Final = "1000000000/second"

Step = Callable[[], Any]


@attrs.frozen
class Measured:
    """The speed of one operation.

    Attributes:
        name: The operation.
        calls: The number of calls.
        per_second: Calls in a second, one after another.
        median: The duration of a call in seconds, at the median.
        p99: The duration that one of a hundred calls exceeds, in seconds.
    """

    name: str
    calls: int
    per_second: float
    median: float
    p99: float


@command(APP, "bench")
def bench(
    cli: Cli,
    url: Annotated[str | None, typer.Argument(metavar="[URL]", help="The backend; else as for other commands.")] = None,
    *,
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, max=600, help="Seconds for each operation.")] = 1.0,
) -> None:
    """Measure how fast a backend is, one call after another. It uses a namespace of its own, and removes it."""
    own = own_namespace(cli.url(url), f"ailf-bench-{secrets.token_hex(6)}")
    with connect(own.url) as backend:
        try:
            results = _results(cli, backend, own.name, seconds)
        finally:
            left = remove_namespaces(backend, own)
    cli.show(results, bench_table(results))
    if left:
        cli.say(left)


def _results(cli: Cli, backend: Backend, name: str, seconds: float) -> list[Measured]:
    results = []
    with ExitStack() as stack, cli.progress("measuring") as step:
        for operation, call in _operations(backend, name, stack):
            results.append(measured(operation, call, seconds))
            step(1)
    return results


def _operations(backend: Backend, name: str, stack: ExitStack) -> Iterator[tuple[str, Step]]:
    """Yield the operations that the backend has, each when the one before was measured."""
    yield "ping", backend.ping
    if Capability.STREAM in backend.capabilities:
        stream = stack.enter_context(_deleted(backend, name))
        yield "add", lambda: stream.add(BODY)
        yield f"add_many, {MANY} messages", lambda: stream.add_many([BODY] * MANY)
        consumer = stack.enter_context(stream.group("bench").consumer(prefetch=MANY))

        def settle() -> None:
            delivery = consumer.get(timeout=0)
            if delivery is None:
                stream.add_many([BODY] * MANY)
                delivery = consumer.get(timeout=5)
            if delivery is not None:
                delivery.ack()

        yield f"get and ack, prefetch {MANY}", settle
    if Capability.PUBSUB in backend.capabilities:
        pubsub = backend.pubsub()
        messages = stack.enter_context(pubsub.listen(name))

        def send() -> None:
            pubsub.publish(name, BODY)
            messages.get(timeout=5)

        yield "publish and receive", send
    if Capability.LOCK in backend.capabilities:
        lock = backend.lock(name)
        yield "acquire and release a lock", lambda: lock.acquire(timeout=5).release()
    if Capability.RATE_LIMITER in backend.capabilities:
        limiter = backend.rate_limiter(name, UNLIMITED)
        stack.callback(limiter.reset)
        yield "try_acquire of a rate limiter", limiter.try_acquire


@contextmanager
def _deleted(backend: Backend, name: str) -> Iterator[Any]:
    stream = backend.stream(name, retention=Retention.settled())
    try:
        yield stream
    finally:
        stream.delete()


def measured(name: str, call: Step, seconds: float) -> Measured:
    """Call a function for some seconds, one call after another, and return how fast it was."""
    call()  # the first call may open a connection or load a script
    taken: list[float] = []
    begin = now = time.perf_counter()
    while now - begin < seconds:
        call()
        last, now = now, time.perf_counter()
        taken.append(now - last)
    ordered = sorted(taken)
    return Measured(
        name, len(taken), len(taken) / (now - begin), ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    )


def bench_table(results: Sequence[Measured]) -> Table:
    """Return the table of results."""
    return table(
        ("OPERATION", ">CALLS/S", ">MEDIAN", ">99 %"),
        ((each.name, f"{each.per_second:,.0f}", duration(each.median), duration(each.p99)) for each in results),
    )
