"""The packages use the field's terms: nothing has a name that was given up for one (docs/glossary.md)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ailf", "ailf_redis", "ailf_memory", "contract_tests")

CLASSES = """
    Account Attached Bid Bidder Brought Crew Demand Denials Desk Direct Dressed Flight Grant GrantFlow Held Hold Holding
    Hub Line LockHold LoopFlight Mail Mark Memo MessageHold Nodes Origin Parcel PermitHolding Place PlacedPermitFlow
    PlainExecutor Pulse Received Rival Ruling SlotHold Stem Takeable ThreadFlight Ticket Timed Trip Turnstile Verdict
    Watch Watched Wire
"""
FUNCTIONS = """
    ask_around beat breathe bury crowd deaf doubt fly give_way hang_up hurry keep_places landed let_in linger meeting
    rouse spoken stand take_letters twin wait_in_line wake_lines
"""
FILES = """
    algorithms attached bucket brought crew denials events fixed gone holding hub keep leases leasing letters limiting
    line links locking loop_links memo open origins permits plain pool ports prolong reading requests room shards
    sliding trueup turnstile ungroup verdicts waiting wire
"""
LUA_FUNCTION = re.compile(r"\bfunction (?:\w+[.:])?(\w+)")


def _definitions(path: Path) -> Iterator[tuple[str, str]]:
    """Return the names that a file defines, each with the name without what marks it private or a flavour."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            yield node.name, node.name.lstrip("_").removeprefix("Async")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.name.lstrip("_")


def _files(*suffixes: str) -> list[Path]:
    return sorted(each for name in PACKAGES for each in (ROOT / name).rglob("*") if each.suffix in suffixes)


@pytest.mark.parametrize("path", _files(".py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_python_names(path: Path) -> None:
    """No class and no function has an old name."""
    given_up = {*CLASSES.split(), *FUNCTIONS.split()}
    assert [name for name, bare in _definitions(path) if bare in given_up] == []


def test_lua_names() -> None:
    """No function of a script has an old name."""
    names = {name for path in _files(".lua") for name in LUA_FUNCTION.findall(path.read_text())}
    assert names & set(FUNCTIONS.split()) == set()


def test_file_names() -> None:
    """No module and no script has an old name."""
    assert [str(each) for each in _files(".py", ".lua") if each.stem in FILES.split()] == []
