"""The contract suite catches each planted bug, and passes where there is none."""

import asyncio
import inspect
from typing import Any

import pytest

import ailf
from contract_tests.fixtures import FLAVOURS, clauses
from contract_tests.harness import Harness
from contract_tests.world import World, run_test
from tests.contract.planted.base import BrokenHarness, ContractTest, Planted, modules_of_bugs, planted_bugs
from tests.contract.test_clauses import covered
from tests.support.effort import THOROUGH, TRIES

PLANTED = planted_bugs()

KEPT_BY_CORE = {
    "B1": "the registry and each plugin open a URL: tests/ailf, tests/ailf_redis",
    "B2": "the core checks the declared capabilities, and all other tests check that they are true",
    "B11": "the core calls the instruments",
    "P4": "the core buffers messages",
    "P6": "the core returns None, whatever a driver returns",
    "P11": "the core runs the loops that call handlers",
    "S15": "the core runs the worker loops",
    "S22": "the core chooses partitions, and makes ids that tell them",
    "S24": "the core makes one group of the groups of all partitions",
    "S27": "the core calls the handler",
    "L7": "the core computes the remaining time by this process's clock",
    "L8": "the core notices losses by this process's clock",
    "L9": "the core holds a lock",
    "L10": "the core withdraws a cancelled request",
    "L13": "the core waits for a lock",
    "L17": "the core renews leases",
    "L21": "the core knows which thread or task holds a lock",
}
"""The clauses that no driver can break, so that they have no planted bug, and the reason of each."""

CAUGHT = (AssertionError, ailf.AilfError, pytest.fail.Exception, NotImplementedError)
"""The exceptions with which a contract test may fail because of a bug; another one is a mistake in the bug itself."""

PATIENCE = 0.4
"""Seconds to wait on a backend with a bug: less than on one without, as the test should fail."""


def each_case(*, asyncio_only: bool) -> list[Any]:
    """Return the planted bugs, numbered, as pytest's parameters: `IgnoresPermits-test_permits`."""
    return [
        pytest.param(number, bug, id=f"{bug.harness.__name__}-{case_id(bug)}")
        for number, bug in enumerate(PLANTED)
        if bug.asyncio_only is asyncio_only
    ]


def case_id(bug: Planted) -> str:
    """Return the name of the test that catches a bug, with its arguments."""
    return "-".join((bug.test.__name__, *map(str, bug.arguments.values())))


def each_test() -> list[Any]:
    """Return the tests that must catch a bug in both flavours, each once for the same arguments."""
    cases = {case_id(bug): bug for bug in PLANTED if not bug.asyncio_only}
    return [pytest.param(number, bug.test, bug.arguments, id=name) for number, (name, bug) in enumerate(cases.items())]


def caught(bug: Planted, flavour: str) -> bool:
    """Return whether the test fails because of the bug within a few tries."""
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
    opened = harness()
    opened.patience = patience
    asyncio.run(run_test(World(opened, flavour), test, **arguments))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ailf.driver.BackendDriver.timeout", PATIENCE / 2)


BY_TURNS = pytest.mark.parametrize("turn", [0, 1] if THOROUGH else [0])
"""The flavours take turns; `make test-all` tries both."""


@BY_TURNS
@pytest.mark.parametrize(("number", "bug"), each_case(asyncio_only=False))
def test_caught(number: int, bug: Planted, turn: int) -> None:
    """A backend that has the bug fails the contract test."""
    assert caught(bug, FLAVOURS[(number + turn) % 2])


@pytest.mark.parametrize(("number", "bug"), each_case(asyncio_only=True))
def test_caught_on_asyncio(number: int, bug: Planted) -> None:
    """A backend that has the bug, which shows on asyncio only, fails the contract test."""
    assert caught(bug, "asyncio")


@BY_TURNS
@pytest.mark.parametrize(("number", "test", "arguments"), each_test())
def test_whole(number: int, test: ContractTest, arguments: dict[str, Any], turn: int) -> None:
    """The same test, run in the same way, passes on a backend without the bug."""
    perform(BrokenHarness, test, arguments, FLAVOURS[(number + turn) % 2])


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
