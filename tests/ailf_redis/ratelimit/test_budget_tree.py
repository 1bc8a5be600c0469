"""Budget trees on a server: keys, TTLs, what a denial changes, and how much of a shared budget is used."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

import ailf
from ailf import Concurrency, FixedWindow, TokenBucket
from ailf_redis.cluster.slots import slot_of
from tests.support.servers import Server

HOUR = 3600.0
KEYS = {"run": "r{1}", "team": "a:b", "org": "o"}


@pytest.fixture
def raw(any_server: Server) -> Iterator[redis.Redis]:
    """A client of redis-py."""
    with any_server.client() as client:
        yield client


def test_keys_of_a_tree(any_server: Server, namespace: str, raw: redis.Redis) -> None:
    """R8, R13: each limit and key has Redis keys and a TTL of its own, and all keys of a root are in one hash slot."""
    limits = {"run": TokenBucket(10), "team": Concurrency(3, ttl=60.0), "org": FixedWindow(100, per=1000 * HOUR)}
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend:
        limiter = backend.rate_limiter("b", root="acme", **limits)
        permit = limiter.acquire(keys=KEYS, timeout=0)
        stored = sorted(key.decode() for key in raw.scan_iter(f"{{{namespace}:*", 1000))
        tag = f"{{{namespace}:limit:b:acme}}:key"
        assert stored == [f"{tag}:org:o", f"{tag}:run:r%7b1%7d", f"{tag}:team:a%3ab:slots:team"]
        assert len({slot_of(key.encode()) for key in stored}) == 1
        assert raw.pttl(f"{tag}:run:r%7b1%7d") <= 2000 < raw.pttl(f"{tag}:team:a%3ab:slots:team") < raw.pttl(stored[0])
        permit.release()


def test_a_denial_in_a_tree_changes_no_key(any_server: Server, namespace: str, raw: redis.Redis) -> None:
    """R1, R5: neither a call that one limit denies nor a peek changes a byte under any key."""

    def dump() -> dict[bytes, bytes]:
        return {key: raw.dump(key) for key in raw.scan_iter(f"{{{namespace}:*", 1000)}

    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend:
        limiter = backend.rate_limiter(
            "b", root="r", run=TokenBucket(9, per=HOUR), team=FixedWindow(5, per=1000 * HOUR)
        )
        keys = {"run": "r", "team": "t"}
        assert limiter.peek(keys=keys).remaining == 5
        assert not limiter.try_acquire(keys=keys, cost=6)
        assert dump() == {}
        assert limiter.try_acquire(keys=keys, cost=5)
        before = dump()
        assert len(before) == 2
        assert not limiter.try_acquire(keys=keys)
        assert not limiter.try_acquire(keys=keys, run=9, team=0)
        assert limiter.peek(keys=keys).remaining == 0
        assert dump() == before


def test_a_limiter_without_a_root_is_stored_as_before(any_server: Server, namespace: str, raw: redis.Redis) -> None:
    """R12: a state that was stored before limiters had roots is read, and changed in its old form and key."""
    stored = f"{{{namespace}:limit:b:k}}"
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend:
        limiter = backend.rate_limiter("b", calls="10/day fixed", parallel="3 parallel", tokens="100/day fixed")
        limiter.acquire("k", timeout=0)
        begin = raw.get(stored).split(b":")[1].split(b",")[0].decode()  # type: ignore[union-attr]
        former = f"50e0726b:{begin},4;0e1c2a8c:{begin},10;"
        keys = {key.decode() for key in raw.scan_iter(f"{{{namespace}:*", 1000)}
        assert keys == {stored, f"{stored}:slots:parallel"}
        raw.set(stored, former, px=100_000)
        seen = limiter.peek("k").limits
        assert (seen["calls"].remaining, seen["tokens"].remaining) == (6, 90)


@pytest.mark.parametrize("where", ["memory", "redis"])
def test_two_teams_use_up_the_budget_that_they_share(any_server: Server, namespace: str, where: str) -> None:
    """R10, R14: two teams that want more than their organisation has use at least 95 % of it, each about half.

    The third team, which is at its own limit, gets all of that, and holds up no other.
    """
    url = "memory://" if where == "memory" else f"{any_server.url}?namespace={namespace}"
    limits = {"team": TokenBucket(45, burst=5), "org": TokenBucket(60, burst=10)}
    seconds = 2.5
    passed: Counter[str] = Counter()

    async def call(limiter: Any, team: str, until: float) -> None:
        loop = asyncio.get_running_loop()
        while (left := until - loop.time()) > 0:
            try:
                await limiter.acquire(keys={"team": team, "org": "acme"}, timeout=left)
            except ailf.RateLimitedError:
                return
            passed[team] += 1

    async def main() -> None:
        async with ailf.connect_async(url) as backend:
            limiter = backend.rate_limiter("b", root="acme", **limits)
            small = backend.rate_limiter("b", root="acme", team=TokenBucket(10, per=10.0), org=limits["org"])
            until = asyncio.get_running_loop().time() + seconds
            big = [call(limiter, team, until) for team in "ab" for _ in range(8)]
            await asyncio.gather(*big, *(call(small, "small", until) for _ in range(8)))

    asyncio.run(main())
    whole = 10 + 60 * seconds
    assert 0.95 * whole <= passed.total() <= whole + 1, passed
    assert 10 <= passed["small"] <= 13, passed
    assert min(passed["a"], passed["b"]) >= 0.35 * whole, passed
