"""The clauses of docs/contract.md and the tests of the suite name each other."""

import re
from pathlib import Path

import contract_tests

ROOT = Path(__file__).parents[2]
SUITE = Path(contract_tests.__file__).parent

TO_COME = {
    "the lock": [f"L{number}" for number in range(1, 18)],
    "the rate limiter": [f"R{number}" for number in range(1, 12)],
    "request and reply": ["P9"],
    "streams: delays, retention, info, take-over by liveness, redrive": ["S7", "S8", "S10", "S12", "S16"],
}
"""Clauses that no test of the suite holds a backend to yet, by what they wait for."""


def clauses() -> set[str]:
    """Return the ids of the contract's clauses."""
    return set(re.findall(r"^- ([BPSLR]\d+) ", (ROOT / "docs" / "contract.md").read_text(), re.MULTILINE))


def covered() -> set[str]:
    """Return the ids that the suite's tests begin their docstrings with."""
    found: set[str] = set()
    for path in SUITE.glob("test_*.py"):
        tests = re.findall(
            r"^async def test_\w+\([^)]*\) -> None:\n    \"\"\"([^:]*): ", path.read_text(), re.MULTILINE
        )
        assert len(tests) == len(re.findall(r"^async def test_", path.read_text(), re.MULTILINE)), path.name
        for ids in tests:
            found.update(ids.split(", "))
    return found


def test_every_clause_is_tested_or_to_come() -> None:
    """Each clause has a test or stands on the list of what is to come, and never both."""
    to_come = {each for ids in TO_COME.values() for each in ids}
    assert clauses() - covered() == to_come


def test_every_test_names_clauses_that_exist() -> None:
    """No test of the suite names a clause that the contract doesn't have."""
    assert covered() <= clauses()
