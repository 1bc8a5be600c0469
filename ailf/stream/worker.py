"""The worker: it takes messages, calls the handler, and settles each message by how its handler ended.

Each of `concurrency` worker loops takes from the same consumer, so at most `concurrency` handlers run at once (S15).
On asyncio a loop continues without waiting for the reply to its ack, unless as many acks are under way as there are
loops. Stopping has this order (S14): fetch no more, give back messages not started, wait for the running handlers and
for the acks under way, leave.

A handler affects only its own message. A worker loop that ends without a stop ends `process` with an error.
"""

import asyncio
import functools
import logging
import operator
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, ClassVar

import attrs

from ailf.checks import check_member, check_name, valid_count, valid_flag, valid_seconds, valid_wait
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
from ailf.logs import Log
from ailf.runtime import Task, ThreadPool, ThreadRuntime
from ailf.runtime.base import finish
from ailf.runtime.signals import check_signals, stopped_by_signals
from ailf.safe_text import describe, text_of
from ailf.stream.consumer_flow import ConsumerFlow
from ailf.stream.delivery import AsyncDelivery, Delivery, DeliveryState, ThreadDelivery, choose_action, instruction
from ailf.stream.group_flow import GroupFlow
from ailf.stream.handler_run import HandlerRunner
from ailf.user_errors import is_fatal
from ailf.values import OnLost

__all__ = ["DRAIN", "LARGE", "PAUSES", "ProcessOptions", "Worker"]

log = Log("ailf.worker")

DRAIN = 30.0
"""Seconds that a stopped `process` waits for running handlers by default."""

PAUSES = (0.1, 0.5, 2.0, 5.0)
"""Seconds between tries while the backend is unavailable."""

LARGE = 100_000
"""The number of entries at which a worker warns of a stream without a retention."""

_YIELD_EVERY = 0.005
"""Seconds after which a worker loop yields to the event loop."""

_RETRY_SOON = 0.25
"""Seconds until a message is delivered again whose earlier attempt is settled, but whose handler still runs."""

_IDLE_CHECK = 0.05
"""Seconds after which an idle worker loop of ``process(until_idle=True)`` fetches again while other handlers run."""

_CANCELLED_WITHIN = 1.0
"""Seconds that all cancelled handlers together have for their cleanup."""


def _valid_on_lost(_: Any, __: "attrs.Attribute[OnLost]", on_lost: object) -> None:
    check_member("on_lost", on_lost, OnLost)


@attrs.frozen(kw_only=True)
class ProcessOptions:
    """How a worker runs its handler; see `Group.process`."""

    concurrency: int = attrs.field(default=1, validator=valid_count)
    prefetch: int | None = attrs.field(default=None, validator=attrs.validators.optional(valid_count))
    drain: float = attrs.field(default=DRAIN, validator=valid_wait)
    timeout: float | None = attrs.field(default=None, validator=attrs.validators.optional(valid_seconds))
    on_lost: OnLost = attrs.field(default=OnLost.CANCEL, validator=_valid_on_lost)
    signals: bool | None = attrs.field(default=None, converter=check_signals)
    batch: int | None = attrs.field(default=None, validator=attrs.validators.optional(valid_count))
    linger: float = attrs.field(default=0.0, validator=valid_wait)
    until_idle: bool = attrs.field(default=False, validator=valid_flag)
    threads: bool = attrs.field(default=False, validator=valid_flag)

    def __attrs_post_init__(self) -> None:
        """Refuse `linger` without `batch`."""
        if self.linger and self.batch is None:
            raise InvalidArgumentError(f"linger is for batches: give batch=, too, not only linger={self.linger!r}")


class Tally:
    """Counts what a worker has done, for its log.

    Attributes:
        handled: The number of messages with which its handlers were called.
        failed: The number of these that were not acked.
        dead: The number of these that became dead letters.
    """

    EVERY: ClassVar[float] = 60.0
    """Seconds between two lines of the log."""

    def __init__(self, now: float) -> None:
        self.handled = self.failed = self.dead = 0
        self._logged_at = now

    def count(self, action: Action | None, outcome: Outcome | None) -> None:
        """Count one message by how it was settled."""
        self.handled += 1
        self.failed += action is not Action.ACK
        self.dead += outcome is Outcome.DEAD

    def due(self, now: float) -> bool:
        """Tell whether the next line of the log is due."""
        if now < self._logged_at + self.EVERY:
            return False
        self._logged_at = now
        return True

    def __str__(self) -> str:
        return f"{self.handled} handled, {self.failed} failed, {self.dead} dead letters"


class Worker:
    """One call of `process`.

    Arguments:
        group: The group whose messages it takes.
        handler: Called with each delivery.
        options: How it runs the handler.
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
        self._on_asyncio = self._runtime.flavour == "asyncio"
        in_threads = self._on_asyncio and options.threads
        (ThreadRuntime() if in_threads else self._runtime).check_callable("the handler", handler)
        self._threads = ThreadPool(options.concurrency, "ailf-handler") if in_threads else None
        self._group = group
        self._options = options
        self._concurrency = options.concurrency
        self._name = None if consumer is None else check_name("consumer", consumer)
        self._public_class: Callable[[DeliveryState], Any] = AsyncDelivery if self._on_asyncio else Delivery
        if in_threads:
            self._public_class = ThreadDelivery.of
        self._runner: HandlerRunner[Any] = HandlerRunner(
            self._runtime, group.engine.renewer, group.engine.instruments, handler,
            show=self._show(), argument=operator.attrgetter("data") if plain else None, release=self._release,
            timeout=options.timeout, cancels=options.on_lost is OnLost.CANCEL, threads=self._threads,
        )  # fmt: skip
        self._consumer: ConsumerFlow | None = None
        self._acking: set[DeliveryState] = set()
        self._ack_ended = self._runtime.event()
        self._yielded_at = self._runtime.now()
        self._failure: BaseException | None = None
        self._tally = Tally(self._runtime.now())
        self._idle = 0  # with `until_idle`: the worker loops that found nothing, and do nothing but wait
        self._progress = self._runtime.event()
        self._guard = self._runtime.guard()
        self._warned_of_length = False
        self._check_length = group.retention is None  # at first, and with each line of the tally until it has warned

    def _show(self) -> Callable[[Any], Any]:
        """Return what makes the handler's argument, unless it is the payload."""
        return self._public_class

    # --- starting and stopping -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stop`, a signal, or an error that waiting can't repair."""
        self._group.engine.check_home()
        consumer = ConsumerFlow(self._group, self._name, self._options.prefetch or self._concurrency)
        self._consumer = consumer
        self._group.workers.add(self)
        loops: list[Task] = []
        try:
            with stopped_by_signals(self._runtime.from_signal(self._signalled), self._options.signals):
                try:
                    await consumer.open()
                    await self._work(consumer, loops)
                finally:
                    await self._end(consumer, loops)
        finally:
            self._group.workers.discard(self)
            if self._threads is not None:
                self._threads.close()
        log.info(consumer, "has stopped: %s", self._tally)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Drain and end, from any thread, a handler or a signal handler."""
        if self._consumer is not None:
            self._consumer.stop()

    def _signalled(self) -> None:
        log.info(self._consumer, "a signal stops the worker; running handlers have %g s", self._options.drain)
        self.stop()

    async def _work(self, consumer: ConsumerFlow, loops: list[Task]) -> None:
        log.info(consumer, "starts with concurrency %d", self._concurrency)
        own = 1 if self._runtime.uses_caller else 0  # the caller's thread is the first loop
        loops += (
            self._runtime.spawn(lambda: self._run_loop(consumer), name=f"ailf-worker-{number}")
            for number in range(own, self._concurrency)
        )
        if own:
            await self._run_loop(consumer)
        await consumer.stopping.wait()
        await self._give_back(consumer.release_unstarted())
        until = self._runtime.now() + self._options.drain
        for loop in loops:
            if not await loop.join(max(0.0, until - self._runtime.now())):
                log.warning(consumer, "a handler is abandoned: it still runs after %g s", self._options.drain)

    async def _end(self, consumer: ConsumerFlow, loops: Sequence[Task]) -> None:
        """Cancel the loops, and leave when they have ended; in a task of its own if the caller is cancelled."""

        async def leave() -> None:
            until = self._runtime.now() + _CANCELLED_WITHIN
            for loop in loops:
                await loop.join(max(0.0, until - self._runtime.now()))
            await self._wait_for_acks()
            await consumer.leave()

        try:
            consumer.stop()
            for loop in loops:
                loop.cancel()
            await finish(leave, self._runtime.single_flight())
        except asyncio.CancelledError:
            raise
        except BaseException:  # Ctrl-C, again
            await consumer.leave()
            raise

    async def _give_back(self, releasing: Awaitable[None]) -> None:
        """Release messages that no handler has begun."""
        try:
            await releasing
        except AilfError as error:
            log.warning(self._consumer, "messages not given back; they come again when their leases end: %s", error)

    # --- one worker loop -----------------------------------------------------------------------------------------

    async def _run_loop(self, consumer: ConsumerFlow) -> None:
        """Take and handle messages until stopped; any other end ends `process` with an error."""
        failures = 0
        take, handle = self._steps(consumer)
        try:
            while True:
                try:
                    state = await take()
                    failures = 0
                except PermissionDeniedError:
                    raise
                except BackendError as error:
                    await self._wait_out(consumer, error, failures)
                    failures += 1
                    continue
                if not state:
                    return
                await handle(state)
                if self._check_length:
                    await self._warn_of_length()
                now = self._runtime.now()
                if now >= self._yielded_at + _YIELD_EVERY:
                    self._yielded_at = now
                    await self._runtime.checkpoint()
        except asyncio.CancelledError:
            if not consumer.stopping.is_set():
                self._fail(AilfError(f"{self._group}: other code has cancelled the task of a worker loop"))
            raise
        except BaseException as error:  # noqa: BLE001 - the caller of `process` gets it
            self._fail(error)

    def _steps(self, consumer: ConsumerFlow) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
        """Return what a worker loop does in turn: it takes what its handler gets, and handles it."""
        if self._options.until_idle:
            return self._until_idle(consumer, consumer.next), self._noting_progress(self._handle)
        return consumer.next, self._handle

    # --- ending when idle ----------------------------------------------------------------------------------------

    def _until_idle(
        self, consumer: ConsumerFlow, take: Callable[[float], Awaitable[Any]]
    ) -> Callable[[], Coroutine[Any, Any, Any]]:
        """Return a function that takes as `take` does, and stops the worker when nothing is left to deliver now.

        A loop counts as idle from a fetch that found nothing until just before its next one. So when all are idle, no
        handler runs, and the last fetch came after the end of the last handler. An ack under way may free an ordering
        key, so its end is waited for too.
        """

        async def take_until_idle() -> Any:
            while True:
                item = await take(0.0)
                if item or consumer.stopping.is_set():
                    return item
                if not consumer.found_nothing:  # the fetch was cut short, so the next one may find something
                    await self._runtime.checkpoint()
                    continue
                if self._ends_when_idle(consumer):
                    return None
                try:
                    await self._progress.wait(_IDLE_CHECK)
                    self._progress.clear()
                finally:
                    with self._guard:
                        self._idle -= 1

        return take_until_idle

    def _ends_when_idle(self, consumer: ConsumerFlow) -> bool:
        """Count a loop as idle; stop the worker, and return True, if all are."""
        with self._guard:
            self._idle += 1
            if self._idle < self._concurrency or self._acking:
                return False
        consumer.stop()
        self._progress.set()
        return True

    def _noting_progress(self, handle: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Coroutine[Any, Any, None]]:
        """Return a function that handles as `handle` does, and wakes the idle loops before and after that."""

        async def handle_and_wake(taken: Any) -> None:
            self._progress.set()  # the fetch may have taken messages for other loops, too
            try:
                await handle(taken)
            finally:
                self._progress.set()

        return handle_and_wake

    async def _wait_out(self, consumer: ConsumerFlow, error: BackendError, failures: int) -> None:
        """Pause before the next try while the backend is unavailable."""
        consumer.record_failure(error)
        await consumer.stopping.wait(PAUSES[min(failures, len(PAUSES) - 1)])

    async def _warn_of_length(self) -> None:
        """Warn, once, of a stream that is long and for which this worker has no retention."""
        self._check_length = False
        group = self._group
        try:
            length = await group.driver.length(group.stream)
        except AilfError as error:
            log.debug(group, "the length of its stream is unknown: %s", error)
            return
        if length < LARGE:
            return
        self._warned_of_length = True
        log.warning(
            group,
            "the stream has %d entries. Only a retention removes settled entries: if its producers have none, give "
            "them retention=Retention.settled()",
            length,
        )

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        elif error is not self._failure:
            log.failure(logging.ERROR, self._consumer, "another worker loop has failed", error=error)
        self.stop()

    async def _handle(self, state: DeliveryState) -> None:
        in_progress, entry_id = state.consumer.in_progress, state.claim.record.id
        if entry_id in in_progress:
            await self._postpone(state, in_progress[entry_id])
            return
        in_progress[entry_id] = state
        acks = False
        try:
            try:
                result, error = await self._runner.run(state)
            finally:
                del in_progress[entry_id]
            if state.settled is None and error is state.cancel_reason is not None and isinstance(error, LeaseLostError):
                log.warning(state, "its lease was lost, so its handler was cancelled")
                await state.lose()
            elif state.settled is None:
                action, why, delay = choose_action(result, error)
                acks = action is Action.ACK
                if not acks:
                    await self._settle(state, action, why, delay, error)
            elif error is not None:
                settled = state.settled.value
                log.failure(logging.ERROR, state, "failed after it was settled by %s", settled, error=error)
        finally:
            if not acks and state.settled is None:  # the handler has ended, so its lease must not be renewed any more
                state.consumer.stop_renewing(state)
        if acks:
            await self._ack(state)
            return
        self._count(state)
        if error is not None and is_fatal(error):
            raise error

    async def _postpone(self, state: DeliveryState, earlier: DeliveryState) -> None:
        """Release a message while an earlier attempt of it still runs here: for other workers, or for later."""
        delay = self._group.options.takeover
        if earlier.settled is not None:  # by its handler, which will probably end soon
            delay = min(delay, _RETRY_SOON)
        log.warning(state, "an earlier attempt still runs here; released for at least %g s", delay)
        await self._settle(state, Action.RELEASE, "", delay, None)

    # --- acks ----------------------------------------------------------------------------------------------------

    async def _ack(self, state: DeliveryState) -> None:
        """Send an ack; wait only while as many acks are under way as handlers may run."""
        try:
            settlement = await state.make_settlement(Action.ACK)
        except LeaseLostError as lost:
            self._end_ack(state, lost)
            return
        try:
            if self._on_asyncio:
                self._acking.add(state)
            await self._group.settling.post(settlement, functools.partial(self._record_ack, state, settlement))
            while len(self._acking) >= self._concurrency:
                await self._ack_ended.wait()
        except BaseException:  # interrupted: it isn't known whether it was acked, and no reply will tell
            if not self._on_asyncio:
                state.consumer.stop_renewing(state)
            raise

    async def _record_ack(self, state: DeliveryState, settlement: Settlement, outcome: Outcome | BaseException) -> None:
        """Record the outcome of an ack."""
        failure = outcome if isinstance(outcome, BaseException) else None
        if not isinstance(outcome, BaseException):
            try:
                await state.record_outcome(settlement, outcome)
            except AilfError as lost:
                failure = lost
        self._end_ack(state, failure)

    def _end_ack(self, state: DeliveryState, failure: BaseException | None) -> None:
        if failure is not None:
            state.consumer.stop_renewing(state)  # its lease ends, and the message is delivered again
            log.warning(state, "ack failed: %s", text_of(failure))
        self._count(state)
        if not self._on_asyncio:
            return
        awaited = len(self._acking) >= self._concurrency
        self._acking.discard(state)
        if awaited or not self._acking:
            self._ack_ended.set()
            self._ack_ended.clear()
        if self._idle:
            self._progress.set()

    async def _wait_for_acks(self) -> None:
        """Wait for the acks under way, for `LEAVING` seconds at most."""
        until = self._runtime.now() + LEAVING
        while self._acking and (left := until - self._runtime.now()) > 0:
            await self._ack_ended.wait(left)

    def _count(self, state: DeliveryState) -> None:
        self._tally.count(state.settled, state.outcome)
        if self._tally.due(self._runtime.now()):
            log.info(self._consumer, "so far: %s", self._tally)
            self._check_length = self._group.retention is None and not self._warned_of_length

    async def _settle(
        self, state: DeliveryState, action: Action, why: str, delay: float | None, error: BaseException | None
    ) -> None:
        """Settle a message, and log the outcome with the handler's error."""
        instructed = instruction(error)
        level = logging.ERROR if why else logging.WARNING
        try:
            outcome = await state.settle(action, delay=delay, error=why)
        except Exception as failure:  # noqa: BLE001 - the user's subclass of `Backoff` may raise anything
            state.consumer.stop_renewing(state)  # its lease ends, and the message is delivered again
            fate = f"{action.value} failed: {text_of(failure) if isinstance(failure, AilfError) else describe(failure)}"
        else:
            if not why:
                return
            fate = "it is a dead letter now" if outcome is Outcome.DEAD else "it will be delivered again"
            if isinstance(instructed, Retry) and outcome is not Outcome.DEAD:
                level = logging.INFO
        # The text of a `Reject` or `Retry` is enough; any other error is logged with its traceback.
        text = f"{why}; {fate}" if why else fate
        log.failure(level, state, "%s", text, error=error if instructed is None else None)

    async def _release(self, state: DeliveryState) -> None:
        if state.settled is None:
            await self._settle(state, Action.RELEASE, "", None, None)
