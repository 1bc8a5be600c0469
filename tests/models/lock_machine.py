"""Plays the model of locks and any number of drivers with the same steps, and compares all that they say and do.

That is what they answer, whom they wake, and how they stand. Time passes by hand. A waiter whose process has died is
one that doesn't hear when it is woken, or tries no more.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from ailf.driver import Denied, Granted, LockDriver, LockRequest, WaiterInfo
from ailf.runtime import run
from tests.models.lock_model import DEAF, HEARD, LockModel

__all__ = ["LockMachine", "LockSide", "LockTimes"]

NAMES = ("a", "b")
INEXACT = 5.0
"""Seconds by which a side that isn't exact may differ: the real ones that a step takes."""

tokens = st.sampled_from(["anna", "bert", "carl", "dora", "emil", "fred"])
wanted = st.sampled_from([("a",), ("a",), ("a",), ("b",), ("a", "b"), ("a", "b")])
kinds = st.integers(0, 2)
picks = st.integers(0, 99)
"""Which of things that there may be many of, counted from the latest."""


@attrs.frozen
class LockTimes:
    """How long things take, in seconds.

    Attributes:
        ttls: Of grants.
        leases: Of places in line.
        passing: What passes in a step.
        always: What passes after every step, for those to whom things that begin in two steps never end at one time.
    """

    ttls: Sequence[float]
    leases: Sequence[float]
    passing: Sequence[float]
    always: float = 0.0


class LockSide(ABC):
    """A driver that is played.

    Attributes:
        driver: The driver.
        exact: Whether its clock is ours.
        fences: Its fences, by the number of the grant.
    """

    exact = False

    def __init__(self, driver: LockDriver, suffix: str) -> None:
        self.driver = driver
        self.fences: dict[int, int] = {}
        self._suffix = suffix

    @abstractmethod
    def let_pass(self, seconds: float) -> None:
        """Let time pass, or step back where it is exact."""

    @abstractmethod
    def woken(self) -> list[str]:
        """Return who was woken since this was last asked, in order."""

    @abstractmethod
    def line(self, name: str) -> list[str]:
        """Return the tokens of those who are in line and count as alive, in order."""

    @abstractmethod
    def close(self) -> None:
        """Check that what is stored goes by itself."""

    def ask(self, method: str, *args: Any) -> Any:
        """Make a step."""
        return run(getattr(self.driver, method)(*args))

    def name(self, name: str) -> str:
        """Return what the side calls a name."""
        return name + self._suffix

    def request(self, request: LockRequest) -> LockRequest:
        """Return a bid for the side's names."""
        return replace(request, names=tuple(map(self.name, request.names)))

    def agree_on_grant(self, answer: Granted | Denied, fence: int | None, wait: int, earlier: Iterable[int]) -> None:
        """Compare what a bid was told, where these fences were given out before."""
        if fence is None:
            assert isinstance(answer, Denied)
            self.agree_on_time(answer.retry_after, wait)
        elif fence in self.fences:
            assert answer == Granted(self.fences[fence])
        else:
            assert isinstance(answer, Granted)
            assert answer.fence > max((self.fences[each] for each in earlier), default=0)
            self.fences[fence] = answer.fence

    def agree_on_state(self, model: LockModel, name: str) -> None:
        """Compare how a lock stands."""
        its = model.names[name]
        info = self.ask("inspect", self.name(name))
        held = sorted((each.fence, each.ends - model.now) for each in its.grants.values())
        assert [each.fence for each in info.holders] == [self.fences[fence] for fence, _ in held]
        for holder, (_, left) in zip(info.holders, held, strict=True):
            self.agree_on_time(holder.remaining, left)
        assert info.waiting == len(its.line)
        assert self.line(name) == [each.token for each in its.line]

    def agree_on_time(self, told: float, expected: int) -> None:
        """Compare a length of time with so many ms."""
        assert told == expected / 1000 or (not self.exact and abs(told - expected / 1000) <= INEXACT)


class LockMachine(RuleBasedStateMachine):
    """The steps."""

    def __init__(self, times: LockTimes, sides: Sequence[LockSide]) -> None:
        super().__init__()
        self.times = times
        self.sides = sides
        self.model = LockModel(NAMES)
        self.requests: dict[str, LockRequest] = {}
        self.called: list[str] = []
        self.agreed = False

    # --- helpers -------------------------------------------------------------------------------------------------

    def every(self, method: str, *args: Any) -> list[Any]:
        """Make the same step on every side; return the answers."""
        return [side.ask(method, *args) for side in self.sides]

    def live(self, token: str) -> bool:
        """Tell whether somebody has something, or is in line."""
        return any(token in each.grants or each.waiter(token) is not None for each in self.model.names.values())

    def holders(self) -> list[str]:
        """Return who has something."""
        return sorted({token for each in self.model.names.values() for token in each.grants})

    def torn(self) -> list[str]:
        """Return who has some of several names and has lost the others."""
        names = self.model.names.items()
        return [
            each
            for each in self.holders()
            if {key for key, its in names if each in its.grants} != {*self.requests[each].names}
        ]

    def waiters(self) -> list[str]:
        """Return who is in line."""
        return sorted({waiter.token for each in self.model.names.values() for waiter in each.line})

    def chosen(self, pick: int, tokens: Sequence[str]) -> LockRequest:
        """Return the bid of one of these, or of anybody where there is none."""
        among = tokens or list(self.requests)
        return self.requests[among[-1 - pick % len(among)]]

    def let_pass(self, seconds: float) -> None:
        """Let time pass for all."""
        self.model.pass_time(round(seconds * 1000))
        for side in self.sides:
            side.let_pass(seconds)

    def request(self, request: LockRequest) -> None:
        """Bid on every side."""
        self.requests[request.token] = request
        earlier = [fence for name in request.names for fence in self.model.names[name].fences]
        fence, wait = self.model.acquire(request)
        for side in self.sides:
            side.agree_on_grant(side.ask("acquire", side.request(request)), fence, wait, earlier)

    # --- steps ---------------------------------------------------------------------------------------------------

    @initialize(
        permits=st.sampled_from([(1,), (1,), (2,), (3,), (1, 2), (1, 3)]),
        fair=st.sampled_from([(False,), (True,), (False, True)]),
    )
    def begin(self, permits: Sequence[int], fair: Sequence[bool]) -> None:
        """Those who share a lock mostly agree on what it is."""
        self.permits = permits
        self.fair = fair

    @rule(
        token=tokens,
        names=wanted,
        ttl=kinds,
        permits=picks,
        fair=picks,
        lease=kinds,
        channel=st.sampled_from([HEARD, HEARD, HEARD, DEAF, None]),
    )
    def come(
        self, token: str, names: tuple[str, ...], ttl: int, permits: int, fair: int, lease: int, channel: str | None
    ) -> None:
        """Somebody wants something; who has or wants something already asks again for the same."""
        place = None if channel is None else WaiterInfo(channel, self.times.leases[lease])
        permitted, fairly = self.permits[permits % len(self.permits)], self.fair[fair % len(self.fair)]
        new = LockRequest(names, token, self.times.ttls[ttl], permitted, fairly, place)
        if self.live(token):
            known = self.requests[token]
            new = replace(new, names=known.names, permits=known.permits, fair=known.fair)
        self.request(new)

    @precondition(lambda self: self.requests)
    @rule(pick=picks)
    def try_again(self, pick: int) -> None:
        """Somebody in line was woken, or looks whether he should have been."""
        called, self.called = self.called, []
        self.request(self.chosen(pick, called or self.waiters()))

    @precondition(lambda self: self.requests)
    @rule(pick=picks)
    def send_again(self, pick: int) -> None:
        """An answer was lost: the bid is sent again, where something may have been taken away meanwhile."""
        self.request(self.chosen(pick, self.torn() or self.holders()))

    @precondition(lambda self: self.requests)
    @rule(asked=st.lists(st.tuples(picks, kinds, st.booleans()), min_size=1, max_size=3))
    def extend(self, asked: Sequence[tuple[int, int, bool]]) -> None:
        """Grants are extended, several in one step; one that has ended stays so."""
        requests = [
            replace(self.chosen(pick, self.holders() if live else ()), ttl=self.times.ttls[ttl])
            for pick, ttl, live in asked
        ]
        kept = self.model.extend(requests)
        for side in self.sides:
            assert side.ask("extend", [side.request(each) for each in requests]) == kept

    @precondition(lambda self: self.requests)
    @rule(pick=picks, who=st.sampled_from(["holder", "holder", "waiter", "anybody"]))
    def release(self, pick: int, who: str) -> None:
        """A holder releases, a waiter gives up, and somebody releases what he has no longer."""
        known = {"holder": self.holders(), "waiter": self.waiters()}
        request = self.chosen(pick, known.get(who, []))
        kept = self.model.release(request)
        for side in self.sides:
            assert side.ask("release", side.request(request)) is kept

    @precondition(lambda self: self.model.granted)
    @rule(name=st.sampled_from(NAMES), pick=picks, live=st.sampled_from([True, True, False]))
    def break_(self, name: str, pick: int, *, live: bool) -> None:
        """A grant is taken away; one that has ended can't be."""
        its = self.model.names[name]
        fences = [each.fence for each in its.grants.values()] if live and its.grants else its.fences
        if not fences:
            return
        fence = fences[-1 - pick % len(fences)]
        broken = self.model.break_(name, fence)
        for side in self.sides:
            assert side.ask("break_", side.name(name), side.fences[fence]) is broken

    @rule(how=st.integers(0, 5))
    def wait(self, how: int) -> None:
        """Time passes: grants end, and who has not tried again for long is taken for dead."""
        self.let_pass(self.times.passing[how])

    @precondition(lambda self: all(side.exact for side in self.sides) and self.model.now > self.model.over)
    @rule(how=kinds)
    def step_back(self, how: int) -> None:
        """The clock is set back, but not so far that what has ended would last again."""
        self.let_pass(-min(self.times.passing[how], (self.model.now - self.model.over) / 1000))

    # --- agreement -----------------------------------------------------------------------------------------------

    @invariant()
    def all_agree(self) -> None:
        """Every side has woken the same, and stands like the model."""
        self.agreed = False
        for side in self.sides:
            assert side.woken() == self.model.woken
            for name in NAMES:
                side.agree_on_state(self.model, name)
        self.called += self.model.woken
        self.let_pass(self.times.always)
        self.agreed = True

    def teardown(self) -> None:
        """In the end everything has ended."""
        if self.agreed:
            self.let_pass(max(self.times.passing))
            assert not self.holders()
            assert not self.waiters()
            self.all_agree()
        for side in self.sides:
            side.close()
