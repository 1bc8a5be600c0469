"""What ``ailf doctor`` makes of the values that every backend gives. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ailf.cli.survey import GroupState, StreamState
from ailf.cli.text import counted, duration
from ailf.driver import Finding, Level
from ailf.errors import AilfError, BackendTimeoutError, ConnectionLostError, PermissionDeniedError, UnsupportedError
from ailf.safe_text import text_of
from ailf.stream.worker import LARGE
from ailf.values import ConsumerInfo, GroupInfo

__all__ = ["dead_letter_findings", "latency_finding", "opening_finding", "stream_findings"]

SLOW: Final = 0.05
VERY_SLOW: Final = 1.0

BACKLOG: Final = 86_400.0
"""Seconds after which an unsettled message is worth a warning."""

MOST_NAMED: Final = 3


def opening_finding(error: AilfError) -> Finding:
    """Return why the backend couldn't be opened, and what to do."""
    mends: tuple[tuple[type[AilfError], str], ...] = (
        (ConnectionLostError, "check the host, the port and the firewall, and that the server runs"),
        (BackendTimeoutError, "see whether the server is frozen or overloaded; raise timeout= in the URL if it is far"),
        (PermissionDeniedError, "check the user and the password in the URL"),
        (UnsupportedError, "see `ailf backends`"),
    )
    mend = next((text for kind, text in mends if isinstance(error, kind)), "check the URL")
    return Finding("reachable", Level.FAIL, text_of(error), mend)


def latency_finding(seconds: Sequence[float]) -> Finding:
    """Return how fast the backend answers.

    Arguments:
        seconds: The durations of some requests, at least one.
    """
    middle, worst = sorted(seconds)[len(seconds) // 2], max(seconds)
    message = f"{duration(middle)} at the median, {duration(worst)} at most, of {len(seconds)} requests"
    if middle >= VERY_SLOW:
        return Finding("latency", Level.FAIL, message, "run workers near the server; see whether it is overloaded")
    if middle >= SLOW:
        return Finding("latency", Level.WARN, message, "run workers nearer to the server")
    return Finding("latency", Level.OK, message)


def stream_findings(streams: Sequence[StreamState]) -> Iterator[Finding]:
    """Yield what is wrong with streams and groups; one finding each if nothing is."""
    groups = [(stream, group) for stream in streams for group in stream.groups]
    yield _finding(
        "retention",
        [f"{each.name!r} ({each.info.length:,} entries)" for each in streams if _kept_for_nothing(each)],
        f"{counted(len(streams), 'stream')}, none of which keeps over {LARGE:,} entries for nothing",
        "streams that keep settled messages: ",
        "give their producers a retention, such as Retention.settled(), or run `ailf trim STREAM --settled`",
    )
    yield _finding(
        "consumers",
        [
            f"{_in(stream, group)} ({counted(_unsettled(group.info), 'message')})"
            for stream, group in groups
            if _deserted(group)
        ],
        f"every group that has messages has a consumer ({counted(len(groups), 'group')})",
        "groups with messages and without a consumer: ",
        "start workers, or delete the groups: `ailf delete STREAM GROUP`",
    )
    yield _finding(
        "crashes",
        [f"{_in(stream, group)} ({_dead(group)})" for stream, group in groups if any(_died(group.consumers))],
        "no consumer died with messages in hand",
        "consumers died with messages in hand: ",
        "their messages go to other consumers at the next fetch: see that workers run, and why those ended",
    )
    yield _finding(
        "paused",
        [_in(stream, group) for stream, group in groups if group.info.paused],
        "no group is paused",
        "paused groups: ",
        "`ailf resume STREAM GROUP` lets them go on",
    )
    yield _finding(
        "backlog",
        [f"{_in(stream, group)} ({duration(group.info.oldest)})" for stream, group in groups if _is_old(group.info)],
        "no message has waited for more than a day",
        "messages wait for more than a day: ",
        "start more workers, or raise their concurrency",
    )


def dead_letter_findings(streams: Sequence[StreamState], later: dict[tuple[str, str], int], seconds: float) -> Finding:
    """Return how many dead letters there are, and where their number grows.

    Arguments:
        streams: The streams.
        later: The number of dead letters of each group, by the names of stream and group, some time later.
        seconds: How much later.
    """
    found = [(stream, group) for stream in streams for group in stream.groups]
    growing = [
        f"{_in(stream, group)} (+{later[stream.name, group.name] - group.info.dead:,} in {duration(seconds)})"
        for stream, group in found
        if later.get((stream.name, group.name), 0) > group.info.dead
    ]
    if growing:
        mend = "see why: `ailf dead ls STREAM GROUP`; mend the handler, then `ailf dead redrive`"
        return Finding("dead letters", Level.FAIL, f"their number grows: {_listed(growing)}", mend)
    return _finding(
        "dead letters",
        [f"{_in(stream, group)} ({group.info.dead:,})" for stream, group in found if group.info.dead],
        "there are none",
        "dead letters wait for a decision: ",
        "`ailf dead ls STREAM GROUP`, then `ailf dead redrive` or `ailf dead purge`",
    )


def _finding(check: str, bad: list[str], good: str, what: str, mend: str) -> Finding:
    if not bad:
        return Finding(check, Level.OK, good)
    return Finding(check, Level.WARN, what + _listed(bad), mend)


def _listed(items: list[str]) -> str:
    more = f", and {len(items) - MOST_NAMED:,} more" if len(items) > MOST_NAMED else ""
    return ", ".join(items[:MOST_NAMED]) + more


def _in(stream: StreamState, group: GroupState) -> str:
    return f"{group.name!r} of {stream.name!r}"


def _unsettled(info: GroupInfo) -> int:
    return (info.lag or 0) + info.pending + info.delayed


def _kept_for_nothing(stream: StreamState) -> bool:
    """Tell whether a long stream keeps mostly entries that each of its groups has settled."""
    needed = max((_unsettled(group.info) for group in stream.groups), default=0)
    return stream.info.length > LARGE and needed < stream.info.length / 2


def _deserted(group: GroupState) -> bool:
    info = group.info
    has_messages = bool(info.lag is None or _unsettled(info))
    return has_messages and not info.paused and not any(each.alive for each in group.consumers)


def _died(consumers: Iterable[ConsumerInfo]) -> list[ConsumerInfo]:
    return [each for each in consumers if not each.alive and each.in_hand]


def _dead(group: GroupState) -> str:
    dead = _died(group.consumers)
    messages = sum(each.in_hand for each in dead)
    names = _listed([repr(each.name) for each in dead])
    return f"{names} with {counted(messages, 'message')}"


def _is_old(info: GroupInfo) -> bool:
    return info.oldest is not None and info.oldest > BACKLOG
