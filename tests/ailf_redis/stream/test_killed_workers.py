"""Workers that are killed, stopped or frozen lose nothing: the others finish the messages that they held.

The same with more kills, on every server: ``tests/campaigns``.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import ailf
from tests.ailf_redis.stream.chaos import Plan, WorkerPool, gather, run, settled, wait_for, worker_pool
from tests.ailf_redis.stream.histories import History, faults
from tests.support.effort import NEWEST
from tests.support.servers import Server

log = logging.getLogger("tests")

FEW = Plan(messages=1000, workers=3, orders={"odds": {}, "concurrency": 4, "prefetch": 20, "pace": 0.02})


@pytest.fixture
def url(server: Server, namespace: str) -> str:
    """The URL of this test's stream."""
    return f"{server.url}?namespace={namespace}"


@pytest.fixture
def workers(tmp_path: Path, url: str) -> Iterator[WorkerPool]:
    """Three workers."""
    with worker_pool(tmp_path, FEW, url) as pool:
        yield pool


def work(url: str, workers: WorkerPool, attack: str) -> History:
    """Let the workers do all tasks, and attack the first one once it has begun some; return the history."""
    with ailf.connect(url) as backend:
        tasks = backend.stream("tasks")
        group = tasks.group("workers")
        added = tasks.add_many(range(FEW.messages))
        wait_for(lambda: workers.now[0].begun, 30)
        getattr(workers.now.pop(0), attack)()
        wait_for(lambda: settled(group), 30)
        workers.stop()
        tasks.delete()
    return gather(workers, added, [], FEW)


@pytest.mark.timeout(120)
@NEWEST
def test_kill_of_a_worker_loses_nothing(url: str, workers: WorkerPool) -> None:
    """S2, S5, S12: of 1000 tasks none is lost when a worker is killed, and only those that it held come again."""
    history = work(url, workers, "kill")
    assert faults(history) == []
    again = [each for each in history.leases if each.attempt > 1]
    assert len(again) <= 24, "the tasks in its buffer and its handlers"
    assert {each.life.name for each in again} <= {"worker-1", "worker-2"}


@pytest.mark.timeout(120)
@NEWEST
def test_sigterm_drains(url: str, workers: WorkerPool) -> None:
    """S14: a worker that gets SIGTERM ends well, and others do at once what it had not begun, with attempt 1."""
    history = work(url, workers, "stop")
    assert faults(history) == []
    assert {each.attempt for each in history.leases} == {1}
    begun = [each.id for each in history.leases if each.begun is not None]
    assert sorted(begun) == sorted(history.added), "each is handled exactly once"
    assert len(history.leases) > len(begun), "no task was fetched and not begun"


@pytest.mark.timeout(180)
def test_workers_killed_at_random(any_server: Server, namespace: str, tmp_path: Path) -> None:
    """S2, S3, S4, S5: of 10 000 messages none is lost, no attempt is miscounted, no two leases are valid at once."""
    plan = Plan(messages=10_000, lasting=6, pause=0.6)
    report = run(tmp_path, f"{any_server.url}?namespace={namespace}", plan)
    log.info("%s", report)
    assert faults(report.history) == []
    assert report.killed >= 3
    assert report.again >= 50


@pytest.mark.timeout(180)
def test_dead_letters_of_killed_workers(any_server: Server, namespace: str, tmp_path: Path) -> None:
    """S5: with killed workers and failing handlers each message ends acked or as one dead letter, counted right."""
    odds = {"nack": 0.3, "raise": 0.1, "reject": 0.02, "release": 0.05}
    orders = {"odds": odds, "max_deliveries": 3, "lease": 1.0}
    plan = Plan(messages=2000, lasting=3, pause=0.5, orders=orders, seed=1)
    report = run(tmp_path, f"{any_server.url}?namespace={namespace}", plan)
    log.info("%s", report)
    assert faults(report.history) == []
    assert 50 <= len(report.history.dead_letters) <= 500
