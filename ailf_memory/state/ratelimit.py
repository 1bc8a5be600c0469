"""The state of one key of a rate limiter: the state of each limit, and the wait queue. *Now* is an argument."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ailf.driver import LimitResult, Limits
from ailf.limits import Algorithm, Limit, State
from ailf.values import LimitState
from ailf_memory.state.wait_queue import WaitQueue

__all__ = ["LimiterState", "algorithms_of"]


def kept_under(name: str, limit: Limit) -> str:
    """Return the name under which a limit's state is kept: each `Limit.identity` has a state of its own."""
    return f"{limit.identity} {name}"


@lru_cache(maxsize=1024)
def algorithms_of(limits: Limits) -> list[tuple[str, Any]]:
    """Return, for each limit, the name under which its state is kept, and its algorithm."""
    return [(kept_under(name, limit), limit.algorithm()) for name, limit in limits]


class LimiterState:
    """One key of a limiter.

    Attributes:
        states: The state of each limit.
        kinds: The algorithms that have charged the key, each with the name under which its state is kept.
        queue: The wait queue.
    """

    def __init__(self, queue: WaitQueue) -> None:
        self.states: dict[str, State] = {}
        self.kinds: dict[Algorithm, str] = {}
        self.queue = queue

    def put(self, key: str, algorithm: Algorithm, state: State) -> None:
        """Store the state of a limit."""
        self.states[key] = state
        self.kinds[algorithm] = key

    def take(
        self, algorithms: Sequence[tuple[str, Algorithm]], costs: Sequence[int], now_ms: int
    ) -> LimitResult | None:
        """Fast path: charge a call if every limit allows it now, as for nearly all calls; else return None."""
        after: dict[str, State] = {}
        levels, receipts = [], []
        for (key, algorithm), cost in zip(algorithms, costs):  # noqa: B905 - the core checks that; saves 0.3 µs
            taken = algorithm.take(self.states.get(key, ()), now_ms, cost)
            if taken is None:
                return None
            after[key], receipt, remaining, reset_ms = taken
            self.kinds[algorithm] = key
            levels.append(LimitState(remaining, 0.0, reset_ms / 1000))
            receipts.append(receipt)
        self.states.update(after)
        return LimitResult(True, 0.0, now_ms / 1000, tuple(levels), tuple(receipts))  # noqa: FBT003 - its first field

    @property
    def ends_ms(self) -> int:
        """The time from which all limits are back at full capacity."""
        return max((each.ends(self.states.get(key, ())) for each, key in self.kinds.items()), default=0)

    def idle(self, now_ms: int) -> bool:
        """Tell whether all limits are at full capacity and no live waiter is in the queue."""
        return self.ends_ms <= now_ms and self.queue.first_alive(now_ms) is None
