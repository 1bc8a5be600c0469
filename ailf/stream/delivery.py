"""One message in a consumer's hands: what may be done with it, and that it is done once.

`Delivery` and `AsyncDelivery` are two thin faces of one state. A delivery is settled exactly once: the same way again
changes nothing, another way is an error, and after its lease is lost every way is.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, cast

from ailf.checks import check_seconds
from ailf.driver import Action, Claim, Outcome, Settlement
from ailf.engine.renewal import RenewedLease
from ailf.errors import AilfError, LeaseLostError, Reject, Retry, SettledError
from ailf.runtime import run
from ailf.safe_text import describe, safe_reason, safe_text, text_of
from ailf.stream.group_flow import GroupFlow
from ailf.tracing import carrying
from ailf.user_errors import interrupts, leaves_of

__all__ = ["AsyncDelivery", "Delivery", "DeliveryState", "instruction", "verdict"]

T_co = TypeVar("T_co", covariant=True)

log = logging.getLogger("ailf.stream")


class Holder(Protocol):
    """The consumer that has the delivery."""

    group: GroupFlow
    name: str
    in_hand: dict[str, "DeliveryState"]

    def let_go(self, state: "DeliveryState") -> None:
        """It is settled or lost: renew it no more."""


def verdict(
    result: object, error: BaseException | None, *, interrupted: bool = False
) -> tuple[Action, str, float | None]:
    """Return how to settle a message by how its handler ended: the action, the error, the delay.

    Arguments:
        result: What the handler returned.
        error: What it raised.
        interrupted: Whether that was a cancellation from outside; like Ctrl-C it is not the message's fault.
    """
    if error is None:
        return (Action.NACK, "the handler returned False", None) if result is False else (Action.ACK, "", None)
    if interrupted or interrupts(error):
        return Action.RELEASE, "", None
    said = instruction(error)
    if isinstance(said, Reject):
        return Action.REJECT, text_of(said), None
    if isinstance(said, Retry):
        return Action.NACK, text_of(said), getattr(said, "delay", None)  # a subclass may have left it out
    return Action.NACK, describe(error), None


def instruction(error: BaseException | None) -> Reject | Retry | None:
    """Return the `Reject` or `Retry` that an error is, or that a group of nothing else holds; `Reject` goes first."""
    said = [] if error is None else list(leaves_of(error))
    if not all(isinstance(each, Reject | Retry) for each in said):
        return None
    said.sort(key=lambda each: isinstance(each, Retry))
    return cast(Reject | Retry, said[0]) if said else None


class DeliveryState:
    """The state of one delivery, whichever face it shows."""

    __slots__ = (
        "body",
        "cancels",
        "claim",
        "consumer",
        "data",
        "entered",
        "headers",
        "hold",
        "outcome",
        "settled",
        "settling",
        "struck",
        "task",
        "told",
        "trace",
    )

    def __init__(
        self, consumer: Holder, claim: Claim, hold: RenewedLease, data: Any, headers: Mapping[str, str]
    ) -> None:
        self.consumer = consumer
        self.claim = claim
        self.hold = hold
        self.data = data
        self.headers = headers
        self.settled: Action | None = None
        self.outcome = Outcome.LOST
        self.settling = False  # the answer will tell whether the lease held
        self.told = False
        self.trace: AbstractContextManager[None] | None = None
        self.body: asyncio.Task[Any] | None = None  # that has entered it as a context, on asyncio
        self.task: asyncio.Task[Any] | None = None  # in which a worker's handler runs, on asyncio
        self.cancels = self.entered = 0  # how often these had been cancelled before
        self.struck: Exception | None = None  # why a worker has cancelled it

    async def settle(self, action: Action, *, delay: float | None = None, error: str = "") -> Outcome:
        """Settle it, once, and return what became of it (S4)."""
        if self._settled_by(action):
            return self.outcome
        asked = await self.ask(action, delay, error)
        self.settling = True
        try:
            return await self.answered(asked, await self.consumer.group.settling.do(asked))
        finally:
            self.settling = False

    async def answered(self, asked: Settlement, outcome: Outcome) -> Outcome:
        """Take note of what became of it, and return that."""
        action = asked.action
        if outcome is Outcome.LOST:
            if self._settled_by(action):  # another task did, while this one waited for the answer
                return self.outcome
            raise await self._lost(action.value)
        self.settled, self.outcome = action, outcome
        self.consumer.let_go(self)
        if outcome is not Outcome.DONE:
            await self.consumer.group.report(self.claim.record.id, asked, outcome)
        return outcome

    def _settled_by(self, action: Action) -> bool:
        """Tell whether it was settled, which must have been in the same way."""
        if self.settled is None:
            return False
        if self.settled is not action:
            raise SettledError(f"{self} was settled by {self.settled.value} before; {action.value} changes nothing")
        return True

    async def ask(self, action: Action, delay: float | None = None, error: str = "") -> Settlement:
        """Return what to ask of the backend in order to settle it; one that was lost can't be."""
        if self.hold.revoked:
            raise await self._lost(action.value)
        if action is Action.ACK:  # nearly all; nothing else is said of them
            return Settlement(self.claim.receipt, action)
        if delay is None:
            delay = self.consumer.group.options.backoff.delay(self.claim.attempt) if action is Action.NACK else 0.0
        return Settlement(
            self.claim.receipt, action, check_seconds("delay", delay), reason="rejected", error=safe_text(error)
        )

    async def extend(self, seconds: float) -> None:
        """Let the lease end so many seconds from now."""
        if self.settled is not None:
            raise SettledError(f"{self} was settled by {self.settled.value} before; it has no lease to extend")
        lease = check_seconds("extend", seconds, least=0.001)
        since = self.consumer.group.engine.runtime.lease_now()
        if not await self.consumer.group.extend(self.claim.receipt, lease):
            raise await self._lost("extend")
        self.hold.confirm(since, lease)

    def enter(self) -> None:
        """Put what is sent from here on the message's trace."""
        self.trace = carrying(self.headers)
        self.trace.__enter__()

    async def leave(self, error: BaseException | None, *, cancelled: bool = False) -> bool:
        """Settle it by how its context ended, unless its body did; return whether the error is done with."""
        if self.trace is not None:
            with contextlib.suppress(ValueError):  # left in another task than it was entered in
                self.trace.__exit__(None, None, None)
        if self.settled is not None:
            return False
        action, why, delay = verdict(None, self.struck or error, interrupted=cancelled)
        said = instruction(error)
        try:
            await self.settle(action, delay=delay, error=why)
        except AilfError as failed:
            if error is None or said is not None:
                raise
            log.warning("%s", failed)  # it doesn't hide the body's own error
        return said is not None

    async def lose(self) -> None:
        """Take note that its lease has ended, and tell the group's hook, once."""
        self.hold.revoked = True
        self.consumer.let_go(self)
        if not self.told:
            self.told = True
            await self.consumer.group.report_lost(self.claim.record.id)

    async def _lost(self, asked: str) -> LeaseLostError:
        """Lose it, and return what to raise."""
        await self.lose()
        return LeaseLostError(
            f"{asked} of {self}: its lease has ended, so somebody else may have it; nothing was changed. "
            "Handlers that take longer than the lease need the process to stay alive to renew it"
        )

    def __str__(self) -> str:
        group = self.consumer.group
        return f"delivery {self.claim.record.id} (attempt {self.claim.attempt}) of {group}"


class _Shown(Generic[T_co]):
    """What both faces show."""

    __slots__ = ("_parcel",)

    def __init__(self, state: DeliveryState) -> None:
        self._parcel = state

    @property
    def data(self) -> T_co:
        """The payload, decoded."""
        data: T_co = self._parcel.data
        return data

    @property
    def id(self) -> str:
        """The entry's id in the stream."""
        return self._parcel.claim.record.id

    @property
    def headers(self) -> Mapping[str, str]:
        """What the producer put beside the payload."""
        return self._parcel.headers

    @property
    def attempt(self) -> int:
        """1 for the first delivery; a nack or an expired lease adds one, a release adds none (S5)."""
        return self._parcel.claim.attempt

    @property
    def lost(self) -> bool:
        """Whether the lease has ended, so that somebody else may have the message: stop working on it."""
        return self._parcel.hold.lost

    @property
    def settled(self) -> bool:
        """Whether it was acked, nacked, rejected or released."""
        return self._parcel.settled is not None

    def __repr__(self) -> str:
        return f"<{self._parcel}>"


class Delivery(_Shown[T_co]):
    """A message that a group handed to this consumer, until it is settled.

    As a context manager it acks on success, nacks on an exception, rejects on `Reject` (which, like `Retry`, goes no
    further), and releases on Ctrl-C and on `sys.exit` in the main thread. Its lease is renewed while you have it.
    """

    __slots__ = ()

    def ack(self) -> None:
        """It is done.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled in another way.
        """
        run(self._parcel.settle(Action.ACK))

    def nack(self, delay: float | None = None, reason: str | None = None) -> None:
        """It failed: deliver it again after so many seconds (the group's backoff if None), or never after the last.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled in another way.
        """
        run(
            self._parcel.settle(Action.NACK, delay=delay, error="" if reason is None else safe_reason("reason", reason))
        )

    def reject(self, reason: str) -> None:
        """It can't succeed: put it among the group's dead letters.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled in another way.
        """
        run(self._parcel.settle(Action.REJECT, error=safe_reason("reason", reason)))

    def release(self) -> None:
        """Give it back unhandled, available at once; this delivery doesn't count.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled in another way.
        """
        run(self._parcel.settle(Action.RELEASE))

    def extend(self, seconds: float) -> None:
        """Let the lease end so many seconds from now.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled.
        """
        run(self._parcel.extend(seconds))

    def __enter__(self) -> Self:
        """Return the delivery itself; what is sent within is on its trace."""
        self._parcel.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        """Settle it by how the body ended, unless the body did."""
        return run(self._parcel.leave(error))


class AsyncDelivery(_Shown[T_co]):
    """A message that a group handed to this consumer, until it is settled.

    As a context manager it acks on success, nacks on an exception, rejects on `Reject` (which, like `Retry`, goes no
    further), and releases on Ctrl-C, `sys.exit` and cancellation. Its lease is renewed while you have it.
    """

    __slots__ = ()

    async def ack(self) -> None:
        """It is done.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled in another way.
        """
        await self._parcel.settle(Action.ACK)

    async def nack(self, delay: float | None = None, reason: str | None = None) -> None:
        """It failed: deliver it again after so many seconds (the group's backoff if None), or never after the last.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled in another way.
        """
        await self._parcel.settle(
            Action.NACK, delay=delay, error="" if reason is None else safe_reason("reason", reason)
        )

    async def reject(self, reason: str) -> None:
        """It can't succeed: put it among the group's dead letters.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled in another way.
        """
        await self._parcel.settle(Action.REJECT, error=safe_reason("reason", reason))

    async def release(self) -> None:
        """Give it back unhandled, available at once; this delivery doesn't count.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled in another way.
        """
        await self._parcel.settle(Action.RELEASE)

    async def extend(self, seconds: float) -> None:
        """Let the lease end so many seconds from now.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled.
        """
        await self._parcel.extend(seconds)

    async def __aenter__(self) -> Self:
        """Return the delivery itself; what is sent within is on its trace."""
        self._parcel.enter()
        self._parcel.body = asyncio.current_task()
        self._parcel.entered = self._parcel.body.cancelling() if self._parcel.body is not None else 0
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool:
        """Settle it by how the body ended, unless the body did."""
        state = self._parcel
        if isinstance(error, asyncio.CancelledError) and state.body and state.body.cancelling() > state.entered:
            return await asyncio.shield(state.leave(error, cancelled=state.struck is None))
        return await self._parcel.leave(error)
