"""A reference model of `LockDriver`: ended grants are removed at once, and a wait queue is a list. Nothing in it waits.

Times are whole milliseconds on the model's own clock; a fence is the number of the grant.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import attrs

from ailf.driver import LockRequest

__all__ = ["DEAF", "HEARD", "LockModel", "LockName"]

WAKES = 3
"""The number of wake-ups after which a waiter is overtaken no more."""

RESERVED = 1000
"""The milliseconds for which its lock is then reserved for it."""

HEARD = "heard"
"""The channel of waiters that get wake-ups."""

DEAF = "deaf"
"""The channel of waiters that get none, as their process has died."""


@attrs.define
class Held:
    """A grant."""

    fence: int
    ends: int


@attrs.define
class Waiter:
    """A waiter in a wait queue.

    Attributes:
        token: The token of its request.
        channel: `HEARD` or `DEAF`.
        alive: The end of its waiter lease.
        checks_at: When it repeats its request by itself.
        wakes: How often it was woken since it began to wait, or since the end of its reservation; None if it waits for
            several names.
        reserved: The end of the time for which its lock is reserved for it.
    """

    token: str
    channel: str
    alive: int
    checks_at: int
    wakes: int | None
    reserved: int = 0


@attrs.define
class LockName:
    """The state of one name: the fences of all its grants, its current grants by token, and its wait queue."""

    fences: list[int] = attrs.field(factory=list)
    grants: dict[str, Held] = attrs.field(factory=dict)
    queue: list[Waiter] = attrs.field(factory=list)

    def others(self, token: str) -> list[int]:
        """Return the ends of the grants of other tokens."""
        return [grant.ends for each, grant in self.grants.items() if each != token]

    def waiter(self, token: str) -> int | None:
        """Return a token's index in the wait queue."""
        return next((index for index, each in enumerate(self.queue) if each.token == token), None)

    def leave(self, token: str) -> None:
        """Remove a token from the wait queue."""
        self.queue = [each for each in self.queue if each.token != token]


class LockModel:
    """The locks of the given names.

    Attributes:
        now: The time.
        over: The latest time at which a grant or waiter lease has ended.
        granted: The number of all grants.
        names: The locks.
        woken: The tokens that were woken in the last step, in order.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.now = 0
        self.over = 0
        self.granted = 0
        self.names = {name: LockName() for name in names}
        self.woken: list[str] = []

    def pass_time(self, milliseconds: int) -> None:
        """Let time pass, or step back; remove the grants and waiters that have ended."""
        self.woken = []
        self.now += milliseconds
        for name in self.names.values():
            ends = [each.ends for each in name.grants.values()] + [each.alive for each in name.queue]
            self.over = max([self.over, *(each for each in ends if each <= self.now)])
            name.grants = {token: each for token, each in name.grants.items() if each.ends > self.now}
            name.queue = [each for each in name.queue if each.alive > self.now]

    # --- the driver's methods ------------------------------------------------------------------------------------

    def acquire(self, request: LockRequest) -> tuple[int | None, int]:
        """Return the fence, or None and the ms after which another request may succeed."""
        self.woken = []
        names = [self.names[each] for each in request.names]
        if all(request.token in each.grants for each in names):
            return self._extend(request), 0
        obstacles = [end for each in names for end in self._obstacles(each, request)]
        if obstacles:
            self._enqueue(request, names, min(obstacles))
            return None, min(obstacles) - self.now
        self.granted += 1
        for each in names:
            each.fences.append(self.granted)
            each.grants[request.token] = Held(self.granted, self.now + _ms(request.ttl))
            each.leave(request.token)
            if len(each.grants) < request.permits:
                self._wake(each.queue)
            else:
                self._wake_if_earlier(each)
        return self.granted, 0

    def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        """Return for each request whether its grant lasted."""
        self.woken = []
        kept = []
        for request in requests:
            kept.append(all(request.token in self.names[each].grants for each in request.names))
            if kept[-1]:
                self._extend(request)
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
        tokens = [token for token, each in its.grants.items() if each.fence == fence]
        for token in tokens:
            self._end(its, token)
        return bool(tokens)

    # --- parts of the methods ------------------------------------------------------------------------------------

    def _extend(self, request: LockRequest) -> int:
        for each in request.names:
            self.names[each].grants[request.token].ends = self.now + _ms(request.ttl)
        return self.names[request.names[0]].grants[request.token].fence

    def _obstacles(self, name: LockName, request: LockRequest) -> Iterator[int]:
        """Yield the time at which the obstacle to a grant ends by itself, if there is one."""
        others = name.others(request.token)
        if len(others) >= request.permits:
            yield min(others)
        elif name.queue and name.queue[0].token != request.token:
            if request.fair:
                yield name.queue[0].alive
            elif self._is_reserved(name):
                yield name.queue[0].reserved

    def _is_reserved(self, name: LockName) -> bool:
        """Tell whether a lock is reserved for its first waiter; after the clock was set back it may not be."""
        return bool(name.queue) and self.now < name.queue[0].reserved <= self.now + RESERVED

    def _enqueue(self, request: LockRequest, names: Sequence[LockName], checks_at: int) -> None:
        if request.waiter is None:
            return
        alive, wakes = self.now + _ms(request.waiter.lease), 0 if len(names) == 1 else None
        if any(each.waiter(request.token) is None for each in names):  # a waiter that lost one place has lost all
            for each in names:
                each.leave(request.token)
        for each in names:
            waiter = Waiter(request.token, request.waiter.channel, alive, checks_at, wakes)
            reserved = self._is_reserved(each) and each.queue[0].token != request.token
            index = each.waiter(request.token)
            if index is None:
                index = len(each.queue)
            elif wakes is not None and self.now < each.queue[index].reserved <= self.now + RESERVED:
                waiter.wakes, waiter.reserved = each.queue[index].wakes, each.queue[index].reserved
            elif wakes is not None and not each.queue[index].reserved:
                waiter.wakes = each.queue[index].wakes
            each.queue[index : index + 1] = [waiter]
            if len(each.grants) < request.permits and not request.fair and not reserved:  # it waits for another name
                self._wake(each.queue[index + 1 :])

    def _end(self, name: LockName, token: str) -> None:
        """End a grant, or leave the wait queue; wake the next waiter if the name was freed or the first one left."""
        freed = name.grants.pop(token, None) is not None or name.waiter(token) == 0
        name.leave(token)
        if freed:
            self._wake(name.queue)

    def _wake_if_earlier(self, name: LockName) -> None:
        """Wake the first waiter that gets wake-ups, if it would check only after the first end of a grant."""
        ends = min(each.ends for each in name.grants.values())
        for each in name.queue:
            if each.checks_at <= ends:
                return
            if each.channel == HEARD:
                self.woken.append(each.token)
                return

    def _wake(self, waiters: Sequence[Waiter]) -> None:
        """Wake the first waiter that gets wake-ups. The third wake-up reserves the lock for it."""
        for waiter in [each for each in waiters if each.channel == HEARD][:1]:
            self.woken.append(waiter.token)
            if waiter.wakes is not None:
                waiter.wakes += 1
                if waiter.wakes == WAKES:
                    waiter.reserved = self.now + RESERVED


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)
