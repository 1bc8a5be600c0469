"""The checker of histories finds each kind of fault in one made by hand, and none in what may happen."""

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


def leased(attempt: int, at: float, life: Life = ONE, **known: Any) -> Lease:
    """Return a delivery of the message "1-0" that was got then and begun at once."""
    return Lease(life=life, id="1-0", grant=attempt, attempt=attempt, since=at, got=at + 0.1, begun=at + 0.1, **known)


def asked(action: str, attempt: int, at: float, life: Life = ONE, outcome: str = "DONE") -> Lease:
    """Return one that was settled half a second after that; the answer may have to wait for the process."""
    answered = max([at + 0.6, *(end for _, end in life.still)])
    known = {"kept": at + 0.5, "ended": answered, "told": "settled" if outcome == "DONE" else "nothing"}
    return leased(attempt, at, life, action=action, asked=at + 0.5, answered=answered, outcome=outcome, **known)


def history(*leases: Lease, added: tuple[str, ...] = ("1-0",), **known: Any) -> History:
    """Return the history of these deliveries."""
    return History(added=added, lives=[ONE, TWO, KILLED, FROZEN], leases=leases, **known)


def begun(attempt: int, at: float, life: Life = ONE) -> Lease:
    """Return one whose handler never ended."""
    return leased(attempt, at, life, kept=at + 0.1)


def lost(attempt: int, at: float, life: Life, kept: float | None) -> Lease:
    """Return one that was lost in its handler's hands."""
    return leased(attempt, at, life, kept=kept, lost=True, ended=at + 2.9, told="lost")


POSSIBLE = {
    "one delivery": [asked("ack", 1, 1)],
    "a nack": [asked("nack", 1, 1), asked("ack", 2, 2, TWO)],
    "a release": [asked("release", 1, 1), asked("ack", 1, 2, TWO)],
    "a release that came too late": [asked("release", 1, 1.5, FROZEN, "LOST"), asked("ack", 2, 9, TWO)],
    "a release whose answer nobody read": [asked("release", 1, 4, KILLED, ""), asked("ack", 1, 6)],
    "a release that was killed on its way": [asked("release", 1, 4, KILLED, ""), asked("ack", 2, 6)],
    "an end in a killed process's hands": [begun(1, 4, KILLED), asked("ack", 2, 6)],
    "an end in a killed process's buffer": [attrs.evolve(begun(1, 4, KILLED), begun=None), asked("ack", 2, 6)],
    "a fetch that was killed before it was written down": [asked("ack", 2, 6)],
    "an ack whose answer a killed process never read": [asked("ack", 1, 4, KILLED, "")],
    "an ack of a killed process that never arrived": [asked("ack", 1, 4, KILLED, ""), asked("ack", 2, 6)],
    "a process that stood still": [lost(1, 1.5, FROZEN, 1.9), asked("ack", 2, 3.5, TWO)],
    "one that found out before it began": [lost(1, 1.5, FROZEN, None), asked("ack", 2, 1.7, TWO)],
    "one that lost it while it waited for its turn": [
        attrs.evolve(lost(1, 1.5, FROZEN, None), begun=None, told=""),
        asked("ack", 2, 3.5, TWO),
    ],
    "one that never said so": [begun(1, 1.5, FROZEN), asked("ack", 2, 3.5, TWO)],
    "one that asked too late": [asked("ack", 1, 1.6, FROZEN, "LOST"), asked("ack", 2, 2.5, TWO)],
}


@pytest.mark.parametrize("leases", POSSIBLE.values(), ids=POSSIBLE)
def test_what_may_happen(leases: list[Lease]) -> None:
    """What the contract allows is no fault: the checker excuses what can be explained."""
    assert faults(history(*leases)) == []


TWICE = asked("ack", 1, 1), asked("ack", 2, 3, TWO)
ALIVE = leased(1, 1, kept=2.0, ended=2.0, lost=True)
IMPOSSIBLE: dict[str, tuple[list[Lease], str]] = {
    "lost": ([], "lost: never acked"),
    "nacked and forgotten": ([asked("nack", 1, 1)], "lost: never acked"),
    "in a killed process's hands and forgotten": ([begun(1, 4, KILLED)], "lost: never acked"),
    "an unanswered ack of a living process": ([asked("ack", 1, 1, ONE, "")], "lost: never acked"),
    "acked twice": (list(TWICE), "acked 2 times"),
    "delivered after its ack": ([asked("ack", 1, 1), begun(2, 4, KILLED)], "delivered after its ack"),
    "the same attempt twice": ([asked("nack", 1, 1), asked("ack", 1, 2, TWO)], r"came where \[2\] was due"),
    "an attempt that a release counted": ([asked("release", 1, 1), asked("ack", 2, 2)], "too few were killed"),
    "a first attempt that is the second": ([asked("ack", 2, 1)], "too few were killed"),
    "two missing and one killed": ([asked("ack", 3, 6)], "too few were killed"),
    "one missing and a kill before it": ([asked("nack", 1, 6), asked("ack", 3, 8)], "too few were killed"),
    "one missing and a kill after it": ([asked("nack", 1, 1), asked("ack", 3, 3)], "too few were killed"),
    "a later attempt first": ([asked("ack", 2, 1), asked("nack", 1, 3, TWO)], "before the attempt before it"),
    "two handlers at once": ([asked("nack", 1, 1), asked("ack", 2, 1.2, TWO)], "two leases at once"),
    "a message of one that will be killed": ([begun(1, 3, KILLED), asked("ack", 2, 4.5)], "two leases at once"),
    "a message in the buffer of one that will be killed": (
        [attrs.evolve(begun(1, 3, KILLED), begun=None, kept=None), asked("ack", 2, 4.5)],
        "two leases at once",
    ),
    "one that held on to what it had lost": ([lost(1, 1.5, FROZEN, 4.3), asked("ack", 2, 3.5, TWO)], "two leases"),
    "one that found out from the answer": (
        [attrs.evolve(asked("ack", 1, 4, FROZEN, "LOST"), since=1, got=1.1), asked("ack", 2, 3.5, TWO)],
        "two leases at once",
    ),
    "overlap with an earlier one": (
        [begun(1, 1, KILLED), asked("nack", 2, 6, TWO), attrs.evolve(asked("ack", 3, 8, TWO), got=4.9)],
        "two leases at once",
    ),
    "lost by a living process": ([ALIVE, asked("ack", 2, 4, TWO)], "did not stand still"),
    "lost in its answer": ([asked("ack", 1, 1, ONE, "LOST"), asked("ack", 2, 4, TWO)], "did not stand still"),
    "lost in the buffer of a living process": (
        [attrs.evolve(lost(1, 1, ONE, None), begun=None, told=""), asked("ack", 2, 1.5, TWO)],
        "did not stand still",
    ),
    "told a lie": ([attrs.evolve(asked("ack", 1, 1.6, FROZEN, "LOST"), told="settled"), TWICE[1]], "told that it set"),
    "told another lie": ([attrs.evolve(asked("ack", 1, 1), told="lost", lost=True)], "told that it lost, and the ba"),
    "told a lie by delivery.lost": ([attrs.evolve(lost(1, 1.5, FROZEN, 1.9), lost=False), TWICE[1]], "was not set"),
    "never added": ([asked("ack", 1, 1), attrs.evolve(asked("ack", 1, 1), id="2-0")], "2-0 was never added"),
}


@pytest.mark.parametrize(("leases", "said"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_must_not_happen(leases: list[Lease], said: str) -> None:
    """Each kind of fault is found, by its name."""
    found = faults(history(*leases))
    assert any(re.search(said, each) for each in found), found


DEAD = [asked("nack", 1, 1), attrs.evolve(asked("nack", 2, 2), outcome="DEAD")]


def test_dead_letters_that_may_be() -> None:
    """A message is dead after its last delivery, or where it was rejected, and is then not lost."""
    assert faults(history(*DEAD, letters=[("1-0", 2)], max_deliveries=2)) == []
    rejected = attrs.evolve(asked("reject", 1, 1), outcome="DEAD")
    assert faults(history(rejected, letters=[("1-0", 1)], max_deliveries=2)) == []


@pytest.mark.parametrize(
    ("leases", "letters", "said"),
    [
        (DEAD, [("1-0", 2), ("1-0", 2)], "2 dead letters"),
        (DEAD, [], "no dead letter where there should be one"),
        (DEAD, [("1-0", 3)], "a dead letter after 3 deliveries instead of 2"),
        ([asked("ack", 1, 1)], [("1-0", 2)], "acked, and a dead letter"),
        ([*DEAD, asked("ack", 3, 3)], [], "came beyond max_deliveries"),
    ],
)
def test_dead_letters_that_must_not_be(leases: list[Lease], letters: list[tuple[str, int]], said: str) -> None:
    """A dead letter too many, too few, too early or too late is found."""
    found = faults(history(*leases, letters=letters, max_deliveries=2))
    assert any(said in each for each in found), found


def test_the_order_of_first_deliveries() -> None:
    """S3: a message that comes for the first time after one behind it is found, by fetches that are not at once."""
    first, second = asked("ack", 1, 1), attrs.evolve(asked("ack", 1, 2, TWO), id="2-0")
    assert faults(history(first, second, added=("1-0", "2-0"))) == []
    late = attrs.evolve(first, since=3, got=3.1, begun=3.1, asked=3.5, ended=3.6, answered=3.6, kept=3.5)
    assert faults(history(late, second, added=("1-0", "2-0"))) == [
        "1-0: came for the first time after 2-0, which is behind it"
    ]
    at_once = attrs.evolve(late, since=2.05)
    assert faults(history(at_once, second, added=("1-0", "2-0"))) == []
    again = attrs.evolve(late, attempt=2)
    assert faults(history(asked("nack", 1, 1), again, second, added=("1-0", "2-0"))) == []


def test_more_missing_than_a_fetch_brings() -> None:
    """S5: what a killed process may have fetched unseen is bounded by its prefetch."""
    leases = [attrs.evolve(asked("ack", 2, 6), id=f"{number}-0") for number in range(3)]
    added = tuple(each.id for each in leases)
    assert faults(history(*leases, added=added, prefetch=3)) == []
    assert faults(history(*leases, added=added, prefetch=2)) == [
        "3 attempts were seen by nobody; the processes that were killed explain 2"
    ]


def test_reading() -> None:
    """What a worker writes is read: what it fetched, did and was told; a line that was cut short was never written."""
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
        {"kind": "end", "at": 1.7, **this, "told": "settled", "lost": True, "kept": 1.4},
        {"kind": "leave", "at": 1.8},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    life, leases = read(ONE, text + '{"kind": "fetched", "at"')
    assert life == attrs.evolve(ONE, still=[(1.3, 1.4)])
    assert leases == [
        Lease(
            life=life, id="1-0", grant=7, attempt=1, since=1.0, got=1.1, begun=1.2, action="ack", asked=1.5,
            outcome="DONE", answered=1.6, told="settled", ended=1.7, kept=1.4, lost=False,
        ),
        Lease(life=life, id="2-0", grant=8, attempt=3, since=1.0, got=1.1, action="release", asked=1.8, answered=INF),
        Lease(
            life=life, id="3-0", grant=9, attempt=1, since=1.0, got=1.1, lost=True, ended=1.65,
            action="release", asked=1.8,
        ),
    ]  # fmt: skip


def test_a_stall_counts_once() -> None:
    """What a process and the server had to wait for at the same time is no longer for that."""
    assert lasting([(1.0, 1.5), (1.1, 1.2), (1.4, 2.0), (4.0, 3.0), (5.0, 5.25)]) == 1.25
