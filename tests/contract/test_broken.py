"""The contract suite catches backends that are broken on purpose, and passes on those that aren't."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import ailf
from contract_tests import test_backend as b
from contract_tests import test_cancel as x
from contract_tests import test_close as c
from contract_tests import test_delivery as d
from contract_tests import test_pubsub as p
from contract_tests import test_stream as s
from contract_tests.fixtures import clauses
from contract_tests.flavours import World, live
from contract_tests.harness import Harness
from tests.contract import broken
from tests.contract import broken_streams as streams
from tests.contract.broken import BrokenHarness, with_backend, with_driver, with_listener, with_stream
from tests.contract.test_clauses import covered

Test = Callable[..., Coroutine[Any, Any, None]]

BROKEN: list[tuple[type[BrokenHarness], Test, dict[str, Any]]] = [
    (with_driver(broken.LeavesThreads), c.test_close_leaves_nothing, {}),
    (broken.SharesNamespaces, b.test_same_url_same_things, {}),
    (broken.SharesNothing, b.test_same_url_same_things, {}),
    (with_backend(broken.SharesObjects, broken.AsyncSharesObjects), b.test_payloads_are_copies, {}),
    (with_stream(streams.SharesNames), b.test_names, {}),
    (with_stream(streams.SharesGroups), b.test_pairs_of_names, {}),
    (with_stream(streams.ForgetsHeaders), b.test_largest, {}),
    (with_stream(streams.CutsBodies), b.test_largest, {}),
    (with_stream(streams.LosesMessages), s.test_readable_on_return, {}),
    (with_stream(streams.DeliversTwice), d.test_one_lease_at_a_time, {}),
    (with_stream(streams.DeliversTwice), s.test_many_producers, {}),
    (with_stream(streams.LeasesNothing), d.test_one_lease_at_a_time, {}),
    (with_stream(streams.IgnoresLeases), d.test_expired_leases_come_back, {}),
    (with_stream(streams.SettlesStale), d.test_fenced_settles, {}),
    (with_stream(streams.RevivesLeases), d.test_fenced_settles, {}),
    (with_stream(streams.NeverExtends), d.test_extend, {}),
    (with_stream(streams.NeverExtends), d.test_leases_are_renewed, {}),
    (with_stream(streams.CountsReleases), d.test_attempts, {}),
    (with_stream(streams.AcksOnNack), d.test_attempts, {}),
    (with_stream(streams.NacksAtOnce), d.test_nack_delays, {}),
    (with_stream(streams.TriesForEver), d.test_dead_letters, {"way": "nack"}),
    (with_stream(streams.TriesForEver), d.test_dead_letters, {"way": "expire"}),
    (with_stream(streams.LosesDeadLetters), d.test_dead_letters, {"way": "reject"}),
    (with_stream(streams.LosesDeadLetters), s.test_undecodable, {}),
    (with_stream(streams.ForgetsErrors), d.test_dead_letters, {"way": "nack"}),
    (with_stream(streams.RingsNobody), d.test_what_comes_back_wakes_others, {}),
    (with_stream(streams.DropsOnLeave), c.test_close_gives_back, {}),
    (with_stream(streams.DropsOnLeave), s.test_leaving_drops_nothing, {}),
    (with_stream(streams.KeepsOnLeave), c.test_close_gives_back, {}),
    (with_stream(streams.NeverCloses), c.test_close_wakes_everybody, {}),
    (with_stream(streams.ClosesLate), c.test_consuming_ends_promptly, {"way": "backend"}),
    (with_stream(streams.ClosesLate), c.test_consuming_ends_promptly, {"way": "process"}),
    (with_stream(streams.MovesGroups), s.test_group_starts, {}),
    (with_stream(streams.StartsLate), s.test_group_starts, {}),
    (with_stream(streams.KeepsGroupsSilently), s.test_a_vanished_group_is_made_again, {}),
    (with_stream(streams.SharesGroups), s.test_groups_are_apart, {}),
    (with_stream(streams.Reorders), s.test_id_order, {}),
    (with_stream(streams.DeletesOnAck), s.test_read, {}),
    (with_stream(streams.ReadsTwice), s.test_read, {}),
    (with_stream(streams.ReadsTwice), s.test_tail, {"begin": "earliest"}),
    (with_listener(broken.LosesPublished), p.test_confirmed_on_entry, {}),
    (with_listener(broken.NeverConfirms), p.test_confirmed_on_entry, {}),
    (with_listener(broken.RepeatsMessages), p.test_once_per_subscription, {}),
    (with_listener(broken.SwapsMessages), p.test_order_and_no_replay, {}),
    (with_listener(broken.Replays), p.test_order_and_no_replay, {}),
    (with_listener(broken.LeavesAll), p.test_leaving_one_of_two, {}),
    (with_listener(broken.LiteralPatterns), p.test_pattern_grammar, {}),
    (with_listener(broken.ShellPatterns), p.test_pattern_grammar, {}),
    (with_listener(broken.HidesGaps), p.test_gaps, {}),
    (with_listener(broken.EndsLate), c.test_ends_promptly, {}),
]

ON_ASYNCIO: list[tuple[type[BrokenHarness], Test, dict[str, Any]]] = [
    (with_stream(streams.MixesReplies), x.test_cancelled_adds, {}),
]

KEPT_BY_CORE = {
    "B1": "opening by URL is the registry's work, and each plugin's: tests/core, tests/redis",
    "B2": "the core looks at what is declared, and every other test at what that is worth",
    "B4": "the memory backend has one lock and no connections: tests/redis",
    "P4": "the buffers are the core's",
    "P6": "the core returns nothing, whatever a driver does",
    "P8": "decoding and handlers are the core's",
    "S15": "the worker is the core's",
}
"""Clauses that no driver can break, so that no backend here does."""

CAUGHT = (AssertionError, ailf.AilfError, pytest.fail.Exception, NotImplementedError)
"""How a test of the suite fails. A backend that breaks down with anything else would be broken in the wrong way."""

PATIENCE = 0.4
"""Seconds. What is broken is not waited for as long as what is not."""


def named(case: object) -> str | None:
    """Return a case's name."""
    return "-".join(case.values()) if isinstance(case, dict) else getattr(case, "__name__", None)


def perform(
    harness: type[BrokenHarness], test: Test, flavour: str, options: dict[str, Any], patience: float = Harness.patience
) -> None:
    """Run one test of the suite."""
    place = harness()
    place.patience = patience
    asyncio.run(live(World(place, flavour), test, **options))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ailf.hub.CONFIRM_WITHIN", PATIENCE)


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
@pytest.mark.parametrize(("harness", "test", "options"), BROKEN, ids=named)
def test_caught(harness: type[BrokenHarness], test: Test, options: dict[str, Any], flavour: str) -> None:
    """A backend that is broken in this way fails this test of the suite."""
    with pytest.raises(CAUGHT):
        perform(harness, test, flavour, options, PATIENCE)


@pytest.mark.parametrize(("harness", "test", "options"), ON_ASYNCIO, ids=named)
def test_caught_on_asyncio(harness: type[BrokenHarness], test: Test, options: dict[str, Any]) -> None:
    """A backend that is broken in this way, in which only tasks can be, fails this test of the suite."""
    with pytest.raises(CAUGHT):
        perform(harness, test, "asyncio", options, PATIENCE)


WHOLE = {(test, *options.items()): (test, options) for _, test, options in BROKEN}


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
@pytest.mark.parametrize(("test", "options"), WHOLE.values(), ids=named)
def test_whole(test: Test, options: dict[str, Any], flavour: str) -> None:
    """The same way of running a test passes where nothing is broken."""
    perform(BrokenHarness, test, flavour, options)


def test_every_clause_is_broken_by_somebody() -> None:
    """For each clause there is a backend that breaks it and is caught, or a reason why there can be none."""
    caught = {each for _, test, _ in (*BROKEN, *ON_ASYNCIO) for each in clauses(test)}
    assert caught.isdisjoint(KEPT_BY_CORE)
    assert covered() == caught | set(KEPT_BY_CORE)
