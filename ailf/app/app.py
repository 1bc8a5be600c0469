"""`App`: the declarations of a worker process. `ailf.app.running` runs them.

A handler, subscriber or scheduled function is either a coroutine function, and all of them are, so the app runs on
asyncio; or none is, and it runs on threads. A function keeps working without the app: a decorator returns it unchanged.
"""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import tzinfo
from typing import TYPE_CHECKING, Any, TypeVar

from ailf.backend import AsyncBackend, Backend
from ailf.checks import check_flag, check_text
from ailf.errors import InvalidArgumentError
from ailf.pubsub import ErrorHook
from ailf.runtime.user_code import check_callable, is_one_of, name_of
from ailf.stream.worker import DRAIN
from ailf.values import EARLIEST, Backoff, GroupEvent, OnLost, Position, Retention

if TYPE_CHECKING:
    from ailf.app.running import RunningApp
    from ailf.app.schedule import Schedule

__all__ = ["App"]

F = TypeVar("F", bound=Callable[..., Any])


class App:
    """The handlers, subscribers and schedules of a worker process. The command ``ailf run module:app`` runs it.

    >>> import ailf
    >>> from ailf_memory import MemoryBackend
    >>> app = ailf.App("redis://localhost:6379/0")
    >>> @app.handler("tasks", group="workers", concurrency=8)
    ... def handle(delivery: ailf.Delivery[str]) -> None:
    ...     print(delivery.data)
    >>> with MemoryBackend() as backend, app.running(backend) as running:
    ...     first = backend.stream("tasks").add("two teas")
    ...     assert running.wait_idle(timeout=5.0)
    two teas

    Either all handlers, subscribers and scheduled functions are coroutine functions, or none is. The app then runs on
    asyncio, or on threads.

    Arguments:
        url: The URL of the backend, as for `ailf.connect`. None: the value of ``AILF_URL`` when the app runs.
        lifespan: Called with the app when it starts; returns a context manager (of asyncio, if the app runs on it),
            which is entered before and left after everything else: ``@contextlib.asynccontextmanager``.
        metrics: Called without arguments in each worker for ``ailf run --metrics-port``; returns metrics as Prometheus
            text. None: those of ailf, which need the extra ``prometheus``.

    Raises:
        InvalidArgumentError: An argument is invalid.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        lifespan: Callable[["App"], AbstractAsyncContextManager[Any] | AbstractContextManager[Any]] | None = None,
        metrics: Callable[[], str | bytes] | None = None,
    ) -> None:
        from ailf.app.declarations import Declarations  # noqa: PLC0415 - `import ailf` needn't pay for it

        checked = None if url is None else check_text("url", url, secret=True)
        around = None
        if lifespan is not None:
            check_callable("lifespan", lifespan, may_yield=True)
            around = functools.partial(lifespan, self)
        if metrics is not None:
            check_callable("metrics", metrics, may_yield=False)
        self._declared = Declarations(checked, around, metrics)
        if lifespan is not None:
            self._check_lifespan(lifespan)

    def _check_lifespan(self, lifespan: Callable[..., Any]) -> None:
        """Refuse a function that yields; a context manager of asyncio decides the flavour."""
        made = inspect.unwrap(lifespan)
        if made is lifespan and (inspect.isgeneratorfunction(made) or inspect.isasyncgenfunction(made)):
            raise InvalidArgumentError(
                f"lifespan {name_of(lifespan)} must return a context manager: decorate it with "
                "@contextlib.asynccontextmanager (or contextmanager, for an app of plain functions)"
            )
        if is_one_of(made, inspect.isasyncgenfunction):
            self._declared.decide("lifespan", lifespan, on_asyncio=True)

    # --- declarations --------------------------------------------------------------------------------------------

    def handler(
        self,
        stream: str,
        *,
        group: str,
        type: Any = Any,  # noqa: A002 - as in `Backend.stream`
        retention: Retention | None = None,
        partitions: int | None = None,
        start: Position = EARLIEST,
        lease: float = 30.0,
        takeover: float = 10.0,
        max_deliveries: int = 5,
        backoff: Backoff | None = None,
        max_processing: float = 86_400.0,
        on_event: Callable[[GroupEvent], Any] | None = None,
        key_concurrency: int = 1,
        concurrency: int = 1,
        batch: int | None = None,
        linger: float = 0.0,
        prefetch: int | None = None,
        drain: float = DRAIN,
        timeout: float | None = None,
        on_lost: OnLost = OnLost.CANCEL,
        consumer: str | None = None,
    ) -> Callable[[F], F]:
        """Declare a handler of a group's messages: `Group.process` calls it in each worker.

        Arguments:
            stream: The stream's name.
            group: The group's name.
            type: As for `Backend.stream`.
            retention: As for `Backend.stream`; it counts for what the handlers of this app add through their own stream
                objects only if these are given it, too.
            partitions: As for `Backend.stream`.
            start: As for `Stream.group`.
            lease: As for `Stream.group`.
            takeover: As for `Stream.group`.
            max_deliveries: As for `Stream.group`.
            backoff: As for `Stream.group`.
            max_processing: As for `Stream.group`.
            on_event: As for `Stream.group`.
            key_concurrency: As for `Stream.group`.
            concurrency: As for `Group.process`: of each worker process.
            batch: As for `Group.process`.
            linger: As for `Group.process`.
            prefetch: As for `Group.process`.
            drain: As for `Group.process`.
            timeout: As for `Group.process`.
            on_lost: As for `Group.process`.
            consumer: As for `Group.process`.

        Raises:
            InvalidArgumentError: An argument is invalid, this group has a handler already, the function yields, or it
                is a coroutine function and the others aren't (or the other way round).
        """
        group_options = {
            "start": start, "lease": lease, "takeover": takeover, "max_deliveries": max_deliveries, "backoff": backoff,
            "max_processing": max_processing, "on_event": on_event, "key_concurrency": key_concurrency,
        }  # fmt: skip
        process_options = {
            "concurrency": concurrency, "batch": batch, "linger": linger, "prefetch": prefetch, "drain": drain,
            "timeout": timeout, "on_lost": on_lost, "consumer": consumer,
        }  # fmt: skip
        if batch is None and not linger:  # as `Group.process` is typed
            del process_options["batch"], process_options["linger"]

        from ailf.app.declarations import Handler  # noqa: PLC0415 - as above

        def declare(function: Callable[..., Any]) -> Handler:
            return Handler(
                function=function, stream=stream, group=group, type=type, retention=retention, partitions=partitions,
                group_options=group_options, process_options=process_options,
            )  # fmt: skip

        declare(_nothing)  # the options are checked where they stand, before the function is known
        if any((each.stream, each.group) == (stream, group) for each in self._declared.handlers):
            raise InvalidArgumentError(
                f"group {group!r} of stream {stream!r} has a handler in this app already: two would share its "
                "messages. Declare one handler, or another group"
            )

        def decorate(function: F) -> F:
            self._declared.accept("the handler", function)
            self._declared.handlers.append(declare(function))
            return function

        return decorate

    def subscriber(
        self,
        channel: str,
        *,
        pattern: bool = False,
        type: Any = Any,  # noqa: A002 - as in `Backend.pubsub`
        on_error: ErrorHook | None = None,
        sharded: bool = False,
        concurrency: int = 1,
    ) -> Callable[[F], F]:
        """Declare a handler of the messages of a channel, as `PubSub.subscribe` does: every worker process gets each.

        Arguments:
            channel: The channel's name; with ``pattern=True`` a pattern: ``*``, ``?``, ``[abc]``.
            pattern: Whether `channel` is a pattern.
            type: As for `Backend.pubsub`.
            on_error: As for `Backend.pubsub`.
            sharded: As for `Backend.pubsub`.
            concurrency: As for `PubSub.run`: of each worker process.

        Raises:
            InvalidArgumentError: As for `handler`.
        """
        options = {"type": type, "on_error": on_error, "sharded": check_flag("sharded", sharded)}
        if on_error is not None:
            check_callable("on_error", on_error, may_yield=False)
        check_flag("pattern", pattern)
        if pattern and sharded:
            raise InvalidArgumentError(
                "sharded channels have no patterns, as no shard knows the channels of the others"
            )

        from ailf.app.declarations import Subscriber  # noqa: PLC0415 - as above

        def declare(function: Callable[..., Any]) -> Subscriber:
            return Subscriber(
                function=function, channel=channel, pattern=pattern, options=options, concurrency=concurrency
            )

        declare(_nothing)

        def decorate(function: F) -> F:
            self._declared.accept("the subscriber", function)
            self._declared.subscribers.append(declare(function))
            return function

        return decorate

    def every(self, seconds: float, *, name: str | None = None, timeout: float | None = None) -> Callable[[F], F]:
        """Declare a function that is called once in each period, by one of all replicas.

        The periods begin at multiples of `seconds` since 1970, so ``every(3600.0)`` is the full hour. For runs that are
        missed, late, or fail see `cron`.

        Arguments:
            seconds: The period, at least 0.1.
            name: As for `cron`.
            timeout: As for `cron`.

        Raises:
            InvalidArgumentError: As for `cron`.
        """
        from ailf.app.schedule import Every  # noqa: PLC0415 - as above

        return self._schedule(Every(seconds), name, timeout)

    def cron(
        self, expression: str, *, zone: str | tzinfo = "UTC", name: str | None = None, timeout: float | None = None
    ) -> Callable[[F], F]:
        """Declare a function that is called at the times of a cron expression, by one of all replicas.

        Runs of one function never overlap. If a run takes longer than the time to the next one, or no replica is alive
        at that time, the next run takes place as soon as possible, and all further ones that were missed are skipped.
        A run whose process dies is repeated. One that raises is logged, and not repeated unless it raises `Retry`.

        Arguments:
            expression: Five fields, or six where the first one is seconds: ``"0 3 * * *"`` is at three o'clock.
            zone: The time zone in which the expression is read, or its name.
            name: The name that all replicas have for the function, by which they agree on who calls it: other programs
                in the namespace must have other names. None: its module and qualified name.
            timeout: Seconds that a run may take, as for `Group.process`.

        Raises:
            InvalidArgumentError: An argument is invalid, another function has this name, or the function is a coroutine
                function and the others aren't (or the other way round).
            UnsupportedError: The extra ``cron`` isn't installed.
        """
        from ailf.app.schedule import Cron  # noqa: PLC0415 - as above

        return self._schedule(Cron.of(expression, zone), name, timeout)

    def _schedule(self, schedule: "Schedule", name: str | None, timeout: float | None) -> Callable[[F], F]:
        from ailf.app.declarations import Scheduled  # noqa: PLC0415 - as above

        def declare(function: Callable[..., Any], named: str) -> Scheduled:
            return Scheduled(function=function, name=named, schedule=schedule, timeout=timeout)

        declare(_nothing, "unnamed" if name is None else name)

        def decorate(function: F) -> F:
            self._declared.accept("the scheduled function", function)
            module = getattr(function, "__module__", type(function).__module__)
            scheduled = declare(function, f"{module}.{name_of(function)}" if name is None else name)
            if any(each.name == scheduled.name for each in self._declared.scheduled):
                raise InvalidArgumentError(
                    f"a scheduled function named {scheduled.name!r} is declared already, and replicas would take the "
                    "two for one; give one of them another name="
                )
            self._declared.scheduled.append(scheduled)
            return function

        return decorate

    def on_startup(self, function: F) -> F:
        """Declare a function without arguments that is called before handlers begin, in order of declaration.

        Raises:
            InvalidArgumentError: It isn't callable, it yields, or it is a coroutine function and the handlers aren't.
        """
        self._declared.accept_hook("the startup function", function)
        self._declared.startup.append(function)
        return function

    def on_shutdown(self, function: F) -> F:
        """Declare a function without arguments that is called after handlers have ended, in order of declaration.

        Raises:
            InvalidArgumentError: It isn't callable, it yields, or it is a coroutine function and the handlers aren't.
        """
        self._declared.accept_hook("the shutdown function", function)
        self._declared.shutdown.append(function)
        return function

    # --- running -------------------------------------------------------------------------------------------------

    @property
    def backend(self) -> Any:
        """The opened backend while the app runs: a `Backend`, or an `AsyncBackend` where it runs on asyncio.

        Raises:
            InvalidArgumentError: The app isn't running.
        """
        if self._declared.backend is None:
            raise InvalidArgumentError(
                "app.backend: the app isn't running; use it in handlers and startup functions, or within app.running()"
            )
        return self._declared.backend

    def running(self, backend: Backend | AsyncBackend | None = None, *, wait: float = 0.0) -> "RunningApp":
        """Return the app as a context manager that runs it in this process: ``with``, or on asyncio ``async with``.

        Arguments:
            backend: An open backend of the app's flavour, which stays open; None opens the app's URL.
            wait: As for `ailf.connect`.

        Raises:
            InvalidArgumentError: The app declares nothing, or the backend is of the other flavour.
        """
        from ailf.app.running import RunningApp  # noqa: PLC0415 - `import ailf` needn't pay for it

        return RunningApp(self._declared, backend, wait)

    def run(self, *, wait: float = 0.0) -> None:
        """Run in this process until SIGTERM, Ctrl-C, or an error that waiting can't repair.

        Arguments:
            wait: As for `ailf.connect`.

        Raises:
            InvalidArgumentError: The app declares nothing.
            AilfError: The backend couldn't be opened, or refuses access.
            BaseException: The error of a startup or shutdown function, or of a handler if it isn't an `Exception`.
        """
        self.running(wait=wait).run()

    def __repr__(self) -> str:
        return f"<{self._declared}>".replace("the app", "App", 1)


def _nothing() -> None:
    """Stand for a function while the options of a declaration are checked."""
