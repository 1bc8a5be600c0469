"""`RunningApp`: an app at work in one process. It calls `Group.process`, `PubSub.run` and `Stream.add_once`.

It is written once for both flavours: `done` awaits on asyncio what blocks on threads. Each handler, subscriber and
scheduled function has a task of its own. The first task that ends with an error stops the others.
"""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from ailf.app.declarations import Declarations, Handler, Scheduled, Subscriber
from ailf.backend import AsyncBackend, Backend
from ailf.checks import check_seconds
from ailf.connect import connect, connect_async
from ailf.errors import BackendError, InvalidArgumentError, PermissionDeniedError, StreamFullError
from ailf.instruments import Instrument
from ailf.logs import About, Log
from ailf.runtime import Event, Runtime, Task, run
from ailf.runtime.signals import stopped_by_signals
from ailf.safe_text import text_of
from ailf.stream.delivery import instruction
from ailf.stream.worker import DRAIN, PAUSES
from ailf.user_errors import is_fatal
from ailf.values import Retention

__all__ = ["RunningApp", "done"]

log = Log("ailf.app")

T = TypeVar("T")

ENDING = 5.0
"""Seconds beyond the drain that tasks have to end."""

AGAIN = 0.5
"""Seconds after which a stop is repeated: a worker that was just starting may have missed it."""

SLICE = 60.0
"""The most seconds between two looks at the clock, which may be set, and at the backend, which may lose its data."""

SKEW = 300.0
"""Seconds by which the clocks of replicas may differ: so long after its time it is known that a run was added."""

RUNS = 2
"""The most unsettled runs of a scheduled function: one that takes place, and the next one."""

FULL = 1.0
"""Seconds between two tries to add a run while the stream is full."""

ATTEMPTS = 3
"""How often a run whose process dies is tried."""

IDLE_POLL = 0.02
"""Seconds between two looks of `wait_idle`."""


async def done(value: Awaitable[T] | T) -> T:
    """Return the result of a call: on asyncio it is awaited, on threads it is there."""
    if inspect.isawaitable(value):
        awaited: T = await value
        return awaited
    return value


class RunningApp:
    """An app that runs in this process; `App.running` returns it. It is a context manager, of asyncio or not.

    Entering it opens the backend, enters the lifespan, calls the startup functions and starts the handlers. Leaving it
    stops them as SIGTERM does, calls the shutdown functions and leaves the lifespan.

    Attributes:
        on_asyncio: Whether it runs on asyncio.
        metrics: Renders metrics; None: ailf's own.
        instruments: Observe the backend, besides those that it has.
        url: The URL that the app names, or None.
        backend: The opened backend.
        from_signal: Stops it, from a signal handler.
    """

    backend: Any
    from_signal: Callable[[], None]
    _stopping: Event

    def __init__(self, app: Declarations, backend: Backend | AsyncBackend | None, wait: float) -> None:
        if app.on_asyncio is None:
            raise InvalidArgumentError(
                f"{app} has nothing to run: declare a function with @app.handler, @app.subscriber, @app.every or "
                "@app.cron"
            )
        if backend is not None and isinstance(backend, AsyncBackend) is not app.on_asyncio:
            wanted, opener = ("an AsyncBackend", "connect_async") if app.on_asyncio else ("a Backend", "connect")
            raise InvalidArgumentError(
                f"{app.decided_by} decides that the app needs {wanted}, not {backend!r}: open it with ailf.{opener}"
            )
        self.on_asyncio = app.on_asyncio
        self.metrics = app.metrics
        self.instruments: list[Instrument] = []
        self.url = app.url
        self._app = app
        self._given = backend
        self._wait = check_seconds("wait", wait)
        self._drain = max(
            [DRAIN] * bool(app.scheduled or app.subscribers)
            + [each.process_options["drain"] for each in app.handlers]
            + [0]
        )
        self._lifespan: Any = None
        self._started = False
        self._tasks: list[Task] = []
        self._groups: list[Any] = []
        self._stops: list[Callable[[], None]] = []
        self._failure: BaseException | None = None
        self._cancelled = False

    # --- entering and leaving ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start the app, on threads."""
        if self.on_asyncio:
            raise InvalidArgumentError(
                f"{self._app.decided_by} is a coroutine function: use `async with` (or app.run())"
            )
        run(self.start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop the app."""
        run(self.end())

    async def __aenter__(self) -> Self:
        """Start the app, in the running event loop."""
        if not self.on_asyncio:
            raise InvalidArgumentError(f"{self._app.decided_by} is plain, so the app runs on threads: use `with`")
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Stop the app."""
        await self.end()

    def run(self) -> None:
        """Run the app until SIGTERM, Ctrl-C, `stop`, or an error; see `App.run`."""
        flow = self._run()
        if self.on_asyncio:
            asyncio.run(flow)
        else:
            run(flow)

    async def _run(self) -> None:
        await self.start()
        try:
            with stopped_by_signals(self.from_signal, None):
                await self.stopped()
        finally:
            await self.end()

    async def stopped(self, timeout: float | None = None) -> bool:
        """Wait until `stop`, or until a task has ended with an error; return whether that has happened."""
        return await self._stopping.wait(timeout)

    def stop(self) -> None:
        """Let the handlers drain and end, from any thread, a handler or a signal handler. The context ends the rest."""
        if not self._started:
            return
        self._stopping.set()
        for stop in tuple(self._stops):
            stop()

    async def start(self) -> None:
        """Open the backend, enter the lifespan, call the startup functions, and start the handlers."""
        app = self._app
        if app.backend is not None:
            raise InvalidArgumentError(f"{app} runs already")
        backend: Any = self._given if self._given is not None else await self._open()
        app.backend = self.backend = backend
        backend.instrument(*self.instruments)
        self._runtime: Runtime = backend.engine.runtime
        self._stopping = self._runtime.event()
        self.from_signal = self._runtime.from_signal(self.stop)
        self._started = True
        try:
            await self._enter_lifespan()
            for function in app.startup:
                await self._call(function)
            for scheduled in app.scheduled:
                await self._prepare_scheduled(scheduled)
            for handler in app.handlers:
                await self._prepare_handler(handler)
            for subscriber in app.subscribers:
                await self._prepare_subscriber(subscriber)
        except BaseException as error:
            self.stop()
            await self._join()
            await self._leave(error)
            raise
        log.info(self._about(), "it has started on %s", backend.url)

    async def _open(self) -> Any:
        if not self.on_asyncio:
            return connect(self._app.url, wait=self._wait)
        return await connect_async(self._app.url, wait=self._wait)

    async def _enter_lifespan(self) -> None:
        if self._app.lifespan is None:
            return
        lifespan = self._app.lifespan()
        if hasattr(lifespan, "__aenter__") and self.on_asyncio:
            await lifespan.__aenter__()
        elif hasattr(lifespan, "__enter__"):
            lifespan.__enter__()
        else:
            wanted = "a context manager" if self.on_asyncio else "a context manager that is entered with `with`"
            raise InvalidArgumentError(f"the lifespan must return {wanted}, not {type(lifespan).__name__}")
        self._lifespan = lifespan

    async def _call(self, function: Callable[[], Any]) -> None:
        _, error = await self._runtime.call_user_code(function)
        if error is not None:
            raise error

    async def end(self) -> None:
        """Stop, wait for the tasks, call the shutdown functions; raise the first error."""
        self.stop()
        await self._join()
        for function in self._app.shutdown:
            try:
                await self._call(function)
            except BaseException as error:  # noqa: BLE001 - the others are called, too, and the first error is raised
                self._record(error, "a shutdown function")
        await self._leave(self._failure)
        log.info(self._about(), "it has ended")
        if self._failure is not None:
            raise self._failure

    async def _leave(self, error: BaseException | None) -> None:
        """Leave the lifespan, and close the backend if the app opened it."""
        details = (None, None, None) if error is None else (type(error), error, error.__traceback__)
        lifespan, self._lifespan = self._lifespan, None
        try:
            if hasattr(lifespan, "__aexit__") and self.on_asyncio:
                await lifespan.__aexit__(*details)
            elif lifespan is not None:
                lifespan.__exit__(*details)
        except BaseException as failure:  # noqa: BLE001 - the backend is closed first
            if failure is not error:
                self._record(failure, "the lifespan")
        self._app.backend = None
        if self._given is None:
            await self._runtime.single_flight().run(self._close)

    async def _close(self) -> None:
        """Close the backend, when tasks that were cancelled have ended."""
        if self._cancelled:
            await self._ended()
        await done(self.backend.aclose() if self.on_asyncio else self.backend.close())

    async def _join(self) -> None:
        """Wait until all tasks have ended. If the caller is cancelled meanwhile, cancel them, and return."""
        try:
            await self._drained()
        except asyncio.CancelledError as error:
            self._record(error, "the wait for the handlers")
            self._cancelled = True
            for task in self._tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # once more: what follows is done nevertheless
                await self._runtime.single_flight().run(self._ended)

    async def _ended(self) -> None:
        """Wait until all tasks, which were cancelled, have ended."""
        until = self._runtime.now() + ENDING
        for task in self._tasks:
            await task.join(max(0.0, until - self._runtime.now()))

    async def _drained(self) -> None:
        """Wait until all tasks have ended: for the longest drain, and some seconds more."""
        now = self._runtime.now
        until = now() + self._drain + ENDING
        for task in self._tasks:
            while not await task.join(max(0.0, min(AGAIN, until - now()))):
                if now() >= until:
                    log.warning(self._about(), "a handler is abandoned: it still runs after %g s", self._drain + ENDING)
                    task.cancel()
                    break
                self.stop()

    def _about(self) -> About:
        """Return the subject of a record of the log."""
        return About(str(self._app), {"backend": self.backend.url})

    def _record(self, error: BaseException, what: str) -> None:
        if self._failure is None:
            self._failure = error
        elif error is not self._failure and not isinstance(error, asyncio.CancelledError):
            log.failure(logging.ERROR, self._about(), "%s has failed, too", what, error=error)

    # --- tasks ---------------------------------------------------------------------------------------------------

    def spawn(self, what: str, flow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a flow as a task of the app. Its end stops the app."""

        async def guarded() -> None:
            try:
                await flow()
                if not self._stopping.is_set():
                    log.warning(self._about(), "%s has ended, so the app stops", what)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - the caller of `run` gets it
                self._record(error, what)
            finally:
                self.stop()

        self._tasks.append(self._runtime.spawn(guarded, name=f"ailf-app-{len(self._tasks)}"))

    async def _prepare_handler(self, handler: Handler) -> None:
        stream = self.backend.stream(
            handler.stream, type=handler.type, retention=handler.retention, partitions=handler.partitions
        )
        group = stream.group(handler.group, **handler.group_options)
        await done(group.open())
        self._groups.append(group)
        self._process(str(handler), group, handler.function, handler.process_options)

    def _process(self, what: str, group: Any, function: Callable[..., Any], options: Any) -> None:
        async def process() -> None:
            if not self._stopping.is_set():
                await done(group.process(function, signals=False, **options))

        self._stops.append(group.stop)
        self.spawn(what, process)

    async def _prepare_subscriber(self, subscriber: Subscriber) -> None:
        pubsub = self.backend.pubsub(**subscriber.options)
        await done(pubsub.subscribe(subscriber.channel, subscriber.function, pattern=subscriber.pattern))
        self._stops.append(pubsub.stop)
        self.spawn(str(subscriber), lambda: done(pubsub.run(signals=False, concurrency=subscriber.concurrency)))

    # --- scheduled functions -------------------------------------------------------------------------------------

    async def _prepare_scheduled(self, scheduled: Scheduled) -> None:
        stream = self.backend.stream(scheduled.stream, type=int, retention=Retention.settled(max_len=RUNS))
        group = stream.group("runs", max_deliveries=ATTEMPTS)
        await done(group.open())
        call = self._run_scheduled(scheduled)
        self._process(str(scheduled), group, call, {"timeout": scheduled.timeout})
        self.spawn(f"the schedule of {scheduled}", lambda: self._add_runs(scheduled, stream))

    def _run_scheduled(self, scheduled: Scheduled) -> Callable[[Any], Any]:
        """Return the handler of a run."""

        async def call(_: Any) -> None:
            _, error = await self._runtime.call_user_code(scheduled.function)
            if error is None:
                return
            if is_fatal(error) or instruction(error) is not None:
                raise error
            log.failure(logging.ERROR, self._about(), "%s has failed; its run is not repeated", scheduled, error=error)

        return call if self.on_asyncio else lambda delivery: run(call(delivery))

    async def _add_runs(self, scheduled: Scheduled, stream: Any) -> None:
        """Add the next run in advance, to be delivered at its time on the backend's clock, once for all replicas.

        A run that is added while an earlier one waits behind one that takes place would make a backlog: the stream is
        full then, and the run is skipped.
        """
        failures = 0
        while not self._stopping.is_set():
            now = self._runtime.clock.now_ms() / 1000
            due = scheduled.schedule.after(now)
            pause = min(SLICE, due - now)
            try:
                await done(
                    stream.add_once(
                        f"{round(due * 1000)}",
                        round(due * 1000),
                        window=due - now + SKEW,
                        key="run",  # so that runs don't overlap
                        at=datetime.fromtimestamp(due, UTC),
                    )
                )
                failures = 0
            except StreamFullError:
                log.debug(self._about(), "%s: the run before the next one has not begun", scheduled)
                pause = min(pause, FULL)
            except PermissionDeniedError:
                raise
            except BackendError as error:
                log.warning(self._about(), "%s: its next run isn't added yet: %s", scheduled, text_of(error))
                pause = min(pause, PAUSES[min(failures, len(PAUSES) - 1)])
                failures += 1
            await self._stopping.wait(pause)

    # --- for tests -----------------------------------------------------------------------------------------------

    def wait_idle(self, timeout: float = 5.0) -> Any:
        """Wait until the handlers have settled all messages of their groups; to be awaited on asyncio.

        Messages that wait for their time, or for a retry, count as unsettled. Channels and schedules don't count.

        Arguments:
            timeout: Seconds to wait at most.

        Returns:
            Whether all are settled.

        Raises:
            BaseException: The error that has ended a handler.
        """
        flow = self._wait_idle(check_seconds("timeout", timeout))
        return flow if self.on_asyncio else run(flow)

    async def _wait_idle(self, timeout: float) -> bool:
        until = self._runtime.now() + timeout
        while True:
            if self._failure is not None:
                raise self._failure
            infos = [await done(group.info()) for group in self._groups]
            if not any(info.lag or info.lag is None or info.pending or info.delayed for info in infos):
                return True
            if self._runtime.now() >= until:
                return False
            await self._stopping.wait(IDLE_POLL)
