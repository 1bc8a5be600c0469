"""The loop that runs handlers: take a message, call the handler, settle by what it did; stop without losing one.

Each of `concurrency` hands takes from the same consumer, so at most that many handlers run at once (S15). On asyncio a
hand whose handler has returned goes on without waiting for the answer to its ack, unless as many acks are under way as
there are hands. Stopping goes in this order (S14): fetch no more, hand back what was not begun, wait for the running
handlers and for the acks under way, leave.
"""

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any, ClassVar

from ailf.checks import check_count, check_seconds
from ailf.consumer import ConsumerFlow
from ailf.delivery import AsyncDelivery, Delivery, Parcel, verdict
from ailf.driver import Action, Outcome, Settlement
from ailf.engine import LEAVING
from ailf.errors import (
    AilfError,
    BackendError,
    ClosedError,
    LeaseLostError,
    PermissionDeniedError,
    Reject,
    Retry,
)
from ailf.leasing import GroupFlow
from ailf.tracing import carrying

__all__ = ["DRAIN", "Worker"]

log = logging.getLogger("ailf.worker")

DRAIN = 30.0
"""Seconds that a stopped `process` waits for running handlers unless told otherwise."""

_PAUSES = (0.1, 0.5, 2.0, 5.0)
"""Seconds between tries while the backend is away."""

_SPELL = 0.005
"""Seconds that a hand goes on before others of its event loop have their turn."""

_CANCELLED_WITHIN = 1.0
"""Seconds that a cancelled handler has for its clean-up."""


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
    """One call of `process`."""

    def __init__(
        self,
        group: GroupFlow,
        handler: Callable[[Any], Any],
        concurrency: int,
        prefetch: int | None,
        drain: float,
        consumer: str | None,
        *,
        signals: bool,
        plain: bool = False,
    ) -> None:
        self._runtime = group.engine.runtime
        self._runtime.check_callable("the handler", handler)
        self._group = group
        self._handler = handler
        self._concurrency = check_count("concurrency", concurrency)
        self._prefetch = self._concurrency if prefetch is None else check_count("prefetch", prefetch)
        self._drain = check_seconds("drain", drain)
        self._name = consumer
        self._signals = signals
        self._plain = plain
        self._face = Delivery if self._runtime.flavour == "blocking" else AsyncDelivery
        self._consumer: ConsumerFlow | None = None
        self._acking: set[Parcel] = set()
        self._answered = self._runtime.event()
        self._breathed = self._runtime.now()
        self._failure: BaseException | None = None
        self._stopped = False
        self._tally = Tally(self._runtime.now())

    # --- starting and stopping -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stop`, a signal, or an error that no waiting mends."""
        self._consumer = ConsumerFlow(self._group, self._name, self._prefetch)
        await self._consumer.open()
        if self._stopped:
            self._consumer.stop()
        self._group.workers.add(self)
        try:
            if self._signals:
                with self._runtime.on_signals(self._signalled):
                    await self._work(self._consumer)
            else:
                await self._work(self._consumer)
        finally:
            self._group.workers.discard(self)
            await self._consumer.close()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Drain and end, from any thread, a handler or a signal."""
        self._stopped = True
        if self._consumer is not None:
            self._consumer.stop()

    def _signalled(self) -> None:
        log.info("%s: told to stop; waiting up to %g s for running handlers", self._group, self._drain)
        self.stop()

    async def _work(self, consumer: ConsumerFlow) -> None:
        log.info("%s: %s starts with concurrency %d", self._group, consumer.name, self._concurrency)
        mine = 1 if self._runtime.uses_caller else 0
        hands = [
            self._runtime.spawn(lambda: self._hand(consumer), name=f"ailf-worker-{number}")
            for number in range(mine, self._concurrency)
        ]
        try:
            if mine:
                await self._hand(consumer)
            await consumer.stopping.wait()
            await self._hand_back(consumer)
            until = self._runtime.now() + self._drain
            for hand in hands:
                if not await hand.join(max(0.0, until - self._runtime.now())):
                    log.warning("%s: a handler still runs after %g s and is left behind", self._group, self._drain)
        finally:
            consumer.stop()
            for hand in hands:
                hand.cancel()
                await hand.join(_CANCELLED_WITHIN)
            await self._all_answered()
        log.info("%s: %s has stopped: %s", self._group, consumer.name, self._tally)

    async def _hand_back(self, consumer: ConsumerFlow) -> None:
        try:
            await consumer.hand_back()
        except AilfError as error:
            log.warning("%s: messages could not be handed back and wait for their leases: %s", self._group, error)

    # --- one hand ------------------------------------------------------------------------------------------------

    async def _hand(self, consumer: ConsumerFlow) -> None:
        """Take and handle, one message after another."""
        failures = 0
        while True:
            try:
                parcel = await consumer.next()
                failures = 0
            except (PermissionDeniedError, ClosedError) as error:
                self._fail(error)
                return
            except BackendError as error:
                log.warning("%s: the backend is away, trying on: %s", self._group, error)
                if await consumer.stopping.wait(_PAUSES[min(failures, len(_PAUSES) - 1)]):
                    return
                failures += 1
                continue
            except Exception as error:  # noqa: BLE001 - it ends the worker, whose caller gets it
                self._fail(error)
                return
            if parcel is None:
                return
            await self._handle(parcel)
            now = self._runtime.now()
            if now >= self._breathed + _SPELL:
                self._breathed = now
                await self._runtime.breathe()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self.stop()

    async def _handle(self, parcel: Parcel) -> None:
        in_hand = parcel.consumer.in_hand
        in_hand.add(parcel)
        done = False
        try:
            done = await self._call(parcel)
        finally:
            if not done:
                in_hand.discard(parcel)
        if done:
            await self._ack(parcel)

    async def _call(self, parcel: Parcel) -> bool:
        """Call the handler, and settle by what it did, but for the ack; return whether that is still to come."""
        result: object = None
        raised: Exception | None = None
        try:
            with carrying(parcel.headers):
                result = await self._runtime.call(self._handler, parcel.data if self._plain else self._face(parcel))
        except Exception as error:  # noqa: BLE001 - a handler's error is its message's (S15)
            raised = error
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as interrupted:
            await self._give_back(parcel)
            if isinstance(interrupted, asyncio.CancelledError):
                raise
            self._fail(interrupted)
            return False
        if parcel.settled is None:
            action, why, delay = verdict(result, raised)
            if action is Action.ACK:
                return True
            await self._settle(parcel, action, why, delay, raised)
        elif raised is not None:
            log.error("%s: %r after it was settled by %s", parcel, raised, parcel.settled.value, exc_info=raised)
        self._count(parcel)
        return False

    # --- acks ----------------------------------------------------------------------------------------------------

    async def _ack(self, parcel: Parcel) -> None:
        """Have it acked; wait only where there would be more acks under way than handlers may run."""
        try:
            asked = await parcel.ask(Action.ACK)
        except LeaseLostError as lost:
            self._done(parcel, lost)
            return
        self._acking.add(parcel)
        await self._group.settling.post(asked, functools.partial(self._acked, parcel, asked))
        while len(self._acking) >= self._concurrency:
            await self._answered.wait()

    async def _acked(self, parcel: Parcel, asked: Settlement, outcome: Outcome | BaseException) -> None:
        """Take note of what became of an ack."""
        failure = outcome if isinstance(outcome, BaseException) else None
        if not isinstance(outcome, BaseException):
            try:
                await parcel.answered(asked, outcome)
            except AilfError as lost:
                failure = lost
        self._done(parcel, failure)
        awaited = len(self._acking) >= self._concurrency
        self._acking.discard(parcel)
        if awaited or not self._acking:
            self._answered.set()
            self._answered.clear()

    def _done(self, parcel: Parcel, failure: BaseException | None) -> None:
        if failure is not None:
            parcel.consumer.let_go(parcel)  # its lease ends, and it comes again
            log.warning("%s: ack failed: %s", parcel, failure)
        parcel.consumer.in_hand.discard(parcel)
        self._count(parcel)

    async def _all_answered(self) -> None:
        """Wait for the acks under way."""
        until = self._runtime.now() + LEAVING
        while self._acking and (left := until - self._runtime.now()) > 0:
            await self._answered.wait(left)

    def _count(self, parcel: Parcel) -> None:
        self._tally.count(parcel.settled, parcel.outcome)
        if self._tally.due(self._runtime.now()):
            log.info("%s: %s so far: %s", self._group, parcel.consumer.name, self._tally)

    async def _settle(
        self, parcel: Parcel, action: Action, why: str, delay: float | None, raised: Exception | None
    ) -> None:
        """Settle, and say in the log, with the handler's error, what became of the message."""
        try:
            outcome = await parcel.settle(action, delay=delay, error=why)
        except AilfError as error:
            parcel.consumer.let_go(parcel)  # its lease ends, and it comes again
            fate, severity = f"{action.value} failed: {error}", logging.ERROR if why else logging.WARNING
        else:
            if not why:
                return
            fate = "it is a dead letter now" if outcome is Outcome.DEAD else "it will be delivered again"
            severity = logging.ERROR
        log.log(severity, "%s: %s%s", parcel, f"{why}; " if why else "", fate, exc_info=_trace(raised))

    async def _give_back(self, parcel: Parcel) -> None:
        if parcel.settled is None:
            await self._settle(parcel, Action.RELEASE, "", None, None)


def _trace(raised: Exception | None) -> Exception | None:
    """Return the error whose traceback belongs into the log: `Reject` and `Retry` are words, and have said it all."""
    return None if isinstance(raised, Reject | Retry) else raised
