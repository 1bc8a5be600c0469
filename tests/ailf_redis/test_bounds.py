"""However much there is, a step of the server is short: its commands are counted, and later steps do the rest."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

import ailf
from ailf.driver import Account, Charge
from ailf.limits.sliding_window import SlidingWindowAlgorithm
from ailf.runtime import run
from tests.support.servers import NewServer, Server

MANY = 1000
"""How much there is: several times what one step may take."""

STEP = 900
"""Commands that a step may run."""


@pytest.fixture
def private(new_server: NewServer) -> Server:
    """A server whose commands nobody else counts."""
    return new_server()


@pytest.fixture
def raw(private: Server) -> Iterator[redis.Redis]:
    """A client of redis-py's."""
    with private.client() as client:
        yield client


@pytest.fixture
def backend(private: Server) -> Iterator[ailf.Backend]:
    """A backend of ours, which doesn't wait long for a server that is stuck."""
    with ailf.connect(f"{private.url}?timeout=2&retry_for=0") as opened:
        yield opened


def steps(raw: redis.Redis) -> tuple[int, float]:
    """Return how many scripts were run since the last call, and how many commands each ran on average."""
    ran = {name: each["calls"] - each["failed_calls"] for name, each in raw.info("commandstats").items()}
    raw.config_resetstat()
    scripts = ran.get("cmdstat_evalsha", 0) + ran.get("cmdstat_eval", 0)
    return scripts, sum(ran.values()) / max(1, scripts)


def test_leaving_with_much_in_hand(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S6, S11: a consumer gives back all that it has, uncounted, in steps."""
    stream = backend.stream("s")
    stream.add_many(range(MANY))
    group = stream.group("g", lease=60)
    with group.consumer(prefetch=MANY) as consumer:
        assert consumer.get(5) is not None
        steps(raw)
    scripts, commands = steps(raw)
    assert scripts >= 2
    assert commands < 8 * STEP
    assert group.info().consumers == {}
    with group.consumer(prefetch=MANY) as consumer:
        taken = [consumer.get(0) for _ in range(MANY)]
        assert {(each.data, each.attempt) for each in taken if each} == {(number, 1) for number in range(MANY)}


def test_beginning_anew_with_much_put_back(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S9, S16: what was redriven before a seek is delivered after it, attempt 1, each key in its order, in steps."""
    stream = backend.stream("s")
    for number in range(MANY // 100):
        stream.add_many(range(number * 100, number * 100 + 100), key="one" if number % 5 == 0 else None)
    group = stream.group("g", lease=60, takeover=60)
    with group.consumer(prefetch=MANY) as consumer:
        for _ in range(MANY):
            delivery = consumer.get(5)
            assert delivery is not None
            delivery.reject("no")
    assert group.dead_letters.redrive_all() == MANY
    held = group.consumer(prefetch=MANY // 2)
    assert held.get(5) is not None
    steps(raw)
    group.seek(ailf.LATEST)
    scripts, commands = steps(raw)
    assert scripts == 1
    assert commands < 2 * STEP
    held.close()
    seen = []
    with group.consumer(prefetch=MANY) as consumer:
        while (delivery := consumer.get(0.2)) is not None:
            assert delivery.attempt == 1
            seen.append(delivery.data)
            delivery.ack()
    assert sorted(seen) == list(range(MANY))
    keyed = [each for each in seen if each // 100 % 5 == 0]
    assert keyed == sorted(keyed)
    assert set(raw.hkeys("{ailf:stream:s}:notes:g")) == {b"base", b"sweep"}


def dead_waiters(raw: redis.Redis, key: str) -> None:
    """Put waiters in line that have died."""
    raw.zadd(f"{key}:queue", {f"{number}": number for number in range(MANY)})
    raw.hset(f"{key}:waiters", mapping={f"{number}": "1 1 nowhere" for number in range(MANY)})


def test_a_line_of_dead_waiters(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L12, R10: however many waiters have died, each look passes some of them, and a living one gets the lock."""
    limiter = backend.rate_limiter("r", "5/minute")
    for key, attempt in (
        ("{ailf:lock:l}", lambda: backend.lock("l", fair=True).try_acquire()),
        ("{ailf:limit:r:k}", lambda: limiter.try_acquire("k").allowed or None),
    ):
        dead_waiters(raw, key)
        steps(raw)
        tries = 1
        while attempt() is None:
            tries += 1
            assert tries <= MANY // 100 + 2
        assert tries > 2
        assert steps(raw)[1] < STEP


def test_a_line_that_nobody_hears(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L11: a release calls some of those in line, where none hears it, and no more."""
    lease = backend.lock("l").acquire()
    soon = int(time.time() * 1000) + 60_000
    raw.zadd("{ailf:lock:l}:queue", {f"{number}": number for number in range(MANY)})
    raw.hset("{ailf:lock:l}:waiters", mapping={f"{number}": f"{soon} {soon} nowhere" for number in range(MANY)})
    steps(raw)
    lease.release()
    assert steps(raw)[1] < STEP


def test_a_semaphore_with_many_ended_grants(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L16: permits whose grants have ended are found again, some with each look."""
    semaphore = backend.semaphore("l", MANY)
    raw.zadd("{ailf:lock:l}", {f"{number}": 1 for number in range(MANY)})
    leases = []
    for _ in range(MANY // 50):
        steps(raw)
        leases.append(semaphore.try_acquire())
        assert steps(raw)[1] < STEP
    assert None not in leases
    assert len(semaphore.inspect().holders) == len(leases)


WINDOW = ailf.SlidingWindow(10, per=1.0, buckets=10)


def test_a_window_with_sums_that_are_rounded(backend: ailf.Backend, raw: redis.Redis) -> None:
    """R7, R9: two calls that were settled to more than a number keeps don't let a later one look for ever."""
    limiter = backend.rate_limiter("r", WINDOW)
    limiter.try_acquire("k")
    key = "{ailf:limit:r:k}"
    began = str(raw.get(key), "ascii").partition(",")[0]  # type: ignore[arg-type]
    raw.set(key, f"{began},3,{2**53};")  # as two calls in two buckets leave it that are settled to these costs
    assert not limiter.try_acquire("k", cost=10).allowed
    assert raw.ping()


def test_a_window_that_was_charged_when_the_clock_was_ahead(backend: ailf.Backend, raw: redis.Redis) -> None:
    """R6, R9: a call of another time is settled in as many steps as a window has buckets, on both backends."""
    account, far = Account("r", "k"), int(time.time() * 10) + 2_000_000
    driver = backend.engine.driver.rate_limiter()
    backend.rate_limiter("r", WINDOW).try_acquire("k")
    run(driver.settle(account, "token", [Charge("", WINDOW, 1, (far,), 5)]))
    assert raw.get("{ailf:limit:r:k}").split(b":")[1].count(b",") <= 12  # type: ignore[union-attr]
    state: Any = SlidingWindowAlgorithm(WINDOW).settle((1000, 1), 1000, (10**6,), 1, 5)
    assert len(state) <= 12
