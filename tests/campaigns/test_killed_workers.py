"""Workers killed, stopped and held up at random, on every server and for longer than in each run of the tests."""

from pathlib import Path

import pytest

from tests.ailf_redis.stream.chaos import Plan, run
from tests.ailf_redis.stream.histories import faults
from tests.support.effort import Tell
from tests.support.servers import Server


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_workers_killed_at_random(server: Server, namespace: str, tmp_path: Path, seed: int, tell: Tell) -> None:
    """S2, S3, S4, S5: of 20 000 messages none is lost, no attempt is miscounted, no two leases are valid at once."""
    plan = Plan(messages=20_000, lasting=30, pause=0.5, seed=seed)
    report = run(tmp_path, f"{server.url}?namespace={namespace}", plan, limit=300)
    tell(f"{server.version}: {report}")
    assert faults(report.history) == []
    assert report.killed >= 20


@pytest.mark.timeout(600)
def test_long_leases(server: Server, namespace: str, tmp_path: Path, tell: Tell) -> None:
    """S12: with leases far longer than the take-over, workers that are held up know that they have lost theirs."""
    orders = {"odds": {"slow": 0.05, "nack": 0.05}, "lease": 30.0, "takeover": 0.8, "slow": 4.0}
    attacks = {"freeze": 0.8, "kill": 0.2}
    plan = Plan(messages=5_000, lasting=30, pause=0.3, attacks=attacks, orders=orders)
    report = run(tmp_path, f"{server.url}?namespace={namespace}", plan, limit=300)
    tell(f"{server.version}: {report}")
    assert faults(report.history) == []


@pytest.mark.timeout(600)
def test_letters_of_killed_workers(server: Server, namespace: str, tmp_path: Path, tell: Tell) -> None:
    """S5: where workers are killed and handlers fail, each message ends acked or as one dead letter, counted right."""
    odds = {"nack": 0.3, "raise": 0.1, "reject": 0.02, "release": 0.05}
    orders = {"odds": odds, "max_deliveries": 3, "lease": 1.0}
    plan = Plan(messages=10_000, lasting=20, pause=0.4, orders=orders)
    report = run(tmp_path, f"{server.url}?namespace={namespace}", plan, limit=300)
    tell(f"{server.version}: {report}")
    assert faults(report.history) == []
    assert 250 <= len(report.history.dead_letters) <= 2500
