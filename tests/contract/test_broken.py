"""The contract suite catches backends that are broken on purpose, and passes on those that aren't."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from contract_tests import test_backend as b
from contract_tests import test_close as c
from contract_tests import test_delivery as d
from contract_tests import test_pubsub as p
from contract_tests import test_stream as s
from contract_tests.flavours import World, live
from tests.contract import broken
from tests.contract.broken import BrokenHarness, with_listener, with_stream

Test = Callable[..., Coroutine[Any, Any, None]]

BROKEN: list[tuple[type[BrokenHarness], Test]] = [
    (with_stream(broken.LosesMessages), s.test_readable_on_return),
    (with_stream(broken.DeliversTwice), d.test_one_lease_at_a_time),
    (with_stream(broken.IgnoresLeases), d.test_expired_leases_come_back),
    (with_stream(broken.SettlesStale), d.test_fenced_settles),
    (with_stream(broken.CountsReleases), d.test_attempts),
    (with_stream(broken.AcksOnNack), d.test_attempts),
    (with_stream(broken.DropsOnLeave), c.test_close_gives_back),
    (with_stream(broken.DropsOnLeave), s.test_leaving_drops_nothing),
    (with_stream(broken.KeepsOnLeave), c.test_close_gives_back),
    (with_stream(broken.MovesGroups), s.test_group_starts),
    (with_stream(broken.StartsLate), s.test_group_starts),
    (with_stream(broken.LosesDeadLetters), s.test_undecodable),
    (with_stream(broken.SharesObjects), b.test_names),
    (with_stream(broken.ForgetsHeaders), b.test_names),
    (with_stream(broken.Reorders), s.test_id_order),
    (with_stream(broken.NeverCloses), c.test_close_wakes_everybody),
    (with_stream(broken.KeepsGroupsSilently), s.test_a_vanished_group_is_made_again),
    (with_stream(broken.SharesNames), b.test_names),
    (with_listener(broken.LosesPublished), p.test_confirmed_on_entry),
    (with_listener(broken.RepeatsMessages), p.test_once_per_subscription),
    (with_listener(broken.SwapsMessages), p.test_order_and_no_replay),
    (with_listener(broken.LiteralPatterns), p.test_pattern_grammar),
]


def named(case: object) -> str:
    """Return a case's name."""
    return getattr(case, "__name__", str(case))


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
@pytest.mark.parametrize(("harness", "test"), BROKEN, ids=named)
def test_caught(harness: type[BrokenHarness], test: Test, flavour: str) -> None:
    """A backend that is broken in this way fails this test of the suite."""
    broken.SHARED.clear()
    impatient = harness()
    impatient.patience = 0.4
    with pytest.raises((Exception, pytest.fail.Exception)):
        asyncio.run(live(World(impatient, flavour), test))


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
@pytest.mark.parametrize("test", sorted({test for _, test in BROKEN}, key=named), ids=named)
def test_whole(test: Test, flavour: str) -> None:
    """The same way of running a test passes where nothing is broken."""
    asyncio.run(live(World(BrokenHarness(), flavour), test))
