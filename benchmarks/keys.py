"""Measure what ordering keys cost the server: a consumer works off a backlog, of one kind after another.

Run ``python benchmarks/keys.py`` (``--quick`` for fewer messages). It starts a server of its own.
"""

import argparse
from collections.abc import Callable
from typing import Final

import bench
import redis
from growth import PAGE, Cost, Server

import ailf

KINDS: Final[dict[str, Callable[[int], str | None]]] = {
    "plain": lambda _: None,
    "distinct": str,
    "500 keys": lambda number: str(number * 7919 % 500),
    "5 keys": lambda number: str(number * 7919 % 5),
    "one key": lambda _: "k",
}
"""The ordering key of each message, by its number."""

PREFETCH: Final = (1, 10, 100)


def fill(stream: ailf.Stream[bytes], kind: str, count: int) -> None:
    """Add the backlog."""
    key_of = KINDS[kind]
    if kind == "plain":
        for _ in range(0, count, PAGE):
            stream.add_many([b"x" * 100] * PAGE)
        return
    for number in range(count):
        stream.add(b"x" * 100, key=key_of(number))


def measure(url: str, server: Server, kind: str, count: int, prefetch: int) -> Cost:
    """Let one consumer handle all messages, one after another."""
    bench.clear(url)
    with ailf.connect(f"{url}?timeout=60") as backend:
        stream = backend.stream("s", type=bytes)
        fill(stream, kind, count)

        def work_off() -> None:
            with stream.group("g", lease=600, takeover=600).consumer(prefetch=prefetch) as consumer:
                for _ in range(count):
                    delivery = consumer.get(10)
                    assert delivery is not None
                    delivery.ack()

        return server.cost(work_off, count)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="measure 2,000 messages")
    count = 2_000 if parser.parse_args().quick else 10_000
    with bench.server() as url, redis.Redis.from_url(url) as admin:
        server = Server(admin)
        print(f"microseconds of the server for each of {count:,} messages, and the longest script in ms, by prefetch")
        print(f"{'':10}{''.join(f'{each:>10}' for each in PREFETCH)}")
        for kind in KINDS:
            costs = [measure(url, server, kind, count, each) for each in PREFETCH]
            cells = "".join(f"{f'{each.each_us:.0f} ({each.longest * 1e3:.1f})':>12}" for each in costs)
            print(f"{kind:10}{cells}", flush=True)


if __name__ == "__main__":
    main()
