"""The loop that runs handlers: take a message, call the handler, settle by what it did; stop without losing one.

Each of `concurrency` worker loops takes from the same consumer, so at most that many handlers run at once (S15). On
asyncio a loop whose handler has returned goes on without waiting for the answer to its ack, unless as many acks are
under way as there are loops. Stopping goes in this order (S14): fetch no more, hand back what was not begun, wait for
the running handlers and for the acks under way, leave.

Whatever a handler does is an event of its one message. A worker loop that ends without having been told to stop ends
`process` with an error.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any, ClassVar

import attrs

from ailf.checks import check_name, valid_count, valid_seconds, valid_wait
from ailf.driver import Action, Outcome, Settlement
from ailf.engine.engine import LEAVING
from ailf.errors import (
    AilfError,
    BackendError,
    InvalidArgumentError,
    LeaseLostError,
    PermissionDeniedError,
    Retry,
)
from ailf.runtime.signals import check_signals, stopped_by_signals
from ailf.safe_text import describe, log_failure, text_of
from ailf.stream.consumer_flow import ConsumerFlow
from ailf.stream.delivery import AsyncDelivery, Delivery, DeliveryState, instruction, verdict
from ailf.stream.group_flow import GroupFlow
from ailf.tracing import carrying
from ailf.user_errors import is_fatal
from ailf.values import OnLost

__all__ = ["DRAIN", "ProcessOptions", "Worker"]

log = logging.getLogger("ailf.worker")

DRAIN = 30.0
"""Seconds that a stopped `process` waits for running handlers unless told otherwise."""

_PAUSES = (0.1, 0.5, 2.0, 5.0)
"""Seconds between tries while the backend is away."""

LARGE = 100_000
"""The length from which on a worker warns of a stream without a retention."""

_SPELL = 0.005
"""Seconds that a worker loop goes on before others of its event loop have their turn."""

_SOON = 0.25
"""Seconds after which a message is tried again whose earlier attempt has settled itself, but still runs."""

_CANCELLED_WITHIN = 1.0
"""Seconds that cancelled handlers have for their clean-up, all together."""


def _valid_on_lost(_: Any, __: "attrs.Attribute[OnLost]", on_lost: object) -> None:
    if not isinstance(on_lost, OnLost):
        raise InvalidArgumentError(f"on_lost must be OnLost.CANCEL or OnLost.SIGNAL, not {on_lost!r}")


@attrs.frozen(kw_only=True)
class ProcessOptions:
    """How a worker runs its handler; see `Group.process`."""

    concurrency: int = attrs.field(default=1, validator=valid_count)
    prefetch: int | None = attrs.field(default=None, validator=attrs.validators.optional(valid_count))
    drain: float = attrs.field(default=DRAIN, validator=valid_wait)
    timeout: float | None = attrs.field(default=None, validator=attrs.validators.optional(valid_seconds))
    on_lost: OnLost = attrs.field(default=OnLost.CANCEL, validator=_valid_on_lost)
    signals: bool | None = attrs.field(default=None, converter=check_signals)


class Tally:
    """What a worker has done, told to its log now and then.

    Attributes:
        handled: How many messages its handlers were called with.
        failed: How many of these were not acked.
        dead: How many of these became dead letters.
    """

    EVERY: ClassVar[float] = 60.0
    """Seconds between two lines."""

    def __init__(self, now: float) -> None:
        self.handled = self.failed = self.dead = 0
        self._told = now

    def count(self, action: Action | None, outcome: Outcome | None) -> None:
        """Count one message by how it was settled."""
        self.handled += 1
        self.failed += action is not Action.ACK
        self.dead += outcome is Outcome.DEAD

    def due(self, now: float) -> bool:
        """Tell whether it is time for a line."""
        if now < self._told + self.EVERY:
            return False
        self._told = now
        return True

    def __str__(self) -> str:
        return f"{self.handled} handled, {self.failed} failed, {self.dead} dead letters"


class Worker:
    """One call of `process`.

    Arguments:
        group: The group whose messages it takes.
        handler: Called with each delivery.
        options: How.
        consumer: The name of its consumer, for operators.
        plain: Whether the handler takes the payload instead of the delivery.
    """

    def __init__(
        self,
        group: GroupFlow,
        handler: Callable[[Any], Any],
        options: ProcessOptions,
        consumer: str | None,
        *,
        plain: bool = False,
    ) -> None:
        self._runtime = group.engine.runtime
        self._runtime.check_callable("the handler", handler)
        self._group = group
        self._handler = handler
        self._options = options
        self._concurrency = options.concurrency
        self._name = None if consumer is None else check_name("consumer", consumer)
        self._plain = plain
        self._on_asyncio = self._runtime.flavour == "asyncio"
        self._face = AsyncDelivery if self._on_asyncio else Delivery
        self._cancels = self._on_asyncio and options.on_lost is OnLost.CANCEL
        self._consumer: ConsumerFlow | None = None
        self._acking: set[DeliveryState] = set()
        self._answered = self._runtime.event()
        self._breathed = self._runtime.now()
        self._failure: BaseException | None = None
        self._tally = Tally(self._runtime.now())
        self._warned = False
        self._looks_at_length = group.retention is None  # now, and with each line of the tally, until it has warned

    # --- starting and stopping -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stop`, a signal, or an error that no waiting mends."""
        consumer = ConsumerFlow(self._group, self._name, self._options.prefetch or self._concurrency)
        self._consumer = consumer
        self._group.workers.add(self)
        try:
            with stopped_by_signals(self._runtime.from_signal(self._signalled), self._options.signals):
                await consumer.open()
                await self._work(consumer)
        finally:
            self._group.workers.discard(self)
            await consumer.close()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Drain and end, from any thread, a handler or a signal."""
        if self._consumer is not None:
            self._consumer.stop()

    def _signalled(self) -> None:
        log.info("%s: told to stop; waiting up to %g s for running handlers", self._group, self._options.drain)
        self.stop()

    async def _work(self, consumer: ConsumerFlow) -> None:
        log.info("%s: %s starts with concurrency %d", self._group, consumer.name, self._concurrency)
        mine = 1 if self._runtime.uses_caller else 0
        loops = [
            self._runtime.spawn(lambda: self._run_loop(consumer), name=f"ailf-worker-{number}")
            for number in range(mine, self._concurrency)
        ]
        try:
            if mine:
                await self._run_loop(consumer)
            await consumer.stopping.wait()
            await self._hand_back(consumer)
            until = self._runtime.now() + self._options.drain
            for each in loops:
                if not await each.join(max(0.0, until - self._runtime.now())):
                    log.warning(
                        "%s: a handler still runs after %g s and is left behind", self._group, self._options.drain
                    )
        finally:
            consumer.stop()
            for each in loops:
                each.cancel()
            until = self._runtime.now() + _CANCELLED_WITHIN
            for each in loops:
                await each.join(max(0.0, until - self._runtime.now()))
            await self._all_answered()
        log.info("%s: %s has stopped: %s", self._group, consumer.name, self._tally)

    async def _hand_back(self, consumer: ConsumerFlow) -> None:
        try:
            await consumer.hand_back()
        except AilfError as error:
            log.warning("%s: messages could not be handed back and wait for their leases: %s", self._group, error)

    # --- one worker loop -----------------------------------------------------------------------------------------

    async def _run_loop(self, consumer: ConsumerFlow) -> None:
        """Take and handle messages until told to stop; any other end ends `process` with an error."""
        failures = 0
        try:
            while True:
                try:
                    state = await consumer.next()
                    failures = 0
                except PermissionDeniedError:
                    raise
                except BackendError as error:
                    await self._wait_out(consumer, error, failures)
                    failures += 1
                    continue
                if state is None:
                    return
                await self._handle(state)
                if self._looks_at_length:
                    await self._warn_of_length()
                now = self._runtime.now()
                if now >= self._breathed + _SPELL:
                    self._breathed = now
                    await self._runtime.checkpoint()
        except asyncio.CancelledError:
            if not consumer.stopping.is_set():
                self._fail(AilfError(f"{self._group}: other code has cancelled the task of a worker loop"))
            raise
        except BaseException as error:  # noqa: BLE001 - the caller of `process` gets it
            self._fail(error)

    async def _wait_out(self, consumer: ConsumerFlow, error: BackendError, failures: int) -> None:
        """Pause before the next try while the backend is away."""
        consumer.failed(error)
        await consumer.stopping.wait(_PAUSES[min(failures, len(_PAUSES) - 1)])

    async def _warn_of_length(self) -> None:
        """Warn, once, of a stream that has grown large and of which this worker knows no retention."""
        self._looks_at_length = False
        group = self._group
        try:
            length = await group.driver.length(group.stream)
        except AilfError as error:
            log.debug("%s: the stream's length is not known: %s", group, error)
            return
        if length < LARGE:
            return
        self._warned = True
        log.warning(
            "stream %r has %d entries. What is settled stays in a stream unless it has a retention: if its producers "
            "have none, give them retention=Retention.settled()",
            group.stream,
            length,
        )

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        elif error is not self._failure:
            log_failure(log, logging.ERROR, "%s: another worker loop has failed", self._group, error=error)
        self.stop()

    async def _handle(self, state: DeliveryState) -> None:
        in_hand, name = state.consumer.in_hand, state.claim.record.id
        if name in in_hand:
            await self._postpone(state, in_hand[name])
            return
        in_hand[name] = state
        acks = False
        try:
            try:
                result, error = await self._run_handler(state)
            finally:
                del in_hand[name]
            if state.settled is None and error is state.struck is not None and isinstance(error, LeaseLostError):
                log.warning("%s: its lease was lost, so its handler was cancelled", state)
                await state.lose()
            elif state.settled is None:
                action, why, delay = verdict(result, error)
                acks = action is Action.ACK
                if not acks:
                    await self._settle(state, action, why, delay, error)
            elif error is not None:
                settled = state.settled.value
                log_failure(log, logging.ERROR, "%s failed after it was settled by %s", state, settled, error=error)
        finally:
            if not acks and state.settled is None:  # whatever ended the handler: its lease is renewed no more
                state.consumer.let_go(state)
        if acks:
            await self._ack(state)
            return
        self._count(state)
        if error is not None and is_fatal(error):
            raise error

    async def _postpone(self, state: DeliveryState, earlier: DeliveryState) -> None:
        """Give back a message whose earlier attempt still runs here, for others to have, or for later."""
        delay = self._group.options.takeover
        if earlier.settled is not None:  # by its handler, which is probably about to end
            delay = min(delay, _SOON)
        log.warning("%s: an earlier attempt still runs here; given back, and not before %g s", state, delay)
        await self._settle(state, Action.RELEASE, "", delay, None)

    async def _run_handler(self, state: DeliveryState) -> tuple[Any, BaseException | None]:
        """Call the handler, and return what it returned or raised; give the message back where we are cancelled."""
        task = asyncio.current_task() if self._on_asyncio else None
        if task is not None:
            state.task, state.cancels = task, task.cancelling()
        if self._cancels:
            state.hold.on_lost = functools.partial(self._lease_lost, state)
            if state.hold.revoked:  # just now
                self._lease_lost(state)
        stop_timer = None if self._options.timeout is None else self._start_timer(state, self._options.timeout)
        try:
            with carrying(state.headers):
                result, error = await self._runtime.call_user_code(
                    self._handler, state.data if self._plain else self._face(state)
                )
        except asyncio.CancelledError as cancelled:
            if state.struck is None:
                await self._give_back(state)
                raise
            result, error = None, cancelled
        finally:
            state.task = state.hold.on_lost = None
            if stop_timer is not None:
                stop_timer()
        if state.struck is not None:
            error = await self._why_cancelled(state, state.struck, error)
        return result, error

    # --- handlers that take too long, or have lost their lease ---------------------------------------------------

    def _start_timer(self, state: DeliveryState, timeout: float) -> Callable[[], None]:
        """Let the handler's time end: asyncio cancels it, a thread's lease is let go; return what stops the timer."""
        if not self._on_asyncio:
            renewer, hold = self._group.engine.renewer, state.hold
            renewer.limit(hold, hold.now() + timeout)
            return functools.partial(renewer.limit, hold, float("inf"))
        loop = asyncio.get_running_loop()
        late = TimeoutError(f"the handler took longer than its timeout of {timeout:g} s")
        timer = loop.call_later(timeout, self._cancel, state, late)

        def stop() -> None:
            timer.cancel()
            if state.struck is None and loop.time() > timer.when():
                log.warning("%s: %s, and has blocked the event loop, so it was not cancelled", state, late)

        return stop

    def _lease_lost(self, state: DeliveryState) -> None:
        """Cancel the handler, from the renewal thread."""
        task = state.task
        if task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left to be cancelled
                task.get_loop().call_soon_threadsafe(self._cancel, state, LeaseLostError(f"{state}: lost"))

    def _cancel(self, state: DeliveryState, why: Exception) -> None:
        """Cancel the handler, if it still runs, once.

        A handler that is settling its message learns from the answer whether the lease held; a lease that has ended
        because the message was settled must not cancel it.
        """
        if isinstance(why, LeaseLostError) and state.settling:
            return
        if state.task is not None and state.struck is None:
            state.struck = why
            state.task.cancel()

    async def _why_cancelled(
        self, state: DeliveryState, why: Exception, error: BaseException | None
    ) -> BaseException | None:
        """Take our own cancellation back, and return what the handler ended with."""
        task = asyncio.current_task()
        if task is not None and task.uncancel() > state.cancels:  # others have cancelled it too
            await self._give_back(state)
            raise asyncio.CancelledError
        return why if isinstance(error, asyncio.CancelledError) else error

    # --- acks ----------------------------------------------------------------------------------------------------

    async def _ack(self, state: DeliveryState) -> None:
        """Have it acked; wait only where there would be more acks under way than handlers may run."""
        try:
            asked = await state.ask(Action.ACK)
        except LeaseLostError as lost:
            self._done(state, lost)
            return
        try:
            if self._on_asyncio:
                self._acking.add(state)
            await self._group.settling.post(asked, functools.partial(self._acked, state, asked))
            while len(self._acking) >= self._concurrency:
                await self._answered.wait()
        except BaseException:  # interrupted: whether it was acked isn't known, and nobody will say
            if not self._on_asyncio:
                state.consumer.let_go(state)
            raise

    async def _acked(self, state: DeliveryState, asked: Settlement, outcome: Outcome | BaseException) -> None:
        """Take note of what became of an ack."""
        failure = outcome if isinstance(outcome, BaseException) else None
        if not isinstance(outcome, BaseException):
            try:
                await state.answered(asked, outcome)
            except AilfError as lost:
                failure = lost
        self._done(state, failure)

    def _done(self, state: DeliveryState, failure: BaseException | None) -> None:
        if failure is not None:
            state.consumer.let_go(state)  # its lease ends, and it comes again
            log.warning("%s: ack failed: %s", state, text_of(failure))
        self._count(state)
        if not self._on_asyncio:
            return
        awaited = len(self._acking) >= self._concurrency
        self._acking.discard(state)
        if awaited or not self._acking:
            self._answered.set()
            self._answered.clear()

    async def _all_answered(self) -> None:
        """Wait for the acks under way."""
        until = self._runtime.now() + LEAVING
        while self._acking and (left := until - self._runtime.now()) > 0:
            await self._answered.wait(left)

    def _count(self, state: DeliveryState) -> None:
        self._tally.count(state.settled, state.outcome)
        if self._tally.due(self._runtime.now()):
            log.info("%s: %s so far: %s", self._group, state.consumer.name, self._tally)
            self._looks_at_length = self._group.retention is None and not self._warned

    async def _settle(
        self, state: DeliveryState, action: Action, why: str, delay: float | None, error: BaseException | None
    ) -> None:
        """Settle, and say in the log, with the handler's error, what became of the message."""
        said = instruction(error)
        level = logging.ERROR if why else logging.WARNING
        try:
            outcome = await state.settle(action, delay=delay, error=why)
        except Exception as failure:  # noqa: BLE001 - a backoff of the user's own may raise anything
            state.consumer.let_go(state)  # its lease ends, and it comes again
            fate = f"{action.value} failed: {text_of(failure) if isinstance(failure, AilfError) else describe(failure)}"
        else:
            if not why:
                return
            fate = "it is a dead letter now" if outcome is Outcome.DEAD else "it will be delivered again"
            if isinstance(said, Retry) and outcome is not Outcome.DEAD:
                level = logging.INFO
        # `Reject` and `Retry` are words, and have said it all; of any other error the traceback helps.
        shown = f"{why}; {fate}" if why else fate
        log_failure(log, level, "%s: %s", state, shown, error=error if said is None else None)

    async def _give_back(self, state: DeliveryState) -> None:
        if state.settled is None:
            await self._settle(state, Action.RELEASE, "", None, None)
