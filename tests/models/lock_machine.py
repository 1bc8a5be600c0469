"""A state machine that takes the same random steps on the model of locks and on drivers, and compares them.

It compares the results, the waiters that were woken, and the states. Time passes only in steps. A waiter whose process
has died is one that gets no wake-ups, or sends no more requests.
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
"""Seconds by which a side that isn't exact may differ, as its steps take real time."""

tokens = st.sampled_from(["anna", "bert", "carl", "dora", "emil", "fred"])
wanted = st.sampled_from([("a",), ("a",), ("a",), ("b",), ("a", "b"), ("a", "b")])
kinds = st.integers(0, 2)
picks = st.integers(0, 99)
"""An index from the latest item of a list back; it is taken modulo the length of the list."""


@attrs.frozen
class LockTimes:
    """The durations of the steps, in seconds.

    Attributes:
        ttls: The ttls of requests.
        leases: The waiter leases.
        passing: The time that a `wait` step lets pass.
        always: The time after each step, so that no two durations that begin in different steps end at one time.
    """

    ttls: Sequence[float]
    leases: Sequence[float]
    passing: Sequence[float]
    always: float = 0.0


class LockSide(ABC):
    """A lock driver under test.

    Attributes:
        driver: The driver.
        exact: Whether the machine controls its clock.
        fences: Its fences, by the number of the grant in the model.
    """

    exact = False

    def __init__(self, driver: LockDriver, suffix: str) -> None:
        self.driver = driver
        self.fences: dict[int, int] = {}
        self._suffix = suffix

    @abstractmethod
    def let_pass(self, seconds: float) -> None:
        """Let time pass; if exact, it may also step back."""

    @abstractmethod
    def woken(self) -> list[str]:
        """Return the tokens of the waiters that were woken since the last call, in order."""

    @abstractmethod
    def queue(self, name: str) -> list[str]:
        """Return the tokens of the waiters in the wait queue that count as alive, in order."""

    @abstractmethod
    def close(self) -> None:
        """Check that everything stored expires by itself."""

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the driver."""
        return run(getattr(self.driver, method)(*args))

    def name(self, name: str) -> str:
        """Return the side's own form of a lock's name."""
        return name + self._suffix

    def request(self, request: LockRequest) -> LockRequest:
        """Return the request with the side's own names."""
        return replace(request, names=tuple(map(self.name, request.names)))

    def agree_on_grant(self, reply: Granted | Denied, fence: int | None, wait: int, earlier: Iterable[int]) -> None:
        """Compare the reply to a request with the model's; `earlier` are the fences of the names' earlier grants."""
        if fence is None:
            assert isinstance(reply, Denied)
            self.agree_on_time(reply.retry_after, wait)
        elif fence in self.fences:
            assert reply == Granted(self.fences[fence])
        else:
            assert isinstance(reply, Granted)
            assert reply.fence > max((self.fences[each] for each in earlier), default=0)
            self.fences[fence] = reply.fence

    def agree_on_state(self, model: LockModel, name: str) -> None:
        """Compare the state of a lock with the model's."""
        its = model.names[name]
        info = self.call("inspect", self.name(name))
        held = sorted((each.fence, each.ends - model.now) for each in its.grants.values())
        assert [each.fence for each in info.holders] == [self.fences[fence] for fence, _ in held]
        for holder, (_, left) in zip(info.holders, held, strict=True):
            self.agree_on_time(holder.remaining, left)
        assert info.waiting == len(its.queue)
        assert self.queue(name) == [each.token for each in its.queue]

    def agree_on_time(self, seconds: float, expected: int) -> None:
        """Compare a duration in seconds with the expected milliseconds."""
        assert seconds == expected / 1000 or (not self.exact and abs(seconds - expected / 1000) <= INEXACT)


class LockMachine(RuleBasedStateMachine):
    """The random steps."""

    def __init__(self, times: LockTimes, sides: Sequence[LockSide]) -> None:
        super().__init__()
        self.times = times
        self.sides = sides
        self.model = LockModel(NAMES)
        self.requests: dict[str, LockRequest] = {}
        self.woken: list[str] = []
        self.agreed = False

    # --- helpers -------------------------------------------------------------------------------------------------

    def every(self, method: str, *args: Any) -> list[Any]:
        """Call a method on every side; return the results."""
        return [side.call(method, *args) for side in self.sides]

    def live(self, token: str) -> bool:
        """Return whether a token has a grant or is in a wait queue."""
        return any(token in each.grants or each.waiter(token) is not None for each in self.model.names.values())

    def holders(self) -> list[str]:
        """Return the tokens with a grant of any name."""
        return sorted({token for each in self.model.names.values() for token in each.grants})

    def torn(self) -> list[str]:
        """Return the tokens that have a grant of some of their names and have lost the others."""
        names = self.model.names.items()
        return [
            each
            for each in self.holders()
            if {key for key, its in names if each in its.grants} != {*self.requests[each].names}
        ]

    def waiters(self) -> list[str]:
        """Return the tokens in any wait queue."""
        return sorted({waiter.token for each in self.model.names.values() for waiter in each.queue})

    def chosen(self, pick: int, tokens: Sequence[str]) -> LockRequest:
        """Return the latest request of one of these tokens, or of any token if there are none."""
        among = tokens or list(self.requests)
        return self.requests[among[-1 - pick % len(among)]]

    def let_pass(self, seconds: float) -> None:
        """Let time pass on the model and on every side."""
        self.model.pass_time(round(seconds * 1000))
        for side in self.sides:
            side.let_pass(seconds)

    def request(self, request: LockRequest) -> None:
        """Send a request to the model and to every side, and compare the replies."""
        self.requests[request.token] = request
        earlier = [fence for name in request.names for fence in self.model.names[name].fences]
        fence, wait = self.model.acquire(request)
        for side in self.sides:
            side.agree_on_grant(side.call("acquire", side.request(request)), fence, wait, earlier)

    # --- steps ---------------------------------------------------------------------------------------------------

    @initialize(
        permits=st.sampled_from([(1,), (1,), (2,), (3,), (1, 2), (1, 3)]),
        fair=st.sampled_from([(False,), (True,), (False, True)]),
    )
    def begin(self, permits: Sequence[int], fair: Sequence[bool]) -> None:
        """Choose the permits and the fairness of requests; those for one lock mostly agree."""
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
    def acquire(
        self, token: str, names: tuple[str, ...], ttl: int, permits: int, fair: int, lease: int, channel: str | None
    ) -> None:
        """Send a new request; a token that holds or waits already repeats its own."""
        waiter = None if channel is None else WaiterInfo(channel, self.times.leases[lease])
        permitted, fairly = self.permits[permits % len(self.permits)], self.fair[fair % len(self.fair)]
        request = LockRequest(names, token, self.times.ttls[ttl], permitted, fairly, waiter)
        if self.live(token):
            own = self.requests[token]
            request = replace(request, names=own.names, permits=own.permits, fair=own.fair)
        self.request(request)

    @precondition(lambda self: self.requests)
    @rule(pick=picks)
    def try_again(self, pick: int) -> None:
        """Repeat the request of a waiter that was woken, or that checks by itself."""
        woken, self.woken = self.woken, []
        self.request(self.chosen(pick, woken or self.waiters()))

    @precondition(lambda self: self.requests)
    @rule(pick=picks)
    def send_again(self, pick: int) -> None:
        """Repeat the request of a holder, as after a lost reply; some of its names may have been lost since."""
        self.request(self.chosen(pick, self.torn() or self.holders()))

    @precondition(lambda self: self.requests)
    @rule(extensions=st.lists(st.tuples(picks, kinds, st.booleans()), min_size=1, max_size=3))
    def extend(self, extensions: Sequence[tuple[int, int, bool]]) -> None:
        """Extend grants, several in one call; an ended one stays ended."""
        requests = [
            replace(self.chosen(pick, self.holders() if live else ()), ttl=self.times.ttls[ttl])
            for pick, ttl, live in extensions
        ]
        kept = self.model.extend(requests)
        for side in self.sides:
            assert side.call("extend", [side.request(each) for each in requests]) == kept

    @precondition(lambda self: self.requests)
    @rule(pick=picks, role=st.sampled_from(["holder", "holder", "waiter", "any"]))
    def release(self, pick: int, role: str) -> None:
        """Release for a holder, for a waiter, which gives up, or for any token, also one without a grant."""
        tokens_of = {"holder": self.holders(), "waiter": self.waiters()}
        request = self.chosen(pick, tokens_of.get(role, []))
        kept = self.model.release(request)
        for side in self.sides:
            assert side.call("release", side.request(request)) is kept

    @precondition(lambda self: self.waiters())
    @rule(name=st.sampled_from(NAMES), count=st.sampled_from([1, 2, 3, 3, 4]), permits=picks)
    def overtake(self, name: str, count: int, permits: int) -> None:
        """Request and release a lock, several times, so that its first waiter is woken as often; request it again."""
        request = LockRequest((name,), "hugo", self.times.ttls[0], self.permits[permits % len(self.permits)])
        for _ in range(count):
            self.request(request)
            self.all_agree()
            self.model.release(request)
            for side in self.sides:
                side.call("release", side.request(request))
            self.all_agree()
        self.request(request)

    @precondition(lambda self: self.model.granted)
    @rule(name=st.sampled_from(NAMES), pick=picks, live=st.sampled_from([True, True, False]))
    def break_(self, name: str, pick: int, *, live: bool) -> None:
        """Break a grant; one that has ended can't be broken."""
        its = self.model.names[name]
        fences = [each.fence for each in its.grants.values()] if live and its.grants else its.fences
        if not fences:
            return
        fence = fences[-1 - pick % len(fences)]
        broken = self.model.break_(name, fence)
        for side in self.sides:
            assert side.call("break_", side.name(name), side.fences[fence]) is broken

    @rule(how=st.integers(0, 5))
    def wait(self, how: int) -> None:
        """Let time pass: grants end, and waiters that don't repeat their requests count as dead."""
        self.let_pass(self.times.passing[how])

    @precondition(lambda self: all(side.exact for side in self.sides) and self.model.now > self.model.over)
    @rule(how=kinds)
    def step_back(self, how: int) -> None:
        """Set the clock back, but not so far that an ended grant or waiter lease would last again."""
        self.let_pass(-min(self.times.passing[how], (self.model.now - self.model.over) / 1000))

    # --- agreement -----------------------------------------------------------------------------------------------

    @invariant()
    def all_agree(self) -> None:
        """Every side has woken the same waiters as the model, and has the same state."""
        self.agreed = False
        for side in self.sides:
            assert side.woken() == self.model.woken
            for name in NAMES:
                side.agree_on_state(self.model, name)
        self.woken += self.model.woken
        self.let_pass(self.times.always)
        self.agreed = True

    def teardown(self) -> None:
        """After the longest wait every grant and waiter lease has ended."""
        if self.agreed:
            self.let_pass(max(self.times.passing))
            assert not self.holders()
            assert not self.waiters()
            self.all_agree()
        for side in self.sides:
            side.close()
