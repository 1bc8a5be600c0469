"""How many acknowledged messages are lost when masters that Sentinels watch fail under load.

The guide quotes these figures, with and without `min-replicas-to-write`.
"""

import pytest

from tests.ailf_redis.sentinel.failovers import Plan, Report, run
from tests.support import binaries
from tests.support.effort import Tell

FAULTS = ("kill", "freeze", "cut")


def measured(tell: Tell, plan: Plan) -> Report:
    """Run a plan on the newest server, and print its figures."""
    version, binary = next(reversed(binaries.found().items()))
    report = run(binary, version, plan)
    what = f"{version}, {plan.faults} x {'/'.join(plan.kinds)}, min-replicas-to-write {plan.min_replicas}"
    tell(f"{what}: {report}")
    assert report.twice == 0
    assert report.pause < 15
    return report


@pytest.mark.timeout(900)
def test_failovers_without_min_replicas(tell: Tell) -> None:
    """Messages that an isolated master accepts until there is a new one are lost; none is added twice."""
    report = measured(tell, Plan(kinds=FAULTS, faults=12))
    assert report.lost < report.acknowledged / 5


@pytest.mark.timeout(900)
def test_failovers_with_min_replicas(tell: Tell) -> None:
    """A master that has lost its replicas accepts nothing, so next to nothing is lost."""
    report = measured(tell, Plan(kinds=FAULTS, faults=12, min_replicas=1))
    assert report.lost < report.acknowledged / 1000


@pytest.mark.timeout(900)
def test_failovers_by_hand(tell: Tell) -> None:
    """SENTINEL FAILOVER: messages that the former master accepts after the promotion, until it is demoted, are lost."""
    report = measured(tell, Plan(kinds=("switch",), faults=4, min_replicas=1))
    assert report.lost < report.acknowledged / 5
