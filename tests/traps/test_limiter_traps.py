"""Traps 26 to 31, from other limiters: each test shows the failure of the naive design, and then ailf without it."""

import statistics
import time
from collections.abc import Callable

import pytest
import redis

import ailf
from ailf import Concurrency, FixedWindow, Limit, SlidingWindow, TokenBucket
from tests.support.proxy import Proxy
from tests.support.servers import NewServer, Server

HOUR = 3600.0
"""Seconds: a period so long that a bucket refills next to nothing while a test runs."""

Keys = dict[bytes, bytes]


@pytest.fixture
def dump(raw: redis.Redis, namespace: str) -> Callable[[], Keys]:
    """A function that returns everything that ailf's limiters have stored."""
    return lambda: {key: raw.dump(key) for key in raw.scan_iter(f"{{{namespace}:*", 1000)}


@pytest.fixture
def naive(raw: redis.Redis, namespace: str) -> Callable[..., int]:
    """A function that runs the script of a naive limiter on a key of this test alone."""

    def run(script: str, *arguments: object) -> int:
        return raw.eval(script, 1, f"{namespace}:naive", *arguments)  # type: ignore[arg-type]

    return run


# --- 26: the state expires too early -------------------------------------------------------------------------------

EXPIRE_0 = """
local capacity, rate = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local state = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = math.min(capacity, (tonumber(state[1]) or capacity) + (now - (tonumber(state[2]) or now)) * rate)
if tokens < 1 then return 0 end
redis.call('HSET', KEYS[1], 'tokens', tokens - 1, 'at', now)
redis.call('EXPIRE', KEYS[1], math.floor(2 * capacity / rate))
return 1
"""
"""A token bucket whose TTL is twice the time to fill it, in whole seconds."""


def test_trap_26_a_ttl_of_nothing(backend: ailf.Backend, raw: redis.Redis, naive: Callable[..., int]) -> None:
    """R8, trap 26: EXPIRE 0 deletes the state, so 1000 of 1000 calls pass; ailf's state lives until it is idle."""
    assert sum(naive(EXPIRE_0, 10, 100) for _ in range(1000)) == 1000
    limit = TokenBucket(100, per=1.0, burst=10)
    limiter = backend.rate_limiter("r", limit)
    decisions = [limiter.try_acquire() for _ in range(1000)]
    took = decisions[-1].at - decisions[0].at
    assert sum(map(bool, decisions)) <= limit.burst + limit.rate * (took + 0.001)
    assert not all(decisions)


# --- 27: denied calls that count -----------------------------------------------------------------------------------

DENIED_COUNTS = """
local now, per, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - per)
redis.call('ZADD', KEYS[1], now, ARGV[4])
redis.call('PEXPIRE', KEYS[1], per)
return redis.call('ZCARD', KEYS[1]) <= limit and 1 or 0
"""
"""A sliding log that records a call before it decides; the caller passes the time."""


def test_trap_27_retries_starve(backend: ailf.Backend, naive: Callable[..., int]) -> None:
    """R1, trap 27: if denied calls are recorded, a caller that retries soon never passes again; with ailf it does."""
    passed = sum(naive(DENIED_COUNTS, 10 * turn, 500, 3, turn) for turn in range(1000))
    assert passed == 3, "of 60 in ten seconds"
    limiter = backend.rate_limiter("r", SlidingWindow(3, per=0.5))
    passed, until = 0, time.monotonic() + 20
    while passed < 9:
        passed += limiter.try_acquire().allowed
        assert time.monotonic() < until


# --- 28: Lua's numbers ---------------------------------------------------------------------------------------------

WAIT_IN_SECONDS = """
local debt = tonumber(redis.call('GET', KEYS[1]) or 0)
if debt > 0 then return debt end
redis.call('SET', KEYS[1], ARGV[1], 'PX', 10000)
return 0
"""
"""A limiter that returns the seconds to wait, or 0."""

FOURTEEN_DIGITS = """
local used = tonumber(redis.call('GET', KEYS[1]) or 0)
if used + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], '' .. used + tonumber(ARGV[1]), 'PX', 10000)
return 1
"""
"""A counter that is stored in Lua's own number format."""


def test_trap_28_waits_that_are_cut_off(backend: ailf.Backend, naive: Callable[..., int]) -> None:
    """R3, trap 28: Redis cuts 0.95 s to 0, and the call passes; ailf's waits are exact to the millisecond."""
    assert naive(WAIT_IN_SECONDS, "0.95") == 0
    assert naive(WAIT_IN_SECONDS, "0.95") == 0, "the call was denied, and its wait was cut to 0"
    limiter = backend.rate_limiter("r", TokenBucket(20, per=19.0, burst=1))
    first, denied = limiter.try_acquire(), limiter.try_acquire()
    assert not denied
    assert denied.retry_after is not None
    assert round((denied.at + denied.retry_after - first.at) * 1000) == 950


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        (FixedWindow(2**53, per=800_000 * HOUR), 2**53),
        (SlidingWindow(2**53, per=HOUR), 2**53),
        (TokenBucket(1, per=HOUR, burst=2**53 // 3_600_000), 2**53 // 3_600_000),
    ],
    ids=str,
)
def test_trap_28_large_numbers(backend: ailf.Backend, naive: Callable[..., int], limit: Limit, most: int) -> None:
    """R9, trap 28: with 14 digits small charges on a large sum vanish, and any number passes; ailf counts each."""
    assert naive(FOURTEEN_DIGITS, 2**53 - 1000, 2**53) == 1
    assert all(naive(FOURTEEN_DIGITS, 7, 2**53) for _ in range(1000)), "7000 where 1000 were left"
    limiter = backend.rate_limiter("r", limit)
    assert limiter.try_acquire(cost=most - 10).remaining == 10
    assert [limiter.try_acquire().remaining for _ in range(10)] == [*range(9, -1, -1)]
    assert not limiter.try_acquire()


# --- 29: large costs -----------------------------------------------------------------------------------------------

LATER = """
local tokens = tonumber(redis.call('GET', KEYS[1]) or ARGV[2])
if tokens >= tonumber(ARGV[1]) then return 0 end
return math.ceil(1000 * (tonumber(ARGV[1]) - tokens) / tonumber(ARGV[3]))
"""
"""A limiter that returns the ms until there are enough tokens, also for more tokens than its capacity."""

EACH_TOKEN = """
for token = 1, tonumber(ARGV[1]) do redis.call('ZADD', KEYS[1], ARGV[2], ARGV[2] .. ':' .. token) end
redis.call('PEXPIRE', KEYS[1], 60000)
return 1
"""
"""A sliding log with an entry for every token."""


@pytest.mark.parametrize(
    "limit", [TokenBucket(10), SlidingWindow(10), FixedWindow(10), Concurrency(10, ttl=1.0)], ids=str
)
def test_trap_29_a_cost_above_the_capacity(
    backend: ailf.Backend, naive: Callable[..., int], dump: Callable[[], Keys], limit: Limit
) -> None:
    """R3, trap 29: a call that can never pass gets a time to retry, again and again; ailf refuses it at once."""
    assert [naive(LATER, 11, 10, 10) for _ in range(3)] == [100] * 3, "each retry waits again"
    limiter = backend.rate_limiter("r", limit)
    assert limiter.try_acquire(cost=11).retry_after is None
    calls = [lambda: limiter.acquire(cost=11, timeout=2)]
    if isinstance(limit, TokenBucket):
        calls.append(lambda: limiter.reserve(cost=11, within=2))
    for call in calls:
        with pytest.raises(ailf.RateLimitedError, match="never") as raised:
            call()
        assert raised.value.retry_after is None
    assert dump() == {}


def typical(raw: redis.Redis, *marks: str) -> list[float]:
    """Return for each mark the median of the µs that a server spent on the scripts whose command has this mark.

    The median, as a server may be delayed in some, and takes three times as long when its core has just been woken.
    """
    scripts = [each for each in raw.slowlog_get(1000) if each["command"].startswith(b"EVAL")]
    times = [[each["duration"] for each in scripts if mark.encode() in each["command"]] for mark in marks]
    assert all(times)
    raw.slowlog_reset()
    return list(map(statistics.median, times))


def test_trap_29_work_for_each_token(new_server: NewServer) -> None:
    """R9, trap 29: an entry for each token stalls the server at 100 000 tokens; ailf's work is that for one token."""
    server = new_server("--slowlog-log-slower-than", "0", "--slowlog-max-len", "1000")
    with server.client() as raw, ailf.connect(server.url) as backend:
        for turn in range(50):
            raw.eval(EACH_TOKEN, 1, "few", 1, turn)
        (one,) = typical(raw, " few ")
        raw.eval(EACH_TOKEN, 1, "many", 100_000, 1)
        (many,) = typical(raw, " many ")
        assert many > 100 * one
        assert raw.memory_usage("many", samples=0) > 2_000_000
        for limit in (TokenBucket(10**8, per=60), SlidingWindow(10**8, per=60), FixedWindow(10**8, per=1000 * HOUR)):
            limiter = backend.rate_limiter(str(limit), limit)
            limiter.try_acquire()
            for _ in range(50):  # alternately, so that both meet the same load
                limiter.try_acquire("one")
                limiter.try_acquire("all", cost=100_000)
            one, large = typical(raw, ":one}", ":all}")
            assert large < 3 * one
            assert many > 30 * large


# --- 30: clocks, lost scripts, refunds, waiters that give up ------------------------------------------------------

CLIENTS_CLOCK = """
local capacity, rate, now = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local state = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local passed = math.max(0, now - (tonumber(state[2]) or now))
local tokens = math.min(capacity, (tonumber(state[1]) or capacity) + passed * rate)
local allowed = tokens >= 1 and 1 or 0
redis.call('HSET', KEYS[1], 'tokens', tokens - allowed, 'at', now)
redis.call('PEXPIRE', KEYS[1], 60000)
return allowed
"""
"""A token bucket to which the caller passes the time."""


def test_trap_30_clocks_of_clients(
    backend: ailf.Backend, naive: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6, trap 30: a client whose clock is ahead refills the bucket again and again; ailf uses the server's time."""
    now = time.time()
    assert sum(naive(CLIENTS_CLOCK, 10, 1, now + 60 * (turn % 2)) for turn in range(40)) == 40
    limiter = backend.rate_limiter("r", TokenBucket(10, per=HOUR))
    clocks = {name: getattr(time, name) for name in ("time", "monotonic")}
    decisions = []
    for turn in range(40):
        with monkeypatch.context() as ahead:
            for name, clock in clocks.items():
                if turn % 2:
                    ahead.setattr(time, name, lambda clock=clock: clock() + HOUR)
            decisions.append(limiter.try_acquire())
    assert sum(map(bool, decisions)) == 10
    assert decisions[-1].at - decisions[0].at < 60


def test_trap_30_scripts_that_vanish(backend: ailf.Backend, raw: redis.Redis) -> None:
    """R1, trap 30: after SCRIPT FLUSH, as after a failover, EVALSHA fails; ailf's call is carried out, once."""
    sha = raw.script_load("return 1")
    raw.script_flush()
    with pytest.raises(redis.exceptions.NoScriptError):
        raw.evalsha(sha, 0)
    with raw.pipeline() as pipe, pytest.raises(redis.exceptions.NoScriptError):
        pipe.evalsha(sha, 0).execute()
    limiter = backend.rate_limiter("r", rate=TokenBucket(100, per=HOUR), parallel=Concurrency(5, ttl=0.9))
    permits = []
    for _ in range(5):
        raw.script_flush()
        permits.append(limiter.acquire(rate=10, timeout=5))
        raw.script_flush()
        permits[-1].settle(rate=4)
    raw.script_flush()
    assert {name: each.remaining for name, each in limiter.peek().limits.items()} == {"rate": 80, "parallel": 0}
    raw.script_flush()
    time.sleep(1.8)  # the slots are renewed by a script, too
    assert not any(each.lost for each in permits)
    raw.script_flush()
    limiter.observe(limit="rate", remaining=50)
    raw.script_flush()
    permits[0].release()
    assert {name: each.remaining for name, each in limiter.peek().limits.items()} == {"rate": 50, "parallel": 1}
    raw.script_flush()
    limiter.reset()
    assert limiter.peek().remaining == 5


def test_trap_30_refunds_that_count_twice(server: Server, namespace: str, raw: redis.Redis) -> None:
    """R7, trap 30: a refund that is sent again after a lost reply counts twice; ailf's is not sent again."""
    naive = f"{namespace}:naive"
    raw.set(naive, 10, px=60_000)
    with Proxy(server.port) as proxy:
        with redis.Redis(port=proxy.port, socket_timeout=0.3, retry=None) as client:
            client.ping()
            proxy.drop_replies()
            with pytest.raises(redis.exceptions.TimeoutError):
                client.decrby(naive, 3)
            proxy.cut()
            proxy.resume()
            client.decrby(naive, 3)
        assert raw.get(naive) == b"4", "3 were to be refunded, and 6 were"
        with ailf.connect(f"{proxy.url}?namespace={namespace}&timeout=0.3") as backend:
            limiter = backend.rate_limiter("r", TokenBucket(10, per=HOUR))
            limiter.acquire(cost=5, timeout=0).cancel()  # so that the server has the script
            permits = [limiter.acquire(cost=5, timeout=0) for _ in range(2)]
            proxy.drop_replies()
            with pytest.raises(ailf.OutcomeUnknownError):
                permits[0].settle(cost=2)
            proxy.cut()
            proxy.resume()
            assert limiter.peek().remaining == 3
            permits[0].settle(cost=2)
            for again in (permits[0].cancel, lambda: permits[0].settle(cost=1)):
                with pytest.raises(ailf.SettledError):
                    again()
            assert limiter.peek().remaining == 3
            permits[1].cancel()
            assert limiter.peek().remaining == 8


CHARGE_FIRST = """
local debt = tonumber(redis.call('GET', KEYS[1]) or 0)
redis.call('SET', KEYS[1], debt + 1, 'PX', 60000)
return math.max(0, debt + 1 - tonumber(ARGV[1]))
"""
"""A limiter that charges a call, and returns the number of intervals until it may begin."""


def test_trap_30_waiters_that_give_up(
    backend: ailf.Backend, raw: redis.Redis, naive: Callable[..., int], dump: Callable[[], Keys]
) -> None:
    """R10, trap 30: a call that is charged before it waits stays charged if it gives up; ailf leaves no trace of it."""
    assert [naive(CHARGE_FIRST, 1) for _ in range(5)] == [0, 1, 2, 3, 4], (
        "four have given up, and the next waits for all"
    )
    limiter = backend.rate_limiter("r", TokenBucket(1, per=HOUR), count_denied=False)
    first = limiter.acquire("k", timeout=0)
    before = dump()
    for timeout in (0, 0.05, 0.1, 0.2):
        with pytest.raises(ailf.RateLimitedError):
            limiter.acquire("k", timeout=timeout)
        assert dump() == before
    first.cancel()
    assert limiter.try_acquire("k")


# --- 31: several limits with different costs -----------------------------------------------------------------------

COUNT = """
local used = tonumber(redis.call('GET', KEYS[1] .. ARGV[1]) or 0)
if used + tonumber(ARGV[2]) > tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1] .. ARGV[1], used + tonumber(ARGV[2]), 'PX', 60000)
return 1
"""
"""A counter, one of several limits that are checked one after another."""


@pytest.fixture
def several(backend: ailf.Backend) -> ailf.RateLimiter:
    """A limiter like that of a model's provider: requests, tokens, and parallel calls."""
    requests, tokens = TokenBucket(10, per=HOUR), TokenBucket(1000, per=HOUR)
    return backend.rate_limiter("r", requests=requests, tokens=tokens, parallel=Concurrency(3, ttl=60.0))


def left(limiter: ailf.RateLimiter) -> tuple[int, ...]:
    """Return `remaining` of each limit."""
    return tuple(each.remaining for each in limiter.peek("k").limits.values())


def test_trap_31_all_or_nothing(several: ailf.RateLimiter, naive: Callable[..., int], dump: Callable[[], Keys]) -> None:
    """R1, trap 31: of limits checked one after another the first are charged in vain; ailf charges all or none."""
    passed = [naive(COUNT, "requests", 1, 10) and naive(COUNT, "tokens", 600, 1000) for _ in range(10)]
    assert sum(passed) == 1
    assert not naive(COUNT, "requests", 1, 10), "none is left, though one has passed"
    assert several.try_acquire("k", tokens=600)
    before = dump()
    for costs in ({"tokens": 401}, {"requests": 10}, {"parallel": 3}, {"tokens": 1001}, {"requests": 11, "tokens": 0}):
        decision = several.try_acquire("k", **costs)
        assert not decision
        assert decision.bound in costs
    assert dump() == before
    assert several.try_acquire("k", requests=9, tokens=400, parallel=2)
    assert left(several) == (0, 0, 0)
