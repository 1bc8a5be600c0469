"""What several limits decide together: pure, the reference for every backend."""

from collections.abc import Sequence

import msgspec

from ailf.limits.base import Algorithm, ChargeReceipt, State

__all__ = ["JointDecision", "decide"]


class JointDecision(msgspec.Struct, frozen=True):
    """What becomes of a call that several limits must allow.

    Attributes:
        allowed: Whether all did.
        wait: After how many ms all do; None for never.
        waits: The same for each limit.
        states: Their states afterwards.
        marks: What each charge is remembered by.
    """

    allowed: bool
    wait: int | None
    waits: tuple[int | None, ...]
    states: tuple[State, ...]
    receipts: tuple[ChargeReceipt, ...]


def decide(
    limits: Sequence[tuple[Algorithm, State, int]],
    now: int,
    token: str,
    *,
    max_wait: int = 0,
    count_denied: bool = False,
) -> JointDecision:
    """Decide on a call, all or nothing (R1).

    Arguments:
        limits: Each limit, its state, and what the call costs of it.
        now: The time.
        token: Whose call it is.
        max_wait: How many ms it may have to wait after it is charged: a reservation.
        count_denied: Whether a denied call is charged all the same, as far as there is room.
    """
    if token:
        limits = [(limit, limit.without(state, token), cost) for limit, state, cost in limits]
    waits = [limit.wait(state, now, cost) for limit, state, cost in limits]
    wait = _longest(waits)
    allowed = wait is not None and wait <= max_wait
    states, receipts = [], []
    for number, (limit, state, asked) in enumerate(limits):
        cost = asked if allowed else min(asked, limit.remaining(state, now)) if count_denied else 0
        after, receipt = limit.charge(state, now, cost, token) if cost else (state, ())
        states.append(after)
        receipts.append(receipt)
        if cost and not allowed:
            waits[number] = limit.wait(after, now, asked)
    return JointDecision(allowed, wait if allowed else _longest(waits), tuple(waits), tuple(states), tuple(receipts))


def _longest(waits: Sequence[int | None]) -> int | None:
    longest = 0
    for wait in waits:
        if wait is None:
            return None
        longest = max(longest, wait)
    return longest
