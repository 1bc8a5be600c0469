"""Consumers that wait on a server: which one is woken, what that costs, and what follows when it is gone."""

import asyncio
import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
import redis

import ailf
from contract_tests.helpers.processes import running
from tests.support.servers import NewServer, Server

STREAM, NOTES, WAKE = "{%s:stream:s}", "{%s:stream:s}:notes:g", "{%s:stream:s}:wake:g"

TAKEOVER = 4.0
"""Seconds; an idle consumer fetches every quarter of it."""

WATCHER = """
import sys, ailf
with ailf.connect(sys.argv[1]) as backend, backend.stream("s").group("g", takeover=4).consumer() as consumer:
    for delivery in consumer:
        delivery.ack()
        print(delivery.data, flush=True)
"""


def test_a_wait_longer_than_the_timeout(new_server: NewServer) -> None:
    """S6: a consumer can wait for longer than the `timeout` of calls, over one connection, and wakes at once."""
    server = new_server()
    with ailf.connect(f"{server.url}?timeout=0.2") as backend, server.client() as admin:
        stream = backend.stream("s")
        with stream.group("g", lease=60).consumer() as consumer:
            assert consumer.get(0) is None
            connected = admin.info("stats")["total_connections_received"]
            added: list[float] = []
            adding = threading.Timer(0.8, lambda: (added.append(time.monotonic()), stream.add(1)))
            adding.start()
            delivery = consumer.get(5)
            received = time.monotonic()
            adding.join()
            assert delivery is not None
            assert received - added[0] < 1
            opened = admin.info("stats")["total_connections_received"] - connected
            assert opened <= 2, "more than one to wait, and one for the thread that adds"


@pytest.mark.parametrize("partitions", [None, 3])
def test_a_tail_that_begins_later_waits(new_server: NewServer, partitions: int | None) -> None:
    """S17: a tail that begins after all entries, at a time to come, waits for new ones, and doesn't read again."""
    server = new_server()
    with ailf.connect(server.url) as backend, server.client() as admin:
        stream = backend.stream("s", partitions=partitions)
        stream.add("before")
        tail = stream.tail(datetime.now(UTC) + timedelta(seconds=1))
        followed: list[Any] = []
        following = threading.Thread(target=lambda: followed.append(next(tail).data))
        following.start()
        time.sleep(0.2)
        admin.config_resetstat()
        time.sleep(0.5)
        reads = admin.info("commandstats").get("cmdstat_xrange", {}).get("calls", 0)
        assert reads <= 3 * (partitions or 1)
        while not followed:
            stream.add("after")
            time.sleep(0.2)
        following.join()
        tail.close()
        assert followed == ["after"]


# --- what a message costs ----------------------------------------------------------------------------------------


class Crowd:
    """Idle consumers that ack each message.

    Attributes:
        served: The payloads that they have got.
    """

    def __init__(self, server: Server, namespace: str = "ailf") -> None:
        self.server = server
        self._url = f"{server.url}?namespace={namespace}"
        self.served: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def of(self, backends: int, consumers: int) -> AsyncIterator[ailf.AsyncStream[Any]]:
        """Let consumers wait in some backends, which know nothing of each other; return the stream."""
        async with contextlib.AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(ailf.connect_async(self._url)) for _ in range(backends)]
            for backend in opened:
                group = backend.stream("s").group("g", lease=400, takeover=400)
                self._tasks += [asyncio.create_task(self._work(group)) for _ in range(consumers)]
            await asyncio.sleep(2)
            yield opened[0].stream("s")
            for each in self._tasks:
                each.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, group: ailf.AsyncGroup[Any]) -> None:
        async with group.consumer() as consumer:
            async for delivery in consumer:
                await delivery.ack()
                async with self._changed:
                    self.served.append(delivery.data)
                    self._changed.notify_all()

    async def until_served(self, count: int) -> None:
        """Wait until `count` messages were served."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: len(self.served) >= count)

    def scripts(self) -> int:
        """Return the number of scripts that the server has run."""
        with self.server.client() as admin:
            return int(admin.info("commandstats")["cmdstat_evalsha"]["calls"])


@pytest.mark.parametrize(("backends", "consumers"), [(1, 300), (40, 1), (8, 5)])
def test_scripts_of_a_message(redis_versions: list[str], new_server: NewServer, backends: int, consumers: int) -> None:
    """S19: with any number of idle consumers, in one process or in many, a message costs three scripts at most."""

    async def cost(server: Server) -> float:
        crowd = Crowd(server)
        async with crowd.of(backends, consumers) as stream:
            before = crowd.scripts()
            for number in range(1, 11):
                await stream.add(number)
                await crowd.until_served(number)
                await asyncio.sleep(0.02)
            return (crowd.scripts() - before) / 10

    for version in redis_versions:
        assert asyncio.run(cost(new_server(version=version))) <= 3, version


def test_all_processes_get_their_share(any_server: Server, namespace: str) -> None:
    """S19: messages that come one by one go to the processes in turn, although each has more consumers that wait."""

    async def scene() -> None:
        crowds = [Crowd(any_server, namespace) for _ in range(3)]
        async with crowds[0].of(1, 4) as stream, crowds[1].of(1, 4), crowds[2].of(1, 4):
            for number in range(1, 13):
                await stream.add(number)
                for _ in range(500):
                    if sum(len(each.served) for each in crowds) == number:
                        break
                    await asyncio.sleep(0.01)
        assert all(len(each.served) >= 3 for each in crowds)

    asyncio.run(scene())


def test_a_burst_for_many_processes(any_server: Server, namespace: str) -> None:
    """S19: a burst wakes as many processes as there are messages, and leaves no more than two tokens behind."""

    async def scene() -> None:
        crowd = Crowd(any_server, namespace)
        async with crowd.of(20, 1) as stream:
            for burst in range(1, 6):
                await stream.add_many(range(20))
                await crowd.until_served(20 * burst)
            with any_server.client() as admin:
                assert admin.llen(WAKE % namespace) <= 2
            await stream.delete()

    asyncio.run(scene())


# --- a waiter that is gone ---------------------------------------------------------------------------------------


@pytest.fixture
def url(any_server: Server, namespace: str) -> str:
    """The URL of this test's stream."""
    return f"{any_server.url}?namespace={namespace}"


@pytest.fixture
def raw(any_server: Server) -> Iterator[redis.Redis]:
    """A client of the server."""
    with any_server.client() as client:
        yield client


def wait_for(condition: Any, seconds: float = 30.0) -> float:
    """Wait for a condition; return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds
        time.sleep(0.005)
    return time.monotonic() - began


@contextlib.contextmanager
def other_process(url: str, notes: str, raw: redis.Redis) -> Iterator["subprocess.Popen[str]"]:
    """Start a process whose consumer has the watch."""
    with running("-c", WATCHER, url, stdout=subprocess.PIPE) as process:
        wait_for(lambda: raw.hexists(notes, "watch"))
        yield process


class Got(NamedTuple):
    """What a consumer has got.

    Attributes:
        backend: Its backend.
        messages: The payloads.
    """

    backend: ailf.Backend
    messages: list[Any]


@contextlib.contextmanager
def sleeper(url: str, takeover: float = TAKEOVER) -> Iterator[Got]:
    """Let a consumer wait in a thread; yield what it gets."""
    with ailf.connect(url) as backend, backend.stream("s").group("g", takeover=takeover).consumer() as consumer:
        got = Got(backend, [])

        def work() -> None:
            for delivery in consumer:
                delivery.ack()
                got.messages.append(delivery.data)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.3)
        yield got
        consumer.stop()
        thread.join()


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
def test_the_watcher_dies(url: str, namespace: str, raw: redis.Redis, way: signal.Signals) -> None:
    """S19: when the waiter that watches dies or is frozen, another finds a message when it fetches by itself.

    From then on it is woken at once.
    """
    with (
        other_process(url, NOTES % namespace, raw) as process,
        sleeper(url) as got,
        ailf.connect(url) as backend,
    ):
        process.send_signal(way)
        stream = backend.stream("s")
        stream.add(1)
        assert wait_for(lambda: got.messages) <= TAKEOVER / 4 + 0.5
        time.sleep(TAKEOVER / 2)  # the watch of the other one ends
        stream.add(2)
        assert wait_for(lambda: len(got.messages) == 2) <= 0.8
        if way is signal.SIGSTOP:
            process.send_signal(signal.SIGCONT)
            for number in (3, 4, 5):
                stream.add(number)
            wait_for(lambda: stream.group("g").info().lag == stream.group("g").info().pending == 0)
        stream.delete()


def test_a_sleeper_gets_the_watch_by_another_fetch(url: str, namespace: str, raw: redis.Redis) -> None:
    """S19: when another consumer of a process whose waiter sleeps fetches and gets the watch, the waiter watches."""
    with (
        other_process(url, NOTES % namespace, raw) as process,
        sleeper(url, takeover=400) as got,
        ailf.connect(url) as backend,
    ):
        process.send_signal(signal.SIGSTOP)
        raw.hdel(NOTES % namespace, "watch")
        with got.backend.stream("s").group("g", takeover=400).consumer() as other:
            calling = threading.Thread(target=lambda: other.get(0.2))
            calling.start()
            time.sleep(0.1)
            backend.stream("s").add(1)
            assert wait_for(lambda: got.messages) <= 5, "by itself it fetches every 100 s"
            calling.join()


def test_a_lost_token(url: str, namespace: str, raw: redis.Redis) -> None:
    """S19: a token that another program takes delays the next message until another waiter fetches by itself."""
    with ailf.connect(url) as backend, sleeper(url) as first, sleeper(url) as second:
        stream = backend.stream("s")
        taken: list[Any] = []
        thief = threading.Thread(target=lambda: taken.append(raw.blpop([WAKE % namespace], 4)))
        thief.start()
        time.sleep(1.2)  # now the sleeper, which waits for a second at a time, is behind the thief
        for number in range(4):
            stream.add(number)
            assert wait_for(lambda: len(first.messages + second.messages) == number + 1) <= TAKEOVER / 4 + 0.5  # noqa: B023
        thief.join()
        assert taken[0] is not None
        assert taken[0][1].startswith(b"w ")


def test_foreign_tokens_and_notes(url: str, namespace: str, raw: redis.Redis) -> None:
    """S19: tokens and notes that are not ours delay a message no longer than a lost one does."""
    with ailf.connect(url) as backend, sleeper(url) as first, sleeper(url) as second:
        stream = backend.stream("s")
        for number, note in enumerate(["", "x", "\xff" * 1000, f"x {2**60} {2**60}", f"x {10**15} 0"]):
            raw.rpush(WAKE % namespace, "", "w", "w a b c d", "w a 0-0 0-0 -5", b"\xff")
            raw.hset(NOTES % namespace, "watch", note)
            stream.add(number)
            assert wait_for(lambda: len(first.messages + second.messages) == number + 1) <= TAKEOVER / 4 + 0.5  # noqa: B023


def test_nothing_is_left(url: str, namespace: str, raw: redis.Redis) -> None:
    """The tokens of a group have a TTL, and deleting the group or the stream removes them."""
    with ailf.connect(url) as backend:
        stream = backend.stream("s")
        group = stream.group("g")
        for remove in (group.delete, stream.delete):
            with sleeper(url), sleeper(url):
                stream.add(1)
                stream.add(2)
                wait_for(lambda: group.info().lag == 0)
            group.open()
            raw.rpush(WAKE % namespace, "f")
            remove()
            assert not raw.exists(WAKE % namespace)
    assert not [each for each in raw.scan_iter(f"*{namespace}*") if raw.ttl(each) < 0]


@pytest.mark.parametrize("comes_back", [True, False])
def test_an_outage_reaches_all_that_wait(new_server: NewServer, comes_back: bool) -> None:
    """B10, S19: all consumers of a process that wait notice an outage, and wait on for `retry_for` seconds."""
    server = new_server()
    retry_for = 5.0 if comes_back else 1.5
    ends: list[tuple[Any, float]] = []
    with ailf.connect(f"{server.url}?retry_for={retry_for}&timeout=1") as backend:
        group = backend.stream("s").group("g")

        def work(consumer: ailf.Consumer[Any]) -> None:
            try:
                delivery = consumer.get(20)
                ends.append((delivery and delivery.data, time.monotonic()))
            except ailf.BackendError as error:
                ends.append((type(error), time.monotonic()))

        consumers = [group.consumer() for _ in range(4)]
        threads = [threading.Thread(target=work, args=(each,)) for each in consumers]
        for thread in threads:
            thread.start()
        time.sleep(2.5)  # longer than `retry_for`, which counts from the request that fails, not from the call
        server.kill()
        killed = time.monotonic()
        if comes_back:
            time.sleep(1)
            server.restart()
            backend.stream("s").add_many([0, 1, 2, 3])
        for thread in threads:
            thread.join(10)
        if comes_back:
            assert sorted(end for end, _ in ends) == [0, 1, 2, 3]
        else:
            assert [end for end, _ in ends] == [ailf.ConnectionLostError] * 4
            assert all(retry_for - 1 <= at - killed <= retry_for + 2 for _, at in ends), "a request waits for a second"
        for each in consumers:
            each.close()


def test_an_outage_on_asyncio(new_server: NewServer) -> None:
    """S19: after an outage of the server one consumer after another is woken, as before."""
    server = new_server()

    async def scene() -> None:
        crowd = Crowd(server)
        async with crowd.of(2, 5) as stream:
            server.kill()
            await asyncio.sleep(0.5)
            server.restart()
            for number in range(1, 21):
                await stream.add(number)
                await crowd.until_served(number)
        assert sorted(crowd.served) == list(range(1, 21))

    asyncio.run(scene())


def test_idle_consumers_ask_rarely(new_server: NewServer) -> None:
    """S19: any number of idle consumers of a process cost the server two scripts per second at most."""
    server = new_server()

    async def scene() -> int:
        async with ailf.connect_async(server.url) as backend:
            group = backend.stream("s").group("g")
            consumers = [group.consumer() for _ in range(50)]
            waiting = [asyncio.create_task(each.get()) for each in consumers]
            await asyncio.sleep(1)
            crowd = Crowd(server)
            before = crowd.scripts()
            await asyncio.sleep(5)
            scripts = crowd.scripts() - before
            for each in consumers:
                each.stop()
            assert await asyncio.gather(*waiting) == [None] * 50
            return scripts

    assert asyncio.run(scene()) <= 10


@contextlib.asynccontextmanager
async def consumers_of(server: Server, namespace: str, *takeovers: float) -> AsyncIterator[list[Any]]:
    """Open consumers of one group, each in a backend of its own."""
    async with contextlib.AsyncExitStack() as stack:
        consumers: list[Any] = []
        for takeover in takeovers:
            backend = await stack.enter_async_context(ailf.connect_async(f"{server.url}?namespace={namespace}"))
            group = backend.stream("s").group("g", lease=400, takeover=takeover)
            consumers.append(await stack.enter_async_context(group.consumer()))
        yield consumers


def test_a_token_outlives_the_watch_that_it_gives(any_server: Server, namespace: str) -> None:
    """S19: a token that nobody takes at once is there for a waiter that comes later, as long as its watch lasts."""

    async def scene() -> None:
        async with consumers_of(any_server, namespace, 100, 100) as (first, second):
            waits = asyncio.create_task(first.get())
            await asyncio.sleep(0.2)
            assert await second.get(0.2) is None
            with any_server.client() as admin:
                admin.xadd(STREAM % namespace, {"foreign": "entry"})
                assert await asyncio.wait_for(waits, 5)
                assert admin.pttl(WAKE % namespace) > 100 * 0.42 * 1000

    asyncio.run(scene())


def test_a_watch_ends_with_the_call_that_has_it(any_server: Server, namespace: str) -> None:
    """S19: a consumer that begins to wait shortly before the watcher's call times out takes the watch over then."""

    async def scene() -> None:
        async with consumers_of(any_server, namespace, TAKEOVER, TAKEOVER) as (first, second):
            leaves = asyncio.create_task(first.get(0.44 * TAKEOVER))  # its last fetch is after 0.25 of it
            await asyncio.sleep(0.35 * TAKEOVER)
            waits = asyncio.create_task(second.get())  # fetches by itself only after 0.60 of it
            assert await leaves is None
            await asyncio.sleep(0.03 * TAKEOVER)
            with any_server.client() as admin:
                admin.xadd(STREAM % namespace, {"foreign": "entry"})
                assert await asyncio.wait_for(waits, 0.06 * TAKEOVER)

    asyncio.run(scene())


def test_a_group_that_vanished_forgets_no_consumer(any_server: Server, namespace: str) -> None:
    """S19, S9: when a group is gone and made again, each message wakes one of the consumers that waited before."""

    async def scene() -> None:
        async with consumers_of(any_server, namespace, 100, 100) as consumers:
            waiting = []
            for each in consumers:
                waiting.append(asyncio.create_task(each.get()))
                await asyncio.sleep(0.2)
            with any_server.client() as admin:
                admin.delete(*admin.keys(f"{STREAM % namespace}*"))
                for served in range(1, 3):
                    admin.xadd(STREAM % namespace, {"foreign": "entry"})
                    await asyncio.wait(waiting[:served], timeout=5)
                    assert len([each for each in waiting if each.done()]) == served

    asyncio.run(scene())


def test_a_short_takeover_forgets_no_consumer_with_a_long_one(any_server: Server, namespace: str) -> None:
    """S19: a consumer that hands over keeps the others in mind for as long as their own `takeover` tells."""

    async def scene() -> None:
        async with consumers_of(any_server, namespace, 1.2, 10, 10) as consumers:
            waiting = []
            for each in consumers:
                waiting.append(asyncio.create_task(each.get()))
                await asyncio.sleep(0.15)
            with any_server.client() as admin:
                for served in range(1, 4):
                    admin.xadd(STREAM % namespace, {"foreign": "entry"})
                    await asyncio.wait(waiting[:served], timeout=0.5)
                    assert len([each for each in waiting if each.done()]) == served
                    await asyncio.sleep(1.2 * 0.8 if served == 1 else 0)

    asyncio.run(scene())
