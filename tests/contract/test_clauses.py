"""The clauses of docs/contract.md and the tests of the suite name each other."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import ailf
import contract_tests
from contract_tests.fixtures import clauses as clauses_of

ROOT = Path(__file__).parents[2]
SUITE = Path(contract_tests.__file__).parent

TO_COME = {
    "the rate limiter": ([f"R{number}" for number in range(1, 12)], "ailf.RateLimiter"),
}
"""Clauses that no test of the suite holds a backend to yet: what they wait for, and its name in the API to be."""

PARTS_TO_COME: dict[str, str] = {}
"""Parts of tested clauses that wait for something: what it is, and its name in the API to be."""


def exists(name: str) -> bool:
    """Tell whether the API has this name: of a thing, or of an argument as in ``ailf.Stream.add(key)``."""
    path, _, argument = name.rstrip(")").partition("(")
    found: object = ailf
    for part in path.split(".")[1:]:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return not argument or argument in inspect.signature(found).parameters  # type: ignore[arg-type]  # it is a method


def clauses() -> set[str]:
    """Return the ids of the contract's clauses."""
    return set(re.findall(r"^- ([BPSLR]\d+) ", (ROOT / "docs" / "contract.md").read_text(), re.MULTILINE))


def suite() -> list[tuple[str, object]]:
    """Return the suite's tests, with the modules that they are in."""
    modules = [importlib.import_module(f"contract_tests.{path.stem}") for path in sorted(SUITE.glob("test_*.py"))]
    return [
        (module.__name__, member)
        for module in modules
        for name, member in vars(module).items()
        if name.startswith("test_") and getattr(member, "__module__", "") == module.__name__
    ]


def covered() -> set[str]:
    """Return the ids that the suite's tests begin their docstrings with."""
    return {each for _, test in suite() for each in clauses_of(test)}


def test_every_clause_is_tested_or_to_come() -> None:
    """Each clause has a test or stands on the list of what is to come, and never both."""
    to_come = {each for ids, _ in TO_COME.values() for each in ids}
    assert clauses() - covered() == to_come


def test_every_test_names_clauses_that_exist() -> None:
    """No test of the suite names a clause that the contract doesn't have."""
    assert covered() <= clauses()


def test_every_test_names_a_clause() -> None:
    """Each test of the suite begins its docstring with the clauses that it is for."""
    assert [test for _, test in suite() if not clauses_of(test)] == []


@pytest.mark.parametrize("name", [*(name for _, name in TO_COME.values()), *PARTS_TO_COME.values()])
def test_what_is_to_come_is_not_there(name: str) -> None:
    """What is in the API stands no longer on the list of what is to come: its clauses want tests."""
    assert not exists(name)


def test_names_in_the_api_are_recognized() -> None:
    """The check above can tell what exists."""
    assert all(map(exists, ["ailf.Stream.add", "ailf.Stream.add(headers)", "ailf.group.DeadLetters.list"]))


@pytest.mark.parametrize("module", ["test_memory", "test_redis"])
def test_our_backends_run_the_whole_suite(module: str) -> None:
    """Each test of the suite is in our own runs: none is forgotten, and none hides another of its name."""
    text = (Path(__file__).parent / f"{module}.py").read_text()
    assert re.findall(r"^from (contract_tests\.test_\w+) import \*", text, re.MULTILINE) == sorted(
        {module for module, _ in suite()}
    )
    names = [getattr(test, "__name__", "") for _, test in suite()]
    assert sorted(names) == sorted(set(names))
