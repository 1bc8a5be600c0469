"""Every record of ailf names its subject, in its text and in fields, and shows as much of an error as it can."""

import ast
import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ailf
import ailf_memory
import ailf_pytest
import ailf_redis
from ailf.logs import FIELDS, About, Log
from tests.ailf.test_safe_text import HALF, ExitsError, OddError

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "observability.md"
PACKAGES = [Path(each.__file__ or "").parent for each in (ailf, ailf_memory, ailf_redis, ailf_pytest)]
OWN = PACKAGES[0] / "logs.py"
SHOWN_BY = {PACKAGES[0] / "cli" / "app.py", PACKAGES[0] / "runner" / "show_log.py"}  # they show records, and make none
SOURCES = [each for package in PACKAGES for each in package.rglob("*.py") if each not in {OWN, *SHOWN_BY}]
LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARNING", "error": "ERROR"}


def calls(path: Path) -> Iterator[ast.Call]:
    """Return the calls in a file."""
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def documented() -> dict[str, set[str]]:
    """Return the levels of each logger in the guide."""
    levels: dict[str, set[str]] = {}
    name = ""
    for named, level in re.findall(r"^\| (?:`(ailf[a-z_.]*)`)? ?\| ([A-Z]+) \|", GUIDE.read_text(), re.MULTILINE):
        name = named or name
        levels.setdefault(name, set()).add(level)
    return levels


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_all_records_are_made_by_one_class(path: Path) -> None:
    """No module but `ailf.logs` makes a logger or calls `logging`, nor imports more of it than the whole module."""
    text = path.read_text()
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    assert not [node.lineno for node in imported if node.module == "logging"]
    assert not [call.lineno for call in calls(path) if ast.unparse(call.func).startswith("logging.")]
    named = [call for call in calls(path) if ast.unparse(call.func) == "Log"]
    if not named:
        return
    (made,) = named
    name = ast.literal_eval(made.args[0])
    used = {ast.unparse(call.func) for call in calls(path)}
    assert {LEVELS[each] for each in LEVELS if f"log.{each}" in used} <= documented()[name]


def test_the_guide_lists_the_loggers() -> None:
    """Each logger is in the guide, and no other one."""
    made = {
        ast.literal_eval(call.args[0]) for path in SOURCES for call in calls(path) if ast.unparse(call.func) == "Log"
    }
    assert made == documented().keys()


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a record that apply."""
    values = {name: getattr(record, name) for name in FIELDS}  # each record has all of them
    return {name: value for name, value in values.items() if value != FIELDS[name]}  # type: ignore[literal-required]


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_fields_of_a_worker(caplog: pytest.LogCaptureFixture, flavour: str) -> None:
    """Records of a worker tell its consumer, those of a message also the entry, the attempt and the ordering key."""
    caplog.set_level(logging.DEBUG, "ailf")
    url = f"memory://logs-{flavour}"

    async def main() -> str:
        async with ailf.connect_async(url) as backend:
            stream = backend.stream("s", type=int)
            entry_id = await stream.add(1, key="k")
            group = stream.group("g", max_deliveries=1)
            await group.process(lambda _: (group.stop(), 1 / 0))
            return entry_id

    if flavour == "asyncio":
        entry_id = asyncio.run(main())
    else:
        with ailf.connect(url) as backend:
            entry_id = backend.stream("s").add(1, key="k")
            group = backend.stream("s").group("g", max_deliveries=1)
            group.process(lambda _: (group.stop(), 1 / 0))
    started, *_, failed, stopped = [each for each in caplog.records if each.name == "ailf.worker"]
    worker = {"backend": url, "stream": "s", "group": "g", "consumer": fields(started)["consumer"]}
    assert fields(started) == fields(stopped) == worker
    assert fields(failed) == {**worker, "entry_id": entry_id, "attempt": 1, "key": "k"}
    assert failed.getMessage().startswith(
        f"delivery {entry_id} (attempt 1) of group 'g' of stream 's': ZeroDivisionError"
    )
    assert failed.filename == "worker.py"
    formatter = logging.Formatter("%(stream)s %(group)s %(entry_id)s %(attempt)s %(consumer)s %(lock)s %(key)s")
    assert all(formatter.format(each) for each in caplog.records)


def test_fields_of_undecodable_entries(caplog: pytest.LogCaptureFixture) -> None:
    """The record of an entry that becomes a dead letter tells the entry."""
    with ailf.connect("memory://") as backend:
        entry_id = backend.stream("s").add("text")
        with backend.stream("s", type=int).group("g").consumer() as consumer:
            assert consumer.get(0) is None
    (record,) = caplog.records
    assert fields(record) == {"backend": "memory://", "stream": "s", "group": "g", "entry_id": entry_id}


def test_fields_of_locks_and_limiters(caplog: pytest.LogCaptureFixture) -> None:
    """The records of locks tell their names."""
    with ailf.connect("memory://") as backend:
        lock = backend.lock("one", "two", ttl=30)
        with pytest.raises(ZeroDivisionError), lock.hold() as lease:
            for name in ("one", "two"):
                backend.lock(name).break_(lease.fence)
            raise ZeroDivisionError
    (record,) = [each for each in caplog.records if each.name == "ailf.lock"]
    assert fields(record) == {"backend": "memory://", "lock": "one + two"}
    assert record.getMessage().startswith(f"the lease on lock 'one' + 'two' (fence {lease.fence}): not released")


def test_a_level_that_is_off_costs_no_fields() -> None:
    """The fields are not computed for a record that is not logged."""

    class Subject:
        def log_fields(self) -> Any:
            raise AssertionError

    Log("ailf.test").debug(Subject(), "not logged")


def test_records_without_a_subject(caplog: pytest.LogCaptureFixture) -> None:
    """A record without a subject has all fields, too."""
    Log("ailf.test").warning(None, "plain %s", "text")
    Log("ailf.test").warning(About("100 %s", {"lock": "l"}), "it has %d", 1)
    plain, about = caplog.records
    assert (plain.getMessage(), fields(plain)) == ("plain text", {})
    assert (about.getMessage(), fields(about)) == ("100 %s: it has 1", {"lock": "l"})
    assert plain.funcName == "test_records_without_a_subject"


def raised(error: Exception, *, chained: bool) -> Exception:
    """Return an error with a traceback, alone or as the cause of another one."""
    try:
        raise error  # noqa: TRY301 - for its traceback
    except Exception as cause:  # noqa: BLE001 - any
        if not chained:
            return cause
        outer = RuntimeError("outer")
        outer.__cause__ = cause
        return raised(outer, chained=False)


@pytest.mark.parametrize(
    "error",
    [
        OddError("x"),
        ExitsError("x"),
        ValueError(HALF),
        ValueError("x" * 50_000_000),
        ExceptionGroup("g", [OddError("x")]),
    ],
)
@pytest.mark.parametrize("chained", [False, True])
def test_a_log_line_is_written_whatever_the_error(
    error: Exception, chained: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The log line has the frames and the description, can be encoded, and is not large."""
    about = About("it", {})
    Log("ailf.test").failure(logging.ERROR, about, "%s", "failed", error=raised(error, chained=chained))
    (record,) = caplog.records
    line = logging.Formatter().format(record)
    assert line.startswith("it: failed\nTraceback (most recent call last):")
    assert "in raised" in line
    assert len(line.encode()) < 50_000


def test_an_ordinary_error_is_logged_with_itself(caplog: pytest.LogCaptureFixture) -> None:
    """The record of an ordinary error has the exception, for handlers such as error trackers."""
    error = ValueError("no")
    Log("ailf.test").failure(logging.ERROR, None, "it failed", error=error)
    (record,) = caplog.records
    assert record.exc_info
    assert record.exc_info[1] is error
