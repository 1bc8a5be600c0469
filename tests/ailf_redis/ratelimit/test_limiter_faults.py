"""Rate limiters whose callers are processes, killed, or cancelled: they use all of the quota, and no more."""

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
"""The resolution of a backend's clock in ms."""

SLACK = 1.5
"""Seconds by which a process may be late on a busy machine."""


# --- faults of a history ----------------------------------------------------------------------------------------


def share_used(calls: Sequence[Call], limit: TokenBucket) -> float:
    """Return the used share of the quota, from the first call to the last."""
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
        ([*every(0, 20), (4, 1)], False),  # one, a tick early
        ([*every(0, 20), (3, 1)], True),
        ([(3, 1), *every(0, 20)], True),  # listed in another order
        ([*every(0, 20), *every(5, 300, begin=5)], False),
        ([*every(0, 20), *every(4.8, 300, begin=5)], True),  # slightly too fast for a long time
        ([*every(5, 300), (1800, 10), (1800, 10)], False),
        ([*every(5, 300), (1800, 11), (1800, 10)], True),  # too much at once, little in total
        ([(0, 1), (60_000, 15), (60_010, 8), (120_000, 1)], True),  # too much in the middle
        ([(0, 1), (60_000, 15), (60_010, 7), (120_000, 1)], False),
    ],
)
def test_the_check_finds_every_excess(calls: list[Call], over: bool) -> None:
    """An excess in any span of time is found, and nothing else."""
    assert bool(excess(BUCKET, calls, tick=TICK)) is over


@pytest.mark.parametrize(
    ("calls", "share"),
    [
        (every(0, 20), 1.0),
        (every(0, 10), 0.5),
        ([*every(0, 20), *every(5, 200, begin=5)], 1.0),
        ([*every(0, 20), *every(10, 100, begin=10)], 120 / 220),  # every second call is missing
        ([*every(0, 20), (500, 60), (1000, 140)], 1.0),
        ([*every(0, 20), *every(5, 100, begin=5), *every(5, 100, begin=1005)], 220 / 320.8),  # a pause in the middle
    ],
)
def test_the_check_finds_unused_quota(calls: list[Call], share: float) -> None:
    """Quota that no call used is found, whatever came before and after."""
    assert share_used(calls, BUCKET) == pytest.approx(share, abs=0.01)


# --- callers as processes ----------------------------------------------------------------------------------------


class Callers:
    """Processes that call the limiter, and their reports."""

    def __init__(self, url: str, report: Path) -> None:
        self._url = url
        self._report = report
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, limit: str, what: str) -> subprocess.Popen[bytes]:
        """Start a process."""
        command = [sys.executable, str(PROGRAM), self._url, limit, str(self._report), what]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        self._processes.append(process)
        return process

    def reports(self, field: str) -> list[dict[str, int]]:
        """Return the reports that have a field."""
        lines = self._report.read_text().splitlines() if self._report.exists() else []
        return [report for report in map(json.loads, lines) if field in report]

    def kill(self) -> None:
        """Kill all processes."""
        for each in self._processes:
            with each:
                each.kill()


@pytest.fixture
def url(any_server: Server, namespace: str) -> str:
    """The URL of this test's limiters."""
    return f"{any_server.url}?namespace={namespace}"


@pytest.fixture
def callers(url: str, tmp_path: Path) -> Iterator[Callers]:
    """No process yet; all that the test starts are killed."""
    started = Callers(url, tmp_path / "report")
    yield started
    started.kill()


@pytest.fixture
def keys(any_server: Server, namespace: str) -> Iterator[Callable[[], dict[str, int]]]:
    """A function that returns the keys of this test with their TTLs in ms; at the end each key has one."""
    with any_server.client() as raw:

        def read() -> dict[str, int]:
            ttls = {key.decode(): raw.pttl(key) for key in raw.scan_iter(f"*{namespace}*", 1000)}
            return {key: ttl for key, ttl in ttls.items() if ttl != -2}  # expired since the scan

        yield read
        assert all(ttl > 0 for ttl in read().values()), read()


@pytest.fixture
def waiters(any_server: Server, namespace: str) -> Iterator[Callable[[], int]]:
    """A function that returns how many calls wait for the key "k" of the limiter "r"."""
    queue = f"{{{namespace}:limit:r:k}}:queue"
    with any_server.client() as raw:
        yield lambda: raw.zcard(queue)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return when the condition holds; fail after `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.01)


def test_processes_use_all_and_no_more(callers: Callers, keys: Callable[[], dict[str, int]]) -> None:
    """R2, R10: four processes that want more than a limit allows use all of it, and never more.

    The burst allows for delays of a busy machine.
    """
    limit = "200/second burst 100"
    processes = [callers.start(limit, "demand") for _ in range(CALLERS)]
    wait_for(lambda: len(callers.reports("ready")) == CALLERS)
    for each in processes:
        assert each.stdin is not None
        each.stdin.write(f"{SECONDS}\n".encode())
        each.stdin.flush()
    for each in processes:
        assert each.wait(SECONDS + 20) == 0
    allowed = callers.reports("at")
    calls = [(each["at"], each["cost"]) for each in allowed]
    bucket = parse_limit(limit)
    assert isinstance(bucket, TokenBucket)
    share = share_used(calls, bucket)
    costs = [sum(call["cost"] for call in allowed if call["pid"] == each.pid) for each in processes]
    log.info("%d calls, %.2f %% of the quota, by process %s", len(calls), 100 * share, costs)
    assert excess(bucket, calls, tick=TICK) == []
    assert share >= 0.98
    assert min(costs) > sum(costs) / (2 * CALLERS), "a process got less than half of its share"
    assert {key.rpartition(":")[2] for key in keys()} <= {"k}"}, "a wait queue is left"


def test_killed_while_waiting(
    url: str, callers: Callers, waiters: Callable[[], int], keys: Callable[[], dict[str, int]]
) -> None:
    """R10, L12: a waiter that is killed delays the others by its lease, and is charged nothing.

    The waiter behind retries shortly before the lease of the dead one ends, and must not then sleep beyond that.
    """
    limit = TokenBucket(10, per=HOUR)
    with ailf.connect(url) as backend, ThreadPoolExecutor() as pool:
        limiter = backend.rate_limiter("r", limit)
        held = limiter.try_acquire("k", cost=10).permit
        assert held is not None
        victims = [callers.start(str(limit), "wait") for _ in range(2)]
        wait_for(lambda: waiters() == 2)
        killed = time.monotonic()
        for each in victims:
            each.kill()
        time.sleep(1.7)
        behind = pool.submit(limiter.acquire, "k", timeout=20)
        wait_for(lambda: waiters() == 3)
        assert all(0 < ttl < 10 * WAITER_TTL * 1000 for key, ttl in keys().items() if not key.endswith("}"))
        held.cancel()
        assert behind.result(30)
        assert time.monotonic() - killed < WAITER_TTL + SLACK
        assert limiter.peek("k").remaining == 9
    assert callers.reports("passed") == []
    assert {key.rpartition(":")[2] for key in keys()} == {"k}"}, "a wait queue is left"


def test_slots_of_dead_and_living_processes(url: str, callers: Callers, keys: Callable[[], dict[str, int]]) -> None:
    """R10, L16: a slot is kept for as long as its process lives, beyond its ttl; that of a killed one ends after it."""
    ttl = 2.0
    limit = Concurrency(2, ttl=ttl)
    holders = [callers.start(str(limit), "hold") for _ in range(2)]
    wait_for(lambda: {each["held"] for each in callers.reports("held")} == {each.pid for each in holders})
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
            assert not limiter.try_acquire("k"), "the slot of the living process is free"
        assert limiter.try_acquire("k", cost=1).allowed
        assert all(ttl > 0 for ttl in keys().values())
    assert not any(each["lost"] for each in callers.reports("held"))


# --- cancelled ---------------------------------------------------------------------------------------------------


async def call_and_cancel(limiter: ailf.AsyncRateLimiter, rival: ailf.AsyncRateLimiter, number: int) -> bool:
    """Begin a call and cancel it at a moment that differs with `number`; return whether it had passed already.

    For every second number a rival has most of the quota, so that the call waits; for every fourth the rival gives that
    back, so that the call is woken.
    """
    held = (await rival.try_acquire("k", rate=998)).permit if number % 2 else None
    calling = asyncio.ensure_future(limiter.acquire("k", timeout=10, rate=5))
    for _ in range(number // 4 % 25):
        await asyncio.sleep(0)
    if held is not None and number % 4 == 1:
        await asyncio.sleep(0.01)  # long enough to be in the wait queue
        await held.cancel()
        for _ in range(number // 4 % 25):
            await asyncio.sleep(0)
    calling.cancel()
    passed = False
    with contextlib.suppress(asyncio.CancelledError):
        await (await calling).cancel()
        passed = True
    if held is not None and number % 4 == 3:
        await held.cancel()
    return passed


async def until_nothing_is_left(limiter: ailf.AsyncRateLimiter, keys: Callable[[], dict[str, int]]) -> list[str]:
    """Return what is left of a cancelled call after at most `SLACK` seconds."""
    until = time.monotonic() + SLACK
    while True:
        limits = (await limiter.peek("k")).limits
        left = [f"{name}: {limits[name]}" for name in limits if limits[name].reset_after]
        left += [key for key in keys() if not key.endswith("}")]
        if not left or time.monotonic() > until:
            return left
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("with_slots", [False, True], ids=["rate", "rate and slots"])
def test_cancelled_anywhere(url: str, keys: Callable[[], dict[str, int]], with_slots: bool) -> None:
    """R10, trap 30: `acquire`, cancelled 300 times at any point, leaves no charge, no slot and no waiter."""
    limits: dict[str, ailf.Limit] = {"rate": TokenBucket(1000, per=1000 * HOUR)}
    if with_slots:
        limits["parallel"] = Concurrency(2, ttl=60.0)

    async def main() -> int:
        async with ailf.connect_async(url) as backend, ailf.connect_async(url) as other:
            limiter, rival = backend.rate_limiter("r", **limits), other.rate_limiter("r", **limits)
            before, passed = await limiter.peek("k"), 0
            for number in range(300):
                passed += await call_and_cancel(limiter, rival, number)
                assert await until_nothing_is_left(limiter, keys) == [], number
            assert (await limiter.peek("k")).limits == before.limits
            assert (await limiter.try_acquire("k", rate=1000)).allowed
            return passed

    passed = asyncio.run(main())
    log.info("%d of 300 had passed before they were cancelled", passed)
    assert passed < 200, "too few were cancelled in the middle"
    assert not any(key.endswith((":queue", ":waiters")) for key in keys())
