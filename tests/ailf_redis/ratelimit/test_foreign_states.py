"""Foreign data in a limiter's keys: a state that can't be ours counts as none, and every call works."""

import contextlib
import time
from typing import Any

import pytest
import redis

import ailf
from ailf.driver import Charge, LimiterKey, LimitRequest, SlotLease
from ailf.errors import RateLimitedError
from ailf.runtime import run
from tests.support.effort import NEWEST

YEARS = 1e9
"""Seconds of a window that doesn't end while a test runs."""

LIMITS = {
    "bucket": ailf.TokenBucket(5, per=3600),
    "fixed": ailf.FixedWindow(5, YEARS),
    "sliding": ailf.SlidingWindow(5, 3600),
}
LIMITER_KEY = LimiterKey("r", "k")
KEY = "{ailf:limit:r:k}"
INFINITE = "9" * 400

NO_STATES = [
    "", ";", "junk;", "T;", "T", "T,5", "T,,5;", ",T,5;", "T,5,;", "-T,5;", "T,-5;", "T.5,5;", "1e20,5;", "inf,5;",
    "T,inf;", "nan,5;", "0xffffffffffff,5;", " T,5;", "T,5 ;", "T,5,x;", "T,5!;", "T,5!junk;", "٣,٣;",
    f"{INFINITE},5;", f"T,{INFINITE};", f"{INFINITE},{INFINITE};", f"T,5,{INFINITE},5;",
    f"{10**20},1;", f"{10**20},9,0,0;", f"{2**53 + 2},5;", f"{2**53 + 2},9,0,0;", "T,5" + ",0,5" * 20 + ";",
    "T,5" + ",0,5" * 1000 + ";", "9" * 10**6, "9" * 10**6 + ";", "9," * 10**6, "9," * 10**6 + ";", "," * 10**6 + ";",
    "1,1!" * 10**5,
]  # fmt: skip
"""Texts that no limit stores (T is the time): not all digits, another count of numbers, or beyond a double."""

EXTREME = [
    f"{2**53},9,0,0;",
    f"{2**53},{2**53};",
    f"{2**53 - 1},{2**53},0,{2**53};",
    f"0,{2**53};",
    f"{2**53},1;",
    "0,0;",
]
"""States that a limit could store, with extreme clocks and costs."""


def id_of(raw: redis.Redis) -> str:
    """Return the id under which a limit keeps its state; it is the only one stored."""
    return str(raw.get(KEY), "ascii").partition(":")[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", LIMITS)
@NEWEST
def test_junk_states_count_as_none(backend: ailf.Backend, raw: redis.Redis, kind: str) -> None:
    """R2: after each call the limit is where it would be if nothing had been stored."""
    limiter, driver = backend.rate_limiter("r", LIMITS[kind]), backend.engine.driver.rate_limiter()
    limits = (("", LIMITS[kind]),)
    (first,) = run(driver.decide(limits, [LimitRequest(LIMITER_KEY, (1,))]))
    key = id_of(raw)
    charge = Charge("", LIMITS[kind], 1, first.receipts[0], 3)  # type: ignore[union-attr]
    calls: dict[str, Any] = {
        "try_acquire": lambda: limiter.try_acquire("k"),
        "reserve": lambda: run(driver.decide(limits, [LimitRequest(LIMITER_KEY, (5,), max_wait=60)])),
        "count denied": lambda: run(driver.decide(limits, [LimitRequest(LIMITER_KEY, (6,), count_denied=True)])),
        "observe 2": lambda: limiter.observe("k", remaining=2),
        "observe a pause": lambda: limiter.observe("k", retry_after=1),
        "settle": lambda: run(driver.settle(LIMITER_KEY, "", [charge])),
        "refund": lambda: run(driver.settle(LIMITER_KEY, "", [Charge("", LIMITS[kind], 3, charge.receipt, 1)])),
    }
    states = [each.replace("T", f"{time.time() * 1000:.0f}") for each in NO_STATES]
    for what, call in calls.items():
        raw.delete(KEY)
        call()
        expected = limiter.peek("k").remaining
        for state in states:
            raw.set(KEY, f"{key}:{state}".encode())
            began = time.monotonic()
            call()
            assert time.monotonic() - began < 5, (what, state[:40])
            assert limiter.peek("k").remaining == expected, (what, state[:40])


@pytest.mark.parametrize("limit", [*LIMITS.values(), ailf.SlidingWindow(5, per=0.05), ailf.SlidingWindow(5, per=0.01)])
def test_extreme_states_give_decisions(backend: ailf.Backend, raw: redis.Redis, limit: ailf.Limit) -> None:
    """R3, R9: with the largest numbers each call is short, and no wait is negative."""
    limiter = backend.rate_limiter("r", limit)
    limiter.try_acquire("k")
    key = id_of(raw)
    for state in EXTREME:
        raw.set(KEY, f"{key}:{state}")
        for _ in range(2):
            decided = limiter.try_acquire("k")
            assert decided.retry_after is None or decided.retry_after >= 0
            assert 0 <= decided.remaining <= limit.capacity
            limiter.observe("k", remaining=0)
        for _ in range(2):  # the second one finds the first as a waiter
            with contextlib.suppress(RateLimitedError):
                limiter.acquire("k", timeout=0.01)


def test_foreign_texts_beside_a_state(backend: ailf.Backend, raw: redis.Redis) -> None:
    """R2: a state counts whatever text is around it: one without an end, the same id again, another id within."""
    limiter = backend.rate_limiter("r", a=ailf.FixedWindow(5, YEARS), b=ailf.FixedWindow(9, YEARS))
    limiter.try_acquire("k", a=1, b=1)
    one, other = (each.partition(":")[0] for each in str(raw.get(KEY), "ascii").split(";")[:2])  # type: ignore[arg-type]
    for stored in (
        f"junk{one}:{other}:1,1;{'z' * 40}",
        f"{'z' * 40};{one}:{other}:1,1;",
        f"{one}:1,1;{one}:2,2;{one}:3,3;{other}:1,1;{other}:2,2;",
        "z" * 40,
        ":;" * 40,
        f"{one}",
    ):
        raw.set(KEY, stored)
        assert [limiter.try_acquire("k", a=1, b=1).allowed for _ in range(6)] == [True] * 5 + [False], stored


def test_keys_without_a_ttl_or_with_the_largest(backend: ailf.Backend, raw: redis.Redis) -> None:
    """R8: a key without a TTL, or with the largest one, takes charges and gets a TTL."""
    limiter = backend.rate_limiter("r", "5/day")
    for ttl in (None, 2**63 - 1 - int(time.time() * 1000) - 10**6, 2**53):
        raw.set(KEY, "other:1;")
        if ttl is not None:
            raw.pexpire(KEY, ttl)
        assert limiter.try_acquire("k").allowed
        assert raw.pttl(KEY) > 0
        raw.delete(KEY)


def test_foreign_slots(backend: ailf.Backend, raw: redis.Redis) -> None:
    """R5: foreign slots that would never end don't count and disturb no call; one that ends soon is waited for."""
    limit = ailf.Concurrency(2)
    limiter, driver, limits = backend.rate_limiter("r", limit), backend.engine.driver.rate_limiter(), (("", limit),)
    (_, _, _, slots) = driver._limiter_key(LIMITER_KEY, limits)  # type: ignore[attr-defined]
    foreign = {"a 1": "inf", "b 1": "-inf", "c 1": 1e300, "d 1": 2**53 + 2, "e": "inf", b"\xff": "inf"}
    for _ in range(2):
        raw.zadd(slots, foreign)
        permits = [limiter.acquire("k", timeout=1), limiter.acquire("k", timeout=1)]
        assert run(driver.extend([SlotLease(LIMITER_KEY, permits[0]._flow.request.token, limits)])) == [True]
        assert run(driver.extend([SlotLease(LIMITER_KEY, "a", limits)])) == [False]
        denied = limiter.try_acquire("k")
        assert not denied.allowed
        assert 59 < (denied.retry_after or 0) <= 60
        assert raw.pttl(slots) <= 60_000
        for each in permits:
            each.release()
        raw.delete(slots)
    raw.zadd(slots, {"a 1": time.time() * 1000 + 300.5, "b 1": time.time() * 1000 + 300.5})
    assert 0 < (limiter.try_acquire("k").retry_after or 0) <= 0.303
    assert limiter.acquire("k", timeout=1)
