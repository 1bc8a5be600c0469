"""Running a worker's handler: with its timeout, and until the lease on its message is lost.

On asyncio a handler is cancelled by the task's own cancellation count, as in `asyncio.timeout`. A thread can't be
cancelled: there the lease is given up, also if it is a thread of an asyncio worker. This settles nothing;
it returns how the handler has ended.
"""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from ailf.engine.renewed_lease import RenewedLease
from ailf.engine.spread_renewer import AnyRenewer
from ailf.errors import LeaseLostError
from ailf.instruments import Instruments
from ailf.logs import Fields, Log
from ailf.runtime import Runtime, ThreadPool
from ailf.stream.delivery import CURRENT, DeliveryState
from ailf.tracing import carrying

__all__ = ["HandlerRunner", "Work"]

log = Log("ailf.worker")


class WorkLease(Protocol):
    """The lease on what a handler gets."""

    on_lost: Callable[[], None] | None

    @property
    def revoked(self) -> bool:
        """Whether it was found to be lost."""


class Work(Protocol):
    """What one call of the handler gets, a `DeliveryState` or several as one, and the task that runs the call."""

    task: asyncio.Task[Any] | None
    task_cancels: int
    cancel_reason: Exception | None
    handled_at: float

    @property
    def lease(self) -> WorkLease:
        """Its lease; several count as lost when all are."""

    @property
    def leases(self) -> Sequence[RenewedLease]:
        """The leases of its messages."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers with the trace that the handler's sends continue."""

    def log_fields(self) -> Fields:
        """Return the fields of a record of the log that is about it."""

    @property
    def settling(self) -> bool:
        """Whether the handler is settling, and will learn from the reply whether the lease held."""


W = TypeVar("W", bound=Work)


class HandlerRunner(Generic[W]):
    """Runs one worker's handler.

    Arguments:
        runtime: The runtime of the worker.
        renewer: Renews the leases.
        instruments: The instruments that observe the backend.
        handler: The user's function.
        show: Returns the work as users see it: a delivery, or the list of those of a batch.
        argument: Returns the handler's argument, given its work; None: as `show`.
        release: Gives the work back, if the worker loop is cancelled while the handler runs.
        timeout: Seconds that a call may take.
        cancels: Whether a call whose lease is lost is cancelled.
        threads: On asyncio, the threads in which the handler runs; None: it runs in the event loop.
    """

    def __init__(
        self,
        runtime: Runtime,
        renewer: AnyRenewer,
        instruments: Instruments,
        handler: Callable[[Any], Any],
        *,
        show: Callable[[W], Any],
        argument: Callable[[W], Any] | None,
        release: Callable[[W], Awaitable[None]],
        timeout: float | None,
        cancels: bool,
        threads: ThreadPool | None = None,
    ) -> None:
        self._runtime = runtime
        self._renewer = renewer
        self._instruments = instruments
        self._handler = handler
        self._show = show
        self._argument = argument or show
        self._release = release
        self._timeout = timeout
        self._on_asyncio = runtime.flavour == "asyncio"
        self._cancellable = self._on_asyncio and threads is None
        self._cancels = self._cancellable and cancels
        self._call = runtime.call_user_code if threads is None else threads.call_user_code

    async def run(self, work: W) -> tuple[Any, BaseException | None]:
        """Call the handler, and return its result and its exception; release the work if this loop is cancelled."""
        task = asyncio.current_task() if self._on_asyncio else None
        if task is not None:
            work.task, work.task_cancels = task, task.cancelling()
        if self._cancels:
            work.lease.on_lost = functools.partial(self._lease_lost, work)
            if work.lease.revoked:  # before `on_lost` was set
                self._lease_lost(work)
        stop_timer = None if self._timeout is None else self._start_timer(work, self._timeout)
        current = CURRENT.set(work if isinstance(work, DeliveryState) else None)  # a batch is no delivery
        try:
            with carrying(work.headers):
                if self._instruments.handling or self._instruments.message_settled:
                    result, error = await self._call_observed(work)
                else:
                    result, error = await self._call(self._handler, self._argument(work))
        except asyncio.CancelledError as cancelled:
            if work.cancel_reason is None:
                await self._release(work)
                raise
            result, error = None, cancelled
        finally:
            work.task = work.lease.on_lost = None
            if stop_timer is not None:
                stop_timer()
            CURRENT.reset(current)
        if work.cancel_reason is not None:
            error = await self._why_cancelled(work, work.cancel_reason, error)
        return result, error

    async def _call_observed(self, work: W) -> tuple[Any, BaseException | None]:
        """Call the handler within the hook `Instrument.handling`; the time counts from here."""
        work.handled_at = self._runtime.now()
        shown = self._show(work)
        argument = shown if self._argument is self._show else self._argument(work)
        call = functools.partial(self._call, self._handler, argument)
        return await self._instruments.observe_handling(shown, call, lambda: work.cancel_reason)

    def _start_timer(self, work: W, timeout: float) -> Callable[[], None]:
        """Start the timer that cancels the handler, or in a thread gives up its leases; return what stops the timer."""
        if not self._cancellable:
            self._limit(work, work.leases[0].now() + timeout)
            return functools.partial(self._limit, work, float("inf"))
        loop = asyncio.get_running_loop()
        late = TimeoutError(f"the handler took longer than its timeout of {timeout:g} s")
        timer = loop.call_later(timeout, self._cancel, work, late)

        def stop() -> None:
            timer.cancel()
            if work.cancel_reason is None and loop.time() > timer.when():
                log.warning(work, "%s, and has blocked the event loop, so it was not cancelled", late)

        return stop

    def _limit(self, work: W, until: float) -> None:
        """Give up the leases at `until`."""
        for lease in work.leases:
            self._renewer.limit(lease, until)

    def _lease_lost(self, work: W) -> None:
        """Cancel the handler; called from the renewal thread."""
        task = work.task
        if task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is no task to cancel
                task.get_loop().call_soon_threadsafe(self._cancel, work, LeaseLostError(f"{work}: its lease was lost"))

    def _cancel(self, work: W, why: Exception) -> None:
        """Cancel the handler, once, if it still runs.

        A handler that is settling its message learns from the reply whether the lease held. A lease that ended because
        the message was settled must not cancel it.
        """
        if isinstance(why, LeaseLostError) and work.settling:
            return
        if work.task is not None and work.cancel_reason is None:
            work.cancel_reason = why
            work.task.cancel()

    async def _why_cancelled(self, work: W, why: Exception, error: BaseException | None) -> BaseException | None:
        """Undo the worker's own cancellation, and return the error with which the handler ended."""
        task = asyncio.current_task()
        if task is not None and task.uncancel() > work.task_cancels:  # other code has cancelled it too
            await self._release(work)
            raise asyncio.CancelledError
        return why if isinstance(error, asyncio.CancelledError) else error
