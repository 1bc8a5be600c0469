"""What workers wrote down, and whether it can have happened. Pure: it reads lines and decides.

Times are CLOCK_MONOTONIC, which all processes of a machine share. An instant that is known only roughly is taken from
the side that excuses: what is reported is certain.
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
    """One worker process, from outside.

    Attributes:
        name: Its name.
        fate: How it ended: "killed" (SIGKILL) or "stopped" (SIGTERM).
        ended: When the signal was sent.
        still: From when to when it stood still: stopped (SIGSTOP), or left without a processor, it or the server.
    """

    name: str
    fate: str = "stopped"
    ended: float = INF
    still: Sequence[tuple[float, float]] = ()

    @property
    def killed(self) -> bool:
        """Whether it had no time to say anything."""
        return self.fate == "killed"


@attrs.define(kw_only=True)
class Lease:
    """One delivery of one message to one process, as far as it is known.

    Attributes:
        life: The process.
        id: The message.
        grant: What tells this delivery of the message from its others.
        attempt: Its number.
        since: When the fetch was sent.
        got: When its answer was there: the lease runs by now.
        begun: When a handler was called with it.
        action: What was asked for at its end: "ack", "nack", "reject", "release", or "" for nothing.
        asked: When the first such request was sent.
        outcome: What was answered, "DONE", "DEAD" or "LOST", or "" for nothing yet.
        answered: When that answer was there.
        told: What the handler was told: "settled", "lost", or "nothing" where it left that to `process`.
        ended: When the handler had ended.
        kept: When ``delivery.lost`` was last seen to be False, or None where it never was.
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
    asked: float = INF
    outcome: str = ""
    answered: float = INF
    told: str = ""
    ended: float | None = None
    kept: float | None = None
    lost: bool = False

    @property
    def over(self) -> float:
        """From when on somebody else may have the message. Before, it is this process's alone."""
        if self.lost or self.outcome == "LOST":
            return self.kept or self.since
        unsaid = [start for start, end in self.life.still if self.ended is None and end > self.since]
        return min(self.asked, self.life.ended if self.life.killed else INF, *unsaid)

    @property
    def next_attempts(self) -> set[int]:
        """The numbers that the next delivery may have: a release doesn't count, all else does."""
        if self.action != "release" or self.outcome == "LOST":
            return {self.attempt + 1}
        return {self.attempt} if self.outcome else {self.attempt, self.attempt + 1}

    def __str__(self) -> str:
        return f"attempt {self.attempt} of {self.life.name}"


@attrs.frozen(kw_only=True)
class History:
    """All of a run.

    Attributes:
        added: The ids of the messages.
        lives: The processes.
        leases: The deliveries.
        letters: The dead letters: how often each message was delivered, in the order they are listed.
        max_deliveries: After how many a message is dead.
        silence: Seconds after which a process that says nothing loses its leases.
        prefetch: How many messages one fetch takes at most.
    """

    added: Sequence[str]
    lives: Sequence[Life]
    leases: Sequence[Lease]
    letters: Sequence[tuple[str, int]] = ()
    max_deliveries: int = 1000
    silence: float = 1.0
    prefetch: int = 100

    def by_message(self) -> dict[str, list[Lease]]:
        """Return each message's deliveries, in order."""
        found: dict[str, list[Lease]] = {each: [] for each in self.added}
        for lease in sorted(self.leases, key=lambda each: (each.attempt, each.got)):
            found.setdefault(lease.id, []).append(lease)
        return found

    def kills(self, after: float, before: float) -> int:
        """Return how many processes were killed between two times."""
        return sum(life.killed and after <= life.ended <= before for life in self.lives)


# --- reading -----------------------------------------------------------------------------------------------------


def read(life: Life, text: str) -> tuple[Life, list[Lease]]:
    """Return what one process wrote down: when it stood still, and its deliveries.

    A last line that is not whole was never written: the process was killed in the middle.
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
    if lease.begun is None:  # it was lost while it waited for its turn; else the handler's end says so
        lease.lost, lease.ended = True, event["at"]


def _settle(_: Life, leases: Leases, event: Any) -> None:
    for entry, grant, action in event["what"]:
        lease = leases[entry, grant]
        lease.action, lease.asked = action, min(lease.asked, event["at"])


def _settled(_: Life, leases: Leases, event: Any) -> None:
    for entry, grant, outcome in event["what"]:
        lease = leases[entry, grant]
        lease.outcome, lease.answered = outcome, event["at"]


def _end(_: Life, leases: Leases, event: Any) -> None:
    lease = leases[event["id"], event["grant"]]
    lease.told, lease.kept, lease.ended = event["told"], event["kept"], event["at"]
    lease.lost = event["lost"] and lease.outcome not in DONE  # afterwards it says nothing


def _leave(_: Life, leases: Leases, event: Any) -> None:
    for lease in leases.values():
        if not lease.action:
            lease.action, lease.asked = "release", event["at"]


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
    """Return all that can't have happened where the contract holds; nothing means that it did."""
    messages = history.by_message()
    found = [f"{each} was never added" for each in messages.keys() - set(history.added)]
    for entry, leases in messages.items():
        for judge in (lost, acked_twice, attempts, overlaps, buried):
            found += [f"{entry}: {fault}" for fault in judge(history, entry, leases)]
    for lease in history.leases:
        found += [f"{lease.id}: {fault}" for fault in (*untrue(lease), *unrenewed(history, lease))]
    return [*found, *out_of_order(history), *unseen(history, messages)]


def lost(history: History, entry: str, leases: Sequence[Lease]) -> Iterator[str]:
    """S2: each message is acked or a dead letter; an ack whose answer a killed process never read may have been one."""
    if entry in dict(history.letters) or any(each.action == "ack" and each.outcome == "DONE" for each in leases):
        return
    last = leases[-1] if leases else None
    if last is None or not (last.action == "ack" and not last.outcome and last.life.killed):
        yield f"lost: never acked, its last delivery is {last or 'none'}"


def acked_twice(_: History, __: str, leases: Sequence[Lease]) -> Iterator[str]:
    """S2, S4: an ack that was done is the end of a message: no other ack, and no delivery after it."""
    done = [number for number, each in enumerate(leases) if each.action == "ack" and each.outcome == "DONE"]
    if len(done) > 1:
        yield f"acked {len(done)} times: {', '.join(str(leases[each]) for each in done)}"
    elif done and done[0] != len(leases) - 1:
        yield f"delivered after its ack in {leases[done[0]]}: {leases[done[0] + 1]}"


def attempts(history: History, _: str, leases: Sequence[Lease]) -> Iterator[str]:
    """S5: each delivery is one attempt more, and the same where the one before was released.

    A number may be missing where a process was killed between its fetch and its writing it down: one for each process
    that was killed between the deliveries around the gap.
    """
    allowed, before = {1}, -INF
    for lease in leases:
        missing = lease.attempt - max(allowed)
        if lease.attempt not in allowed and missing < 0:
            yield f"{lease} came where {sorted(allowed)} was due"
        elif missing > history.kills(before, lease.got):
            yield f"{lease} came where {sorted(allowed)} was due, and too few were killed to explain it"
        if lease.got < before:
            yield f"{lease} came before the attempt before it"
        allowed, before = lease.next_attempts, lease.since


def overlaps(_: History, __: str, leases: Sequence[Lease]) -> Iterator[str]:
    """S2: while a process may take a message for its own, nobody else is given it."""
    for number, later in enumerate(leases):
        for earlier in leases[:number]:
            if later.got < earlier.over:
                yield f"two leases at once: {later} began {earlier.over - later.got:.3f} s before {earlier} was over"


def buried(history: History, entry: str, leases: Sequence[Lease]) -> Iterator[str]:
    """S5, S16: a dead letter is there once, was delivered often enough, and was not acked."""
    letters = [count for origin, count in history.letters if origin == entry]
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
        yield f"{leases[-1]} came beyond max_deliveries"


def untrue(lease: Lease) -> Iterator[str]:
    """S4: a handler is told that it settled a message where it did, and that it lost it where it did not."""
    if lease.told == "settled" and lease.outcome not in DONE:
        yield f"{lease} was told that it settled, and the backend said {lease.outcome or 'nothing'}"
    if lease.told == "lost" and lease.outcome in DONE:
        yield f"{lease} was told that it lost, and the backend said {lease.outcome}"
    if lease.told == "lost" and not lease.lost:
        yield f"{lease} was told that it lost, and delivery.lost was not set"


def unrenewed(history: History, lease: Lease) -> Iterator[str]:
    """S4, S12: a process that lives keeps its leases: it loses one only where it stood still."""
    if lease.lost or lease.outcome == "LOST":
        until = min(lease.ended if lease.lost and lease.ended else INF, lease.answered)
        still = lasting((max(start, lease.since), min(end, until)) for start, end in lease.life.still)
        if still < history.silence / 5:
            yield f"{lease} was lost by a process that did not stand still"


def lasting(spans: Iterable[tuple[float, float]]) -> float:
    """Return for how long there was at least one of these."""
    total, reached = 0.0, -INF
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def out_of_order(history: History) -> Iterator[str]:
    """S3: first deliveries leave in id order: what a later fetch brings comes after what an earlier one brought."""
    firsts: dict[str, Lease] = {}
    for lease in sorted(history.leases, key=lambda each: each.got):
        if lease.attempt == 1:
            firsts.setdefault(lease.id, lease)
    fetches: dict[tuple[float, float], list[Lease]] = defaultdict(list)
    for lease in firsts.values():
        fetches[lease.since, lease.got].append(lease)
    highest: list[tuple[float, tuple[int, ...], Lease]] = []  # by when the fetch was answered
    for (_, got), leases in sorted(fetches.items(), key=lambda each: each[0][1]):
        top = max(leases, key=lambda each: place(each.id))
        highest.append((got, max(place(top.id), highest[-1][1] if highest else ()), top))
    for (since, _), leases in fetches.items():
        before = [each for each in highest if each[0] < since]
        low = min(leases, key=lambda each: place(each.id))
        if before and place(low.id) < before[-1][1]:
            yield f"{low.id}: came for the first time after {'-'.join(map(str, before[-1][1]))}, which is behind it"


def place(entry: str) -> tuple[int, ...]:
    """Return an id of Redis' as it is ordered."""
    return tuple(int(part) for part in entry.split("-"))


def unseen(history: History, messages: Mapping[str, Sequence[Lease]]) -> Iterator[str]:
    """S5: all numbers that are missing fit into one fetch of each process that was killed."""
    missing = sum(max(0, gap) for leases in messages.values() for gap in gaps(leases))
    most = history.prefetch * sum(life.killed for life in history.lives)
    if missing > most:
        yield f"{missing} attempts were seen by nobody; the processes that were killed explain {most}"


def gaps(leases: Iterable[Lease]) -> Iterator[int]:
    """Return how many attempts are missing before each delivery."""
    allowed = {1}
    for lease in leases:
        yield lease.attempt - max(allowed)
        allowed = lease.next_attempts
