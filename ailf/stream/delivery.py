"""`Delivery` and `AsyncDelivery`: a message leased to a consumer, which is settled exactly once.

Settling it again in the same way changes nothing; another way is an error. Once its lease is lost, every way is an
error. `DeliveryState` has what both classes do.
"""

import asyncio
import concurrent.futures
import contextlib
from asyncio import _get_running_loop
from collections.abc import Coroutine, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, cast

from ailf.checks import check_seconds
from ailf.driver import Action, Claim, Outcome, Settlement
from ailf.engine.renewed_lease import RenewedLease
from ailf.errors import AilfError, ClosedError, InvalidArgumentError, LeaseLostError, Reject, Retry, SettledError
from ailf.instruments import Destination, Handling, MessageReceived, MessageSettled
from ailf.logs import Fields, Log
from ailf.payload_types import T, T_co
from ailf.runtime import run
from ailf.safe_text import describe, safe_reason, safe_text, text_of
from ailf.stream.group_flow import GroupFlow
from ailf.tracing import carrying
from ailf.user_errors import interrupts, leaves_of

__all__ = [
    "CURRENT",
    "AsyncDelivery",
    "Delivery",
    "DeliveryState",
    "ThreadDelivery",
    "choose_action",
    "current_delivery",
    "instruction",
]


log = Log("ailf.stream")


CURRENT: Final[ContextVar["DeliveryState | None"]] = ContextVar("ailf_delivery", default=None)
"""The delivery whose handler runs, or whose `with` block was entered last."""


class OwningConsumer(Protocol):
    """The consumer to which a delivery is leased."""

    group: GroupFlow
    name: str
    in_progress: dict[str, "DeliveryState"]

    def stop_renewing(self, state: "DeliveryState") -> None:
        """Renew the lease of a settled or lost delivery no more."""


def choose_action(
    result: object, error: BaseException | None, *, interrupted: bool = False
) -> tuple[Action, str, float | None]:
    """Return how to settle a message after its handler has ended: the action, the error text, the delay.

    Arguments:
        result: The value that the handler returned.
        error: The exception that it raised.
        interrupted: Whether ``error`` is a cancellation from outside: like Ctrl-C, it is not the message's fault.
    """
    if error is None:
        return (Action.NACK, "the handler returned False", None) if result is False else (Action.ACK, "", None)
    if interrupted or interrupts(error):
        return Action.RELEASE, "", None
    instructed = instruction(error)
    if isinstance(instructed, Reject):
        return Action.REJECT, text_of(instructed), None
    if isinstance(instructed, Retry):
        return Action.NACK, text_of(instructed), getattr(instructed, "delay", None)  # a subclass may not have set it
    return Action.NACK, describe(error), None


def instruction(error: BaseException | None) -> Reject | Retry | None:
    """Return the `Reject` or `Retry` that an error is, or that a group of nothing else holds; `Reject` goes first."""
    instructed = [] if error is None else list(leaves_of(error))
    if not all(isinstance(each, Reject | Retry) for each in instructed):
        return None
    instructed.sort(key=lambda each: isinstance(each, Retry))
    return cast(Reject | Retry, instructed[0]) if instructed else None


class DeliveryState:
    """The state of one delivery. A `Delivery` or an `AsyncDelivery` shows it to the user."""

    __slots__ = (
        "body",
        "body_cancels",
        "cancel_reason",
        "claim",
        "consumer",
        "data",
        "entered",
        "handled_at",
        "handling",
        "headers",
        "interrupted",
        "lease",
        "loop",
        "loss_reported",
        "outcome",
        "received_at",
        "settled",
        "settling",
        "task",
        "task_cancels",
    )

    def __init__(
        self, consumer: OwningConsumer, claim: Claim, lease: RenewedLease, data: Any, headers: Mapping[str, str]
    ) -> None:
        self.consumer = consumer
        self.claim = claim
        self.lease = lease
        self.data = data
        self.headers = headers
        self.settled: Action | None = None
        self.outcome = Outcome.LOST
        self.settling = False  # while the reply will say whether the lease held
        self.interrupted = False  # a settlement was cancelled: it may have been applied
        self.loss_reported = False
        self.entered: tuple[tuple[AbstractContextManager[None], Token[DeliveryState | None]], ...] = ()
        self.loop: asyncio.AbstractEventLoop | None = None  # of its worker, whose handler runs in a thread
        self.body: asyncio.Task[Any] | None = None  # the task that entered it as a context, on asyncio
        self.task: asyncio.Task[Any] | None = None  # the task that runs a worker's handler, on asyncio
        self.task_cancels = self.body_cancels = 0  # how often each had been cancelled before
        self.cancel_reason: Exception | None = None  # why the worker cancelled the handler
        self.received_at = self.handled_at = 0.0  # on the runtime's clock, if instruments observe
        self.handling: Handling | None = None  # the instruments' context managers around the body of its context

    @property
    def leases(self) -> list[RenewedLease]:
        """Its lease, for a worker that runs a handler."""
        return [self.lease]

    async def settle(self, action: Action, *, delay: float | None = None, error: str = "") -> Outcome:
        """Settle the delivery, once, and return the outcome (S4)."""
        if self._settled_by(action):
            return self.outcome
        if action is Action.ACK and not self.lease.revoked:  # nearly every settlement; it needs no other argument
            settlement = Settlement(self.claim.receipt, action)
        else:
            settlement = await self.make_settlement(action, delay, error)
        self.settling = True
        try:
            return await self.record_outcome(settlement, await self.consumer.group.settling.do(settlement))
        except asyncio.CancelledError:
            self.interrupted = True
            raise
        finally:
            self.settling = False

    async def record_outcome(self, settlement: Settlement, outcome: Outcome) -> Outcome:
        """Record the outcome of a settlement, and return it.

        Raises:
            LeaseLostError: The outcome is LOST.
        """
        action = settlement.action
        if outcome is Outcome.LOST:
            if self._settled_by(action):  # by another task, while this one waited for the reply
                return self.outcome
            raise await self._lost(action.value)
        self.settled, self.outcome = action, outcome
        self.consumer.stop_renewing(self)
        if self.consumer.group.engine.instruments.message_settled:
            self._observe_settled(action.value, dead=outcome is Outcome.DEAD, error=settlement.error)
        if outcome is not Outcome.DONE:
            await self.consumer.group.report(self.claim.record.id, settlement, outcome)
        return outcome

    def _settled_by(self, action: Action) -> bool:
        """Tell whether it was settled.

        Raises:
            SettledError: It was settled by another action.
        """
        if self.settled is None:
            return False
        if self.settled is not action:
            raise SettledError(
                f"cannot {action.value} {self}: it was settled by {self.settled.value} before. Nothing was changed; "
                "settle each delivery once"
            )
        return True

    async def make_settlement(self, action: Action, delay: float | None = None, error: str = "") -> Settlement:
        """Return the settlement to send to the backend.

        Raises:
            LeaseLostError: The lease was lost.
        """
        if self.lease.revoked:
            raise await self._lost(action.value)
        if action is Action.ACK:  # nearly every settlement; it needs no other argument
            return Settlement(self.claim.receipt, action)
        if delay is None:
            delay = self.consumer.group.options.backoff.delay(self.claim.attempt) if action is Action.NACK else 0.0
        return Settlement(
            self.claim.receipt, action, check_seconds("delay", delay), reason="rejected", error=safe_text(error)
        )

    async def extend(self, seconds: float) -> None:
        """Let the lease end `seconds` seconds from now."""
        if self.settled is not None:
            raise SettledError(
                f"cannot extend {self}: it was settled by {self.settled.value}, so it has no lease any more"
            )
        lease = check_seconds("extend", seconds, least=0.001)
        since = self.consumer.group.engine.runtime.lease_now()
        if not await self.consumer.group.extend(self.claim.receipt, lease):
            raise await self._lost("extend")
        self.lease.confirm(since, lease)
        self.consumer.group.engine.renewer.reschedule(self.lease)  # it may end before its next check

    def observe_received(self, now: float) -> None:
        """Tell instruments that the message was received at `now`, on the runtime's clock."""
        self.received_at = now
        instruments, group = self.consumer.group.engine.instruments, self.consumer.group
        if instruments.message_received:
            claim = self.claim
            instruments.emit(
                MessageReceived(
                    group.source, self.headers, group.name, self.consumer.name, claim.record.id, claim.attempt,
                    self._queued(), self.data,
                )
            )  # fmt: skip

    def _observe_settled(self, outcome: str, *, dead: bool = False, error: str = "") -> None:
        """Tell instruments how the delivery has ended."""
        group = self.consumer.group
        instruments = group.engine.instruments
        if instruments.message_settled:
            claim, now = self.claim, group.engine.runtime.now()
            begin = self.handled_at or self.received_at
            instruments.emit(
                MessageSettled(
                    group.source, self.headers, group.name, self.consumer.name, claim.record.id, claim.attempt,
                    outcome, dead, self._queued(now - self.received_at), now - begin if begin else 0.0, error,
                    self.data,
                )
            )  # fmt: skip

    def observe_released(self) -> None:
        """Tell instruments that the message was given back, without a handler."""
        self._observe_settled(Action.RELEASE.value)

    def _queued(self, since: float = 0.0) -> float:
        """Return for how long the message was in the stream when it was received, `since` seconds ago."""
        group = self.consumer.group
        added = group.driver.time_of(self.claim.record.id)
        return max(0.0, group.engine.runtime.clock.now_ms() / 1000 - since - added)

    def enter(self, shown: object) -> None:
        """Be the current delivery, and let sends continue its trace; `shown` is the delivery that users see."""
        trace = carrying(self.headers)
        trace.__enter__()
        self.entered = (*self.entered, (trace, CURRENT.set(self)))
        engine = self.consumer.group.engine
        if engine.instruments.handling and self.handling is None and not self.handled_at:  # else its handler enters it
            self.handled_at = engine.runtime.now()
            self.handling = engine.instruments.around(shown)

    async def leave(self, error: BaseException | None, *, cancelled: bool = False) -> bool:
        """Settle it by how its context ended, unless its body settled it; return whether to suppress the error."""
        self.leave_context(error)
        return await self.settle_left(error, cancelled=cancelled)

    async def settle_apart(self, error: BaseException | None, *, cancelled: bool) -> None:
        """Settle it again in a task of its own: the caller's was cancelled meanwhile, and may be again."""

        async def settle() -> None:
            with contextlib.suppress(AilfError):  # the caller gets its cancellation
                await self.settle_left(error, cancelled=cancelled)

        await self.consumer.group.engine.runtime.single_flight().run(settle)

    def leave_context(self, error: BaseException | None) -> None:
        """Be the current delivery no more."""
        if self.handling is not None and len(self.entered) == 1:
            self.handling.leave(error)
            self.handling = None
        if self.entered:
            *outer, (trace, token) = self.entered
            self.entered = tuple(outer)
            with contextlib.suppress(ValueError):  # it is left in another task than it was entered in
                CURRENT.reset(token)
                trace.__exit__(None, None, None)

    async def settle_left(self, error: BaseException | None, *, cancelled: bool = False) -> bool:
        """Settle it by how its context ended, unless its body settled it; return whether to suppress the error."""
        if self.settled is not None:
            return False
        action, why, delay = choose_action(None, self.cancel_reason or error, interrupted=cancelled)
        instructed = instruction(error)
        known = cancelled or self.interrupted  # it was given back already, or a settlement without a reply was applied
        self.loss_reported = self.loss_reported or known
        try:
            await self.settle(action, delay=delay, error=why)
        except AilfError as failed:
            if known and isinstance(failed, LeaseLostError):
                return instructed is not None
            if error is None or instructed is not None:
                raise
            log.warning(self, "not settled after its body failed: %s", failed)  # it must not hide the body's own error
        return instructed is not None

    async def lose(self) -> None:
        """Record that the lease has ended, and report that to the group's `on_event`, once."""
        self.lease.revoked = True
        self.consumer.stop_renewing(self)
        if not self.loss_reported:
            self.loss_reported = True
            self.lease.observe_lost(self.consumer.group.engine.instruments, "it was found lost")
            self._observe_settled("lost")
            await self.consumer.group.report_lost(self.claim.record.id)

    async def _lost(self, operation: str) -> LeaseLostError:
        """Record that the lease has ended, and return the error to raise."""
        await self.lose()
        return LeaseLostError(
            f"cannot {operation} {self}: its lease has ended, so another consumer may have the message. Nothing was "
            "changed. If this happens often, raise the group's lease, takeover or max_processing"
        )

    def log_fields(self) -> Fields:
        """Return the fields of a record of the log that is about it."""
        record, consumer = self.claim.record, self.consumer
        own: Fields = {"entry_id": record.id, "attempt": self.claim.attempt, "consumer": consumer.name}
        return {**consumer.group.log_fields(), **own, "key": record.key}

    def __str__(self) -> str:
        return f"delivery {self.claim.record.id} (attempt {self.claim.attempt}) of {self.consumer.group}"


class _DeliveryBase(Generic[T_co]):
    """The properties of `Delivery` and `AsyncDelivery`."""

    __slots__ = ("_state",)

    def __init__(self, state: DeliveryState) -> None:
        self._state = state

    @property
    def data(self) -> T_co:
        """The decoded payload."""
        data: T_co = self._state.data
        return data

    @property
    def id(self) -> str:
        """The entry's id in the stream."""
        return self._state.claim.record.id

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the producer sent with the payload."""
        return self._state.headers

    @property
    def attempt(self) -> int:
        """The number of this delivery of the message, from 1. Nacks and expired leases count; releases don't."""
        return self._state.claim.attempt

    @property
    def stream(self) -> str:
        """The stream's name."""
        return self._state.consumer.group.stream

    @property
    def source(self) -> Destination:
        """The stream, and the URL of its backend."""
        return self._state.consumer.group.source

    @property
    def group(self) -> str:
        """The group's name."""
        return self._state.consumer.group.name

    @property
    def consumer(self) -> str:
        """The name of the consumer to which it is leased."""
        return self._state.consumer.name

    @property
    def key(self) -> str:
        """The ordering key, or ""."""
        return self._state.claim.record.key

    @property
    def added(self) -> float:
        """When the entry was added, in seconds since 1970 on the backend's clock."""
        state = self._state
        return state.consumer.group.driver.time_of(state.claim.record.id)

    @property
    def lost(self) -> bool:
        """Whether the lease has ended, so that another consumer may have the message: stop working on it."""
        return self._state.lease.lost

    @property
    def settled(self) -> bool:
        """Whether this consumer has acked, nacked, rejected or released it."""
        return self._state.settled is not None

    def __eq__(self, other: object) -> bool:
        return self._state is other._state if isinstance(other, _DeliveryBase) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._state)

    def __repr__(self) -> str:
        return f"<{self._state}>"


class Delivery(_DeliveryBase[T_co]):
    """A message that is leased to this consumer until it is settled: by `ack`, `nack`, `reject` or `release`.

    The lease is renewed meanwhile. As a context manager it acks when its body ends, and nacks on an exception. It
    rejects on `Reject`; that and `Retry` are suppressed. It releases on Ctrl-C, and on `sys.exit` in the main thread.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend, backend.stream("orders").group("tea").consumer() as consumer:
    ...     id = backend.stream("orders").add("two teas")
    ...     with consumer.take() as delivery:
    ...         assert (delivery.data, delivery.attempt) == ("two teas", 1)
    """

    __slots__ = ()

    _run = staticmethod(run)

    def ack(self) -> None:
        """Settle it as done.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled before, in another way.
            BackendError: The backend is unavailable. `OutcomeUnknownError`: the delivery may have been settled.
        """
        self._run(self._state.settle(Action.ACK))

    def nack(self, delay: float | None = None, reason: str | None = None) -> None:
        """Settle it as failed. The message is delivered again; after its last delivery it becomes a dead letter.

        Arguments:
            delay: Seconds until the next delivery; the group's backoff if None.
            reason: Text that a dead letter keeps as its ``error``.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled before, in another way.
            BackendError: The backend is unavailable. `OutcomeUnknownError`: the delivery may have been settled.
        """
        self._run(
            self._state.settle(Action.NACK, delay=delay, error="" if reason is None else safe_reason("reason", reason))
        )

    def reject(self, reason: str) -> None:
        """Make the message a dead letter of the group: it can't succeed.

        Arguments:
            reason: Text that the dead letter keeps as its ``error``.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled before, in another way.
            BackendError: The backend is unavailable. `OutcomeUnknownError`: the delivery may have been settled.
        """
        self._run(self._state.settle(Action.REJECT, error=safe_reason("reason", reason)))

    def release(self) -> None:
        """Give the message back, available at once. This delivery doesn't count as an attempt.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled before, in another way.
            BackendError: The backend is unavailable. `OutcomeUnknownError`: the delivery may have been settled.
        """
        self._run(self._state.settle(Action.RELEASE))

    def extend(self, seconds: float) -> None:
        """Let the lease end ``seconds`` seconds from now.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled before.
            BackendError: The backend is unavailable.
        """
        self._run(self._state.extend(seconds))

    def __enter__(self) -> Self:
        """Return the delivery itself. Messages that the body sends continue the trace of the message."""
        self._state.enter(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        """Settle it by how the body ended, unless the body settled it."""
        return self._run(self._state.leave(error))


class ThreadDelivery(Delivery[T_co]):
    """A delivery in a thread of an asyncio worker. Its calls run in the worker's event loop, and block the thread."""

    __slots__ = ()

    @classmethod
    def of(cls, state: DeliveryState) -> Self:
        """Return the delivery for a handler that is about to run in a thread."""
        state.loop = asyncio.get_running_loop()
        return cls(state)

    def _run(self, flow: Coroutine[Any, Any, T]) -> T:
        loop = self._state.loop
        if loop is None or loop is _get_running_loop():
            flow.close()
            raise InvalidArgumentError(
                f"{self._state} belongs to a handler in a thread; settle it there, not in the event loop"
            )
        try:
            settling = asyncio.run_coroutine_threadsafe(flow, loop)
        except RuntimeError as error:
            flow.close()
            raise ClosedError(f"{self._state}: the event loop of its worker is closed") from error
        try:
            return settling.result()
        except concurrent.futures.CancelledError as error:
            raise ClosedError(f"{self._state}: the event loop of its worker has ended") from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        """Settle it by how the body ended, unless the body settled it."""
        self._state.leave_context(error)  # here, as the event loop has another context
        return self._run(self._state.settle_left(error))


class AsyncDelivery(_DeliveryBase[T_co]):
    """A message that is leased to this consumer until it is settled: by `ack`, `nack`, `reject` or `release`.

    The lease is renewed meanwhile. As a context manager it acks when its body ends, and nacks on an exception. It
    rejects on `Reject`; that and `Retry` are suppressed. It releases on Ctrl-C, `sys.exit` and cancellation.

    >>> import asyncio, ailf
    >>> async def main() -> None:
    ...     async with ailf.connect_async("memory://") as backend:
    ...         orders = backend.stream("orders")
    ...         await orders.add("two teas")
    ...         async with orders.group("tea").consumer() as consumer, await consumer.take() as delivery:
    ...             assert (delivery.data, delivery.attempt) == ("two teas", 1)
    >>> asyncio.run(main())
    """

    __slots__ = ()

    async def ack(self) -> None:
        """Settle it as done.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled before, in another way.
            BackendError: The backend is unavailable. `OutcomeUnknownError`: the delivery may have been settled.
        """
        await self._state.settle(Action.ACK)

    async def nack(self, delay: float | None = None, reason: str | None = None) -> None:
        """Settle it as failed. The message is delivered again; after its last delivery it becomes a dead letter.

        Arguments:
            delay: Seconds until the next delivery; the group's backoff if None.
            reason: Text that a dead letter keeps as its ``error``.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled before, in another way.
            BackendError: The backend is unavailable. `OutcomeUnknownError`: the delivery may have been settled.
        """
        await self._state.settle(
            Action.NACK, delay=delay, error="" if reason is None else safe_reason("reason", reason)
        )

    async def reject(self, reason: str) -> None:
        """Make the message a dead letter of the group: it can't succeed.

        Arguments:
            reason: Text that the dead letter keeps as its ``error``.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled before, in another way.
            BackendError: The backend is unavailable. `OutcomeUnknownError`: the delivery may have been settled.
        """
        await self._state.settle(Action.REJECT, error=safe_reason("reason", reason))

    async def release(self) -> None:
        """Give the message back, available at once. This delivery doesn't count as an attempt.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled before, in another way.
            BackendError: The backend is unavailable. `OutcomeUnknownError`: the delivery may have been settled.
        """
        await self._state.settle(Action.RELEASE)

    async def extend(self, seconds: float) -> None:
        """Let the lease end ``seconds`` seconds from now.

        Raises:
            LeaseLostError: The lease has ended; nothing was changed.
            SettledError: It was settled before.
            BackendError: The backend is unavailable.
        """
        await self._state.extend(seconds)

    async def __aenter__(self) -> Self:
        """Return the delivery itself. Messages that the body sends continue the trace of the message."""
        self._state.enter(self)
        self._state.body = asyncio.current_task()
        self._state.body_cancels = self._state.body.cancelling() if self._state.body is not None else 0
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool:
        """Settle it by how the body ended, unless the body settled it."""
        state = self._state
        cancelled = (
            isinstance(error, asyncio.CancelledError)
            and state.body is not None
            and state.body.cancelling() > state.body_cancels
            and state.cancel_reason is None
        )
        try:
            return await state.leave(error, cancelled=cancelled)
        except asyncio.CancelledError:
            await state.settle_apart(error, cancelled=cancelled)
            raise


def current_delivery() -> Delivery[Any] | AsyncDelivery[Any] | None:
    """Return the delivery that the caller handles: in a handler of `Group.process`, and in the body of ``with``.

    It equals the delivery that the handler or the body has. So code that a handler calls can ask for more time, or name
    the message in its own log, without getting the delivery as an argument:

    >>> import ailf
    >>> def bake(order: str) -> None:
    ...     if delivery := ailf.current_delivery():
    ...         print(order, "is attempt", delivery.attempt)
    >>> with ailf.connect("memory://") as backend, backend.stream("orders").group("tea").consumer() as consumer:
    ...     id = backend.stream("orders").add("cake")
    ...     with consumer.take() as delivery:
    ...         bake(delivery.data)
    cake is attempt 1

    Returns:
        The delivery: an `AsyncDelivery` in a worker or of a consumer on asyncio, else a `Delivery`, as in a worker with
        ``threads=True``. In a block within a
        handler or another block, the one of the inner block. None outside; and in a handler of batches, except in the
        body of ``with`` one of its deliveries. A task has what the code had that made it, even after the handler has
        ended; so has `asyncio.to_thread`. A `threading.Thread` has None.
    """
    state = CURRENT.get()
    if state is None:
        return None
    if state.loop is not None and _get_running_loop() is not state.loop:
        return ThreadDelivery(state)
    on_asyncio = state.consumer.group.engine.runtime.flavour == "asyncio"
    return AsyncDelivery(state) if on_asyncio else Delivery(state)
