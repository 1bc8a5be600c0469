"""Workers that are killed, stopped or held up lose nothing: the others finish what they had in hand, and only that.

The same with more kills, on every server: ``tests/campaigns``.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import ailf
from tests.ailf_redis.stream.chaos import Crowd, Plan, crowd, gather, run, settled, wait_for
from tests.ailf_redis.stream.histories import History, faults
from tests.support.servers import Server

log = logging.getLogger("tests")

FEW = Plan(messages=1000, workers=3, orders={"odds": {}, "concurrency": 4, "prefetch": 20, "pace": 0.02})


@pytest.fixture
def url(server: Server, namespace: str) -> str:
    """Where the workers of this test are."""
    return f"{server.url}?namespace={namespace}"


@pytest.fixture
def workers(tmp_path: Path, url: str) -> Iterator[Crowd]:
    """Three of them."""
    with crowd(tmp_path, FEW, url) as them:
        yield them


def work(url: str, workers: Crowd, attack: str) -> History:
    """Let them do all tasks, and do something to the first as soon as it has some in hand; return what happened."""
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
def test_kill_of_a_worker_loses_nothing(url: str, workers: Crowd) -> None:
    """S2, S5, S12: of 1000 tasks none is lost when a worker is killed, and only what it had in hand comes again."""
    history = work(url, workers, "kill")
    assert faults(history) == []
    again = [each for each in history.leases if each.attempt > 1]
    assert len(again) <= 24, "what it had in its buffer and in its handlers' hands"
    assert {each.life.name for each in again} <= {"worker-1", "worker-2"}


@pytest.mark.timeout(120)
def test_sigterm_drains(url: str, workers: Crowd) -> None:
    """S14: a worker that gets SIGTERM ends well, and what it had not begun is done by others at once, as new."""
    history = work(url, workers, "stop")
    assert faults(history) == []
    assert {each.attempt for each in history.leases} == {1}
    begun = [each.id for each in history.leases if each.begun is not None]
    assert sorted(begun) == sorted(history.added), "each is handled exactly once"
    assert len(history.leases) > len(begun), "it had some that it had not begun"


@pytest.mark.timeout(180)
def test_workers_killed_at_random(any_server: Server, namespace: str, tmp_path: Path) -> None:
    """S2, S3, S4, S5: of 20 000 messages none is lost, no attempt is miscounted, no two leases are valid at once."""
    plan = Plan(messages=20_000, lasting=10, pause=0.8)
    report = run(tmp_path, f"{any_server.url}?namespace={namespace}", plan)
    log.info("%s", report)
    assert faults(report.history) == []
    assert report.killed >= 5
    assert report.again >= 100


@pytest.mark.timeout(180)
def test_letters_of_killed_workers(any_server: Server, namespace: str, tmp_path: Path) -> None:
    """S5: where workers are killed and handlers fail, each message ends acked or as one dead letter, counted right."""
    odds = {"nack": 0.3, "raise": 0.1, "reject": 0.02, "release": 0.05}
    orders = {"odds": odds, "max_deliveries": 3, "lease": 1.0}
    plan = Plan(messages=2000, lasting=3, pause=0.5, orders=orders, seed=1)
    report = run(tmp_path, f"{any_server.url}?namespace={namespace}", plan)
    log.info("%s", report)
    assert faults(report.history) == []
    assert 50 <= len(report.history.letters) <= 500
