"""The checker of histories finds each kind of fault in a history made by hand, and none in a correct one."""

import json
import re
from typing import Any

import attrs
import pytest

from tests.ailf_redis.stream.histories import INF, History, Lease, Life, faults, lasting, read

ONE = Life(name="one")
TWO = Life(name="two")
KILLED = Life(name="killed", fate="killed", ended=5.0)
FROZEN = Life(name="frozen", still=[(2.0, 4.0)])


def leased(attempt: int, at: float, life: Life = ONE, **fields: Any) -> Lease:
    """Return a delivery of the message "1-0" that was fetched at `at` and begun at once."""
    return Lease(life=life, id="1-0", grant=attempt, attempt=attempt, since=at, got=at + 0.1, begun=at + 0.1, **fields)


def settled(action: str, attempt: int, at: float, life: Life = ONE, outcome: str = "DONE") -> Lease:
    """Return a delivery that was settled half a second later; a frozen process reads the reply when it goes on."""
    answered = max([at + 0.6, *(end for _, end in life.still)])
    fields = {"kept": at + 0.5, "ended": answered, "result": "settled" if outcome == "DONE" else "nothing"}
    return leased(attempt, at, life, action=action, requested=at + 0.5, answered=answered, outcome=outcome, **fields)


def history(*leases: Lease, added: tuple[str, ...] = ("1-0",), **fields: Any) -> History:
    """Return the history of these deliveries."""
    return History(added=added, lives=[ONE, TWO, KILLED, FROZEN], leases=leases, **fields)


def begun(attempt: int, at: float, life: Life = ONE) -> Lease:
    """Return a delivery whose handler never ended."""
    return leased(attempt, at, life, kept=at + 0.1)


def lost(attempt: int, at: float, life: Life, kept: float | None) -> Lease:
    """Return a delivery that was lost while its handler ran."""
    return leased(attempt, at, life, kept=kept, lost=True, ended=at + 2.9, result="lost")


POSSIBLE = {
    "one delivery": [settled("ack", 1, 1)],
    "a nack": [settled("nack", 1, 1), settled("ack", 2, 2, TWO)],
    "a release": [settled("release", 1, 1), settled("ack", 1, 2, TWO)],
    "a release that came too late": [settled("release", 1, 1.5, FROZEN, "LOST"), settled("ack", 2, 9, TWO)],
    "a release whose reply was never read": [settled("release", 1, 4, KILLED, ""), settled("ack", 1, 6)],
    "a release that was killed on its way": [settled("release", 1, 4, KILLED, ""), settled("ack", 2, 6)],
    "killed while the handler ran": [begun(1, 4, KILLED), settled("ack", 2, 6)],
    "killed while it was in the buffer": [attrs.evolve(begun(1, 4, KILLED), begun=None), settled("ack", 2, 6)],
    "killed before the fetch was recorded": [settled("ack", 2, 6)],
    "an ack whose reply a killed process never read": [settled("ack", 1, 4, KILLED, "")],
    "an ack of a killed process that never arrived": [settled("ack", 1, 4, KILLED, ""), settled("ack", 2, 6)],
    "a process that stood still": [lost(1, 1.5, FROZEN, 1.9), settled("ack", 2, 3.5, TWO)],
    "lost before the handler began": [lost(1, 1.5, FROZEN, None), settled("ack", 2, 1.7, TWO)],
    "lost while it waited for a handler": [
        attrs.evolve(lost(1, 1.5, FROZEN, None), begun=None, result=""),
        settled("ack", 2, 3.5, TWO),
    ],
    "lost without a record": [begun(1, 1.5, FROZEN), settled("ack", 2, 3.5, TWO)],
    "killed after it stood still between its handler and the settlement": [
        leased(1, 1, attrs.evolve(FROZEN, fate="killed", ended=5.0), kept=1.9, ended=1.9, result="nothing"),
        settled("ack", 2, 3.5, TWO),
    ],
    "an ack that came too late": [settled("ack", 1, 1.6, FROZEN, "LOST"), settled("ack", 2, 2.5, TWO)],
}


@pytest.mark.parametrize("leases", POSSIBLE.values(), ids=POSSIBLE)
def test_what_may_happen(leases: list[Lease]) -> None:
    """A history that the contract allows has no fault."""
    assert faults(history(*leases)) == []


TWICE = settled("ack", 1, 1), settled("ack", 2, 3, TWO)
ALIVE = leased(1, 1, kept=2.0, ended=2.0, lost=True)
IMPOSSIBLE: dict[str, tuple[list[Lease], str]] = {
    "lost": ([], "lost: never acked"),
    "nacked and never delivered again": ([settled("nack", 1, 1)], "lost: never acked"),
    "killed while the handler ran, and never delivered again": ([begun(1, 4, KILLED)], "lost: never acked"),
    "an unanswered ack of a living process": ([settled("ack", 1, 1, ONE, "")], "lost: never acked"),
    "acked twice": (list(TWICE), "acked 2 times"),
    "delivered after its ack": ([settled("ack", 1, 1), begun(2, 4, KILLED)], "delivered after its ack"),
    "the same attempt twice": ([settled("nack", 1, 1), settled("ack", 1, 2, TWO)], r"instead of \[2\]"),
    "an attempt that a release counted": ([settled("release", 1, 1), settled("ack", 2, 2)], "too few were killed"),
    "a first attempt that is the second": ([settled("ack", 2, 1)], "too few were killed"),
    "two missing and one killed": ([settled("ack", 3, 6)], "too few were killed"),
    "one missing and a kill before it": ([settled("nack", 1, 6), settled("ack", 3, 8)], "too few were killed"),
    "one missing and a kill after it": ([settled("nack", 1, 1), settled("ack", 3, 3)], "too few were killed"),
    "a later attempt first": ([settled("ack", 2, 1), settled("nack", 1, 3, TWO)], "before the attempt before it"),
    "two handlers at once": ([settled("nack", 1, 1), settled("ack", 2, 1.2, TWO)], "two leases at once"),
    "a message of a process before it is killed": ([begun(1, 3, KILLED), settled("ack", 2, 4.5)], "two leases at once"),
    "a message in the buffer of a process before it is killed": (
        [attrs.evolve(begun(1, 3, KILLED), begun=None, kept=None), settled("ack", 2, 4.5)],
        "two leases at once",
    ),
    "a handler that went on after the loss": ([lost(1, 1.5, FROZEN, 4.3), settled("ack", 2, 3.5, TWO)], "two leases"),
    "a loss that only the reply revealed": (
        [attrs.evolve(settled("ack", 1, 4, FROZEN, "LOST"), since=1, got=1.1), settled("ack", 2, 3.5, TWO)],
        "two leases at once",
    ),
    "overlap with an earlier one": (
        [begun(1, 1, KILLED), settled("nack", 2, 6, TWO), attrs.evolve(settled("ack", 3, 8, TWO), got=4.9)],
        "two leases at once",
    ),
    "lost by a living process": ([ALIVE, settled("ack", 2, 4, TWO)], "did not stand still"),
    "handled by a living process, and never settled": (
        [leased(1, 1, kept=1.9, ended=1.9, result="nothing"), settled("ack", 2, 3.5, TWO)],
        "two leases at once",
    ),
    "lost according to the reply": (
        [settled("ack", 1, 1, ONE, "LOST"), settled("ack", 2, 4, TWO)],
        "did not stand still",
    ),
    "lost in the buffer of a living process": (
        [attrs.evolve(lost(1, 1, ONE, None), begun=None, result=""), settled("ack", 2, 1.5, TWO)],
        "did not stand still",
    ),
    "settled by its result, lost by the reply": (
        [attrs.evolve(settled("ack", 1, 1.6, FROZEN, "LOST"), result="settled"), TWICE[1]],
        "handler as settled",
    ),
    "lost by its result, settled by the reply": (
        [attrs.evolve(settled("ack", 1, 1), result="lost", lost=True)],
        "handler as lost, but its out",
    ),
    "lost by its result, not by delivery.lost": (
        [attrs.evolve(lost(1, 1.5, FROZEN, 1.9), lost=False), TWICE[1]],
        "was not set",
    ),
    "never added": ([settled("ack", 1, 1), attrs.evolve(settled("ack", 1, 1), id="2-0")], "2-0 was never added"),
}


@pytest.mark.parametrize(("leases", "fault"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_must_not_happen(leases: list[Lease], fault: str) -> None:
    """Each kind of fault is found and named."""
    reports = faults(history(*leases))
    assert any(re.search(fault, each) for each in reports), reports


DEAD = [settled("nack", 1, 1), attrs.evolve(settled("nack", 2, 2), outcome="DEAD")]


def test_dead_letters_that_may_be() -> None:
    """A message may be a dead letter after its last delivery or when it is rejected; then it isn't lost."""
    assert faults(history(*DEAD, dead_letters=[("1-0", 2)], max_deliveries=2)) == []
    rejected = attrs.evolve(settled("reject", 1, 1), outcome="DEAD")
    assert faults(history(rejected, dead_letters=[("1-0", 1)], max_deliveries=2)) == []


@pytest.mark.parametrize(
    ("leases", "letters", "fault"),
    [
        (DEAD, [("1-0", 2), ("1-0", 2)], "2 dead letters"),
        (DEAD, [], "no dead letter where there should be one"),
        (DEAD, [("1-0", 3)], "a dead letter after 3 deliveries instead of 2"),
        ([settled("ack", 1, 1)], [("1-0", 2)], "acked, and a dead letter"),
        ([*DEAD, settled("ack", 3, 3)], [], "is beyond max_deliveries"),
    ],
)
def test_dead_letters_that_must_not_be(leases: list[Lease], letters: list[tuple[str, int]], fault: str) -> None:
    """A dead letter too many, too few, too early or too late is found."""
    reports = faults(history(*leases, dead_letters=letters, max_deliveries=2))
    assert any(fault in each for each in reports), reports


def test_the_order_of_first_deliveries() -> None:
    """S3: a first delivery after that of a higher id is a fault, if the fetches don't overlap."""
    first, second = settled("ack", 1, 1), attrs.evolve(settled("ack", 1, 2, TWO), id="2-0")
    assert faults(history(first, second, added=("1-0", "2-0"))) == []
    late = attrs.evolve(first, since=3, got=3.1, begun=3.1, requested=3.5, ended=3.6, answered=3.6, kept=3.5)
    assert faults(history(late, second, added=("1-0", "2-0"))) == ["1-0: first delivered after 2-0, which is behind it"]
    at_once = attrs.evolve(late, since=2.05)
    assert faults(history(at_once, second, added=("1-0", "2-0"))) == []
    again = attrs.evolve(late, attempt=2)
    assert faults(history(settled("nack", 1, 1), again, second, added=("1-0", "2-0"))) == []


def test_more_missing_than_a_fetch_brings() -> None:
    """S5: the unrecorded deliveries of a killed process are bounded by its prefetch."""
    leases = [attrs.evolve(settled("ack", 2, 6), id=f"{number}-0") for number in range(3)]
    added = tuple(each.id for each in leases)
    assert faults(history(*leases, added=added, prefetch=3)) == []
    assert faults(history(*leases, added=added, prefetch=2)) == [
        "3 attempts were not recorded; the killed processes explain 2"
    ]


def test_reading() -> None:
    """The lines of a worker are read as deliveries; a last line that was cut short is ignored."""
    this = {"id": "1-0", "grant": 7}
    claims = [["1-0", 7, 1], ["2-0", 8, 3], ["3-0", 9, 1]]
    lines = [
        {"kind": "fetched", "at": 1.1, "since": 1.0, "claims": claims, "dead": []},
        {"kind": "begin", "at": 1.2, **this, "kept": 1.2},
        {"kind": "stalled", "at": 1.4, "since": 1.3},
        {"kind": "settle", "at": 1.5, "what": [["1-0", 7, "ack"]]},
        {"kind": "settle", "at": 1.55, "what": [["1-0", 7, "ack"]]},
        {"kind": "settled", "at": 1.6, "what": [["1-0", 7, "DONE"]]},
        {"kind": "missed", "at": 1.65, "id": "3-0", "grant": 9},
        {"kind": "missed", "at": 1.65, **this},
        {"kind": "end", "at": 1.7, **this, "result": "settled", "lost": True, "kept": 1.4},
        {"kind": "leave", "at": 1.8},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    life, leases = read(ONE, text + '{"kind": "fetched", "at"')
    assert life == attrs.evolve(ONE, still=[(1.3, 1.4)])
    assert leases == [
        Lease(
            life=life, id="1-0", grant=7, attempt=1, since=1.0, got=1.1, begun=1.2, action="ack", requested=1.5,
            outcome="DONE", answered=1.6, result="settled", ended=1.7, kept=1.4, lost=False,
        ),
        Lease(
            life=life, id="2-0", grant=8, attempt=3, since=1.0, got=1.1, action="release", requested=1.8, answered=INF,
        ),
        Lease(
            life=life, id="3-0", grant=9, attempt=1, since=1.0, got=1.1, lost=True, ended=1.65,
            action="release", requested=1.8,
        ),
    ]  # fmt: skip


def test_reading_a_loss_after_the_handler() -> None:
    """A lease that ends between its handler and the settlement is lost when the process notices it."""
    this = {"id": "1-0", "grant": 7}
    lines = [
        {"kind": "fetched", "at": 1.1, "since": 1.0, "claims": [["1-0", 7, 1]], "dead": []},
        {"kind": "begin", "at": 1.2, **this, "kept": 1.2},
        {"kind": "end", "at": 1.9, **this, "result": "nothing", "lost": False, "kept": 1.9},
        {"kind": "stalled", "at": 4.0, "since": 2.0},
        {"kind": "missed", "at": 4.1, **this},
        {"kind": "leave", "at": 9.0},
    ]
    life, [lease] = read(ONE, "".join(json.dumps(line) + "\n" for line in lines))
    assert (lease.lost, lease.ended, lease.over) == (True, 4.1, 1.9)
    again = settled("ack", 2, 3.5, TWO)
    assert faults(History(added=["1-0"], lives=[life, TWO], leases=[lease, again])) == []


def test_a_stall_counts_once() -> None:
    """Stalls of a process and of the server that overlap count once."""
    assert lasting([(1.0, 1.5), (1.1, 1.2), (1.4, 2.0), (4.0, 3.0), (5.0, 5.25)]) == 1.25
