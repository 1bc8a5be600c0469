"""The limiters' arithmetic: pure, on integers, the reference for every backend.

Time is the backend's, in milliseconds. A state is a tuple, ``()`` where nothing was ever charged. If time
steps back, the latest that a state has seen counts on (R6).

The token bucket keeps no tokens but a debt, in units of cost times the period, of which ``rate`` leaks away per
millisecond: so nothing is ever rounded. (The generic cell rate algorithm of ITU-T I.371 is the same bucket with the
debt counted in time.) It also keeps how low the debt has been since when, coarsely: a charge that is taken back later
can only give back what would still be owed without it (R7).

A limit may change while its state is there. A debt above the capacity is one of two things: it was charged by this
limit, in advance or beyond what there was, and then it counts; or by a larger one, and then no more of it counts than
the capacity, from when it was charged (R12). A mark at its end tells which limit made it.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from ailf.limits import LARGEST, Concurrency, FixedWindow, Limit, SlidingWindow, TokenBucket

__all__ = ["Algorithm", "Mark", "Slots", "State", "algorithm"]

State: TypeAlias = tuple[Any, ...]
Mark: TypeAlias = tuple[Any, ...]
"""What a charge is remembered by when it is settled."""

Taken: TypeAlias = tuple[State, Mark, int, int]
"""What became of a charge that passed: the state, its mark, what remains, ms until it is as good as fresh."""

FLOORS: Final = 4
"""How many lows of a bucket's debt are remembered."""


class Algorithm(ABC):
    """One limit's arithmetic.

    Attributes:
        capacity: The largest cost that can ever pass.
    """

    capacity: int

    @abstractmethod
    def remaining(self, state: State, now: int) -> int:
        """Return the largest cost that passes now (R4)."""

    @abstractmethod
    def ends(self, state: State) -> int:
        """Return the time from which the state is as good as fresh; 0 for a fresh one."""

    @abstractmethod
    def wait(self, state: State, now: int, cost: int) -> int | None:
        """Return after how many ms a cost passes if nothing else happens: 0 for now, None for never (R3)."""

    @abstractmethod
    def charge(self, state: State, now: int, cost: int, token: str) -> tuple[State, Mark]:
        """Charge a cost, whether it fits or not; the token tells whose it is."""

    def take(self, state: State, now: int, cost: int) -> "Taken | None":
        """Charge a cost, which isn't 0 and nobody's, if it passes now; return None if it doesn't.

        It says in one step what `wait`, `charge`, `remaining` and `ends` say, as nearly every call is one that passes.
        """
        if self.wait(state, now, cost) != 0:
            return None
        after, mark = self.charge(state, now, cost, "")
        return after, mark, self.remaining(after, now), self.ends(after) - now

    @abstractmethod
    def settle(self, state: State, now: int, mark: Mark, charged: int, actual: int) -> State:
        """Return the state as though ``actual`` had been charged instead, when it was (R7)."""

    @abstractmethod
    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        """Return a state that lets no more pass than this; it never lets more pass than before.

        Arguments:
            state: What is known.
            now: The time.
            remaining: What may pass now; None where that isn't known.
            reset_ms: How long it is at least until everything may pass again, for a bucket.
            pause_ms: How long nothing may pass, for a bucket.
        """

    def true_up(self, state: State, now: int, token: str, mark: Mark, charged: int, actual: int) -> State:
        """Return the state as `settle` does; a call that was charged nothing is charged now."""
        if charged:
            return self.settle(state, now, mark or (token,), charged, actual)
        return self.charge(state, now, actual, token)[0] if actual else state

    def without(self, state: State, token: str) -> State:
        """Return the state without what somebody has who asks again."""
        return state


class Bucket(Algorithm):
    """`TokenBucket`: a state is (time, debt, age of a low, low, age, low, …), the lows and their times rising.

    Where the debt is above the capacity, a text follows: the limit that made it.
    """

    def __init__(self, limit: TokenBucket) -> None:
        self.rate, self.per, self.capacity = limit.unit_rate, limit.unit_ms, limit.burst
        self.full = self.capacity * self.per
        self.mark = f"{self.rate},{self.capacity}"

    def _mine(self, state: State) -> State:
        """Return a state without the text, and with no more debt than this limit can have made (R12)."""
        if not len(state) % 2 and (not state or state[1] <= self.full):
            return state
        numbers = state[:-1] if len(state) % 2 else state
        return numbers if state[-1] == self.mark or numbers[1] <= self.full else (numbers[0], self.full, *numbers[2:])

    def _marked(self, state: State) -> State:
        """Return a state as it is kept: with whose debt it is, where that is above the capacity."""
        return (*state, self.mark) if state[1] > self.full else state

    def _at(self, state: State, now: int) -> tuple[int, int]:
        """Return the time that counts, and the debt then; of a state as `_mine` returns it."""
        if not state:
            return now, 0
        latest, debt = state[0], state[1]
        if latest >= now:
            return latest, debt
        left = debt - self.rate * (now - latest)
        return now, left if left > 0 else 0

    def remaining(self, state: State, now: int) -> int:
        left = self.full - self._at(self._mine(state), now)[1]
        return left // self.per if left > 0 else 0

    def ends(self, state: State) -> int:
        state = self._mine(state)
        return state[0] - -state[1] // self.rate if state else 0

    def wait(self, state: State, now: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        latest, debt = self._at(self._mine(state), now)
        over = debt + cost * self.per - self.full
        return latest - now - -over // self.rate if cost and over > 0 else 0

    def charge(self, state: State, now: int, cost: int, token: str) -> tuple[State, Mark]:
        state = self._mine(state)
        latest, debt = self._at(state, now)
        raised = self._raise(state, latest, debt, debt + cost * self.per)
        return self._marked(raised), (latest, raised[1])

    def take(self, state: State, now: int, cost: int) -> Taken | None:
        if state and (state[1] > self.full or len(state) % 2):
            state = self._mine(state)
        latest, debt = self._at(state, now)
        target = debt + cost * self.per
        left = self.full - target
        if left < 0:
            return None
        after = self._raise(state, latest, debt, target) if debt else (latest, target, 0, 0)
        return after, (latest, target), left // self.per, latest - -target // self.rate - now

    def _raise(self, state: State, latest: int, debt: int, target: int) -> State:
        """Raise the debt, after noting how low it was."""
        target = min(target, LARGEST)
        if not debt:  # no low is lower
            return latest, target, 0, 0
        if state[0] == latest and state[-2] == 0 and state[-1] < debt:  # it was noted in this tick
            return latest, target, *state[2:]
        lows = [low for low in _lows(state) if low[1] < debt]
        if not lows or lows[-1][0] < latest:
            lows.append((latest, debt))
        if len(lows) > FLOORS:  # join the two that differ least: the lower one counts for both
            steps = [higher[1] - lower[1] for lower, higher in itertools.pairwise(lows)]
            at = steps.index(min(steps))
            lows[at : at + 2] = [(lows[at + 1][0], lows[at][1])]
        return _with_lows(latest, target, lows)

    def settle(self, state: State, now: int, mark: Mark, charged: int, actual: int) -> State:
        since, owed = mark
        kept, state = state, self._mine(state)
        more = (actual - charged) * self.per
        if more >= 0:
            # It counts from then on, so some of it may have leaked away meanwhile. Where nothing is stored any more,
            # all that can be known is that this charge alone has.
            latest = max(now, state[0] if state else since)
            leaked = self.rate * (latest - (state[0] if state else since))
            base = state[1] if state else owed
            added = max(0, base + more - leaked) - max(0, base - leaked)
            if not added:
                return kept
            return self._marked(_with_lows(latest, min(self._at(state, latest)[1] + added, LARGEST), _lows(state)))
        if not state:
            return kept
        latest, debt = self._at(state, now)
        lows = _lows(state)
        back = min([-more, debt, *(low for time, low in lows if time > since)])
        lowered = [(time, low if time <= since else max(0, low - back)) for time, low in lows]
        left = [each for each, after in zip(lowered, [*lowered[1:], (0, LARGEST)], strict=True) if each[1] < after[1]]
        return self._marked(_with_lows(latest, debt - back, left))

    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        kept, state = state, self._mine(state)
        latest, debt = self._at(state, now)
        target = max(
            debt,
            0 if remaining is None else self.full - min(remaining, self.capacity) * self.per,
            self.rate * reset_ms,
            self.full - self.per + self.rate * pause_ms if pause_ms else 0,
        )
        return self._marked(self._raise(state, latest, debt, target)) if target > debt else kept


def _lows(state: State) -> list[tuple[int, int]]:
    """Return a bucket's lows with their times."""
    return [(state[0] - age, low) for age, low in zip(state[2::2], state[3::2], strict=True)]


def _with_lows(latest: int, debt: int, lows: Sequence[tuple[int, int]]) -> State:
    return (latest, debt, *(number for time, low in lows for number in (latest - time, low)))


class Fixed(Algorithm):
    """`FixedWindow`: a state is (begin of the window, what was charged in it)."""

    def __init__(self, limit: FixedWindow) -> None:
        self.per, self.capacity = limit.per_ms, limit.limit

    def _at(self, state: State, now: int) -> tuple[int, int]:
        """Return the begin of the window that counts, and what was charged in it."""
        begin = now - now % self.per
        return (state[0], state[1]) if state and state[0] >= begin else (begin, 0)

    def remaining(self, state: State, now: int) -> int:
        return max(0, self.capacity - self._at(state, now)[1])

    def ends(self, state: State) -> int:
        return state[0] + self.per if state and state[1] else 0

    def wait(self, state: State, now: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        begin, used = self._at(state, now)
        return begin + self.per - now if cost and used + cost > self.capacity else 0

    def charge(self, state: State, now: int, cost: int, token: str) -> tuple[State, Mark]:
        begin, used = self._at(state, now)
        return (begin, min(used + cost, LARGEST)), (begin,)

    def take(self, state: State, now: int, cost: int) -> Taken | None:
        begin, used = self._at(state, now)
        left = self.capacity - used - cost
        return None if left < 0 else ((begin, used + cost), (begin,), left, begin + self.per - now)

    def settle(self, state: State, now: int, mark: Mark, charged: int, actual: int) -> State:
        begin, used = self._at(state, now)
        if mark[0] != begin or not (state or actual > charged):
            return state
        return begin, max(0, min(used + actual - charged, LARGEST))

    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        begin, used = self._at(state, now)
        target = self.capacity - min(_left(remaining, pause_ms, self.capacity), self.capacity)
        return (begin, target) if target > used else state


class Sliding(Algorithm):
    """`SlidingWindow`: a state is (time of the last charge, what was charged in its bucket, in the one before, …).

    Of the newest bucket it is known when its last charge was made, so no wait is longer than the window.
    """

    def __init__(self, limit: SlidingWindow) -> None:
        self.width, self.per, self.capacity = limit.width_ms, limit.per_ms, limit.limit

    def _gone(self, last: int, bucket: int) -> int:
        """Return the time from which a bucket counts no more, given when the last charge of all was made."""
        return min(last, (bucket + 1) * self.width - 1) + self.per

    def _at(self, state: State, now: int) -> tuple[int, dict[int, int]]:
        """Return the time that counts, and what was charged in the buckets that do, the newest first."""
        if not state:
            return now, {}
        last = state[0]
        latest, newest = max(now, last), last // self.width
        counted = {newest - age: count for age, count in enumerate(state[1:])}
        return latest, {bucket: count for bucket, count in counted.items() if self._gone(last, bucket) > latest}

    def remaining(self, state: State, now: int) -> int:
        return max(0, self.capacity - sum(self._at(state, now)[1].values()))

    def ends(self, state: State) -> int:
        newest = state[0] // self.width if state else 0
        return next((self._gone(state[0], newest - age) for age, count in enumerate(state[1:]) if count), 0)

    def wait(self, state: State, now: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        _, counted = self._at(state, now)
        over = sum(counted.values()) + cost - self.capacity
        if not cost or over <= 0:
            return 0
        for bucket in sorted(counted):
            over -= counted[bucket]
            if over <= 0:
                return self._gone(state[0], bucket) - now
        raise AssertionError("a cost within the capacity passes when every bucket is gone")

    def charge(self, state: State, now: int, cost: int, token: str) -> tuple[State, Mark]:
        latest, counted = self._at(state, now)
        bucket = latest // self.width
        return self._add(latest, counted, bucket, cost), (bucket,)

    def take(self, state: State, now: int, cost: int) -> Taken | None:
        if not state or now >= state[0] + self.per:
            return super().take((), now, cost)
        last = state[0]
        latest, known = max(now, last), last // self.width
        newest, oldest = latest // self.width, (latest + 1 - self.per) // self.width
        counts = state[1 : max(1, known - oldest + 2)]  # the others are gone
        left = self.capacity - sum(counts) - cost
        if left < 0:
            return None
        older = counts[1:] if newest == known else ((0,) * (newest - known - 1) + counts)
        counts = (cost + (counts[0] if newest == known else 0), *older)
        while not counts[-1]:
            counts = counts[:-1]
        return (latest, *counts), (newest,), left, latest + self.per - now

    def _add(self, last: int, counted: dict[int, int], bucket: int, cost: int) -> State:
        """Return the state with a cost in a bucket, where the last charge of all was made then."""
        counted[bucket] = max(0, min(counted.get(bucket, 0) + cost, LARGEST))
        first = max(min(counted), (last + 1 - self.per) // self.width)  # those before it are gone
        counts = [counted.get(each, 0) for each in range(last // self.width, first - 1, -1)]
        while len(counts) > 1 and not counts[-1]:
            counts.pop()
        return (last, *counts)

    def settle(self, state: State, now: int, mark: Mark, charged: int, actual: int) -> State:
        latest, counted = self._at(state, now)
        bucket = mark[0]
        end = (bucket + 1) * self.width - 1
        last = state[0] if state and state[0] // self.width >= bucket else end
        if self._gone(last, bucket) <= latest or not (state or actual > charged):
            return state
        return self._add(last, counted, bucket, actual - charged)

    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        latest, counted = self._at(state, now)
        over = self.remaining(state, now) - _left(remaining, pause_ms, self.capacity)
        return self._add(latest, counted, latest // self.width, over) if over > 0 else state


def _left(remaining: int | None, pause_ms: int, capacity: int) -> int:
    """Return what may pass of a window that nothing more is known of."""
    return 0 if pause_ms else capacity if remaining is None else remaining


class Slots(Algorithm):
    """`Concurrency`: a state is (end of a lease, whose it is) for each, the first to end first.

    What is settled is all or nothing: a call keeps its places, or gives them back.
    """

    def __init__(self, limit: Concurrency) -> None:
        self.capacity, self.ttl = limit.limit, limit.ttl_ms

    def remaining(self, state: State, now: int) -> int:
        return max(0, self.capacity - len([end for end, _ in state if end > now]))

    def ends(self, state: State) -> int:
        return int(state[-1][0]) if state else 0

    def wait(self, state: State, now: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        ends: list[int] = [end for end, _ in state if end > now]
        over = len(ends) + cost - self.capacity
        return ends[over - 1] - now if cost and over > 0 else 0

    def charge(self, state: State, now: int, cost: int, token: str) -> tuple[State, Mark]:
        alive = [each for each in state if each[0] > now]
        return tuple(sorted([*alive, *[(now + self.ttl, token)] * cost])), (token,)

    def settle(self, state: State, now: int, mark: Mark, charged: int, actual: int) -> State:
        return state if actual else self.without(state, *mark)

    def observe(self, state: State, now: int, remaining: int | None, reset_ms: int, pause_ms: int) -> State:
        return state

    def without(self, state: State, token: str) -> State:
        return tuple(each for each in state if each[1] != token)

    def extend(self, state: State, now: int, token: str) -> State | None:
        """Return the state with a token's leases begun anew; None where one of them has ended."""
        if not any(each[1] == token and each[0] > now for each in state):
            return None
        return tuple(sorted((now + self.ttl, token) if each[1] == token else each for each in state))


def algorithm(limit: Limit) -> Algorithm:
    """Return the arithmetic of a limit."""
    if isinstance(limit, TokenBucket):
        return Bucket(limit)
    if isinstance(limit, FixedWindow):
        return Fixed(limit)
    return Sliding(limit) if isinstance(limit, SlidingWindow) else Slots(limit)
