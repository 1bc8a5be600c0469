"""A partitioned stream on a cluster under load: slots that move, masters that are killed, and failovers.

The guide quotes these figures.
"""

import pytest

from tests.ailf_redis.cluster.under_load import Plan, Tally, run
from tests.support import binaries
from tests.support.effort import Tell


def measured(tell: Tell, plan: Plan) -> Tally:
    """Run a plan on the newest server, and print its figures."""
    version, binary = next(reversed(binaries.found().items()))
    tally = run(binary, version, plan)
    tell(f"{version}, {plan.faults} x {plan.fault}, min-replicas-to-write {plan.min_replicas}: {tally}")
    return tally


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("fault", "faults"), [("move", 40), ("restart", 8)])
def test_nothing_is_lost(tell: Tell, fault: str, faults: int) -> None:
    """No message is lost, delivered again after it was settled, or delivered before an earlier one of its key."""
    tally = measured(tell, Plan(fault=fault, faults=faults))
    assert (tally.lost, tally.back, tally.disordered, tally.resets) == (set(), [], [], 0)


@pytest.mark.timeout(600)
def test_failovers_without_min_replicas(tell: Tell) -> None:
    """What a master acknowledged without its replica is gone: adds are lost, and settled messages come back."""
    tally = measured(tell, Plan(fault="failover", faults=6))
    assert tally.lost
    assert tally.back
    assert tally.disordered == []


@pytest.mark.timeout(600)
def test_failovers_with_min_replicas(tell: Tell) -> None:
    """A master that has lost its replica accepts nothing, so next to nothing is lost, and nothing comes back."""
    tally = measured(tell, Plan(fault="failover", faults=6, min_replicas=1))
    assert len(tally.lost) + len(tally.back) < len(tally.acknowledged) / 1000
    assert tally.disordered == []
