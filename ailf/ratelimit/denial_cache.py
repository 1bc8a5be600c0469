"""Denials that a limiter remembers, so that it need not ask the backend again before the call may pass (R11)."""

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from ailf.driver import Demand, Ruling

__all__ = ["Denials"]

REMEMBERED: Final = 4096
"""How many keys' denials are remembered."""

DRIFT: Final = 0.001
"""The share of a denial that is left out, as this process's clock may run faster than the backend's."""


class Denials:
    """The last denial of each key."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._known: dict[str, tuple[tuple[int, ...], float, Ruling]] = {}

    def of(self, demand: Demand) -> Ruling | None:
        """Return a denial that certainly still holds for this call: nothing is given back, and it isn't time."""
        key = demand.account.key
        known = self._known.get(key)
        if known is None or not any(demand.costs):
            return None
        costs, until, ruling = known
        left = until - self._now()
        if left <= 0:
            self._known.pop(key, None)
            return None
        if any(mine < denied for mine, denied in zip(demand.costs, costs, strict=True)):
            return None
        return replace(ruling, retry_after=left)

    def note(self, demand: Demand, ruling: Ruling, since: float) -> None:
        """Remember a ruling that was asked for at this time, if it is a denial."""
        waits = [level.retry_after for level in ruling.levels if level.retry_after is not None]
        if ruling.allowed or ruling.retry_after is None or not any(waits):
            return
        if len(self._known) >= REMEMBERED:
            self._known.pop(next(iter(self._known)), None)
        self._known[demand.account.key] = (demand.costs, since + max(waits) * (1 - DRIFT), ruling)
