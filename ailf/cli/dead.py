"""``ailf dead``: look at the dead letters of a group, redrive and purge them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from ailf.backend import Backend
from ailf.cli.arguments import FullOption, GroupArgument, StreamArgument, YesOption
from ailf.cli.command import Cli, command, group
from ailf.cli.exits import NOT_FOUND, USAGE, CommandError
from ailf.cli.tables import Rows, fields, table
from ailf.cli.targets import existing_group, partitioned, partitions_of
from ailf.cli.text import counted, cut, message_value, payload_text, time_text
from ailf.codecs import BYTES, CONTENT_TYPE
from ailf.errors import InvalidArgumentError
from ailf.runtime import run
from ailf.stream import Group
from ailf.stream.partitions import pages
from ailf.values import DeadLetter

__all__ = ["APP", "pytest_of"]

APP: Final = group("dead", "Look at the dead letters of a group, redrive and purge them.")

PAGE: Final = 100
SHORT: Final = 60
"""The most characters of an error or a payload in a table."""

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The dead letter's id.")]
IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The dead letters' ids.")]
AllOption = Annotated[bool, typer.Option("--all", help="All that there are.")]
HandlerOption = Annotated[
    str | None,
    typer.Option("--handler", metavar="MODULE:FUNCTION", help="The handler that the test of --pytest calls."),
]
AsyncioOption = Annotated[bool, typer.Option("--asyncio", help="The handler of --pytest is an async function.")]


@command(APP, "ls")
def ls(
    cli: Cli,
    stream: StreamArgument,
    group: GroupArgument,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="The most letters.")] = 100,
    after: Annotated[str, typer.Option("--after", help="Begin after this id.")] = "",
) -> None:
    """List dead letters, oldest first."""
    with cli.open() as backend:
        if after:
            _Letters(backend, stream, group).check([after])
        letters = existing_group(backend, stream, group).dead_letters.list(after=after, limit=limit)
    cli.show([_plain(letter) for letter in letters], letters_table(letters))


@command(APP, "show")
def show(
    cli: Cli,
    stream: StreamArgument,
    group: GroupArgument,
    id: IdArgument,
    *,
    pytest: Annotated[bool, typer.Option("--pytest", help="Write a test that fails until it is handled.")] = False,
    handler: HandlerOption = None,
    coroutine: AsyncioOption = False,
    full: FullOption = False,
) -> None:
    """Show one dead letter, or write a test with its payload, headers and attempts."""
    if handler is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", handler):
        raise CommandError(f"--handler takes MODULE:FUNCTION, not {handler!r}", USAGE)
    with cli.open() as backend, cli.working("looking for the dead letter"):
        letter = _find(existing_group(backend, stream, group), stream, id)
    if pytest:
        cli.out.file.write(pytest_of(stream, group, letter, handler, coroutine=coroutine))
    else:
        cli.show(_plain(letter), letter_fields(letter, full=full))


@command(APP, "redrive")
def redrive(
    cli: Cli,
    stream: StreamArgument,
    group: GroupArgument,
    ids: IdsArgument = None,
    *,
    everything: AllOption = False,
    yes: YesOption = False,
) -> None:
    """Deliver dead letters to their group again, as new messages."""
    _take(cli, stream, group, ids, "redrive", everything=everything, yes=yes)


@command(APP, "purge")
def purge(
    cli: Cli,
    stream: StreamArgument,
    group: GroupArgument,
    ids: IdsArgument = None,
    *,
    everything: AllOption = False,
    yes: YesOption = False,
) -> None:
    """Remove dead letters for good."""
    _take(cli, stream, group, ids, "purge", everything=everything, yes=yes)


def _take(cli: Cli, stream: str, name: str, ids: list[str] | None, verb: str, *, everything: bool, yes: bool) -> None:
    if everything == bool(ids):
        raise CommandError(f"say which dead letters to {verb}: their ids, or --all", USAGE)
    asked = list(dict.fromkeys(ids or ()))
    missing: list[str] = []
    with cli.open() as backend:
        letters = existing_group(backend, stream, name).dead_letters
        chosen = _Letters(backend, stream, name)
        chosen.check(asked)
        which = "all dead letters" if everything else counted(len(asked), "dead letter")
        cli.confirm(f"{verb} {which} of group {name!r} of stream {stream!r}", yes=yes)
        with cli.working(f"{verb} {which}"):
            if everything:
                count = letters.redrive_all() if verb == "redrive" else letters.purge_all()
            else:
                missing = chosen.take(asked, redrive=verb == "redrive")
                count = len(asked) - len(missing)
    done = "put back" if verb == "redrive" else "removed"
    cli.show({verb: count, "missing": missing}, f"{done} {counted(count, 'dead letter')}")
    if missing:
        raise _no_letters(stream, name, missing)


class _Letters:
    """Dead letters of a group by their ids. The public API counts those that are there; here each id matters.

    Arguments:
        backend: The backend.
        stream: The stream's name.
        group: The group's name.
    """

    def __init__(self, backend: Backend, stream: str, group: str) -> None:
        self._engine = backend.engine
        self._of = (stream, group)
        number = partitions_of(backend, stream) or 1
        self._driver = partitioned(backend.engine, backend.engine.driver.stream(), stream, number)

    def check(self, ids: Sequence[str]) -> None:
        """Check the form of ids; nothing is sent.

        Raises:
            CommandError: One can't be the id of a dead letter.
        """
        for each in ids:
            try:
                self._driver.check_letter(each)
            except InvalidArgumentError as error:
                raise CommandError(
                    f"{each!r} is not the id of a dead letter; `ailf dead ls` lists them", USAGE
                ) from error

    def take(self, ids: Sequence[str], *, redrive: bool) -> list[str]:
        """Redrive dead letters, or purge them; return the ids of those that aren't there."""
        take, what = self._driver.take_dead_letters, f"{'redrive' if redrive else 'purge'} dead letters"
        missing: list[str] = []
        for page in pages(ids, PAGE):
            taken = run(self._engine.call(what, take, *self._of, page, again=True, redrive=redrive))
            missing += [each for each, there in zip(page, taken, strict=True) if not there]
        return missing


def _no_letters(stream: str, group: str, ids: Sequence[str]) -> CommandError:
    plural = "s" if len(ids) > 1 else ""
    return CommandError(
        f"group {group!r} of stream {stream!r} has no dead letter{plural} {', '.join(map(repr, ids))}", NOT_FOUND
    )


def _find(group: Group[Any], stream: str, id: str) -> DeadLetter[Any]:
    found = next((letter for letter in all_letters(group) if letter.id == id), None)
    if found is None:
        raise _no_letters(stream, group.name, [id])
    return found


def all_letters(group: Group[Any]) -> Iterator[DeadLetter[Any]]:
    """Yield the dead letters of a group, page by page."""
    after = ""
    while page := group.dead_letters.list(after=after, limit=PAGE):
        yield from page
        after = page[-1].id


# --- what is shown -----------------------------------------------------------------------------------------------


def _plain(letter: DeadLetter[Any]) -> dict[str, Any]:
    names = ("id", "origin", "key", "added", "died", "headers", "reason", "error", "attempts")
    values = {name: getattr(letter, name) for name in names}
    return {**values, **message_value(letter.body, letter.headers)}


def letters_table(letters: Iterable[DeadLetter[Any]]) -> Rows:
    """Return the table of dead letters."""
    columns = ("ID", "ENTRY", ">ATTEMPTS", "REASON", "ERROR", "PAYLOAD")
    return table(
        columns,
        (
            (
                each.id,
                each.origin,
                each.attempts,
                each.reason,
                cut(each.error, SHORT),
                payload_text(each.body, longest=SHORT),
            )
            for each in letters
        ),
    )


def letter_fields(letter: DeadLetter[Any], *, full: bool = False) -> Table:
    """Return all that is known of a dead letter."""
    return fields(
        (
            ("id", letter.id),
            ("entry", letter.origin),
            ("key", letter.key or None),
            ("added", time_text(letter.added)),
            ("died", time_text(letter.died)),
            ("reason", letter.reason),
            ("error", letter.error or None),
            ("attempts", letter.attempts),
            *((f"header {name}", value) for name, value in sorted(letter.headers.items())),
            ("payload", payload_text(letter.body, full=full)),
        )
    )


_NO_HANDLER: Final = '''

{async_}def handle(delivery: ailf.{Async}Delivery[Any]) -> Any:
    """Replace this function by an import of the group's handler."""
    raise NotImplementedError("import the handler of this group here")
'''

_TEST: Final = '''\
"""A dead letter as a test: it fails until the handler handles the message."""

{asyncio}from typing import Any

import ailf
from ailf_memory import {Async}MemoryBackend
{imported}
STREAM = {stream}
GROUP = {group}
BODY = {body}
HEADERS: dict[str, str] = {headers}
ATTEMPTS = {attempts}  # after this number of deliveries it was a dead letter
REASON = {reason}
ERROR = {error}
{handler}

{async_}def {function}() -> None:
    """The handler handles the message within the attempts that it had."""
    {async_}with {Async}MemoryBackend() as backend:
        stream = backend.stream(STREAM)  # with the type of the real one, if it has one
        {await_}backend.stream(STREAM{bytes_type}).add(BODY, headers=HEADERS)
        group = stream.group(
            GROUP,
            max_deliveries=max(1, ATTEMPTS),
            backoff=ailf.Backoff(initial=0.0),
            on_event=lambda event: group.stop(),
        )

        {async_}def handle_once(delivery: ailf.{Async}Delivery[Any]) -> Any:
            result = {await_}handle(delivery)
            if result is not False:
                group.stop()
            return result

        {await_}group.process(handle_once, signals=False)
        assert [letter.error for letter in {await_}group.dead_letters.list()] == []
{runs}'''

_RUNS: Final = '''

def {test}() -> None:
    """The handler handles the message within the attempts that it had."""
    asyncio.run({function}())
'''


def pytest_of(
    stream: str, group: str, letter: DeadLetter[Any], handler: str | None = None, *, coroutine: bool = False
) -> str:
    """Return a test that processes a dead letter's message in memory, and fails if it becomes a dead letter again.

    Arguments:
        stream: The stream's name.
        group: The group's name.
        letter: The dead letter.
        handler: The handler to import, as ``module:function``; None for one to be filled in.
        coroutine: Whether the handler is a coroutine function.
    """
    marked = letter.headers.get(CONTENT_TYPE) == BYTES  # the mark of bytes, which adding sets itself
    headers = {name: value for name, value in letter.headers.items() if not (marked and name == CONTENT_TYPE)}
    module, _, function = (handler or "").partition(":")
    renamed = " as handle" if function != "handle" else ""
    test = "test_dead_letter_" + re.sub(r"\W", "_", letter.id, flags=re.ASCII)
    names = {
        "async_": "async " if coroutine else "",
        "await_": "await " if coroutine else "",
        "Async": "Async" if coroutine else "",
        "function": "process" if coroutine else test,
    }
    return _TEST.format(
        **names,
        asyncio="import asyncio\n" if coroutine else "",
        imported=f"\nfrom {module} import {function}{renamed}\n" if handler else "",
        handler="" if handler else _NO_HANDLER.format(**names),
        stream=ascii(stream),
        group=ascii(group),
        body=repr(letter.body),
        headers=ascii(headers),
        attempts=letter.attempts,
        reason=ascii(letter.reason),
        error=ascii(letter.error),
        runs=_RUNS.format(test=test, **names) if coroutine else "",
        bytes_type="" if marked else ", type=bytes",
    )
