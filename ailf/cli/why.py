"""``ailf why``: why a lock, a limit or a message doesn't go on: which lease or state it waits for, and until when."""

import time
from collections.abc import Iterable
from typing import Annotated, Any, Final

import typer

from ailf.cli.arguments import UNCHANGED, KeyOption, LimitOption, RootOption, StreamArgument
from ailf.cli.command import Cli, command, group
from ailf.cli.dead import all_letters
from ailf.cli.exits import NOT_FOUND, CommandError
from ailf.cli.limits import keys_of, limiter_of
from ailf.cli.survey import left_out, openable
from ailf.cli.targets import existing_group, existing_stream, partitions_of
from ailf.cli.text import counted, duration
from ailf.limits import Limit, TokenBucket
from ailf.values import LATEST, DeadLetter, Decision, GroupInfo, LimitState, LockInfo, MessageInfo, MessageState

__all__ = ["APP"]

APP: Final = group("why", "Say why a lock, a limit or a message doesn't go on, and until when.")

LETTERS: Final = 10_000
"""The most dead letters of a group that are searched for a message."""

COUNTED: Final = 1000
"""The most entries behind a message that are counted."""


@command(APP, "lock")
def lock(cli: Cli, name: Annotated[str, typer.Argument(metavar="NAME", help="The lock's name.")]) -> None:
    """Say which grants hold a lock, how many wait for it, and when it is free."""
    with cli.open() as backend:
        info = backend.lock(name).inspect()
    lines = list(lock_lines(name, info))
    cli.show({"name": name, "holders": info.holders, "waiting": info.waiting, "why": lines}, *lines)


@command(APP, "limit")
def limit(
    cli: Cli,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The limiter's name.")],
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="The key, such as a user.")] = "",
    *,
    limit: LimitOption,
    root: RootOption = None,
    keys: KeyOption = None,
    cost: Annotated[int, typer.Option("--cost", min=0, help="The cost of the call.")] = 1,
) -> None:
    """Say whether a call would pass a limiter now, which limit it waits for, and until when."""
    given = keys_of(keys)
    with cli.open() as backend:
        limiter = limiter_of(backend, name, limit, root)
        decision, limits = limiter.peek(key, keys=given), limiter.limits
    lines = list(limit_lines(decision, limits, cost))
    shown = {"name": name, "key": key, "root": root, "keys": given, "limits": decision.limits, "why": lines}
    cli.show(shown, *lines)


@command(APP, "message")
def message(
    cli: Cli,
    stream: StreamArgument,
    id: Annotated[str, typer.Argument(metavar="ID", help="The entry's id.")],
    group: Annotated[str | None, typer.Argument(metavar="[GROUP]", help="One group; else all of them.")] = None,
) -> None:
    """Say for each group whether a message was settled, is a dead letter, or waits, and for what."""
    with cli.open() as backend:
        target = existing_stream(backend, stream, UNCHANGED)
        others: list[str] = []
        if group is None:
            names, others = openable(target.groups())
        else:
            names = [existing_group(backend, stream, group).name]
        ordinary = partitions_of(backend, stream) == 1
        found = target.read(id, LATEST, COUNTED) if ordinary else target.read(id, id, 1)
        behind = len(found) if ordinary else COUNTED  # one entry of a partition says nothing of those behind it
        exists = bool(found) and found[0].id == id
        age = max(0.0, time.time() - found[0].added) if exists else None
        lines = [entry_line(stream, id, age)]
        for name in names:
            looked = target.group(name)
            with cli.working(f"looking at group {name}"):
                letter = _letter_of(all_letters(looked), id)
                lines.append(message_line(name, looked.info(), looked.inspect(id), age, letter, behind))
    cli.show({"stream": stream, "id": id, "exists": exists, "why": lines}, *lines)
    if others:
        cli.say(left_out("group", others))
    if not exists and not any("dead letter" in line for line in lines[1:]):
        raise CommandError(f"stream {stream!r} has no entry {id!r}: it was removed, or never added", NOT_FOUND)


def _letter_of(letters: Iterable[DeadLetter[Any]], id: str) -> DeadLetter[Any] | None:
    for number, letter in enumerate(letters):
        if letter.origin == id:
            return letter
        if number >= LETTERS:
            break
    return None


# --- the reasons -------------------------------------------------------------------------------------------------


def lock_lines(name: str, info: LockInfo) -> Iterable[str]:
    """Yield the reasons why a lock isn't free."""
    if not info.holders:
        yield f"lock {name!r} is free: the next request gets it"
    for holder in info.holders:
        yield (
            f"lock {name!r} is held with the fence {holder.fence}; it is free when its holder releases it, or in "
            f"{duration(holder.remaining)} if its holder has died and renews it no more"
        )
    if info.waiting:
        yield f"the number of waiters in its queue is {info.waiting:,}"


def limit_lines(decision: Decision[Any], limits: "dict[str, Limit] | Any", cost: int) -> Iterable[str]:
    """Yield for each limit whether a call of a cost passes now, or when it does."""
    for name, state in decision.limits.items():
        what = f"limit {name!r} ({limits[name]})" if name else f"the limit ({limits[name]})"
        if cost <= state.remaining:
            yield f"{what} lets a call of cost {cost:,} pass now: {state.remaining:,} remain"
        elif cost > limits[name].capacity:
            yield f"{what} never lets a call of cost {cost:,} pass: its capacity is {limits[name].capacity:,}"
        else:
            yield f"{what} has {state.remaining:,} left of {cost:,}: the call passes {_when(limits[name], state, cost)}"


def _when(limit: Limit, state: LimitState, cost: int) -> str:
    if isinstance(limit, TokenBucket):
        return f"in about {duration((cost - state.remaining) * limit.per / limit.rate)}, if no other call is charged"
    if limit.leased:
        return f"when another call ends, in {duration(state.reset_after)} at the latest"
    return f"in {duration(state.reset_after)} at the latest, if no other call is charged"


def entry_line(stream: str, id: str, age: float | None) -> str:
    """Return what is known of an entry itself."""
    if age is None:
        return f"entry {id} is not in stream {stream!r}"
    return f"entry {id} was added to stream {stream!r} {duration(age)} ago"


def message_line(
    group: str, info: GroupInfo, found: MessageInfo, age: float | None, letter: DeadLetter[Any] | None, behind: int
) -> str:
    """Return why a message waits in a group, or that it doesn't.

    Arguments:
        group: The group's name.
        info: Its state.
        found: What it has made of the entry.
        age: The age of the entry in seconds; None if it is no longer in the stream.
        letter: Its dead letter in this group, if there is one.
        behind: The number of entries from this one on, itself included, up to `COUNTED`.
    """
    if letter is not None:
        text = f": {letter.error}" if letter.error else ""
        what = f"a dead letter, {letter.id}, after {counted(letter.attempts, 'attempt')} ({letter.reason}){text}"
    elif age is None and found.state not in {MessageState.LEASED, MessageState.WAITING}:
        what = "nothing is left of it"
    else:
        what = _state_text(info, found, behind)
    return f"group {group!r}: {what}"


def _state_text(info: GroupInfo, found: MessageInfo, behind: int) -> str:
    """Return what a group has made of an entry; the arguments are those of `message_line`."""
    match found.state:
        case MessageState.UNREAD:
            return f"not delivered yet, {_place(info, behind)}; {_holdup(info)}"
        case MessageState.LEASED if found.due is None:
            return (
                f"in the hands of consumer {found.consumer!r} of another program, attempt {found.attempts:,}; when it "
                "is delivered again isn't known"
            )
        case MessageState.LEASED:
            return (
                f"in the hands of consumer {found.consumer!r}, attempt {found.attempts:,}; unless it is settled or its "
                f"lease is renewed, it is delivered again in {duration(found.due)}"
            )
        case MessageState.WAITING:
            return f"{_waits(found)}, after {counted(found.attempts, 'attempt')}; {_holdup(info)}"
        case MessageState.SETTLED:
            return "nothing is left to do: it was settled, or the group began behind it"
        case MessageState.UNKNOWN:
            return (
                f"it was read: it is settled, or among these: {info.pending:,} in the hands of consumers, "
                f"{info.delayed:,} waiting for a delay, a backoff or their turn"
            )


def _waits(found: MessageInfo) -> str:
    if found.due is None:
        return "waits behind others of its ordering key"
    return f"waits until it may be delivered, in {duration(found.due)}" if found.due else "may be delivered now"


def _place(info: GroupInfo, behind: int) -> str:
    if info.lag is None or (behind >= COUNTED and info.lag >= COUNTED) or info.lag < behind:
        return "behind an unknown number of undelivered messages"
    return f"behind {counted(info.lag - behind, 'undelivered message')}"


def _holdup(info: GroupInfo) -> str:
    if info.paused:
        return "the group is paused, and `ailf resume` lets it go on"
    return (
        f"the group has {counted(len(info.consumers), 'consumer')}" if info.consumers else "the group has no consumer"
    )
