"""What a partitioned stream costs on a server: requests while it is idle, connections, and its number of partitions."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis

import ailf
from ailf.runtime import run
from ailf_redis import RedisBackend
from ailf_redis.keys import Keys
from tests.support.clusters import Cluster
from tests.support.effort import NEWEST
from tests.support.proxy import Proxy
from tests.support.servers import NewServer, Server

OPTIONS: dict[str, Any] = {"lease": 4.0, "takeover": 2.0}
"""An idle process fetches every half second."""

IDLE = 4.0
"""Seconds."""

PARTITIONS = 16


@contextlib.contextmanager
def waiting(backend: ailf.Backend, name: str, consumers: int, partitions: int | None) -> Iterator[list[Any]]:
    """Let consumers of a stream wait; yield what they get."""
    got: list[Any] = []
    group = backend.stream(name, partitions=partitions).group("g", **OPTIONS)

    def consume() -> None:
        with group.consumer() as consumer:
            opened.append(consumer)
            for delivery in consumer:
                delivery.ack()
                got.append(delivery.id)

    opened: list[Any] = []
    threads = [threading.Thread(target=consume) for _ in range(consumers)]
    for each in threads:
        each.start()
    while len(opened) < consumers:
        time.sleep(0.01)
    time.sleep(2.5)
    yield got
    for consumer in opened:
        consumer.stop()
    for each in threads:
        each.join()


def made(raw: redis.Redis) -> dict[str, int]:
    """Return the number of requests since the statistics were reset."""
    stats: dict[str, dict[str, int]] = raw.info("commandstats")
    return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "xread")}


def until_blocked(nodes: Sequence[redis.Redis], number: int) -> None:
    """Wait until this many clients block on these servers together; a wait is sent anew each second."""
    until = time.monotonic() + 10
    while sum(each.info("clients")["blocked_clients"] for each in nodes) != number:
        assert time.monotonic() < until
        time.sleep(0.02)


@NEWEST
def test_idle_costs_are_those_of_a_process(backend: ailf.Backend, raw: redis.Redis) -> None:
    """An idle process makes about as many requests for 16 partitions as for an ordinary stream."""
    counts = {}
    for partitions in (None, PARTITIONS):
        name = f"s{partitions}"
        stream = backend.stream(name, partitions=partitions)
        for each in range(PARTITIONS):
            stream.add(each)
        with waiting(backend, name, 3, partitions) as got:
            assert len(got) == PARTITIONS
            raw.config_resetstat()
            time.sleep(IDLE)
            counts[partitions] = made(raw)
    ordinary, partitioned = counts[None], counts[PARTITIONS]
    # A fetch and a heartbeat end a wait each, or one together, as they happen to fall.
    assert partitioned["xread"] <= 2 * ordinary["xread"] + 2
    assert partitioned["evalsha"] <= 1.5 * ordinary["evalsha"] + 2, "16 times as many would be one for each partition"


@NEWEST
def test_one_connection_waits_for_all(backend: ailf.Backend, raw: redis.Redis) -> None:
    """A process waits for all partitions with one connection, and a message in any of them ends that wait."""
    stream = backend.stream("s", partitions=PARTITIONS)
    with waiting(backend, "s", 4, PARTITIONS) as got:
        until_blocked([raw], 1)
        connected = raw.info("stats")["total_connections_received"]
        sent = [stream.add(each) for each in range(2 * PARTITIONS)]
        until = time.monotonic() + 5
        while len(got) < len(sent) and time.monotonic() < until:
            time.sleep(0.01)
        assert sorted(got) == sorted(sent)
        until_blocked([raw], 1)
        assert raw.info("stats")["total_connections_received"] - connected <= 5, "those of the consumers' own calls"


def test_a_cluster_waits_with_a_connection_for_each(cluster: Cluster, namespace: str) -> None:
    """On a cluster a process waits with one connection for each partition; all of them end with the consumer."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(node.client()) for node in cluster.nodes]
        until_blocked(nodes, 0)
        with cluster.client() as client:
            backend = RedisBackend.from_client(client, namespace=namespace)
        with backend:
            stream = backend.stream("s", partitions=6)
            with waiting(backend, "s", 2, 6) as got:
                until_blocked(nodes, 6)
                sent = [stream.add(each) for each in range(18)]
                until = time.monotonic() + 5
                while len(got) < len(sent) and time.monotonic() < until:
                    time.sleep(0.01)
                assert sorted(got) == sorted(sent)
            until_blocked(nodes, 0)


def test_the_number_is_asked_once(backend: ailf.Backend, raw: redis.Redis) -> None:
    """The number of partitions costs a request per stream and backend, however many objects there are."""
    backend.stream("s").add(0)
    backend.stream("p", partitions=4).add(0)
    raw.config_resetstat()
    for each in range(5):
        backend.stream("s").add(each)
        backend.stream("p", partitions=4).add(each)
        backend.stream("s").read()
        backend.stream("s").group("g").open()
    stats: dict[str, dict[str, int]] = raw.info("commandstats")
    assert "cmdstat_hget" not in stats, "the number"
    assert stats["cmdstat_xadd"]["calls"] == 10
    assert stats["cmdstat_evalsha"]["calls"] == 5, "one for each open"


@pytest.mark.parametrize("stored", [b"many", b"-1", b"99999", b"1e3", b"", b"\xff"])
def test_a_stored_number_of_another_program(backend: ailf.Backend, raw: redis.Redis, stored: bytes) -> None:
    """What can't be a number of partitions counts as none, and is replaced."""
    raw.hset("{ailf:stream:s}:meta", "partitions", stored)
    assert backend.stream("s", partitions=4).read() == []
    backend.stream("s", partitions=4).add(1)
    assert raw.hget("{ailf:stream:s}:meta", "partitions") == b"4"


def test_a_full_server(new_server: NewServer) -> None:
    """A consumer of a stream without a number works on a full server; a stream that doesn't exist isn't made there."""
    server = new_server("--maxmemory-policy", "noeviction")
    with server.client() as raw:
        for each in range(4):
            raw.xadd("{ailf:stream:s}", {"job": each})
        raw.config_set("maxmemory", 1)
        with ailf.connect(f"{server.url}?retry_for=0") as backend:
            with backend.stream("s").group("g").consumer() as consumer:
                for _ in range(4):
                    delivery = consumer.get(5)
                    assert delivery is not None
                    delivery.ack()
            assert raw.hget("{ailf:stream:s}:meta", "partitions") == b"1"
            with pytest.raises(ailf.BackendFullError):
                backend.stream("t").add(1)
            with pytest.raises(ailf.BackendFullError):
                backend.stream("u", partitions=4).add(1)
            assert backend.stream("t").read() == []
            assert not raw.exists("{ailf:stream:t}:meta", "{ailf:stream:u}:meta")


def test_keys_of_partitions(server: Server, namespace: str) -> None:
    """Each partition is a stream of its own, with its own hash tag; `delete` leaves nothing."""
    with server.client() as raw, ailf.connect(f"{server.url}?namespace={namespace}") as backend:
        stream = backend.stream("s", partitions=3)
        for each in range(6):
            stream.add(each)
        group = stream.group("g")
        with group.consumer() as consumer:
            for _ in range(6):
                delivery = consumer.get(5)
                assert delivery is not None
                delivery.ack()
        lengths = [raw.xlen(f"{{{namespace}:stream:s/{each}}}") for each in range(3)]
        assert lengths == [2, 2, 2]
        assert raw.hget(f"{{{namespace}:stream:s}}:meta", "partitions") == b"3"
        assert raw.hget(f"{{{namespace}:stream:s/1}}:meta", "partitions") == b"0"
        assert not raw.exists(f"{{{namespace}:stream:s}}")
        stream.delete()
        assert [key for key in raw.scan_iter(f"*{namespace}*") if b":bell:" not in key] == []


@pytest.mark.parametrize("largest", [2**64 - 1, 2**53, 0])
def test_ids_of_another_program(backend: ailf.Backend, raw: redis.Redis, largest: int) -> None:
    """An entry with the largest or smallest id, of another program, can be read, and its id is a position."""
    stream = backend.stream("s", partitions=3)
    stream.group("another").open()
    ids = [] if largest == 0 else [stream.add(each) for each in range(6)]
    foreign = f"1:{largest}-5"
    raw.xadd("{ailf:stream:s/1}", {"job": "sweep"}, id=f"{largest}-5")
    if largest == 0:
        ids = [stream.add(each) for each in range(6)]
    ordered = [entry.id for entry in stream.read()]
    assert sorted(ordered) == sorted([*ids, foreign])
    assert ordered[0 if largest == 0 else -1] == foreign
    assert [entry.id for entry in stream.read(foreign)] == (ordered if largest == 0 else [foreign])
    assert [entry.id for entry in stream.read(end=foreign)] == ([foreign] if largest == 0 else ordered)
    group = stream.group("g", start=foreign)
    with group.consumer(prefetch=10) as consumer:
        got = []
        while (delivery := consumer.get(0)) is not None:
            got.append(delivery.id)
        assert sorted(got) == (sorted(ids) if largest == 0 else [])


def test_a_partition_that_appears_meanwhile(
    any_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S21: between the two looks of `declare` another process may make the partition; it is no stream of its own."""
    with RedisBackend(f"{any_server.url}?namespace={namespace}") as backend, any_server.client() as raw:
        driver = backend.engine.driver.stream()
        keys, executor = Keys(namespace), driver._executor
        read_page = executor.read_page

        def read(limit: int, read: Any, *command: Any) -> Any:
            if command[0] == "EXISTS":
                raw.hset(keys.meta("s/1"), "partitions", 0)
                raw.xadd(keys.stream("s/1"), {"a": 1})
            return read_page(limit, read, *command)

        monkeypatch.setattr(executor, "read_page", read)
        assert run(driver.declare("s/1", None)) == 0


@pytest.mark.parametrize("partitions", [None, 4])
def test_a_wait_after_a_long_handler_begins_with_a_fetch(
    any_server: Server, namespace: str, partitions: int | None
) -> None:
    """S9, S25: messages that came back while nobody waited are found at once, also when no trace of that is left."""
    url = f"{any_server.url}?namespace={namespace}"
    with RedisBackend(url) as backend, RedisBackend(url) as other, any_server.client() as raw:
        stream = backend.stream("s", partitions=partitions)
        ids = [stream.add(each) for each in range(8)]
        group = stream.group("g", lease=1000, takeover=1000)
        with group.consumer() as consumer:
            for _ in ids:
                delivery = consumer.get(5)
                assert delivery is not None
                delivery.ack()
            assert consumer.get(0.1) is None
            other.stream("s", partitions=partitions).group("g").seek(ailf.EARLIEST)
            raw.delete(*raw.keys(f"*{namespace}*:bell:g"))  # their time to live is 10 s
            flow = consumer._flow
            assert flow._wait is not None
            flow._wait.asked_at -= 10
            if flow.group.partitions is not None:
                flow.group.partitions.groups["g"]._waited_at -= 10
            again = [consumer.get(1) for _ in ids]
        assert sorted(each.id for each in again if each) == sorted(ids)


@NEWEST
def test_a_stream_is_made_again_with_another_number(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S21, S25: a consumer of the former partitions that is still open holds up none of the new ones."""
    former = backend.stream("s", partitions=4)
    former.add(1)
    with former.group("g").consumer() as old:
        delivery = old.get(5)
        assert delivery is not None
        delivery.ack()
        assert old.get(0.1) is None
        former.delete()
        stream = backend.stream("s", partitions=PARTITIONS)
        with stream.group("g").consumer() as consumer:
            assert consumer.get(0.2) is None
            raw.config_resetstat()
            assert consumer.get(1) is None
            assert made(raw)["evalsha"] < 10, "a wait on the former partitions would return at once, for ever"
            ids = [stream.add(each) for each in range(2 * PARTITIONS)]
            got = [consumer.get(5) for _ in ids]
        assert sorted(each.id for each in got if each) == sorted(ids)


ROUND_TRIPS: dict[str, tuple[int, Any]] = {
    "first use": (1 + 4 * 2 + 4 * 3 + 3 + 1, lambda stream: stream.add(1)),
    "open": (4, lambda stream: stream.group("g").open()),
    "info": (4, lambda stream: stream.group("g").info()),
    "pause": (4, lambda stream: stream.group("g").pause()),
    "resume": (4, lambda stream: stream.group("g").resume()),
    "seek": (4, lambda stream: stream.group("g").seek(ailf.EARLIEST)),
    "read": (16, lambda stream: stream.read()),
    "read the last": (4 + 16, lambda stream: stream.read(ailf.LATEST)),
    "delete the group": (4, lambda stream: stream.group("g").delete()),
    "delete": (4 + 3, lambda stream: stream.delete()),
}
"""Calls that concern all of 256 partitions, and in how many round trips each makes its requests."""


def test_round_trips_of_many_partitions(backend: ailf.Backend, raw: redis.Redis) -> None:
    """What concerns all partitions is asked of many of them in one round trip, also at the first use of a stream."""
    warm = backend.stream("warm", partitions=2)  # the server gets the scripts here
    for _, call in ROUND_TRIPS.values():
        call(warm)
    stream = backend.stream("s", partitions=256)
    took = {}
    for name, (_, call) in ROUND_TRIPS.items():
        before = raw.info("stats")["total_reads_processed"]
        call(stream)
        took[name] = raw.info("stats")["total_reads_processed"] - before - 1  # the second INFO is the other one
    more = 4  # a long write may arrive in two reads
    assert {name: count for name, count in took.items() if not 0 < count <= ROUND_TRIPS[name][0] + more} == {}


def test_requests_that_go_together(any_server: Server, namespace: str) -> None:
    """Each of several requests in one pipeline has its own result or error, and a script that is missing is sent."""
    with RedisBackend(f"{any_server.url}?namespace={namespace}") as backend, any_server.client() as raw:
        driver = backend.engine.driver.stream()
        backend.stream("good").add(1)
        raw.set(Keys(namespace).stream("bad"), "not a stream")
        raw.script_flush()
        results = run(
            driver.together(
                [
                    lambda driver: driver.length("good"),
                    lambda driver: driver.length("bad"),
                    lambda driver: driver.open_group("good", "g", "no id"),
                    lambda driver: driver.open_group("good", "g", ailf.EARLIEST),
                    lambda driver: driver.read("good", ailf.LATEST, ailf.LATEST, 5),
                ]
            )
        )
        assert (results[0], results[3], len(results[4])) == (1, True, 1)
        assert isinstance(results[1], ailf.BackendError)
        assert isinstance(results[2], ailf.InvalidArgumentError)
        assert run(driver.together([])) == []


def test_requests_that_go_together_are_lost_together(any_server: Server, namespace: str) -> None:
    """If the connection breaks, every request of the pipeline has that error, and the next ones work."""
    with Proxy(any_server.port) as proxy, RedisBackend(f"{proxy.url}?namespace={namespace}&timeout=0.5") as backend:
        backend.ping()
        driver = backend.engine.driver.stream()
        proxy.drop_replies()
        begin = time.monotonic()
        results = run(driver.together([lambda driver: driver.length("s"), lambda driver: driver.last_id("s")]))
        assert time.monotonic() - begin < 2
        assert [type(each) for each in results] == [ailf.BackendTimeoutError] * 2
        proxy.resume()
        proxy.cut()
        assert backend.stream("s").read() == []
