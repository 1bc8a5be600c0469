"""The worker of `process(batch=n)`: its handler gets a list of deliveries, and how it ends settles all that are left.

A batch costs what one message costs: a fetch, a call of the handler, and a request that settles. No lock is taken, no
task made and nobody woken for each of its messages.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ailf.driver import Action, Outcome, Settlement
from ailf.engine.engine import LEAVING
from ailf.engine.renewed_lease import RenewedLease
from ailf.errors import AilfError, LeaseLostError, Retry
from ailf.logs import Fields, Log
from ailf.safe_text import describe, text_of
from ailf.stream.consumer_flow import ConsumerFlow
from ailf.stream.delivery import DeliveryState, choose_action, instruction
from ailf.stream.group_flow import SETTLED_AT_ONCE
from ailf.stream.worker import Worker
from ailf.user_errors import is_fatal

__all__ = ["BatchWorker", "DeliveryBatch"]

log = Log("ailf.worker")

NO_HEADERS: Final[Mapping[str, str]] = {}

DONE: Final = "done"
"""The fate of a delivery that was settled and is no dead letter."""

AGAIN: Final = "delivered again"
"""The same, in the log of a batch that has failed."""


class DeliveryBatch:
    """Several deliveries of one consumer as the work of one call of the handler.

    Attributes:
        states: The deliveries.
        headers: No headers: a batch belongs to no trace. A handler that enters a delivery continues that one's.
        lease: The leases as one, which is lost when all are lost whose deliveries are not settled.
        task: The task that runs the handler, on asyncio.
        task_cancels: How often that task had been cancelled before.
    """

    headers = NO_HEADERS

    def __init__(self, states: Sequence[DeliveryState]) -> None:
        self.states = states
        self.lease = _BatchLease(states)
        self.task: asyncio.Task[Any] | None = None
        self.task_cancels = 0
        self._cancel_reason: Exception | None = None

    @property
    def leases(self) -> list[RenewedLease]:
        """The leases of the deliveries."""
        return [state.lease for state in self.states]

    @property
    def settling(self) -> bool:
        """Whether the handler is settling a delivery."""
        return any(state.settling for state in self.states)

    @property
    def cancel_reason(self) -> Exception | None:
        """Why the worker cancelled the handler."""
        return self._cancel_reason

    @cancel_reason.setter
    def cancel_reason(self, why: Exception | None) -> None:
        """Let each delivery know, too: the handler may have entered one as a context."""
        self._cancel_reason = why
        for state in self.states:
            state.cancel_reason = why

    @property
    def handled_at(self) -> float:
        """When the handler began, on the runtime's clock."""
        return self.states[0].handled_at

    @handled_at.setter
    def handled_at(self, now: float) -> None:
        for state in self.states:
            state.handled_at = now

    @property
    def unsettled(self) -> list[DeliveryState]:
        """The deliveries that the handler has not settled."""
        return [state for state in self.states if state.settled is None]

    def log_fields(self) -> Fields:
        """Return the fields of a record of the log that is about it: those that all of its deliveries have."""
        consumer = self.states[0].consumer
        return {**consumer.group.log_fields(), "consumer": consumer.name}

    def __str__(self) -> str:
        first, last = self.states[0].claim.record.id, self.states[-1].claim.record.id
        return f"a batch of {len(self.states)} ({first} to {last}) of {self.states[0].consumer.group}"


class _BatchLease:
    """The leases of a batch as one."""

    def __init__(self, states: Sequence[DeliveryState]) -> None:
        self._states = states
        self._ended = 0  # how many of the first deliveries were found to be lost or settled

    @property
    def revoked(self) -> bool:
        """Whether all leases are lost whose deliveries are not settled; False where all are settled."""
        states = self._states
        while self._ended < len(states):
            state = states[self._ended]
            if not state.lease.revoked and state.settled is None:
                return False
            self._ended += 1
        return any(state.settled is None for state in states)

    @property
    def on_lost(self) -> Callable[[], None] | None:
        """Called, from the renewal thread, when all leases are lost."""
        return None

    @on_lost.setter
    def on_lost(self, callback: Callable[[], None] | None) -> None:
        notified = None if callback is None else functools.partial(self._one_lost, callback)
        for state in self._states:
            state.lease.on_lost = notified

    def _one_lost(self, callback: Callable[[], None]) -> None:
        if self.revoked:
            callback()


class BatchWorker(Worker):
    """One call of `process` with a batch."""

    def _show(self) -> Callable[[DeliveryBatch], list[Any]]:
        public_class = self._public_class
        return lambda batch: [public_class(state) for state in batch.states]

    def _steps(self, consumer: ConsumerFlow) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
        take = functools.partial(self._take, consumer)
        if self._options.until_idle:
            return self._until_idle(consumer, take), self._noting_progress(self._handle_batch)
        return take, self._handle_batch

    async def _take(self, consumer: ConsumerFlow, timeout: float | None = None) -> list[DeliveryState]:
        """Return the next batch; [] when stopped: then one whose handler has not begun is released."""
        states = await consumer.next_many(self._options.batch or 1, timeout, self._options.linger)
        if states and consumer.stopping.is_set():
            await self._give_back(consumer.release(states, self._runtime.now() + LEAVING))
            return []
        return states

    async def _handle_batch(self, states: Sequence[DeliveryState]) -> None:
        in_progress = states[0].consumer.in_progress
        fresh, repeated = [], []
        for state in states:
            if in_progress.setdefault(state.claim.record.id, state) is state:
                fresh.append(state)
            else:
                repeated.append(state)
        batch = DeliveryBatch(fresh)
        try:
            try:
                for state in repeated:
                    await self._postpone(state, in_progress[state.claim.record.id])
                if not fresh:
                    return
                result, error = await self._runner.run(batch)
            finally:
                for state in fresh:
                    del in_progress[state.claim.record.id]
            await self._settle_batch(batch, result, error)
        finally:
            for state in batch.unsettled:  # the handler has ended, so its leases must not be renewed any more
                state.consumer.stop_renewing(state)
        for state in fresh[1:]:
            self._tally.count(state.settled, state.outcome)
        self._count(fresh[0])
        if error is not None and is_fatal(error):
            raise error

    async def _settle_batch(self, batch: DeliveryBatch, result: object, error: BaseException | None) -> None:
        """Settle what the handler has not settled, by how it has ended."""
        unsettled = batch.unsettled
        if error is not None and error is batch.cancel_reason and isinstance(error, LeaseLostError):
            log.warning(batch, "its leases were lost, so its handler was cancelled")
            for state in unsettled:
                await state.lose()
        elif unsettled:
            action, why, delay = choose_action(result, error)
            await self._settle_all(batch, unsettled, action, why, delay, error)
        elif error is not None:
            log.failure(logging.ERROR, batch, "failed after all of it was settled", error=error)

    async def _settle_all(
        self,
        batch: DeliveryBatch,
        states: Sequence[DeliveryState],
        action: Action,
        why: str,
        delay: float | None,
        error: BaseException | None,
    ) -> None:
        """Settle deliveries in one request, or in pages, and log the outcomes with the handler's error."""
        fates: dict[str, int] = {}
        for first in range(0, len(states), SETTLED_AT_ONCE):
            for fate in await self._settle_page(states[first : first + SETTLED_AT_ONCE], action, why, delay):
                fates[fate] = fates.get(fate, 0) + 1
        done = fates.pop(DONE, 0)
        if why:
            fates = {AGAIN: done, **fates} if done else fates
        elif not fates:
            return
        instructed = instruction(error)
        quiet = isinstance(instructed, Retry) and fates.keys() == {AGAIN}
        level = logging.INFO if quiet else logging.ERROR if why else logging.WARNING
        text = ", ".join(f"{fate}: {count}" for fate, count in fates.items())
        # The text of a `Reject` or `Retry` is enough; any other error is logged with its traceback.
        text = f"{why}; {text}" if why else text
        log.failure(level, batch, "%s", text, error=error if instructed is None else None)

    async def _settle_page(
        self, states: Sequence[DeliveryState], action: Action, why: str, delay: float | None
    ) -> list[str]:
        """Settle deliveries in one request; return the fate of each, for the log."""
        fates: list[str] = []
        pairs: list[tuple[DeliveryState, Settlement]] = []
        for state in states:
            try:
                pairs.append((state, await state.make_settlement(action, delay, why)))
            except Exception as failure:  # noqa: BLE001 - the user's subclass of `Backoff` may raise anything
                fates.append(self._failed(state, action, failure))
        if not pairs:
            return fates
        outcomes: Sequence[Outcome | Exception]
        try:
            outcomes = await self._group.settle_many([settlement for _, settlement in pairs])
        except AilfError as failure:
            outcomes = [failure] * len(pairs)
        for (state, settlement), outcome in zip(pairs, outcomes, strict=True):
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                dead = await state.record_outcome(settlement, outcome) is Outcome.DEAD
            except AilfError as failure:
                fates.append(self._failed(state, action, failure))
            else:
                fates.append("dead letters" if dead else DONE)
        return fates

    def _failed(self, state: DeliveryState, action: Action, failure: Exception) -> str:
        """Stop renewing a delivery that could not be settled; return its fate for the log."""
        state.consumer.stop_renewing(state)  # its lease ends, and the message is delivered again
        if isinstance(failure, LeaseLostError):
            return "lease lost"
        text = text_of(failure) if isinstance(failure, AilfError) else describe(failure)
        return f"not settled ({action.value} failed: {text})"

    async def _release(self, work: Any) -> None:
        await self._settle_all(work, work.unsettled, Action.RELEASE, "", None, None)
