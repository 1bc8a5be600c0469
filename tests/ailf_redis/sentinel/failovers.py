"""Messages are added while masters that Sentinels watch fail; the acknowledged ones that are lost are counted."""

import asyncio
import collections
import itertools
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import redis
from redis.asyncio import sentinel as asentinel
from redis.sentinel import Sentinel

import ailf
from ailf_redis import AsyncRedisBackend, RedisBackend
from tests.support.clusters import Watch, until
from tests.support.servers import Server

OPTIONS = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
PAUSE = 0.005
"""Seconds between two adds of one caller."""

THREADS, TASKS = 2, 4

USER = "agent"
"""The user of the callers. Sentinels and replicas use the default user, which a partition shuts out."""

CUT_OFF = 3.0
"""Seconds that a former master stays frozen or cut off after there is a new one."""


@attrs.frozen(kw_only=True)
class Plan:
    """The faults of one run.

    Attributes:
        kinds: How masters fail, in turn: "kill", "freeze", "cut" (callers reach the master, and Sentinels and replicas
            don't), or "switch" (a Sentinel is ordered to replace a master that works).
        faults: The number of faults.
        min_replicas: The value of ``min-replicas-to-write``.
    """

    kinds: Sequence[str] = ("kill", "freeze", "cut", "switch")
    faults: int = 12
    min_replicas: int = 0


@attrs.define
class Adds:
    """The adds of all callers.

    Attributes:
        acknowledged: The messages that were acknowledged.
        times: When each was acknowledged.
        unknown: How many ended with `OutcomeUnknownError`.
        refused: How many ended with another error.
    """

    acknowledged: list[str] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)
    unknown: int = 0
    refused: int = 0

    def succeeded(self, message: str) -> None:
        """Count a message that was acknowledged."""
        self.times.append(time.monotonic())
        self.acknowledged.append(message)

    def failed(self, error: ailf.BackendError) -> None:
        """Count an add that raised an error."""
        if isinstance(error, ailf.OutcomeUnknownError):
            self.unknown += 1
        else:
            self.refused += 1


@attrs.frozen(kw_only=True)
class Report:
    """The result of a run.

    Attributes:
        acknowledged: How many adds were acknowledged.
        lost: How many acknowledged messages are not in the stream.
        twice: How many messages are in the stream twice.
        unknown: How many adds ended with `OutcomeUnknownError`.
        refused: How many ended with another error.
        pause: The longest time without an acknowledged add, in seconds.
    """

    acknowledged: int
    lost: int
    twice: int
    unknown: int
    refused: int
    pause: float

    def __str__(self) -> str:
        return (
            f"{self.acknowledged} adds acknowledged, {self.lost} of them lost, {self.unknown} of unknown outcome, "
            f"{self.refused} refused; no add was acknowledged for {self.pause:.1f} s at most"
        )


def run(binary: Path, version: str, plan: Plan) -> Report:
    """Add messages while masters fail; return how many were lost."""
    options = ("--min-replicas-to-write", str(plan.min_replicas))
    adds, over = Adds(), threading.Event()
    with Watch(binary, version, *options, replicas=2, sentinels=3, down_after_ms=1000) as watch:
        for each in watch.servers:
            _make_user(each)
        with _callers(watch, adds, over):
            _wait_for_progress(adds, 50)
            for kind in itertools.islice(itertools.cycle(plan.kinds), plan.faults):
                _fail(watch, kind)
                until("the servers did not settle", watch.settled)
                _wait_for_progress(adds, 50)
        with RedisBackend.from_client(_client(watch)) as backend:
            stored = collections.Counter(each.data for each in backend.stream("s").read(limit=1_000_000))
    times = sorted(adds.times)
    return Report(
        acknowledged=len(adds.acknowledged),
        lost=sum(message not in stored for message in adds.acknowledged),
        twice=sum(count > 1 for count in stored.values()),
        unknown=adds.unknown,
        refused=adds.refused,
        pause=max(after - before for before, after in itertools.pairwise(times)),
    )


def _wait_for_progress(adds: Adds, count: int) -> None:
    """Wait until `count` more messages are acknowledged."""
    before = len(adds.acknowledged)
    until("nothing is acknowledged", lambda: len(adds.acknowledged) >= before + count)


def _fail(watch: Watch, kind: str) -> None:
    """Make the master fail in one way; bring it back after another server is the master."""
    master = watch.master
    if kind == "switch":
        watch.fail_over()
        return
    fail = {"kill": master.kill, "freeze": master.pause, "cut": lambda: _admit(master, others=False)}
    restore = {"kill": lambda: _restart(master), "freeze": master.resume, "cut": lambda: _admit(master, others=True)}
    fail[kind]()
    until("no failover", lambda: watch.master is not master)
    time.sleep(CUT_OFF)
    restore[kind]()


def _make_user(server: Server) -> None:
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", USER, "on", "nopass", "~*", "&*", "+@all")


def _restart(server: Server) -> None:
    server.restart()
    _make_user(server)


def _admit(server: Server, *, others: bool) -> None:
    """Admit Sentinels and replicas, or close their connections and refuse new ones."""
    with redis.Redis(port=server.port, username=USER, password="any") as admin:
        admin.execute_command("ACL", "SETUSER", "default", "on" if others else "off")
        if not others:
            admin.execute_command("CLIENT", "KILL", "USER", "default")
            admin.execute_command("CLIENT", "KILL", "TYPE", "replica")


def _client(watch: Watch) -> Any:
    return Sentinel(watch.addresses(), **OPTIONS).master_for(watch.SERVICE, username=USER, password="any")


@contextmanager
def _callers(watch: Watch, adds: Adds, over: threading.Event) -> Iterator[None]:
    """Run threads and tasks that add messages until the block ends."""
    with RedisBackend.from_client(_client(watch), retry_for=15) as backend:
        threads = [threading.Thread(target=_add, args=(backend, adds, over)) for _ in range(THREADS)]
        threads.append(threading.Thread(target=lambda: asyncio.run(_add_on_asyncio(watch, adds, over))))
        for each in threads:
            each.start()
        try:
            yield
        finally:
            over.set()
            for each in threads:
                each.join(60)


def _messages() -> Iterator[str]:
    """Yield the messages of one caller."""
    name = uuid.uuid4().hex
    return (f"{name}-{number}" for number in itertools.count())


def _add(backend: ailf.Backend, adds: Adds, over: threading.Event) -> None:
    stream = backend.stream("s")
    for message in _messages():
        if over.wait(PAUSE):
            return
        try:
            stream.add(message)
        except ailf.BackendError as error:
            adds.failed(error)
        else:
            adds.succeeded(message)


async def _add_on_asyncio(watch: Watch, adds: Adds, over: threading.Event) -> None:
    sentinels = asentinel.Sentinel(watch.addresses(), **OPTIONS)
    client = sentinels.master_for(watch.SERVICE, username=USER, password="any")
    async with AsyncRedisBackend.from_client(client, retry_for=15) as backend:
        stream = backend.stream("s")

        async def add() -> None:
            for message in _messages():
                await asyncio.sleep(PAUSE)
                if over.is_set():
                    return
                try:
                    await stream.add(message)
                except ailf.BackendError as error:
                    adds.failed(error)
                else:
                    adds.succeeded(message)

        await asyncio.gather(*(add() for _ in range(TASKS)))
