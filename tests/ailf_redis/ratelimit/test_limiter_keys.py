"""Rate limiters on a server: keys, TTLs, memory, commands, clock; lost scripts and replies; several limits."""

import asyncio
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

import ailf
from ailf import Concurrency, FixedWindow, Limit, SlidingWindow, TokenBucket
from ailf_memory import MemoryBackend
from tests.support.proxy import Proxy
from tests.support.servers import NewServer, Server

HOUR = 3600.0
"""A period in seconds so long that hardly anything is refilled during a test."""


@pytest.fixture
def raw(any_server: Server) -> Iterator[redis.Redis]:
    """A client of redis-py."""
    with any_server.client() as client:
        yield client


@pytest.fixture
def backend(any_server: Server, namespace: str) -> Iterator[ailf.Backend]:
    """A backend with a namespace for the test."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as opened:
        yield opened


# --- keys and commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit",
    [
        TokenBucket(1000),
        TokenBucket(2000, per=0.001),
        SlidingWindow(1, per=0.001, buckets=1),
        FixedWindow(1, per=0.001),
    ],
    ids=str,
)
def test_the_shortest_ttls(backend: ailf.Backend, raw: redis.Redis, namespace: str, limit: Limit) -> None:
    """R8: a state that counts for a millisecond has a TTL too, and not 0: EXPIRE 0 would delete the key."""
    assert backend.rate_limiter("r", limit).try_acquire("k")
    assert 1 <= raw.pttl(f"{{{namespace}:limit:r:k}}") <= 2000


@pytest.mark.parametrize(
    "limit",
    [
        TokenBucket(10, per=HOUR),
        SlidingWindow(10, per=HOUR),
        FixedWindow(10, per=100_000 * HOUR),
        Concurrency(10, ttl=60.0),
    ],
    ids=str,
)
def test_a_denial_changes_no_key(backend: ailf.Backend, raw: redis.Redis, namespace: str, limit: Limit) -> None:
    """R1, R5: no denied call, no peek and no call of cost 0 changes a byte in Redis; memory decides the same."""

    def dump() -> dict[bytes, bytes]:
        return {key: raw.dump(key) for key in raw.scan_iter(f"{{{namespace}:*", 1000)}

    with MemoryBackend() as memory:
        ours, double = (each.rate_limiter("r", limit) for each in (backend, memory))
        assert not ours.try_acquire("k", cost=11)
        assert ours.try_acquire("k", cost=0)
        assert ours.peek("k").remaining == 10
        assert dump() == {}
        for cost in (7, 4, 1, 3, 10, 2, 11, 1):
            before, decision, same = dump(), ours.try_acquire("k", cost=cost), double.try_acquire("k", cost=cost)
            assert (decision.allowed, decision.remaining) == (same.allowed, same.remaining)
            assert (dump() == before) is not decision.allowed
            assert ours.peek("k").remaining == double.peek("k").remaining == decision.remaining


@pytest.mark.parametrize(
    "limits",
    [
        {"": TokenBucket(100_000, per=60)},
        {"": SlidingWindow(100_000, per=0.2)},
        {"": FixedWindow(100_000, per=60)},
        {
            "requests": TokenBucket(60, per=60),
            "tokens": TokenBucket(100_000, per=60),
            "day": FixedWindow(10**7, 24 * HOUR),
        },
        {"requests": "60/minute", "tokens": "100000/minute", "day": "10000000/day"},
    ],
    ids=["bucket", "sliding", "fixed", "three limits", "three buckets"],
)
def test_memory(server: Server, limits: dict[str, Limit | str]) -> None:
    """R9: a key takes less than 200 bytes for each of its limits, whatever was charged."""
    several = {name: limit for name, limit in limits.items() if name}
    namespace, sizes = f"t{secrets.token_hex(2)}", []  # its length counts: it is about as long as the usual one
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as raw:
        limiter = backend.rate_limiter("r", limits.get(""), **several)
        for number in range(60):
            cost = 1 + 997 * number % 1900
            assert limiter.try_acquire("k", **({"tokens": cost} if several else {"cost": cost}))
            sizes.append(raw.memory_usage(f"{{{namespace}:limit:r:k}}"))
            time.sleep(0.002)
    assert max(sizes) < 200 * len(limits)


def test_a_large_cost_is_no_more_work(new_server: NewServer) -> None:
    """R9: a call that costs 100 000 runs the same commands as one that costs 1: there is no entry for each token."""
    server = new_server()
    with server.client() as raw, ailf.connect(server.url) as backend:
        for limit in (TokenBucket(10**8, per=60), SlidingWindow(10**8, per=60), FixedWindow(10**8, per=1000 * HOUR)):
            limiter = backend.rate_limiter(str(limit), limit)
            limiter.try_acquire("warm")
            commands = []
            for cost in (1, 100_000):
                raw.config_resetstat()
                for _ in range(5):
                    limiter.try_acquire(str(cost), cost=cost)
                stats = raw.info("commandstats")
                commands.append({name: each["calls"] for name, each in stats.items() if "config" not in name})
            assert commands[0] == commands[1]
            assert commands[0]["cmdstat_evalsha"] == 5


# --- clocks, lost scripts, lost replies ---------------------------------------------------------------------------


def test_the_clocks_of_clients(backend: ailf.Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """R6: a client whose clock is an hour ahead refills no bucket: the server's clock decides."""
    limiter = backend.rate_limiter("r", TokenBucket(10, per=HOUR))
    clocks = {name: getattr(time, name) for name in ("time", "monotonic")}
    decisions = []
    for number in range(40):
        with monkeypatch.context() as ahead:
            for name, clock in clocks.items():
                if number % 2:
                    ahead.setattr(time, name, lambda clock=clock: clock() + HOUR)
            decisions.append(limiter.try_acquire())
    assert sum(map(bool, decisions)) == 10
    assert decisions[-1].at - decisions[0].at < 60


def test_calls_sent_together_survive_a_script_flush(any_server: Server, namespace: str, raw: redis.Redis) -> None:
    """R1, R2: calls that are sent together after SCRIPT FLUSH are all decided, each once."""

    async def main() -> None:
        async with ailf.connect_async(f"{any_server.url}?namespace={namespace}") as backend:
            limiter = backend.rate_limiter("r", TokenBucket(10, per=HOUR))
            keys = ["a", "b", "c", "d"]
            for number in range(1, 5):
                raw.script_flush()
                decisions = await asyncio.gather(*(limiter.try_acquire(key) for key in keys * 3))
                assert sum(map(bool, decisions)) == (12 if number < 4 else 4)
            assert [(await limiter.peek(key)).remaining for key in keys] == [0] * 4

    asyncio.run(main())


def test_a_refund_whose_reply_is_lost(any_server: Server, namespace: str) -> None:
    """R7: a refund whose reply is lost isn't repeated by itself, and counts once if the caller repeats it."""
    with (
        Proxy(any_server.port) as proxy,
        ailf.connect(f"{proxy.url}?namespace={namespace}&timeout=0.3") as backend,
    ):
        limiter = backend.rate_limiter("r", TokenBucket(10, per=HOUR))
        limiter.acquire(cost=5, timeout=0).cancel()  # the server knows the script now
        permit = limiter.acquire(cost=10, timeout=0)
        proxy.drop_replies()
        with pytest.raises(ailf.OutcomeUnknownError):
            permit.settle(cost=7)
        proxy.cut()
        proxy.resume()
        assert limiter.peek().remaining == 3
        permit.settle(cost=7)
        for again in (permit.cancel, lambda: permit.settle(cost=1)):
            with pytest.raises(ailf.SettledError):
                again()
        assert limiter.peek().remaining == 3


# --- several limits with different costs -------------------------------------------------------------------------


@pytest.fixture
def several(backend: ailf.Backend) -> ailf.RateLimiter:
    """A limiter like that of a model provider: limits of requests, tokens and parallel calls."""
    requests, tokens = TokenBucket(10, per=HOUR), TokenBucket(1000, per=HOUR)
    return backend.rate_limiter("r", requests=requests, tokens=tokens, parallel=Concurrency(3, ttl=60.0))


def left(limiter: ailf.RateLimiter) -> tuple[int, ...]:
    """Return the remaining requests, tokens and slots."""
    return tuple(each.remaining for each in limiter.peek("k").limits.values())


def test_waiting_for_several_limits(several: ailf.RateLimiter, raw: redis.Redis, namespace: str) -> None:
    """R7, R10: a call waits in the queue for all of its limits, and passes when each has enough again."""
    tokens, slots = several.acquire("k", tokens=700), several.acquire("k", tokens=100, parallel=2)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(several.acquire, "k", timeout=20, requests=2, tokens=500)
        until = time.monotonic() + 10
        while raw.zcard(f"{{{namespace}:limit:r:k}}:queue") != 1:
            assert time.monotonic() < until, "the call did not enter the queue"
            time.sleep(0.005)
        assert left(several) == (8, 200, 0), "the waiting call was charged"
        assert not several.try_acquire("k", requests=1, tokens=0, parallel=0), "a call overtook the waiting one"
        tokens.settle(tokens=300)
        time.sleep(0.1)
        assert not waiting.done(), "the call passed without a free slot"
        slots.release()
        permit = waiting.result(20)
    assert left(several) == (6, 100, 1)
    permit.settle(tokens=400)
    assert left(several) == (6, 200, 1), "settling one limit changed another"
    permit.release()
    tokens.release()
    assert left(several) == (6, 200, 3)


def test_refunds_of_several_limits(several: ailf.RateLimiter) -> None:
    """R7: a cancelled call refunds each of its limits once; a cost above what remained is owed."""
    several.acquire("k", requests=4, tokens=600, parallel=0)
    permit = several.acquire("k", requests=3, tokens=300, parallel=2)
    with pytest.raises(ailf.RateLimitedError, match="tokens"):
        several.acquire("k", timeout=0.05, tokens=150)
    assert left(several) == (3, 100, 1)
    permit.cancel()
    with pytest.raises(ailf.SettledError):
        permit.cancel()
    assert left(several) == (6, 400, 3)
    second = several.acquire("k", requests=6, tokens=400, parallel=3)
    second.settle(tokens=900)
    assert left(several) == (0, 0, 0)
    assert several.peek("k").limits["tokens"].reset_after > HOUR, "the excess is not owed"
    second.release()
    assert left(several) == (0, 0, 3)


def test_a_reservation_above_the_capacity(backend: ailf.Backend, raw: redis.Redis, namespace: str) -> None:
    """R3: a reservation above the capacity fails at once, says that it never passes, and writes no key."""
    with pytest.raises(ailf.RateLimitedError, match="never") as raised:
        backend.rate_limiter("r", TokenBucket(10)).reserve(cost=11, within=2)
    assert raised.value.retry_after is None
    assert list(raw.scan_iter(f"{{{namespace}:*")) == []
