"""Rate limiters whose callers are several processes, killed, or cancelled: all of the quota is used, and no more."""

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ailf
from ailf import Concurrency, TokenBucket, parse_limit
from ailf.engine.wait_queue import WAITER_TTL
from contract_tests.helpers.envelopes import Call, excess
from tests.support.effort import CAMPAIGN
from tests.support.servers import Server

log = logging.getLogger("tests")

PROGRAM = Path(__file__).with_name("limiter_program.py")
CALLERS = 4
SECONDS = 10.0 if CAMPAIGN else 4.0
HOUR = 3600.0
TICK = 1
"""The ms that a backend counts in."""

SLACK = 1.5
"""Seconds that a busy machine may take to let a process do what it should do at once."""


# --- what is wrong with a history --------------------------------------------------------------------------------


def share_used(calls: Sequence[Call], limit: TokenBucket) -> float:
    """Return how much of what could be admitted was, from the first call to the last."""
    times = [at for at, _ in calls]
    most = limit.burst + limit.rate * (max(times) - min(times)) / limit.per_ms
    return sum(cost for _, cost in calls) / most


def every(step: float, count: int, begin: int = 0) -> list[Call]:
    """Return calls at regular times."""
    return [(begin + int(number * step), 1) for number in range(count)]


BUCKET = TokenBucket(200, per=1.0, burst=20)


@pytest.mark.parametrize(
    ("calls", "over"),
    [
        ([], False),
        ([(7, 20)], False),
        ([(7, 21)], True),
        ([(7, 1)] * 20, False),
        ([(7, 1)] * 21, True),
        ([*every(0, 20), (4, 1)], False),  # one a tick early
        ([*every(0, 20), (3, 1)], True),
        ([(3, 1), *every(0, 20)], True),  # told in another order
        ([*every(0, 20), *every(5, 300, begin=5)], False),
        ([*every(0, 20), *every(4.8, 300, begin=5)], True),  # a little too fast, for long
        ([*every(5, 300), (1800, 10), (1800, 10)], False),
        ([*every(5, 300), (1800, 11), (1800, 10)], True),  # too much at once, little over all
        ([(0, 1), (60_000, 15), (60_010, 8), (120_000, 1)], True),  # too much in the middle
        ([(0, 1), (60_000, 15), (60_010, 7), (120_000, 1)], False),
    ],
)
def test_the_check_finds_every_excess(calls: list[Call], over: bool) -> None:
    """What leaves the envelope in any span of time is found, and nothing else is."""
    assert bool(excess(BUCKET, calls, tick=TICK)) is over


@pytest.mark.parametrize(
    ("calls", "share"),
    [
        (every(0, 20), 1.0),
        (every(0, 10), 0.5),
        ([*every(0, 20), *every(5, 200, begin=5)], 1.0),
        ([*every(0, 20), *every(10, 100, begin=10)], 120 / 220),  # every second turn was left out
        ([*every(0, 20), (500, 60), (1000, 140)], 1.0),
        ([*every(0, 20), *every(5, 100, begin=5), *every(5, 100, begin=1005)], 220 / 320.8),  # a pause in the middle
    ],
)
def test_the_check_finds_what_was_left_out(calls: list[Call], share: float) -> None:
    """Turns that were left out are counted, whatever came before and after."""
    assert share_used(calls, BUCKET) == pytest.approx(share, abs=0.01)


# --- callers as processes ----------------------------------------------------------------------------------------


class Callers:
    """Processes that call, and what they report."""

    def __init__(self, url: str, report: Path) -> None:
        self._url = url
        self._report = report
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, limit: str, what: str) -> subprocess.Popen[bytes]:
        """Start one."""
        command = [sys.executable, str(PROGRAM), self._url, limit, str(self._report), what]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        self._processes.append(process)
        return process

    def told(self, what: str) -> list[dict[str, int]]:
        """Return the reports that tell this."""
        lines = self._report.read_text().splitlines() if self._report.exists() else []
        return [told for told in map(json.loads, lines) if what in told]

    def kill(self) -> None:
        """End them all."""
        for each in self._processes:
            with each:
                each.kill()


@pytest.fixture
def url(any_server: Server, namespace: str) -> str:
    """Where this test's limiters are."""
    return f"{any_server.url}?namespace={namespace}"


@pytest.fixture
def callers(url: str, tmp_path: Path) -> Iterator[Callers]:
    """None yet; what is started is ended."""
    started = Callers(url, tmp_path / "report")
    yield started
    started.kill()


@pytest.fixture
def keys(any_server: Server, namespace: str) -> Iterator[Callable[[], dict[str, int]]]:
    """The keys of this test with their ttls in ms, at any time; none is left without one."""
    with any_server.client() as raw:

        def found() -> dict[str, int]:
            ttls = {key.decode(): raw.pttl(key) for key in raw.scan_iter(f"*{namespace}*", 1000)}
            return {key: ttl for key, ttl in ttls.items() if ttl != -2}  # gone since the scan

        yield found
        assert all(ttl > 0 for ttl in found().values()), found()


@pytest.fixture
def in_line(any_server: Server, namespace: str) -> Iterator[Callable[[], int]]:
    """How many stand in line for the key "k" of the limiter "r"."""
    queue = f"{{{namespace}:limit:r:k}}:queue"
    with any_server.client() as raw:
        yield lambda: raw.zcard(queue)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return when it holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.01)


def test_processes_use_all_and_no_more(callers: Callers, keys: Callable[[], dict[str, int]]) -> None:
    """R2, R10: of a limit that four processes want more of than there is, all is used, and never more than that.

    The burst is what a busy machine may be late by.
    """
    limit = "200/second burst 100"
    processes = [callers.start(limit, "demand") for _ in range(CALLERS)]
    wait_for(lambda: len(callers.told("ready")) == CALLERS)
    for each in processes:
        assert each.stdin is not None
        each.stdin.write(f"{SECONDS}\n".encode())
        each.stdin.flush()
    for each in processes:
        assert each.wait(SECONDS + 20) == 0
    told = callers.told("at")
    calls = [(each["at"], each["cost"]) for each in told]
    bucket = parse_limit(limit)
    assert isinstance(bucket, TokenBucket)
    share = share_used(calls, bucket)
    each_has = [sum(call["cost"] for call in told if call["pid"] == each.pid) for each in processes]
    log.info("%d calls, %.2f %% of the quota, by process %s", len(calls), 100 * share, each_has)
    assert excess(bucket, calls, tick=TICK) == []
    assert share >= 0.98
    assert min(each_has) > sum(each_has) / (2 * CALLERS), "they pass in turn"
    assert {key.rpartition(":")[2] for key in keys()} <= {"k}"}, "no line, no waiters"


def test_killed_in_line(
    url: str, callers: Callers, in_line: Callable[[], int], keys: Callable[[], dict[str, int]]
) -> None:
    """R10, L12: who is killed while waiting in line delays the others by the lease of a waiter, and is charged nothing.

    The one behind looks for itself shortly before the lease of the dead ends, and must not sleep on over that.
    """
    limit = TokenBucket(10, per=HOUR)
    with ailf.connect(url) as backend, ThreadPoolExecutor() as pool:
        limiter = backend.rate_limiter("r", limit)
        held = limiter.try_acquire("k", cost=10).permit
        assert held is not None
        victims = [callers.start(str(limit), "wait") for _ in range(2)]
        wait_for(lambda: in_line() == 2)
        killed = time.monotonic()
        for each in victims:
            each.kill()
        time.sleep(1.7)
        behind = pool.submit(limiter.acquire, "k", timeout=20)
        wait_for(lambda: in_line() == 3)
        assert all(0 < ttl < 10 * WAITER_TTL * 1000 for key, ttl in keys().items() if not key.endswith("}"))
        held.cancel()
        assert behind.result(30)
        assert time.monotonic() - killed < WAITER_TTL + SLACK
        assert limiter.peek("k").remaining == 9
    assert callers.told("passed") == []
    assert {key.rpartition(":")[2] for key in keys()} == {"k}"}, "no line, no waiters"


def test_places_of_the_dead_and_of_the_living(url: str, callers: Callers, keys: Callable[[], dict[str, int]]) -> None:
    """R10, L16: a place is kept for as long as its process lives, beyond its ttl; a killed one's is free after it."""
    ttl = 2.0
    limit = Concurrency(2, ttl=ttl)
    holders = [callers.start(str(limit), "hold") for _ in range(2)]
    wait_for(lambda: {each["held"] for each in callers.told("held")} == {each.pid for each in holders})
    with ailf.connect(url) as backend:
        limiter = backend.rate_limiter("r", limit)
        until = time.monotonic() + 2.5 * ttl
        while time.monotonic() < until:
            assert not limiter.try_acquire("k")
            time.sleep(0.05)
        killed = time.monotonic()
        holders[0].kill()
        assert not limiter.try_acquire("k")
        with limiter.hold("k", timeout=20):
            assert time.monotonic() - killed < ttl + SLACK
            assert not limiter.try_acquire("k"), "the other one lives"
        assert limiter.try_acquire("k", cost=1).allowed
        assert all(ttl > 0 for ttl in keys().values())
    assert not any(each["lost"] for each in callers.told("held"))


# --- cancelled ---------------------------------------------------------------------------------------------------


async def call_and_cancel(limiter: ailf.AsyncRateLimiter, rival: ailf.AsyncRateLimiter, turn: int) -> bool:
    """Begin a call and cancel it at a moment that differs with the turn; return whether it had passed already.

    In every second turn a rival has most of the quota, so that it comes into line; in every fourth the rival gives that
    back, so that it is woken.
    """
    held = (await rival.try_acquire("k", rate=998)).permit if turn % 2 else None
    calling = asyncio.ensure_future(limiter.acquire("k", timeout=10, rate=5))
    for _ in range(turn // 4 % 25):
        await asyncio.sleep(0)
    if held is not None and turn % 4 == 1:
        await asyncio.sleep(0.01)  # it is certainly in line
        await held.cancel()
        for _ in range(turn // 4 % 25):
            await asyncio.sleep(0)
    calling.cancel()
    passed = False
    with contextlib.suppress(asyncio.CancelledError):
        await (await calling).cancel()
        passed = True
    if held is not None and turn % 4 == 3:
        await held.cancel()
    return passed


async def until_nothing_is_left(limiter: ailf.AsyncRateLimiter, keys: Callable[[], dict[str, int]]) -> list[str]:
    """Return what of a call that was given up is left, at most a moment later."""
    until = time.monotonic() + SLACK
    while True:
        limits = (await limiter.peek("k")).limits
        left = [f"{name}: {limits[name]}" for name in limits if limits[name].reset_after]
        left += [key for key in keys() if not key.endswith("}")]
        if not left or time.monotonic() > until:
            return left
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("places", [False, True], ids=["rate", "rate and places"])
def test_cancelled_anywhere(url: str, keys: Callable[[], dict[str, int]], places: bool) -> None:
    """R10, trap 30: acquire, cancelled 300 times, anywhere, is charged nothing, has no place, and leaves the line."""
    limits: dict[str, ailf.Limit] = {"rate": TokenBucket(1000, per=1000 * HOUR)}
    if places:
        limits["parallel"] = Concurrency(2, ttl=60.0)

    async def main() -> int:
        async with ailf.connect_async(url) as backend, ailf.connect_async(url) as other:
            limiter, rival = backend.rate_limiter("r", **limits), other.rate_limiter("r", **limits)
            before, passed = await limiter.peek("k"), 0
            for turn in range(300):
                passed += await call_and_cancel(limiter, rival, turn)
                assert await until_nothing_is_left(limiter, keys) == [], turn
            assert (await limiter.peek("k")).limits == before.limits
            assert (await limiter.try_acquire("k", rate=1000)).allowed
            return passed

    passed = asyncio.run(main())
    log.info("%d of 300 had passed before they were cancelled", passed)
    assert passed < 200, "many were cancelled in the middle"
    assert not any(key.endswith((":queue", ":waiters")) for key in keys())
