"""``ailf top``: a live table of all groups, with their rates."""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Final

import attrs
import typer
from rich.live import Live
from rich.text import Text

from ailf.backend import Backend
from ailf.cli.arguments import PrefixArgument
from ailf.cli.command import Cli, command, group
from ailf.cli.survey import Survey, openable
from ailf.cli.tables import Rows, table
from ailf.cli.text import counted, duration
from ailf.values import GroupInfo, StreamInfo

__all__ = ["APP", "Row", "Sample", "rows", "top_table"]

APP: Final = group("", "")


@attrs.frozen
class Sample:
    """The streams and groups at one time.

    Attributes:
        at: The time, on a clock that only counts up.
        streams: The streams by name.
        groups: The groups, by the names of stream and group.
        more: Whether there are more streams, which were not looked at.
    """

    at: float
    streams: Mapping[str, StreamInfo]
    groups: Mapping[tuple[str, str], GroupInfo]
    more: bool = False


@attrs.frozen
class Row:
    """One group, or a stream without groups.

    Attributes:
        stream: The stream's name.
        group: The group's name; None for a stream without groups.
        entries: The number of entries of the stream.
        added: Messages that were added in a second; None if it is unknown.
        settled: Messages that the group settled in a second; None if it is unknown.
        lag: As in `GroupInfo`.
        pending: As in `GroupInfo`.
        delayed: As in `GroupInfo`.
        dead: As in `GroupInfo`.
        consumers: The number of consumers.
        oldest: As in `GroupInfo`.
        paused: As in `GroupInfo`.
    """

    stream: str
    group: str | None
    entries: int
    added: float | None = None
    settled: float | None = None
    lag: int | None = None
    pending: int = 0
    delayed: int = 0
    dead: int = 0
    consumers: int = 0
    oldest: float | None = None
    paused: bool = False


@command(APP, "top")
def top(
    cli: Cli,
    prefix: PrefixArgument = "",
    *,
    interval: Annotated[float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between two looks.")] = 2.0,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="Stop after this number of tables.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="The most streams to look at.")] = 1000,
) -> None:
    """Show all groups again and again, busiest first, until Ctrl-C: rates, lag, pending, dead letters, consumers.

    Without a terminal one table is shown, with the rates of one interval.
    """
    live = cli.out.is_terminal and not cli.json
    with cli.open() as backend:
        pairs = itertools.islice(
            itertools.pairwise(_samples(backend, prefix, interval, limit)), count or (None if live else 1)
        )
        if not live:
            for number, (before, after) in enumerate(pairs):
                found = rows(before, after)
                cli.show(found, top_table(found))
                if after.more and not number:
                    cli.say(more_text(limit, prefix))
            return
        with Live(
            Text("looking"), console=cli.out, auto_refresh=False, screen=True, vertical_overflow="crop"
        ) as screen:
            for before, after in pairs:
                found = rows(before, after)
                note = more_text(limit, prefix) if after.more else ""
                screen.update(top_table(found, f"ailf top  {backend.url}", note), refresh=True)
        cli.show(found, top_table(found))
        if note:
            cli.say(note)


def _samples(backend: Backend, prefix: str, interval: float, limit: int) -> Iterator[Sample]:
    """Yield a sample every `interval` seconds, the first two sooner."""
    for number in itertools.count():
        begin = time.monotonic()
        yield _sample(backend, prefix, limit)
        pause = interval if number else min(interval, 1.0)
        time.sleep(max(0.0, begin + pause - time.monotonic()))


def _sample(backend: Backend, prefix: str, limit: int) -> Sample:
    names = list(itertools.islice(backend.streams(prefix), limit + 1))
    survey = Survey(backend)
    streams = {each.name: each for each in survey.streams(openable(names[:limit])[0])}
    return Sample(time.monotonic(), streams, survey.groups(streams.values()), more=len(names) > limit)


def more_text(limit: int, prefix: str) -> str:
    """Return that there are more streams than the most that are looked at, and what to do about it."""
    which = f" whose names begin with {prefix!r}" if prefix else ""
    return (
        f"there are more than {counted(limit, 'stream')}{which}, and only that many are looked at; "
        f"give a {'longer ' if prefix else ''}prefix, or raise --limit"
    )


# --- rates and what is shown -------------------------------------------------------------------------------------


def rows(before: Sample, after: Sample) -> list[Row]:
    """Return the rows of two samples, the busiest first."""
    seconds = max(after.at - before.at, 1e-9)
    made = []
    for (stream, name), info in after.groups.items():
        added = _added(before, after, stream)
        earlier = before.groups.get((stream, name))
        settled = None if earlier is None else _settled(added, earlier, info)
        made.append(
            Row(
                stream,
                name,
                info.length,
                None if added is None else added / seconds,
                None if settled is None else settled / seconds,
                info.lag,
                info.pending,
                info.delayed,
                info.dead,
                len(info.consumers),
                info.oldest,
                info.paused,
            )
        )
    with_groups = {stream for stream, _ in after.groups}
    for stream, state in after.streams.items():
        if stream not in with_groups:
            added = _added(before, after, stream)
            made.append(Row(stream, None, state.length, None if added is None else added / seconds))
    return sorted(made, key=lambda row: (-((row.added or 0.0) + (row.settled or 0.0)), row.stream, row.group or ""))


def _added(before: Sample, after: Sample, stream: str) -> int | None:
    """Return how many entries were added between two samples, if that is known."""
    first, second = before.streams.get(stream), after.streams.get(stream)
    if first is None or second is None:
        return None
    if first.entries_added is not None and second.entries_added is not None:
        grown = second.entries_added - first.entries_added
    else:
        grown = second.length - first.length  # right where nothing is removed
    return grown if grown >= 0 else None


def _settled(added: int | None, before: GroupInfo, after: GroupInfo) -> int | None:
    """Return how many messages a group settled between two samples, if that is known."""
    if added is None or before.lag is None or after.lag is None:
        return None
    settled = added - (_unsettled(after) - _unsettled(before))
    return settled if settled >= 0 else None


def _unsettled(info: GroupInfo) -> int:
    return (info.lag or 0) + info.pending + info.delayed


def top_table(found: Sequence[Row], title: str = "", note: str = "") -> Rows:
    """Return the table of rows, with a title and a note above it."""
    columns = (
        "STREAM",
        "GROUP",
        ">ENTRIES",
        ">IN/S",
        ">OUT/S",
        ">LAG",
        ">PENDING",
        ">DELAYED",
        ">DEAD",
        ">CONSUMERS",
        ">OLDEST",
        "STATE",
    )
    return table(columns, map(_cells, found), title, note)


def _cells(row: Row) -> tuple[object, ...]:
    return (
        row.stream,
        row.group,
        row.entries,
        rate(row.added),
        rate(row.settled),
        row.lag,
        row.pending,
        row.delayed,
        Text(f"{row.dead:,}", "red" if row.dead else ""),
        Text(f"{row.consumers:,}", "yellow" if not row.consumers and row.lag else ""),
        duration(row.oldest),
        Text("paused", "yellow") if row.paused else Text("-" if row.group is None else "running"),
    )


def rate(per_second: float | None) -> str | None:
    """Return a rate in messages a second."""
    if per_second is None:
        return None
    return f"{per_second:,.0f}" if per_second >= 10 or per_second == 0 else f"{per_second:.1f}"  # noqa: PLR2004 - two digits
