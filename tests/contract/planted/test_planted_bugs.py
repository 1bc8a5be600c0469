"""The contract suite catches each planted bug, and passes where there is none."""

import asyncio
import inspect
from typing import Any

import pytest

import ailf
from contract_tests.fixtures import clauses
from contract_tests.harness import Harness
from contract_tests.world import World, live
from tests.contract.planted.base import BrokenHarness, ContractTest, Planted, modules_of_bugs, planted_bugs
from tests.contract.test_clauses import covered
from tests.support.effort import TRIES

PLANTED = planted_bugs()

KEPT_BY_CORE = {
    "B1": "opening by URL is the registry's work, and each plugin's: tests/ailf, tests/ailf_redis",
    "B2": "the core checks the declared capabilities, and every other test that they are true",
    "P4": "the buffers are the core's",
    "P6": "the core returns None, whatever a driver returns",
    "S15": "the worker is the core's",
    "L7": "the remaining time is computed by this process's clock",
    "L8": "losses are noticed by this process's clock",
    "L9": "holding is the core's",
    "L10": "withdrawing is the core's",
    "L13": "waiting is the core's",
    "L17": "renewing is the core's",
}
"""Clauses that no driver can break, and why: they have no planted bug."""

CAUGHT = (AssertionError, ailf.AilfError, pytest.fail.Exception, NotImplementedError)
"""How a contract test may fail because of a bug. Any other exception is a mistake in the planted bug itself."""

PATIENCE = 0.4
"""Seconds to wait on a backend with a bug: less than on one without, as the test is to fail."""


def each_case(*, asyncio_only: bool) -> list[Any]:
    """Return the planted bugs as pytest's parameters: `IgnoresPermits-test_permits`."""
    return [
        pytest.param(bug, id=f"{bug.harness.__name__}-{case_id(bug)}")
        for bug in PLANTED
        if bug.asyncio_only is asyncio_only
    ]


def case_id(bug: Planted) -> str:
    """Return the name of a bug's test, with its arguments."""
    return "-".join((bug.test.__name__, *map(str, bug.arguments.values())))


def each_test() -> list[Any]:
    """Return the tests that must catch something in both flavours, each once with the same arguments."""
    found = {case_id(bug): bug for bug in PLANTED if not bug.asyncio_only}
    return [pytest.param(bug.test, bug.arguments, id=name) for name, bug in found.items()]


def caught(bug: Planted, flavour: str) -> bool:
    """Tell whether the test fails because of the bug, within a few tries."""
    for _ in range(TRIES):
        try:
            perform(bug.harness, bug.test, bug.arguments, flavour, PATIENCE)
        except CAUGHT:
            return True
    return False


def perform(
    harness: type[BrokenHarness],
    test: ContractTest,
    arguments: dict[str, Any],
    flavour: str,
    patience: float = Harness.patience,
) -> None:
    """Run one contract test."""
    place = harness()
    place.patience = patience
    asyncio.run(live(World(place, flavour), test, **arguments))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ailf.driver.BackendDriver.timeout", PATIENCE / 2)


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
@pytest.mark.parametrize("bug", each_case(asyncio_only=False))
def test_caught(bug: Planted, flavour: str) -> None:
    """A backend that has the bug fails the contract test."""
    assert caught(bug, flavour)


@pytest.mark.parametrize("bug", each_case(asyncio_only=True))
def test_caught_on_asyncio(bug: Planted) -> None:
    """A backend that has the bug, which only tasks can meet, fails the contract test."""
    assert caught(bug, "asyncio")


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
@pytest.mark.parametrize(("test", "arguments"), each_test())
def test_whole(test: ContractTest, arguments: dict[str, Any], flavour: str) -> None:
    """The same test, run the same way, passes where there is no bug."""
    perform(BrokenHarness, test, arguments, flavour)


def test_every_clause_has_a_planted_bug() -> None:
    """Each clause has a planted bug that breaks it and is caught, or a reason why no driver can break it."""
    caught = {clause for bug in PLANTED for clause in clauses(bug.test)}
    assert caught.isdisjoint(KEPT_BY_CORE)
    assert covered() == caught | set(KEPT_BY_CORE)


def test_every_planted_bug_is_caught_by_a_test() -> None:
    """Each public class of the modules names a test that catches it, or is the base of one that does."""
    registered = {bug.harness.__name__ for bug in PLANTED}
    left_out = [
        name
        for module in modules_of_bugs()
        for name, member in vars(module).items()
        if inspect.isclass(member) and member.__module__ == module.__name__ and not name.startswith("_")
        if name not in registered and not member.__subclasses__()
    ]
    assert left_out == []
