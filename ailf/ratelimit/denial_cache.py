"""A cache of denials: until a denied call may pass, the limiter denies it without a request to the backend (R11)."""

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from ailf.driver import LimiterKey, LimitRequest, LimitResult

__all__ = ["DenialCache"]

MAX_KEYS: Final = 4096
"""The number of keys whose denials are remembered; then the oldest is dropped."""

DRIFT: Final = 0.001
"""The share by which a denial is shortened, as the local clock may run slower than the backend's."""


class DenialCache:
    """The last denial of each key, in a budget tree of each combination of keys."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._denials: dict[LimiterKey, tuple[tuple[int, ...], float, LimitResult]] = {}

    def of(self, request: LimitRequest) -> LimitResult | None:
        """Return a denial that certainly still holds for this call: its time isn't over, and there are no refunds."""
        key = request.limiter_key
        denial = self._denials.get(key)
        if denial is None or not any(request.costs):
            return None
        costs, until, result = denial
        left = until - self._now()
        if left <= 0:
            self._denials.pop(key, None)
            return None
        if any(cost < denied for cost, denied in zip(request.costs, costs, strict=True)):
            return None
        return replace(result, retry_after=left)

    def note(self, request: LimitRequest, result: LimitResult, since: float) -> None:
        """Remember a result, if it is a denial; `since` is the time before its request was sent."""
        waits = [level.retry_after for level in result.levels if level.retry_after is not None]
        if result.allowed or result.retry_after is None or not any(waits):
            return
        if len(self._denials) >= MAX_KEYS:
            self._denials.pop(next(iter(self._denials)), None)
        self._denials[request.limiter_key] = (request.costs, since + max(waits) * (1 - DRIFT), result)
