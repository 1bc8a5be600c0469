"""What one key of a rate limiter was charged, and the queue of waiters."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ailf.driver import LimitResult, Limits
from ailf.limits import Algorithm, Limit, State
from ailf.values import LimitState
from ailf_memory.state.wait_queue import WaitQueue

__all__ = ["LimiterState", "algorithms_of"]


def kept_under(name: str, limit: Limit) -> str:
    """Return under what a limit's state is kept: one of another `Limit.identity` has a state of its own."""
    return f"{limit.identity} {name}"


@lru_cache(maxsize=1024)
def algorithms_of(limits: Limits) -> list[tuple[str, Any]]:
    """Return under what the state of each limit is kept, and its arithmetic."""
    return [(kept_under(name, limit), limit.algorithm()) for name, limit in limits]


class LimiterState:
    """What one key was charged, by limit, and who is in line.

    Attributes:
        states: The state of each limit.
        kinds: The arithmetic by which each was charged, and under what its state is kept.
        line: Who is in line.
    """

    def __init__(self, line: WaitQueue) -> None:
        self.states: dict[str, State] = {}
        self.kinds: dict[Algorithm, str] = {}
        self.line = line

    def put(self, key: str, its: Algorithm, state: State) -> None:
        """Keep a limit's state."""
        self.states[key] = state
        self.kinds[its] = key

    def take(self, known: Sequence[tuple[str, Algorithm]], costs: Sequence[int], now_ms: int) -> LimitResult | None:
        """Let a call pass that every limit allows, as nearly all do; return None for one to be thought about."""
        after: dict[str, State] = {}
        levels, receipts = [], []
        for (key, its), cost in zip(known, costs):  # noqa: B905 - the core counts them; a third of a microsecond
            taken = its.take(self.states.get(key, ()), now_ms, cost)
            if taken is None:
                return None
            after[key], receipt, remaining, reset_ms = taken
            self.kinds[its] = key
            levels.append(LimitState(remaining, 0.0, reset_ms / 1000))
            receipts.append(receipt)
        self.states.update(after)
        return LimitResult(True, 0.0, now_ms / 1000, tuple(levels), tuple(receipts))  # noqa: FBT003 - its first field

    @property
    def ends_ms(self) -> int:
        """The time from which it is as good as fresh, for whatever limits it was charged by."""
        return max((its.ends(self.states.get(key, ())) for its, key in self.kinds.items()), default=0)

    def idle(self, now_ms: int) -> bool:
        """Tell whether nothing of it matters any more."""
        return self.ends_ms <= now_ms and self.line.head(now_ms) is None
