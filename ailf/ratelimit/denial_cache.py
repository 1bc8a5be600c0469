"""Denials that a limiter remembers, so that it need not ask the backend again before the call may pass (R11)."""

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from ailf.driver import LimitRequest, LimitResult

__all__ = ["DenialCache"]

REMEMBERED: Final = 4096
"""How many keys' denials are remembered."""

DRIFT: Final = 0.001
"""The share of a denial that is left out, as this process's clock may run faster than the backend's."""


class DenialCache:
    """The last denial of each key."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._known: dict[str, tuple[tuple[int, ...], float, LimitResult]] = {}

    def of(self, request: LimitRequest) -> LimitResult | None:
        """Return a denial that certainly still holds for this call: nothing is given back, and it isn't time."""
        key = request.limiter_key.key
        known = self._known.get(key)
        if known is None or not any(request.costs):
            return None
        costs, until, result = known
        left = until - self._now()
        if left <= 0:
            self._known.pop(key, None)
            return None
        if any(mine < denied for mine, denied in zip(request.costs, costs, strict=True)):
            return None
        return replace(result, retry_after=left)

    def note(self, request: LimitRequest, result: LimitResult, since: float) -> None:
        """Remember a ruling that was asked for at this time, if it is a denial."""
        waits = [level.retry_after for level in result.levels if level.retry_after is not None]
        if result.allowed or result.retry_after is None or not any(waits):
            return
        if len(self._known) >= REMEMBERED:
            self._known.pop(next(iter(self._known)), None)
        self._known[request.limiter_key.key] = (request.costs, since + max(waits) * (1 - DRIFT), result)
