"""Commands on streams: list, look at, follow, add to, trim and delete them."""

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from ailf.checks import MAX_SECONDS
from ailf.cli.arguments import (
    UNCHANGED,
    FullOption,
    GroupArgument,
    HeaderOption,
    PrefixArgument,
    RawOption,
    StreamArgument,
    YesOption,
    bodies,
    headers_of,
    position,
)
from ailf.cli.command import Cli, command, group
from ailf.cli.exits import USAGE, CommandError
from ailf.cli.survey import Survey, left_out, openable
from ailf.cli.tables import Rows, fields, table
from ailf.cli.targets import existing_group, existing_stream, partitions_of, stream_of
from ailf.cli.text import counted, duration, headers_text, message_value, payload_text, time_text
from ailf.values import EARLIEST, LATEST, ConsumerInfo, Entry, GroupInfo, Retention, StreamInfo, Trimmed

__all__ = ["APP"]

APP: Final = group("", "")

BATCH: Final = 100
"""The most messages that one request adds."""

GroupOptional = Annotated[str | None, typer.Argument(metavar="[GROUP]", help="A group's name.")]
LimitCount = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Stop after this number.")]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again until Ctrl-C.")]
IntervalOption = Annotated[float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between two of --watch.")]


# --- looking -----------------------------------------------------------------------------------------------------


@command(APP, "streams")
def streams(cli: Cli, prefix: PrefixArgument = "") -> None:
    """List streams, sorted by name."""
    with cli.open() as backend:
        names, others = openable(backend.streams(prefix))
        infos = []
        with cli.progress("looking at streams", len(names)) as step:
            for each in Survey(backend).streams(names):
                infos.append(each)
                step(1)
    cli.show(infos, streams_table(infos))
    if others:
        cli.say(left_out("stream", others))
    else:
        cli.note_none(infos, "stream", prefix)


@command(APP, "groups")
def groups(cli: Cli, stream: StreamArgument) -> None:
    """List the groups of a stream, with their states."""
    with cli.open() as backend:
        names, others = openable(existing_stream(backend, stream).groups())
        found = Survey(backend).group_infos((stream, name) for name in names)
    infos = {name: info for (_, name), info in found.items()}
    cli.show([_named(name, info) for name, info in infos.items()], groups_table(infos))
    if others:
        cli.say(left_out("group", others))


@command(APP, "info")
def info(
    cli: Cli,
    stream: StreamArgument,
    group: GroupOptional = None,
    *,
    watch: WatchOption = False,
    interval: IntervalOption = 2.0,
) -> None:
    """Show the state of a stream, or of one of its groups."""
    with cli.open() as backend:
        target = existing_stream(backend, stream) if group is None else existing_group(backend, stream, group)
        while True:
            state = target.info()
            if isinstance(state, StreamInfo):
                cli.show(state, stream_fields(state, time.time()))
            else:
                cli.show(_named(target.name, state), group_fields(stream, target.name, state))
            if not watch:
                return
            time.sleep(interval)


@command(APP, "consumers")
def consumers(cli: Cli, stream: StreamArgument, group: GroupArgument) -> None:
    """List the consumers of a group."""
    with cli.open() as backend:
        found = sorted(existing_group(backend, stream, group).consumers(), key=lambda each: each.name)
    cli.show(found, consumers_table(found))


@command(APP, "read")
def read(
    cli: Cli,
    stream: StreamArgument,
    *,
    start: Annotated[str, typer.Option("--start", help="earliest, an id, or a time.")] = EARLIEST,
    end: Annotated[str, typer.Option("--end", help="latest, an id, or a time.")] = LATEST,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="The most entries.")] = 100,
    full: FullOption = False,
) -> None:
    """Show the entries between two positions; no group is affected."""
    with cli.open() as backend:
        for entry in existing_stream(backend, stream, UNCHANGED).read(position(start), position(end), limit):
            _show_entry(cli, entry, full=full)


@command(APP, "tail")
def tail(
    cli: Cli,
    stream: StreamArgument,
    *,
    start: Annotated[str, typer.Option("--start", help="Where to begin: earliest, latest, an id, or a time.")] = LATEST,
    limit: LimitCount = None,
    full: FullOption = False,
) -> None:
    """Show the entries of a stream as they are added, until Ctrl-C; no group is affected."""
    with cli.open() as backend:
        if partitions_of(backend, stream) is None:
            cli.say(f"stream {stream!r} doesn't exist yet; waiting for its first entry")
        entries = stream_of(backend, stream, UNCHANGED).tail(position(start))
        for entry in itertools.islice(entries, limit):
            _show_entry(cli, entry, full=full)


def _show_entry(cli: Cli, entry: Entry[bytes], *, full: bool) -> None:
    cli.show({"id": entry.id, **message_value(entry.data, entry.headers)}, entry_line(entry, full=full))


# --- changing ----------------------------------------------------------------------------------------------------


@command(APP, "add")
def add(
    cli: Cli,
    stream: StreamArgument,
    messages: Annotated[list[str] | None, typer.Argument(metavar="[JSON]...", help="Else each line of stdin.")] = None,
    *,
    key: Annotated[str | None, typer.Option("--key", help="The ordering key.")] = None,
    delay: Annotated[
        float, typer.Option("--delay", min=0, max=MAX_SECONDS, help="Seconds until it may be delivered.")
    ] = 0.0,
    dedup_id: Annotated[str | None, typer.Option("--dedup-id", help="Add it once for each id.")] = None,
    header: HeaderOption = None,
    raw: RawOption = False,
) -> None:
    """Add messages to a stream, and show their ids. Stdin is read line by line, and added 100 at a time."""
    options: dict[str, Any] = {"key": key, "delay": delay, "headers": headers_of(header)}
    with cli.open() as backend:
        target = stream_of(backend, stream) if raw else stream_of(backend, stream, UNCHANGED)
        one = key is not None or partitions_of(backend, stream) in {None, 1}  # a request is for one partition
        size = BATCH if one else 1
        waiting = bodies(messages, backend.engine.driver.max_payload, raw=raw)
        if dedup_id is not None:
            first = list(itertools.islice(waiting, 2))
            if len(first) != 1:
                raise CommandError("--dedup-id takes one message", USAGE)
            added = target.add_once(dedup_id, first[0], **options)
            cli.show(added, f"{added.id}{' (a duplicate: nothing was added)' if added.duplicate else ''}")
            return
        count = 0
        with cli.progress(f"adding to {stream}", len(messages) if messages else None) as step:
            try:
                for batch in _batches(waiting, size):
                    for id_ in target.add_many(batch, **options):
                        cli.show({"id": id_}, id_)
                    count += len(batch)
                    step(len(batch))
            except CommandError as error:
                raise CommandError(f"{error}; messages added before it: {count:,}", error.code) from error


def _batches(items: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    """Yield lists of items. The items before one that can't be used are yielded first."""
    while True:
        batch: list[bytes] = []
        try:
            for item in itertools.islice(items, size):
                batch.append(item)  # noqa: PERF402 - the items before an error are kept
        except CommandError:
            if batch:
                yield batch
            raise
        if not batch:
            return
        yield batch


@command(APP, "trim")
def trim(
    cli: Cli,
    stream: StreamArgument,
    *,
    max_len: Annotated[int | None, typer.Option("--max-len", min=1, help="The most entries to keep.")] = None,
    max_age: Annotated[
        float | None, typer.Option("--max-age", min=0.001, max=MAX_SECONDS, help="Seconds for which to keep them.")
    ] = None,
    settled: Annotated[bool, typer.Option("--settled", help="Keep only what a group has not settled.")] = False,
    hard: Annotated[bool, typer.Option("--hard", help="Remove also what a group has not settled.")] = False,
    yes: YesOption = False,
) -> None:
    """Remove old entries, all those that groups have settled or, with --hard, others too."""
    if settled and (hard or max_age is not None):
        raise CommandError("--settled goes with --max-len only", USAGE)
    if not settled and max_len is None and max_age is None:
        raise CommandError("say what to keep: --max-len, --max-age or --settled", USAGE)
    kept = Retention.settled(max_len=max_len) if settled else Retention(max_len=max_len, max_age=max_age, hard=hard)
    with cli.open() as backend:
        target = existing_stream(backend, stream)
        cli.confirm(f"trim stream {stream!r}{' of unsettled messages too' if hard else ''}", yes=yes)
        with cli.working(f"trimming {stream}"):
            trimmed = target.trim(kept)
    cli.show(trimmed, trimmed_line(trimmed))


@command(APP, "delete")
def delete(cli: Cli, stream: StreamArgument, group: GroupOptional = None, *, yes: YesOption = False) -> None:
    """Delete a stream with its groups and dead letters, or one of its groups with its dead letters."""
    with cli.open() as backend:
        target = existing_stream(backend, stream) if group is None else existing_group(backend, stream, group)
        what = f"stream {stream!r}" if group is None else f"group {group!r} of stream {stream!r}"
        cli.confirm(f"delete {what} with all its messages", yes=yes)
        with cli.working(f"deleting {what}"):
            target.delete()
    cli.show({"deleted": [stream] if group is None else [stream, group]}, f"deleted {what}")


# --- what is shown -----------------------------------------------------------------------------------------------


def _named(name: str, info: GroupInfo) -> dict[str, Any]:
    return {"group": name, **{field: getattr(info, field) for field in info.__struct_fields__}}


def streams_table(infos: Iterable[StreamInfo]) -> Rows:
    """Return the table of streams."""
    columns = ("STREAM", ">ENTRIES", ">GROUPS", ">PARTITIONS", "LAST ADDED")
    return table(columns, ((i.name, i.length, i.groups, i.partitions, time_text(i.added)) for i in infos))


def groups_table(infos: dict[str, GroupInfo]) -> Rows:
    """Return the table of groups."""
    columns = ("GROUP", ">LAG", ">PENDING", ">DELAYED", ">DEAD", ">CONSUMERS", ">OLDEST", "STATE")
    return table(
        columns,
        (
            (name, i.lag, i.pending, i.delayed, i.dead, len(i.consumers), duration(i.oldest), _state(i))
            for name, i in infos.items()
        ),
    )


def _state(info: GroupInfo) -> str:
    return "paused" if info.paused else "running" if info.exists else "doesn't exist"


def stream_fields(info: StreamInfo, now: float) -> Table:
    """Return the state of a stream.

    Arguments:
        info: The state.
        now: The time, in seconds since 1970.
    """
    ago = None if info.added is None else f"{time_text(info.added)} ({duration(max(0.0, now - info.added))} ago)"
    return fields(
        (
            ("stream", info.name),
            ("entries", info.length),
            ("partitions", info.partitions),
            ("groups", info.groups),
            ("first id", info.first_id or None),
            ("last id", info.last_id or None),
            ("last added", ago),
        )
    )


def group_fields(stream: str, group: str, info: GroupInfo) -> Table:
    """Return the state of a group."""
    return fields(
        (
            ("stream", stream),
            ("group", group),
            ("state", _state(info)),
            ("lag", info.lag),
            ("pending", info.pending),
            ("delayed", info.delayed),
            ("dead letters", info.dead),
            ("oldest unsettled", duration(info.oldest)),
            ("evicted", info.evicted),
            *((f"consumer {name}", f"{leased:,} leased") for name, leased in sorted(info.consumers.items())),
        )
    )


def consumers_table(infos: Iterable[ConsumerInfo]) -> Rows:
    """Return the table of consumers."""
    columns = ("CONSUMER", "HOST", ">PID", ">IN HAND", ">LAST SEEN", "STATE")
    return table(
        columns,
        (
            (i.name, i.host, None if i.pid is None else str(i.pid), i.in_hand, seen_text(i.last_seen), alive_text(i))
            for i in infos
        ),
    )


def seen_text(seconds: float | None) -> str | None:
    """Return when a consumer was last seen."""
    return None if seconds is None else f"{duration(seconds)} ago"


def alive_text(info: ConsumerInfo) -> str:
    """Return whether a consumer is alive."""
    return "alive" if info.alive else "dead"


def entry_line(entry: Entry[bytes], *, full: bool = False) -> str:
    """Return an entry in one line: id, payload and headers."""
    return f"{entry.id}  {payload_text(entry.data, full=full)}{headers_text(entry.headers)}"


def trimmed_line(trimmed: Trimmed) -> str:
    """Return the result of a trim."""
    unsettled = f", {trimmed.unsettled:,} of them unsettled" if trimmed.unsettled else ""
    return f"removed {counted(trimmed.removed, 'entry')}{unsettled}"
