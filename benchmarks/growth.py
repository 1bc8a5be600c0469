"""Redis' work for a stream as it grows: server time, the longest script, bytes, and wake-ups, by the state of messages.

    python benchmarks/growth.py [--quick] [--sizes 10000 100000 1000000]

Each row is a stream of n messages of 100 bytes that one group has *settled*, or leased to a consumer (*pending*), or
set aside until tomorrow (*delayed*) or behind another one of their ordering key (*ordered*), or made dead letters
(*dead*). Times are the server's own. There is no peer in these tables: compare a row with the one of
another size.

The last table shows another client, a process of its own, which adds an entry to another stream every 5 ms: while
nothing else happens (*alone*), and while a consumer looks for one message behind n others that are set aside. It has
the client's times, and so those of the operating system, too.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

import attrs
import bench
import redis
from bench import BODY

import ailf
from ailf.driver import Action, Settlement, StreamDriver
from ailf.runtime import run

PAGE: Final = 500
"""Messages that are added in one call."""

PREFETCH: Final = 100
"""Messages that are fetched in one call."""

LONG: Final = 86_400.0
"""Seconds of delays, leases and heartbeats: longer than the benchmark."""

CALLS: Final = 20
"""How often an operation is measured."""

IDLE: Final = 20
"""Consumers that wait while one message after another is added."""

SILENCE: Final = 3.0
"""Seconds for which no message is added."""

EVERY: Final = 0.005
"""Seconds between two calls of another client."""

GROUPS: Final = 8
"""Groups that look for a message behind those set aside."""

MAX_DELIVERIES: Final = 5

OPERATIONS: Final = ("into", "add", "one", "info", "trim", "seek", "leave", "delete")


@attrs.define
class Cost:
    """What an operation cost the server.

    Attributes:
        calls: How often it was called.
        time: Seconds of all its requests.
        longest: Seconds of its longest request.
        scripts: How many scripts it ran.
    """

    calls: int = 1
    time: float = 0.0
    longest: float = 0.0
    scripts: int = 0

    @property
    def each_us(self) -> float:
        """Microseconds of the server for one call."""
        return self.time / self.calls * 1e6


class Server:
    """Measures what scripts cost a server, which does nothing else."""

    SCRIPTS: Final = ("evalsha", "eval")
    """The requests of every measured call; the commands within a script count with it."""

    LEAST_US: Final = 20
    """Shorter requests aren't logged: on some servers the log has the commands within scripts too, and fills up."""

    def __init__(self, admin: redis.Redis) -> None:
        self._admin = admin
        admin.config_set("slowlog-log-slower-than", self.LEAST_US)
        admin.config_set("slowlog-max-len", 100_000)

    def cost(self, call: Callable[[], Any], calls: int = 1) -> Cost:
        """Make a call, which stands for `calls` of an operation, and return its cost."""
        self.begin()
        call()
        return self.end(calls)

    def begin(self) -> None:
        """Forget what was done."""
        self._admin.slowlog_reset()
        self._admin.config_resetstat()

    def end(self, calls: int = 1) -> Cost:
        """Return the cost of what was done since `begin`."""
        stats = self._admin.info("commandstats")
        ran = [stats[f"cmdstat_{each}"] for each in self.SCRIPTS if f"cmdstat_{each}" in stats]
        longest = [
            each["duration"]
            for each in self._admin.slowlog_get(100_000)
            if bytes(each["command"]).partition(b" ")[0].decode().lower() in self.SCRIPTS
        ]
        scripts, usec = sum(each["calls"] - each["failed_calls"] for each in ran), sum(each["usec"] for each in ran)
        return Cost(calls, usec / 1e6, max(longest, default=0) / 1e6, scripts)

    def memory(self) -> int:
        """Return the bytes that the server uses, but for its log."""
        self.begin()
        return int(self._admin.info("memory")["used_memory"])


# --- the states --------------------------------------------------------------------------------------------------


@attrs.frozen
class State:
    """Brings messages into a state.

    Attributes:
        options: The options of ``add_many``.
        outcome: How each is settled, or None if it is not.
    """

    options: Mapping[str, Any] = {}
    outcome: Action | None = None

    def fill(self, stream: ailf.Stream[bytes], count: int) -> None:
        """Add messages."""
        stream.group("g").open()
        for _ in range(0, count, PAGE):
            stream.add_many([BODY] * PAGE, **self.options)

    def bring(self, driver: StreamDriver, count: int) -> None:
        """Let a consumer fetch all messages, and settle those that it gets."""
        seen = 0
        while seen < count:
            fetched = run(
                driver.fetch("s", "g", "holder", count=PREFETCH, lease=LONG, alive=LONG, max_deliveries=MAX_DELIVERIES)
            )
            if not fetched.claims and fetched.position is not None:
                return
            seen += len(fetched.claims)
            if self.outcome:
                settlements = [Settlement(each.receipt, self.outcome, reason="rejected") for each in fetched.claims]
                run(driver.settle("s", "g", settlements, max_deliveries=MAX_DELIVERIES))


STATES: Final = {
    "settled": State(outcome=Action.ACK),
    "pending": State(),
    "delayed": State({"delay": LONG}),
    "ordered": State({"key": "k"}),
    "dead": State(outcome=Action.REJECT),
}


PLAIN: Final = State()
"""Messages without options."""


@attrs.define
class Row:
    """The results of one state and size."""

    bytes: float = 0.0
    wakes: float = 0.0
    idle: float = 0.0
    costs: dict[str, Cost] = attrs.field(factory=dict)


def measure(url: str, server: Server, state: State, count: int) -> Row:
    """Measure one state at one size."""
    bench.clear(url)
    row = Row()
    with ailf.connect(
        f"{url}?timeout=60",
    ) as backend:
        driver = backend.engine.driver.stream()
        stream = backend.stream("s", type=bytes)
        empty = server.memory()
        PLAIN.fill(stream, count)
        bare = server.memory() - empty
        bench.clear(url)
        empty = server.memory()
        state.fill(stream, count)
        row.costs["into"] = server.cost(lambda: state.bring(driver, count), count)
        row.bytes = (server.memory() - empty - bare) / count
        bounded = backend.stream("s", type=bytes, retention=ailf.Retention(max_len=count, max_age=LONG))
        roomy = backend.stream("s", type=bytes, retention=ailf.Retention(max_len=2 * count, max_age=LONG))
        group = stream.group("g", lease=LONG, takeover=LONG)
        growing = bounded if state.outcome else roomy
        row.costs["add"] = server.cost(lambda: repeat(lambda: growing.add(BODY)), CALLS)
        with group.consumer(prefetch=1) as consumer:
            repeat(lambda: consumer.get(1).ack())  # type: ignore[union-attr]

            def one() -> None:
                growing.add(BODY)
                delivery = consumer.get(1)
                assert delivery is not None
                delivery.ack()

            row.costs["one"] = server.cost(lambda: repeat(one), CALLS)
        row.costs["info"] = server.cost(lambda: repeat(group.info), CALLS)
        row.wakes, row.idle = asyncio.run(waiting(url, server))
        row.costs["trim"] = server.cost(lambda: bounded.trim(ailf.Retention(max_len=count // 2)))
        row.costs["leave"] = server.cost(lambda: run(driver.leave("s", "g", "holder")))
        row.costs["seek"] = server.cost(lambda: group.seek(ailf.EARLIEST))
        row.costs["delete"] = server.cost(bounded.delete)
    return row


def repeat(call: Callable[[], Any]) -> None:
    """Make a call `CALLS` times."""
    for _ in range(CALLS):
        call()


async def waiting(url: str, server: Server) -> tuple[float, float]:
    """Let many consumers wait; return the scripts for each message, and the scripts per second while there is none."""
    async with ailf.connect_async(url) as backend:
        stream = backend.stream("s", type=bytes)
        group = stream.group("g", lease=5)
        done = asyncio.Event()

        async def handle(delivery: ailf.AsyncDelivery[bytes]) -> None:
            await delivery.ack()
            done.set()

        async def consume() -> None:
            async with group.consumer(prefetch=1) as consumer:
                async for delivery in consumer:
                    await handle(delivery)

        workers = [asyncio.create_task(consume()) for _ in range(IDLE)]
        await asyncio.sleep(1.0)

        async def send() -> None:
            for _ in range(CALLS):
                done.clear()
                await stream.add(BODY)
                await asyncio.wait_for(done.wait(), 10)
                await asyncio.sleep(0.02)

        server.begin()
        await send()
        sent = server.end(CALLS)
        server.begin()
        await asyncio.sleep(SILENCE)
        idle = server.end()
        for each in workers:
            each.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return sent.scripts / sent.calls, idle.scripts / SILENCE


# --- another client ----------------------------------------------------------------------------------------------


class OtherClient:
    """Adds an entry to a stream of its own every few milliseconds, in a process of its own, until `stop`."""

    def __init__(self, url: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_add_regularly, args=(url, theirs), daemon=True)
        self._process.start()
        self._pipe.recv()

    def stop(self) -> list[float]:
        """Stop, and return the seconds that each call took."""
        self._pipe.send(None)
        took: list[float] = self._pipe.recv()
        self._process.join()
        return took


def _add_regularly(url: str, pipe: Connection) -> None:
    took = []
    with redis.Redis.from_url(url) as client:
        client.xadd("other", {"body": BODY}, maxlen=1000)
        pipe.send(None)
        while not pipe.poll():
            began = time.perf_counter()
            client.xadd("other", {"body": BODY}, maxlen=1000)
            took.append(time.perf_counter() - began)
            time.sleep(EVERY)
    pipe.send(took)


def p99(took: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return sorted(took)[len(took) * 99 // 100]


@attrs.define
class CatchUp:
    """What happened while consumers looked for a message behind others, one after another; all in seconds.

    Attributes:
        alone: The calls of another client before.
        meanwhile: For each consumer, that client's calls while it looked.
        took: For each consumer, the time until it had its message.
        fresh: The times from adding one more message until the consumer had it.
    """

    alone: list[float] = attrs.field(factory=list)
    meanwhile: list[list[float]] = attrs.field(factory=list)
    took: list[float] = attrs.field(factory=list)
    fresh: list[float] = attrs.field(factory=list)


def catch_up(url: str, state: State, count: int) -> CatchUp:
    """Let new groups look for a message behind ``count`` others, one group after another."""
    bench.clear(url)
    result = CatchUp()
    with ailf.connect(f"{url}?timeout=60") as backend:
        stream = backend.stream("s", type=bytes)
        state.fill(stream, count)
        other = OtherClient(url)
        time.sleep(SILENCE)
        result.alone += other.stop()
        for number in range(GROUPS):
            with stream.group(f"g{number}", lease=LONG).consumer() as consumer:
                other = OtherClient(url)
                result.took.append(_seconds_for(stream, consumer, b"%d" % number))
                result.meanwhile.append(other.stop())
                result.fresh += [_seconds_for(stream, consumer, b"%d %d" % (number, each)) for each in range(CALLS)]
    return result


def _seconds_for(stream: ailf.Stream[bytes], consumer: ailf.Consumer[bytes], body: bytes) -> float:
    """Add a message, and return how long it takes the consumer to get it."""
    began = time.perf_counter()
    stream.add(body)
    while True:
        delivery = consumer.get(60)
        took = time.perf_counter() - began
        assert delivery is not None
        if delivery.data != BODY:  # that is the first one of the ordering key, which stays leased
            delivery.ack()
        if delivery.data == body:
            return took


# --- tables ------------------------------------------------------------------------------------------------------


def rows_of(url: str, sizes: Sequence[int]) -> Iterator[tuple[str, int, Row]]:
    """Measure each state at each size."""
    with redis.Redis.from_url(url) as admin:
        server = Server(admin)
        for name, state in STATES.items():
            for size in sizes:
                yield name, size, measure(url, server, state, size)


def table(title: str, columns: Sequence[str], rows: Mapping[tuple[str, int], Sequence[str]]) -> None:
    """Print a table."""
    print(f"\n{title}")
    print(f"{'':8}{'messages':>10}{''.join(f'{each:>10}' for each in columns)}")
    for (name, size), cells in rows.items():
        print(f"{name:8}{size:>10,}{''.join(f'{each:>10}' for each in cells)}", flush=True)


def print_catch_ups(catch_ups: Mapping[tuple[str, int], CatchUp]) -> None:
    """Print what another client noticed."""
    table(
        "another client's call every 5 ms, alone, and then while a consumer looks for a message behind\n"
        "those set aside; the time until the consumer has it, and until it has one more that is added\n"
        f"then; all in milliseconds, medians of {GROUPS} consumers",
        ["p50", "p99", "longest", "then p50", "then p99", "longest", "has it", "one more"],
        {
            key: [
                *(
                    f"{statistics.median(map(call, took)) * 1e3:.2f}"
                    for took in ([each.alone], each.meanwhile)
                    for call in (statistics.median, p99, max)
                ),
                f"{statistics.median(each.took) * 1e3:.0f}",
                f"{statistics.median(each.fresh) * 1e3:.2f}",
            ]
            for key, each in catch_ups.items()
        },
    )


def main() -> None:
    """Measure, and print three tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="measure 10,000 messages only")
    parser.add_argument("--sizes", type=int, nargs="+", help="the numbers of messages; default: 10000 100000")
    options = parser.parse_args()
    sizes = options.sizes or ([10_000] if options.quick else [10_000, 100_000])
    with bench.server() as url:
        rows = {(name, size): row for name, size, row in rows_of(url, sizes)}
        catch_ups = {
            (name, size): catch_up(url, STATES[name], size) for name in ("delayed", "ordered") for size in sizes
        }
    table(
        "bytes beside each message, and the server's microseconds: to bring a message into its state; for\n"
        f"a call; scripts for a message with {IDLE} idle consumers, and per second without one",
        ["bytes", "into", "add", "one", "info", "scripts", "idle/s"],
        {
            key: [
                f"{row.bytes:.0f}",
                *(f"{row.costs[each].each_us:.1f}" for each in ("into", "add", "one", "info")),
                f"{row.wakes:.1f}",
                f"{row.idle:.1f}",
            ]
            for key, row in rows.items()
        },
    )
    table(
        "the longest request in milliseconds, by operation",
        OPERATIONS,
        {key: [f"{row.costs[each].longest * 1e3:.2f}" for each in OPERATIONS] for key, row in rows.items()},
    )
    print_catch_ups(catch_ups)


if __name__ == "__main__":
    main()
