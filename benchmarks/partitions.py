"""A partitioned stream on a cluster: the CPU time of each node and of the client, by the number of partitions.

    python benchmarks/partitions.py [--quick] [--runs N]

Tasks add messages of 100 bytes, one in each call; then a worker handles them, one handler for each. Client and nodes
are processes of their own on the same cores, so the table has CPU time instead of wall time: what one more machine
would take over.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import bench
from bench import BODY
from redis.asyncio import RedisCluster

import ailf
from ailf_redis import AsyncRedisBackend

CALLERS: Final = 100
"""Tasks that add at once, and handlers that run at once."""

NODES: Final = ("node 1", "node 2", "node 3")

ONE: Final = "1 partition"
"""The row that the others are compared with."""

CONTENDERS: Final = {ONE: 1, "16 partitions": 16, "64 partitions": 64}


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """Start a cluster of three masters on free ports, and stop it at the end."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support import binaries  # noqa: PLC0415 - only from a checkout
    from tests.support.clusters import Cluster  # noqa: PLC0415 - as above

    version, binary = list(binaries.found().items())[-1]
    with contextlib.closing(Cluster(binary, version)) as started:
        print(f"three masters of server {version}, Python {sys.version.split()[0]}", flush=True)
        yield started


class Clock:
    """CPU seconds of this process and of each node, since it was made."""

    def __init__(self, nodes: Any) -> None:
        self._nodes = nodes
        self._before = self._now()

    def _now(self) -> list[float]:
        return [time.process_time(), *(_cpu(node) for node in self._nodes)]

    def each_us(self, count: int) -> list[float]:
        """Return microseconds for one of `count` messages: of this process, then of the nodes, the busiest first."""
        client, *nodes = [(now - before) / count * 1e6 for now, before in zip(self._now(), self._before, strict=True)]
        return [client, *sorted(nodes, reverse=True)]


def _cpu(node: Any) -> float:
    with node.client() as client:
        info = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


async def measure(nodes: Any, partitions: int, count: int) -> bench.Numbers:
    """Add and handle `count` messages."""
    client = RedisCluster(host="127.0.0.1", port=nodes[0].port)
    async with AsyncRedisBackend.from_client(client, namespace=f"p{partitions}") as backend:
        stream = backend.stream("tasks", type=bytes, partitions=partitions)
        await stream.delete()
        stream = backend.stream("tasks", type=bytes, partitions=partitions)
        group = stream.group("workers")
        await group.open()
        await stream.add(BODY)
        clock = Clock(nodes)

        async def add() -> None:
            for _ in range(count // CALLERS):
                await stream.add(BODY)

        await asyncio.gather(*(add() for _ in range(CALLERS)))
        added = clock.each_us(count)
        done = 0

        async def handle(_: ailf.AsyncDelivery[bytes]) -> None:
            nonlocal done
            done += 1
            if done > count // CALLERS * CALLERS:
                group.stop()

        clock = Clock(nodes)
        await group.process(handle, concurrency=CALLERS)
        handled = clock.each_us(count)
        waiting = asyncio.ensure_future(group.process(handle, concurrency=CALLERS))
        await asyncio.sleep(1.0)
        connections = sum(_connections(node) for node in nodes)
        group.stop()
        await waiting
    names = ("client", *NODES)
    return {
        **{f"add, {name}": value for name, value in zip(names, added, strict=True)},
        **{f"handle, {name}": value for name, value in zip(names, handled, strict=True)},
        "connections": connections,
    }


def _connections(node: Any) -> int:
    with node.client() as client:
        return len(client.client_list(_type="normal")) - 1


def main() -> None:
    """Print the tables."""
    effort = bench.effort(__doc__)
    count = effort.pick(4_000, 40_000)
    with cluster() as started:
        rows = bench.play(
            effort.chosen(
                {
                    name: lambda number=number: asyncio.run(measure(started.nodes, number, count))
                    for name, number in CONTENDERS.items()
                }
            ),
            effort.runs,
        )
    for what in ("add", "handle"):
        columns = [bench.Column(f"{what}, {name}", less=True, digits=1) for name in ("client", *NODES)]
        bench.table(f"CPU microseconds for one message, the busiest node first: {what}", columns, rows, ONE)
    bench.table("connections while a worker waits, of all nodes", [bench.Column("connections", less=True)], rows, ONE)


if __name__ == "__main__":
    main()
