"""Locks as `LockDriver` describes them: what has ended is gone at once, and a line is a list. Nothing in here waits.

Times are whole milliseconds on a clock of its own; a fence is the number of the grant.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import attrs

from ailf.driver import LockRequest

__all__ = ["DEAF", "HEARD", "LockModel", "LockName"]

HEARD = "heard"
"""The channel of waiters who hear when they are woken."""

DEAF = "deaf"
"""The channel of those who don't: their process has died."""


@attrs.define
class Held:
    """A grant."""

    fence: int
    ends: int


@attrs.define
class Waiter:
    """Somebody in line."""

    token: str
    channel: str
    alive: int
    looks: int


@attrs.define
class LockName:
    """One name: the fences that it was ever granted with, who has it, and who is in line."""

    fences: list[int] = attrs.field(factory=list)
    grants: dict[str, Held] = attrs.field(factory=dict)
    line: list[Waiter] = attrs.field(factory=list)

    def others(self, token: str) -> list[int]:
        """Return when the grants of others end."""
        return [grant.ends for each, grant in self.grants.items() if each != token]

    def waiter(self, token: str) -> int | None:
        """Return a token's place in line."""
        return next((place for place, each in enumerate(self.line) if each.token == token), None)

    def leave(self, token: str) -> None:
        """Give up a place in line."""
        self.line = [each for each in self.line if each.token != token]


class LockModel:
    """Some locks.

    Attributes:
        now: The time.
        over: The latest time that something has ended at.
        granted: How many grants there were.
        names: The locks.
        woken: Who was woken in the last step, in order.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.now = 0
        self.over = 0
        self.granted = 0
        self.names = {name: LockName() for name in names}
        self.woken: list[str] = []

    def pass_time(self, milliseconds: int) -> None:
        """Let time pass, or step back; what has ended is gone."""
        self.woken = []
        self.now += milliseconds
        for name in self.names.values():
            ends = [each.ends for each in name.grants.values()] + [each.alive for each in name.line]
            self.over = max([self.over, *(each for each in ends if each <= self.now)])
            name.grants = {token: each for token, each in name.grants.items() if each.ends > self.now}
            name.line = [each for each in name.line if each.alive > self.now]

    # --- the driver's methods ------------------------------------------------------------------------------------

    def acquire(self, request: LockRequest) -> tuple[int | None, int]:
        """Return the fence, or None and the ms after which another try may do better."""
        self.woken = []
        names = [self.names[each] for each in request.names]
        if all(request.token in each.grants for each in names):
            return self._prolong(request), 0
        obstacles = [end for each in names for end in self._in_the_way(each, request)]
        if obstacles:
            self._stand_in_line(request, names, min(obstacles))
            return None, min(obstacles) - self.now
        self.granted += 1
        for each in names:
            each.fences.append(self.granted)
            each.grants[request.token] = Held(self.granted, self.now + _ms(request.ttl))
            each.leave(request.token)
            if len(each.grants) < request.permits:
                self._wake(each.line)
            else:
                self._hurry(each)
        return self.granted, 0

    def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        """Return for each whether its grant lasted."""
        self.woken = []
        kept = []
        for request in requests:
            kept.append(all(request.token in self.names[each].grants for each in request.names))
            if kept[-1]:
                self._prolong(request)
        return kept

    def release(self, request: LockRequest) -> bool:
        """Return whether the grant lasted."""
        self.woken = []
        names = [self.names[each] for each in request.names]
        kept = all(request.token in each.grants for each in names)
        for each in names:
            self._end(each, request.token)
        return kept

    def break_(self, name: str, fence: int) -> bool:
        """Return whether there was a grant with this fence."""
        self.woken = []
        its = self.names[name]
        found = [token for token, each in its.grants.items() if each.fence == fence]
        for token in found:
            self._end(its, token)
        return bool(found)

    # --- what they are made of -----------------------------------------------------------------------------------

    def _prolong(self, request: LockRequest) -> int:
        for each in request.names:
            self.names[each].grants[request.token].ends = self.now + _ms(request.ttl)
        return self.names[request.names[0]].grants[request.token].fence

    def _in_the_way(self, name: LockName, request: LockRequest) -> Iterator[int]:
        """Tell when what is in the way changes by itself."""
        others = name.others(request.token)
        if len(others) >= request.permits:
            yield min(others)
        elif request.fair and name.line and name.line[0].token != request.token:
            yield name.line[0].alive

    def _stand_in_line(self, request: LockRequest, names: Sequence[LockName], looks: int) -> None:
        if request.waiter is None:
            return
        waiter = Waiter(request.token, request.waiter.channel, self.now + _ms(request.waiter.lease), looks)
        if any(each.waiter(request.token) is None for each in names):  # one place lost is all lost
            for each in names:
                each.leave(request.token)
        for each in names:
            place = each.waiter(request.token)
            if place is None:
                place = len(each.line)
            each.line[place : place + 1] = [waiter]
            if len(each.grants) < request.permits and not request.fair:  # it waits for another of its names
                self._wake(each.line[place + 1 :])

    def _end(self, name: LockName, token: str) -> None:
        """End a grant, and give up a place in line; where that was the first, the next one is."""
        freed = name.grants.pop(token, None) is not None or name.waiter(token) == 0
        name.leave(token)
        if freed:
            self._wake(name.line)

    def _hurry(self, name: LockName) -> None:
        """Wake the first who hears it, if he would look again only after a grant has ended."""
        ends = min(each.ends for each in name.grants.values())
        for each in name.line:
            if each.looks <= ends:
                return
            if each.channel == HEARD:
                self.woken.append(each.token)
                return

    def _wake(self, line: Sequence[Waiter]) -> None:
        """Wake the first who hears it."""
        self.woken += [each.token for each in line if each.channel == HEARD][:1]


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)
