"""Histories of workers, and a checker that finds faults in them. Pure: it reads lines and decides.

Times are CLOCK_MONOTONIC, which all processes of a machine share. If a time is known only roughly, the checker assumes
the value that excuses: each reported fault is certain.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

INF = float("inf")
DONE = ("DONE", "DEAD")


@attrs.frozen(kw_only=True)
class Life:
    """One worker process, as seen from outside.

    Attributes:
        name: Its name.
        fate: How it ended: "killed" (SIGKILL) or "stopped" (SIGTERM).
        ended: When the signal was sent.
        still: Spans in which it stood still: stopped (SIGSTOP), or left without a processor, it or the server.
    """

    name: str
    fate: str = "stopped"
    ended: float = INF
    still: Sequence[tuple[float, float]] = ()

    @property
    def killed(self) -> bool:
        """Whether it ended without warning."""
        return self.fate == "killed"


@attrs.define(kw_only=True)
class Lease:
    """One delivery of one message to one process, as far as it was recorded.

    Attributes:
        life: The process.
        id: The id of the message.
        grant: The number of its receipt, which differs for each delivery of the message.
        attempt: Its attempt.
        since: When the fetch was sent.
        got: When the reply of the fetch arrived: the lease runs by now.
        begun: When a handler was called with it.
        action: The requested settlement: "ack", "nack", "reject", "release", or "" for none.
        requested: When the first request to settle was sent.
        outcome: The reply to it, "DONE", "DEAD" or "LOST", or "" for none yet.
        answered: When that reply arrived.
        result: What the handler saw: "settled", "lost", or "nothing" if it left that to `process`.
        ended: When the handler had ended.
        kept: When ``delivery.lost`` was last seen to be False, or None if it never was.
        lost: Whether ``delivery.lost`` was set at the end.
    """

    life: Life
    id: str
    grant: int
    attempt: int
    since: float
    got: float
    begun: float | None = None
    action: str = ""
    requested: float = INF
    outcome: str = ""
    answered: float = INF
    result: str = ""
    ended: float | None = None
    kept: float | None = None
    lost: bool = False

    @property
    def over(self) -> float:
        """The time from which another process may have the message."""
        if self.lost or self.outcome == "LOST":
            return self.kept or self.since
        unsettled = self.since if self.ended is None else INF if self.action else self.ended
        stalls = [start for start, end in self.life.still if end > unsettled]
        return min(self.requested, self.life.ended if self.life.killed else INF, *stalls)

    @property
    def next_attempts(self) -> set[int]:
        """The attempts that the next delivery may have: only a release doesn't count."""
        if self.action != "release" or self.outcome == "LOST":
            return {self.attempt + 1}
        return {self.attempt} if self.outcome else {self.attempt, self.attempt + 1}

    def __str__(self) -> str:
        return f"attempt {self.attempt} of {self.life.name}"


@attrs.frozen(kw_only=True)
class History:
    """The history of a whole run.

    Attributes:
        added: The ids of the messages.
        lives: The processes.
        leases: The deliveries.
        dead_letters: Of each dead letter the message's id and how often it was delivered, as they are listed.
        max_deliveries: The number of deliveries after which a message is dead.
        silence: Seconds after which a silent process loses its leases.
        prefetch: The most messages that one fetch takes.
    """

    added: Sequence[str]
    lives: Sequence[Life]
    leases: Sequence[Lease]
    dead_letters: Sequence[tuple[str, int]] = ()
    max_deliveries: int = 1000
    silence: float = 1.0
    prefetch: int = 100

    def by_message(self) -> dict[str, list[Lease]]:
        """Return each message's deliveries, in order."""
        messages: dict[str, list[Lease]] = {each: [] for each in self.added}
        for lease in sorted(self.leases, key=lambda each: (each.attempt, each.got)):
            messages.setdefault(lease.id, []).append(lease)
        return messages

    def kills(self, after: float, before: float) -> int:
        """Return how many processes were killed between two times."""
        return sum(life.killed and after <= life.ended <= before for life in self.lives)


# --- reading -----------------------------------------------------------------------------------------------------


def read(life: Life, text: str) -> tuple[Life, list[Lease]]:
    """Read the lines of one process; return its life, with the times it stood still, and its deliveries.

    A last line that isn't whole is ignored: the process was killed while it wrote.
    """
    events = [json.loads(line) for line in text.split("\n")[:-1]]
    stalls = [(event["since"], event["at"]) for event in events if event["kind"] == "stalled"]
    life = attrs.evolve(life, still=[*life.still, *stalls])
    leases: Leases = {}
    for event in events:
        if event["kind"] != "stalled":
            READERS[event["kind"]](life, leases, event)
    return life, list(leases.values())


Leases = dict[tuple[str, int], Lease]


def _fetched(life: Life, leases: Leases, event: Any) -> None:
    for entry, grant, attempt in event["claims"]:
        leases[entry, grant] = Lease(
            life=life, id=entry, grant=grant, attempt=attempt, since=event["since"], got=event["at"]
        )


def _begin(_: Life, leases: Leases, event: Any) -> None:
    lease = leases[event["id"], event["grant"]]
    lease.begun, lease.kept = event["at"], event["kept"]


def _missed(_: Life, leases: Leases, event: Any) -> None:
    lease = leases[event["id"], event["grant"]]
    waited = lease.begun is None or (lease.ended is not None and not lease.action)
    if waited:  # for a handler or, after one, to be settled; else the end of the handler reports the loss
        lease.lost, lease.ended = True, event["at"]


def _settle(_: Life, leases: Leases, event: Any) -> None:
    for entry, grant, action in event["what"]:
        lease = leases[entry, grant]
        lease.action, lease.requested = action, min(lease.requested, event["at"])


def _settled(_: Life, leases: Leases, event: Any) -> None:
    for entry, grant, outcome in event["what"]:
        lease = leases[entry, grant]
        lease.outcome, lease.answered = outcome, event["at"]


def _end(_: Life, leases: Leases, event: Any) -> None:
    lease = leases[event["id"], event["grant"]]
    lease.result, lease.kept, lease.ended = event["result"], event["kept"], event["at"]
    lease.lost = event["lost"] and lease.outcome not in DONE  # once it is settled, `lost` means nothing


def _leave(_: Life, leases: Leases, event: Any) -> None:
    for lease in leases.values():
        if not lease.action:
            lease.action, lease.requested = "release", event["at"]


READERS = {
    "fetched": _fetched,
    "begin": _begin,
    "missed": _missed,
    "settle": _settle,
    "settled": _settled,
    "end": _end,
    "leave": _leave,
}


# --- judging -----------------------------------------------------------------------------------------------------


def faults(history: History) -> list[str]:
    """Return every fault: what can't happen if the contract holds."""
    messages = history.by_message()
    reports = [f"{each} was never added" for each in messages.keys() - set(history.added)]
    for entry, leases in messages.items():
        for judge in (lost, acked_twice, attempts, overlaps, wrong_dead_letters):
            reports += [f"{entry}: {fault}" for fault in judge(history, entry, leases)]
    for lease in history.leases:
        reports += [f"{lease.id}: {fault}" for fault in (*wrong_results(lease), *lost_by_living(history, lease))]
    return [*reports, *out_of_order(history), *unexplained_gaps(history, messages)]


def lost(history: History, entry: str, leases: Sequence[Lease]) -> Iterator[str]:
    """S2: each message is acked or a dead letter; an ack of a killed process without a reply may have succeeded."""
    if entry in dict(history.dead_letters) or any(each.action == "ack" and each.outcome == "DONE" for each in leases):
        return
    last = leases[-1] if leases else None
    if last is None or not (last.action == "ack" and not last.outcome and last.life.killed):
        yield f"lost: never acked, its last delivery is {last or 'none'}"


def acked_twice(_: History, __: str, leases: Sequence[Lease]) -> Iterator[str]:
    """S2, S4: a successful ack ends a message: no other ack and no delivery follows it."""
    done = [number for number, each in enumerate(leases) if each.action == "ack" and each.outcome == "DONE"]
    if len(done) > 1:
        yield f"acked {len(done)} times: {', '.join(str(leases[each]) for each in done)}"
    elif done and done[0] != len(leases) - 1:
        yield f"delivered after its ack in {leases[done[0]]}: {leases[done[0] + 1]}"


def attempts(history: History, _: str, leases: Sequence[Lease]) -> Iterator[str]:
    """S5: each delivery counts one attempt more than the one before, or the same if that one was released.

    An attempt may be missing if a process was killed between its fetch and its record of it: one for each process that
    was killed between the deliveries around the gap.
    """
    allowed, before = {1}, -INF
    for lease in leases:
        missing = lease.attempt - max(allowed)
        if lease.attempt not in allowed and missing < 0:
            yield f"{lease} instead of {sorted(allowed)}"
        elif missing > history.kills(before, lease.got):
            yield f"{lease} instead of {sorted(allowed)}, and too few were killed to explain it"
        if lease.got < before:
            yield f"{lease} was delivered before the attempt before it"
        allowed, before = lease.next_attempts, lease.since


def overlaps(_: History, __: str, leases: Sequence[Lease]) -> Iterator[str]:
    """S2: while a process may believe that it has a message, no other process gets it."""
    for number, later in enumerate(leases):
        for earlier in leases[:number]:
            if later.got < earlier.over:
                yield f"two leases at once: {later} began {earlier.over - later.got:.3f} s before {earlier} was over"


def wrong_dead_letters(history: History, entry: str, leases: Sequence[Lease]) -> Iterator[str]:
    """S5, S16: there is one dead letter of a message; the message was delivered often enough, and not acked."""
    letters = [count for origin, count in history.dead_letters if origin == entry]
    rejected = any(each.action == "reject" for each in leases)
    if len(letters) > 1:
        yield f"{len(letters)} dead letters"
    if any(each.outcome == "DEAD" for each in leases) and not letters:
        yield "no dead letter where there should be one"
    if letters and any(each.action == "ack" and each.outcome == "DONE" for each in leases):
        yield "acked, and a dead letter"
    if letters and not rejected and letters[0] != history.max_deliveries:
        yield f"a dead letter after {letters[0]} deliveries instead of {history.max_deliveries}"
    if leases and leases[-1].attempt > history.max_deliveries:
        yield f"{leases[-1]} is beyond max_deliveries"


def wrong_results(lease: Lease) -> Iterator[str]:
    """S4: a handler learns that it settled a message if it did, and that it lost the message if it didn't."""
    if lease.result == "settled" and lease.outcome not in DONE:
        yield f"{lease} was reported to its handler as settled, but its outcome was {lease.outcome or 'none'}"
    if lease.result == "lost" and lease.outcome in DONE:
        yield f"{lease} was reported to its handler as lost, but its outcome was {lease.outcome}"
    if lease.result == "lost" and not lease.lost:
        yield f"{lease} was reported to its handler as lost, but delivery.lost was not set"


def lost_by_living(history: History, lease: Lease) -> Iterator[str]:
    """S4, S12: a living process keeps its leases: it loses one only if it stood still."""
    if lease.lost or lease.outcome == "LOST":
        until = min(lease.ended if lease.lost and lease.ended else INF, lease.answered)
        still = lasting((max(start, lease.since), min(end, until)) for start, end in lease.life.still)
        if still < history.silence / 5:
            yield f"{lease} was lost by a process that did not stand still"


def lasting(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of some spans."""
    total, reached = 0.0, -INF
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def out_of_order(history: History) -> Iterator[str]:
    """S3: first deliveries come in id order: the ids of a later fetch are above those of an earlier one."""
    firsts: dict[str, Lease] = {}
    for lease in sorted(history.leases, key=lambda each: each.got):
        if lease.attempt == 1:
            firsts.setdefault(lease.id, lease)
    fetches: dict[tuple[float, float], list[Lease]] = defaultdict(list)
    for lease in firsts.values():
        fetches[lease.since, lease.got].append(lease)
    highest: list[tuple[float, tuple[int, ...], Lease]] = []  # ordered by the time of the fetch's reply
    for (_, got), leases in sorted(fetches.items(), key=lambda each: each[0][1]):
        top = max(leases, key=lambda each: sort_key(each.id))
        highest.append((got, max(sort_key(top.id), highest[-1][1] if highest else ()), top))
    for (since, _), leases in fetches.items():
        before = [each for each in highest if each[0] < since]
        low = min(leases, key=lambda each: sort_key(each.id))
        if before and sort_key(low.id) < before[-1][1]:
            yield f"{low.id}: first delivered after {'-'.join(map(str, before[-1][1]))}, which is behind it"


def sort_key(entry: str) -> tuple[int, ...]:
    """Return a key that sorts ids as Redis does."""
    return tuple(int(part) for part in entry.split("-"))


def unexplained_gaps(history: History, messages: Mapping[str, Sequence[Lease]]) -> Iterator[str]:
    """S5: all missing attempts fit into one fetch of each killed process."""
    missing = sum(max(0, gap) for leases in messages.values() for gap in gaps(leases))
    most = history.prefetch * sum(life.killed for life in history.lives)
    if missing > most:
        yield f"{missing} attempts were not recorded; the killed processes explain {most}"


def gaps(leases: Iterable[Lease]) -> Iterator[int]:
    """Return how many attempts are missing before each delivery."""
    allowed = {1}
    for lease in leases:
        yield lease.attempt - max(allowed)
        allowed = lease.next_attempts
