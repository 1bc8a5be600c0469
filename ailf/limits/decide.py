"""The joint decision of several limits on one call, all or nothing: pure, the reference for every backend."""

from collections.abc import Sequence

import msgspec

from ailf.limits.base import Algorithm, ChargeReceipt, State

__all__ = ["JointDecision", "decide"]


class JointDecision(msgspec.Struct, frozen=True):
    """The decision of several limits on one call.

    Attributes:
        allowed: Whether every limit allows the call.
        wait: The ms until every limit allows it; None for never.
        waits: The ms until each limit allows it; None for never.
        states: The state of each limit afterwards.
        receipts: The receipt of each charge; ``()`` for a limit that was not charged.
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
        limits: The arithmetic, the state and the cost of the call, for each limit.
        now: The time.
        token: The call's token, or "". Slots that a token has from an earlier attempt are released first.
        max_wait: The ms that a reservation may have to wait after it is charged; 0 for a call that begins at once.
        count_denied: Whether a denied call is charged as far as there is room.
    """
    if token:
        limits = [(limit, limit.without(state, token), cost) for limit, state, cost in limits]
    waits = [limit.wait(state, now, cost) for limit, state, cost in limits]
    wait = _longest(waits)
    allowed = wait is not None and wait <= max_wait
    states, receipts = [], []
    for number, (limit, state, requested) in enumerate(limits):
        cost = requested if allowed else min(requested, limit.remaining(state, now)) if count_denied else 0
        after, receipt = limit.charge(state, now, cost, token) if cost else (state, ())
        states.append(after)
        receipts.append(receipt)
        if cost and not allowed:
            waits[number] = limit.wait(after, now, requested)
    return JointDecision(allowed, wait if allowed else _longest(waits), tuple(waits), tuple(states), tuple(receipts))


def _longest(waits: Sequence[int | None]) -> int | None:
    longest = 0
    for wait in waits:
        if wait is None:
            return None
        longest = max(longest, wait)
    return longest
