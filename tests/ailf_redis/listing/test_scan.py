"""Listing by SCAN: bounded steps among many keys, other programs' keys, rights, silence, and a table that grows."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

import ailf
from ailf.driver import Capability
from ailf_redis import RedisBackend
from tests.ailf_redis.test_acl import published
from tests.support.servers import NewServer, Server

MANY = 100_000


@pytest.fixture
def raw(private: Server) -> Iterator[redis.Redis]:
    """A client of redis-py."""
    with private.client() as client:
        yield client


def pages(listing: Any, max_items: int) -> Iterator[ailf.Page[Any]]:
    """Yield every page of a listing."""
    cursor = ""
    while True:
        page = listing.page(cursor, max_items)
        yield page
        cursor = page.cursor
        if not cursor:
            return


def fill(raw: redis.Redis, keys: Iterator[str | bytes]) -> None:
    """Make a stream with one entry under each key."""
    pipeline = raw.pipeline(transaction=False)
    for number, key in enumerate(keys, 1):
        pipeline.xadd(key, {"ailf.body": "1"})
        if not number % 10_000:
            pipeline.execute()
    pipeline.execute()


def test_many_streams_in_bounded_steps(private: Server, raw: redis.Redis) -> None:
    """Of 100,000 streams each comes once; a step passes about 1,000 keys, and no page exceeds what was asked for."""
    fill(raw, (f"{{ailf:stream:s{number}}}" for number in range(MANY)))
    with ailf.connect(private.url) as backend:
        for max_items, most_steps in ((500, 360), (1000, 260), (5000, 150)):
            raw.config_resetstat()
            began, found, longest = time.monotonic(), 0, 0
            names = set()
            for page in pages(backend.streams(), max_items):
                names.update(page.items)
                found += len(page.items)
                longest = max(longest, len(page.items))
            assert time.monotonic() - began < 10
            assert found == len(names) == MANY
            assert longest <= max_items
            steps = raw.info("commandstats")["cmdstat_scan"]["calls"]
            assert steps <= most_steps, max_items
            assert steps >= 2 * MANY / max(1100, max_items)  # two passes, of about 1,000 keys a step or a page
        assert sum(1 for _ in backend.streams("s9999")) == 11


def test_an_add_keeps_no_index(private: Server, raw: redis.Redis) -> None:
    """A plain add is one XADD; what is listed is found in the keys alone."""
    with ailf.connect(private.url) as backend:
        stream = backend.stream("s")
        stream.add(1)
        raw.config_resetstat()
        stream.add(2)
        stats = raw.info("commandstats")
        assert set(stats) <= {"cmdstat_xadd", "cmdstat_config|resetstat", "cmdstat_info"}
        assert list(backend.streams()) == ["s"]


def test_a_table_that_grows_and_shrinks(private: Server, raw: redis.Redis) -> None:
    """N1: streams that exist all the time come, while the server's table of keys grows and shrinks."""
    stays = {f"stays{number}" for number in range(3000)}
    fill(raw, (f"{{ailf:stream:{name}}}" for name in stays))
    with ailf.connect(private.url) as backend:
        for max_items in (70, 1000):
            found, more = set(), 0
            for at, page in enumerate(pages(backend.streams(), max_items)):
                found.update(page.items)
                if at % 3 == 0 and more < 40_000:
                    fill(raw, (f"more{number}" for number in range(more, more + 8000)))
                    more += 8000
                elif at % 3 == 2 and more:
                    raw.delete(*(f"more{number}" for number in range(more)))
                    more = 0
            assert stays <= found


FOREIGN = (
    b"{ailf:stream:\xff\xfe}", b"{ailf:stream:}", b"{ailf:stream:a%zz}", b"{ailf:stream:a{b}", b"{ailf:stream:x",
    b"{ailf:stream:s}:dead:g", b"{ailf:stream:s}:other", b"{ailf:stream:a}b}", b"ailf:stream:s", b"{ailf:lock:s}",
    b"{ailf2:stream:s}", b"plain", b"\xff", b"{ailf:stream:%7B}",
)  # fmt: skip


def test_streams_of_other_programs_among_ours(private: Server, raw: redis.Redis) -> None:
    """A key that no name of ours has costs only itself; a name that isn't UTF-8 comes as `os.fsdecode` gives it."""
    fill(raw, iter(FOREIGN))
    raw.set("{ailf:stream:text}", "no stream")
    raw.set("{ailf:stream:tasks/3}:meta", "no hash")
    raw.hset("{ailf:stream:odd}:meta", "partitions", "many")
    fill(raw, iter(["{ailf:stream:tasks/3}"]))
    with ailf.connect(private.url) as backend:
        backend.stream("s").add(1)
        assert sorted(backend.streams()) == sorted(["s", "tasks/3", "\udcff\udcfe"])
        assert list(backend.streams("\udcff")) == ["\udcff\udcfe"]
        assert list(backend.streams(page_size=1))


def test_plain_names(private: Server, raw: redis.Redis) -> None:
    """With the namespace "" the streams of all programs come by their keys; helper keys of ours, and "", don't."""
    with ailf.connect(f"{private.url}?namespace=") as backend:
        names = ["tasks", "a{b}c", "{x}", "x}", "a:b", "%", "ü", "{x}:ailf:dead:y:g", "{tasks}:ailf:other:tasks:g"]
        for name in names:
            stream = backend.stream(name)
            stream.add("delayed", delay=60)
            stream.add(1)
            group = stream.group("g")
            with group.consumer() as consumer:
                delivery = consumer.get(5)
                assert delivery is not None
                delivery.reject("no")
                consumer.get(0)
        backend.stream("parts", partitions=3).add_many(range(3), key="k")
        backend.lock("l{}%:", ttl=100).acquire()
        backend.rate_limiter("r:{}", rate="5/hour", parallel="2 parallel").acquire("k:")
        fill(raw, iter([b"\xff", b"", b"other"]))
        raw.rpush("list", 1)
        listed = sorted(backend.streams(page_size=2))
        assert listed == sorted([*names, "parts", "other", "\udcff"])
        assert sorted(backend.streams("a")) == ["a:b", "a{b}c"]
        assert list(backend.streams("pa")) == ["parts"]
        assert [each.name for each in backend.locks()] == ["l{}%:"]
        assert [each.name for each in backend.locks("l{")] == ["l{}%:"]
        assert {(each.name, each.key) for each in backend.limiters("r:")} == {("r:{}", "k:")}


def test_keys_that_look_like_locks_and_limiters(private: Server, raw: redis.Redis) -> None:
    """A key of another program that looks like a lock or a limiter's key breaks no page."""
    raw.zadd("{ailf:lock:past}", {"token": 1})
    raw.zadd("{ailf:lock:broken}", {"token": 10**13})
    raw.set("{ailf:lock:broken}:fences", "no hash")
    raw.zadd(b"{ailf:lock:\xff}", {"token": int(time.time() * 1000) + 60_000})
    raw.set("{ailf:lock:text}", "no lock")
    raw.set("{ailf:limit:one}", "no limiter")
    raw.set("{ailf:limit:a:b:c}", "no limiter")
    raw.set(b"{ailf:limit:\xff:k}", "a limiter")
    raw.set("{ailf:fimit:a:b}", "no limiter")
    raw.zadd("{ailf:limit:a:k}:slots:%zz", {"t": 1})
    with ailf.connect(private.url) as backend:
        lease = backend.lock("held").acquire()
        backend.rate_limiter("a", "5/hour").try_acquire("b")
        assert sorted(each.name for each in backend.locks()) == ["held", "\udcff"]
        assert {(each.name, each.key) for each in backend.limiters()} == {("a", "b"), ("\udcff", "k")}
        lease.release()


def test_too_many_groups_and_consumers(private: Server, raw: redis.Redis) -> None:
    """More than 10,000 groups or consumers are refused with an error that says so; 10,000 come."""
    with ailf.connect(private.url) as backend:
        stream = backend.stream("s")
        group = stream.group("g")
        group.open()
        raw.zadd("{ailf:stream:s}:alive:g", {f"c{number:05}": 10**13 for number in range(10_000)})
        assert sum(1 for _ in group.consumers()) == 10_000
        raw.zadd("{ailf:stream:s}:alive:g", {"one": 10**13, b"\xff": float("inf")})
        with pytest.raises(ailf.ProtocolError, match="more than 10,000 consumers of group 'g'"):
            group.consumers().page()
        pipeline = raw.pipeline(transaction=False)
        for number in range(9_999):
            pipeline.xgroup_create("{ailf:stream:s}", f"h{number}")
        pipeline.execute()
        assert len(set(stream.groups())) == stream.info().groups == 10_000
        raw.xgroup_create("{ailf:stream:s}", b"\xff")
        with pytest.raises(ailf.ProtocolError, match="more than 10,000 groups of stream 's'"):
            stream.groups().page()


def test_groups_and_consumers_that_are_not_text(private: Server, raw: redis.Redis) -> None:
    """Names of other programs that aren't UTF-8 come as `os.fsdecode` gives them, page by page."""
    with ailf.connect(private.url) as backend:
        stream = backend.stream("s")
        stream.add(1)
        for name in (b"\xff", b"g", b"\xfe"):
            raw.xgroup_create("{ailf:stream:s}", name, id="0")
        assert sorted(stream.groups(page_size=1)) == ["g", "\udcfe", "\udcff"]
        raw.xreadgroup("g", b"\xff", {"{ailf:stream:s}": ">"})
        (consumer,) = stream.group("g").consumers(page_size=1)
        assert consumer == ailf.ConsumerInfo("\udcff", in_hand=1)


def test_without_the_right_to_scan(redis_versions: list[str], new_server: NewServer) -> None:
    """Without the right to SCAN the capability is missing after the first ping, and the error names the rule."""
    for version in redis_versions:
        server = new_server(version=version)
        with server.client() as admin:
            for user, without in (("noscan", "+scan"), ("nopubsub", "+pubsub")):
                rules = [each for each in published(version) if not each.startswith(without)]
                admin.execute_command("ACL", "SETUSER", user, "reset", "on", ">pw", *rules)
        url = f"redis://noscan:pw@127.0.0.1:{server.port}/0"
        with ailf.connect(url) as backend:
            assert Capability.LISTING not in backend.capabilities
            backend.stream("s").add(1)
            with pytest.raises(ailf.UnsupportedError, match=r"\+scan"):
                backend.streams()
            with pytest.raises(ailf.UnsupportedError, match=r"\+scan"):
                backend.stream("s").groups()
        with RedisBackend(url) as unopened, pytest.raises(ailf.UnsupportedError, match=r"\+scan"):
            unopened.streams().page()
        with ailf.connect(f"redis://nopubsub:pw@127.0.0.1:{server.port}/0") as backend:
            assert Capability.LISTING in backend.capabilities
            assert list(backend.streams()) == ["s"]
            with pytest.raises(ailf.UnsupportedError, match=r"\+pubsub\|channels"):
                backend.pubsub().channels()


def test_a_probe_costs_no_write(private: Server, raw: redis.Redis) -> None:
    """The first ping asks for the right in the same write as the version, and later pings don't ask."""
    with RedisBackend(private.url) as backend:
        backend.ping()
        raw.config_resetstat()
        backend.ping()
        assert "cmdstat_scan" not in raw.info("commandstats")


def test_a_frozen_server(private: Server) -> None:
    """B10: while the server is silent each kind of listing ends within the timeout, with an error that says so."""
    with ailf.connect(f"{private.url}?timeout=0.4&retry_for=0") as backend:
        stream = backend.stream("s")
        stream.add(1)
        calls = [
            backend.streams().page, backend.locks().page, backend.limiters().page, stream.groups().page,
            stream.group("g").consumers().page, stream.info, backend.pubsub().channels,
        ]  # fmt: skip
        private.pause()
        try:
            for call in calls:
                began = time.monotonic()
                with pytest.raises((ailf.BackendTimeoutError, ailf.ConnectionLostError)):
                    call()
                assert time.monotonic() - began < 2
        finally:
            private.resume()
        assert list(backend.streams()) == ["s"]


def test_after_a_restart(private: Server) -> None:
    """A cursor of a server that was restarted meanwhile is still one: the listing ends, and a new one is whole."""
    with ailf.connect(private.url) as backend:
        for number in range(20):
            backend.stream(f"s{number}").add(1)
        page = backend.streams().page(max_items=3)
        private.kill()
        private.restart()
        backend.stream("new").add(1)
        while page.cursor:
            page = backend.streams().page(page.cursor, 3)
        assert list(backend.streams()) == ["new"]
