"""Messages pass through a partitioned stream while nodes of a cluster fail; lost and repeated ones are counted."""

import asyncio
import collections
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from redis.asyncio import RedisCluster

import ailf
from ailf.stream.partitions.ids import partition_names
from ailf_redis import AsyncRedisBackend
from ailf_redis.cluster.slots import slot_of
from ailf_redis.keys import Keys
from tests.support.clusters import Cluster, until
from tests.support.servers import HOST

PARTITIONS = 16
NAMESPACE = "load"

PRODUCERS, CONSUMERS, LOOPS = 8, 2, 4
"""The number of tasks that add, of consumers, and of tasks that take messages from each."""

PAUSE = 0.005
"""Seconds between two adds of one producer."""

BEHIND = 2.0
"""Seconds of which a replica lacks the data when it takes the place of its master."""

USER = "agent"
"""The user of producers and consumers. Replicas are the default user, which a master is told to shut out."""

QUIET = 30.0
"""Seconds without progress after which a run ends."""


@attrs.frozen(kw_only=True)
class Plan:
    """The faults of one run.

    Attributes:
        fault: "move" (the slot of a partition goes to another node), "restart" (a master is killed and started again
            with its own append-only file, which it writes at once), "failover" (a master is cut off from its replica,
            killed `BEHIND` seconds later, and the replica takes its place).
        faults: The number of faults.
        min_replicas: The value of ``min-replicas-to-write``.
    """

    fault: str
    faults: int
    min_replicas: int = 0


@attrs.define
class Tally:
    """What the producers and consumers of a run have seen.

    Attributes:
        acknowledged: The messages whose add was acknowledged.
        handled: How often each message was delivered.
        settled: The messages whose ack was acknowledged.
        back: The messages that were delivered after that, with the number of the attempt.
        disordered: The messages of a key that came first after a later one of the key.
        unknown: How many adds ended with `OutcomeUnknownError`.
        refused: How many adds ended with another error.
        resets: How often a group was made again.
    """

    acknowledged: set[str] = attrs.field(factory=set)
    handled: collections.Counter[str] = attrs.field(factory=collections.Counter)
    settled: set[str] = attrs.field(factory=set)
    back: list[tuple[str, int]] = attrs.field(factory=list)
    disordered: list[str] = attrs.field(factory=list)
    unknown: int = 0
    refused: int = 0
    resets: int = 0
    _newest: dict[str, int] = attrs.field(factory=dict)

    def delivered(self, message: str, attempt: int) -> None:
        """Note a delivery."""
        if message in self.settled:
            self.back.append((message, attempt))
        producer, number = message.split("-")
        if message not in self.handled:
            if int(number) < self._newest.get(producer, -1):
                self.disordered.append(message)
            self._newest[producer] = max(int(number), self._newest.get(producer, -1))
        self.handled[message] += 1

    @property
    def lost(self) -> set[str]:
        """The messages that were acknowledged and never delivered."""
        return self.acknowledged - self.handled.keys()

    def __str__(self) -> str:
        return (
            f"{len(self.acknowledged)} adds acknowledged, {len(self.lost)} of them lost, {self.unknown} of unknown "
            f"outcome, {self.refused} refused; {sum(self.handled.values())} deliveries, {len(self.settled)} settled, "
            f"{len(self.back)} of them delivered again, {sum(attempt == 1 for _, attempt in self.back)} as attempt 1; "
            f"{len(self.disordered)} out of order; {self.resets} resets"
        )


def run(binary: Path, version: str, plan: Plan) -> Tally:
    """Add and handle messages while nodes fail; return what was seen."""
    options = ("--cluster-require-full-coverage", "no", "--min-replicas-to-write", str(plan.min_replicas))
    options += ("--user", USER, "on", "nopass", "~*", "&*", "+@all")
    tally = Tally()
    with contextlib.closing(Cluster(binary, version, *options, appendonly=plan.fault == "restart")) as cluster:
        if plan.fault == "failover":
            for node in cluster.nodes:
                cluster.add_replica(node)
        with _load(cluster, tally):
            _wait_for_progress(tally)
            for number in range(plan.faults):
                _fail(cluster, plan.fault, number)
                until("the cluster did not settle", cluster.ready)
                _wait_for_progress(tally)
    return tally


def _wait_for_progress(tally: Tally) -> None:
    """Wait until 100 more messages are acknowledged and handled."""
    added, handled = len(tally.acknowledged) + 100, len(tally.settled) + 100
    until("nothing is acknowledged", lambda: len(tally.acknowledged) >= added)
    until("nothing is settled", lambda: len(tally.settled) >= handled)


def _fail(cluster: Cluster, fault: str, number: int) -> None:
    """Let one node fail that has a partition."""
    key = Keys(NAMESPACE).stream(partition_names("tasks", PARTITIONS)[number % PARTITIONS])
    if fault == "move":
        cluster.move(key)
        return
    master = cluster.owner(slot_of(key))
    if fault == "failover":
        with master.client() as admin:
            admin.execute_command("ACL", "SETUSER", "default", "off")
            admin.execute_command("CLIENT", "KILL", "TYPE", "replica")
        time.sleep(BEHIND)
    master.kill()
    if fault == "failover":
        until("no failover", lambda: cluster.owner(slot_of(key)) is not master)
    else:
        time.sleep(0.5)
    master.restart()


# --- load ----------------------------------------------------------------------------------------------------------


@contextmanager
def _load(cluster: Cluster, tally: Tally) -> Iterator[None]:
    """Run producers and consumers until the block ends; then the consumers handle what is left."""
    over, failed = threading.Event(), []

    def work() -> None:
        try:
            asyncio.run(_work(cluster, tally, over))
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10 * QUIET)
    if failed:
        raise failed[0]


async def _work(cluster: Cluster, tally: Tally, over: threading.Event) -> None:
    client = RedisCluster(host=HOST, port=cluster.nodes[0].port, username=USER, password="any")
    async with AsyncRedisBackend.from_client(client, namespace=NAMESPACE, retry_for=20) as backend:
        stream = backend.stream("tasks", partitions=PARTITIONS)

        def count_resets(event: ailf.GroupEvent) -> None:
            tally.resets += isinstance(event, ailf.GroupReset)

        group = stream.group("g", lease=10, takeover=4, on_event=count_resets)
        async with contextlib.AsyncExitStack() as stack:
            consumers = [await stack.enter_async_context(group.consumer(prefetch=10)) for _ in range(CONSUMERS)]
            handling = [asyncio.ensure_future(_handle(each, tally)) for each in consumers for _ in range(LOOPS)]
            await asyncio.gather(*(_add(stream, tally, over, str(number)) for number in range(PRODUCERS)))
            await _drain(tally)
            for each in handling:
                each.cancel()
            await asyncio.gather(*handling, return_exceptions=True)


async def _add(stream: "ailf.AsyncStream[Any]", tally: Tally, over: threading.Event, name: str) -> None:
    """Add messages of one key, one after another."""
    for message in (f"{name}-{number}" for number in itertools.count()):
        await asyncio.sleep(PAUSE)
        if over.is_set():
            return
        try:
            await stream.add(message, key=name)
        except ailf.OutcomeUnknownError:
            tally.unknown += 1
        except ailf.BackendError:
            tally.refused += 1
        else:
            tally.acknowledged.add(message)


async def _handle(consumer: "ailf.AsyncConsumer[Any]", tally: Tally) -> None:
    """Take messages and acknowledge each."""
    while True:
        with contextlib.suppress(ailf.BackendError, ailf.LeaseLostError):
            delivery = await consumer.get(1)
            if delivery is not None:
                tally.delivered(delivery.data, delivery.attempt)
                await delivery.ack()
                tally.settled.add(delivery.data)


async def _drain(tally: Tally) -> None:
    """Wait until all acknowledged messages are settled, or none was for `QUIET` seconds."""
    settled, since = -1, time.monotonic()
    while not tally.acknowledged <= tally.settled and time.monotonic() < since + QUIET:
        if len(tally.settled) > settled:
            settled, since = len(tally.settled), time.monotonic()
        await asyncio.sleep(0.1)
