"""The declarations of an app as values. They are checked when they are made; nothing in here waits."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from ailf.app.schedule import Schedule
from ailf.backend import AsyncBackend, Backend
from ailf.checks import check_kind, check_name, valid_count, valid_key
from ailf.codecs import codec_for
from ailf.errors import InvalidArgumentError
from ailf.runtime.user_code import check_callable, is_one_of, name_of
from ailf.stream.flow import check_partitions
from ailf.stream.group_flow import GroupOptions
from ailf.stream.worker import ProcessOptions
from ailf.values import Retention

__all__ = ["Declarations", "Handler", "Scheduled", "Subscriber"]

Function = Callable[..., Any]


def _valid_type(_: Any, __: "attrs.Attribute[Any]", type_: Any) -> None:
    codec_for(type_)


@attrs.frozen(kw_only=True)
class Handler:
    """A handler of a stream's group.

    Attributes:
        function: The function.
        stream: The stream's name.
        group: The group's name.
        type: The type of payloads.
        retention: The stream's retention.
        partitions: The stream's number of partitions.
        group_options: The arguments of `Stream.group`.
        process_options: The arguments of `Group.process`.
    """

    function: Function
    stream: str = attrs.field(validator=valid_key)
    group: str = attrs.field(validator=valid_key)
    type: Any = attrs.field(validator=_valid_type)
    retention: Retention | None
    partitions: int | None
    group_options: Mapping[str, Any]
    process_options: Mapping[str, Any]

    def __attrs_post_init__(self) -> None:
        """Check the options as the calls will that get them."""
        if self.retention is not None:
            check_kind("retention", self.retention, Retention)
        if self.partitions is not None:
            check_partitions(self.partitions)
        given = {name: value for name, value in self.group_options.items() if name != "backoff" or value is not None}
        GroupOptions(**given)
        consumer = self.process_options.get("consumer")
        if consumer is not None:
            check_name("consumer", consumer)
        ProcessOptions(**{name: value for name, value in self.process_options.items() if name != "consumer"})

    def __str__(self) -> str:
        return f"the handler of group {self.group!r} of stream {self.stream!r}"


@attrs.frozen(kw_only=True)
class Subscriber:
    """A handler of a channel or pattern.

    Attributes:
        function: The function.
        channel: The channel's name, or the pattern.
        options: The arguments of `Backend.pubsub`.
        pattern: Whether `channel` is a pattern.
        concurrency: The argument of `PubSub.run`.
    """

    function: Function
    channel: str = attrs.field(validator=valid_key)
    pattern: bool
    options: Mapping[str, Any]
    concurrency: int = attrs.field(validator=valid_count)

    def __attrs_post_init__(self) -> None:
        """Check the type."""
        _valid_type(None, attrs.fields(Handler).type, self.options["type"])

    def __str__(self) -> str:
        return f"the subscriber of {'pattern' if self.pattern else 'channel'} {self.channel!r}"


@attrs.frozen(kw_only=True)
class Scheduled:
    """A function that is called at the times of a schedule.

    Attributes:
        function: The function.
        name: The name that all replicas have for it.
        schedule: Its times.
        timeout: Seconds that a run may take.
    """

    function: Function
    name: str
    schedule: Schedule
    timeout: float | None

    def __attrs_post_init__(self) -> None:
        """Check the name, also the length of the stream's, and the options."""
        check_name("scheduled function", self.name)
        check_name("stream", self.stream)
        ProcessOptions(timeout=self.timeout)

    @property
    def stream(self) -> str:
        """The name of the stream that carries its runs."""
        return f"ailf.schedule.{self.name}"

    def __str__(self) -> str:
        return f"the scheduled function {self.name!r} ({self.schedule})"


@attrs.define(eq=False)
class Declarations:
    """All that an app declares. Its first function that runs beside others decides the flavour.

    Attributes:
        url: The URL of the backend; None: that of the environment.
        lifespan: Returns the context manager around everything else; None for none.
        metrics: Renders metrics; None: ailf's own.
        handlers: The handlers of groups.
        subscribers: The handlers of channels.
        scheduled: The scheduled functions.
        startup: The functions that are called before handlers begin.
        shutdown: The functions that are called after handlers have ended.
        on_asyncio: Whether the app runs on asyncio; None before that is decided.
        decided_by: The function that has decided it.
        backend: The opened backend while the app runs.
    """

    url: str | None
    lifespan: Function | None
    metrics: Function | None
    handlers: list[Handler] = attrs.field(factory=list)
    subscribers: list[Subscriber] = attrs.field(factory=list)
    scheduled: list[Scheduled] = attrs.field(factory=list)
    startup: list[Function] = attrs.field(factory=list)
    shutdown: list[Function] = attrs.field(factory=list)
    on_asyncio: bool | None = None
    decided_by: str = ""
    backend: Backend | AsyncBackend | None = None

    def accept(self, what: str, function: object) -> None:
        """Refuse a function that isn't of the flavour that the first one has chosen."""
        check_callable(what, function, may_yield=False)
        self.decide(what, function, on_asyncio=is_one_of(function, inspect.iscoroutinefunction))

    def accept_hook(self, what: str, function: object) -> None:
        """Refuse a coroutine function in a blocking app; a plain one is right in both."""
        check_callable(what, function, may_yield=False)
        if is_one_of(function, inspect.iscoroutinefunction):
            self.decide(what, function, on_asyncio=True)

    def decide(self, what: str, function: object, *, on_asyncio: bool) -> None:
        """Choose the flavour, or refuse the function if the other one was chosen."""
        name = f"{what} {name_of(function)}"
        if self.on_asyncio is None:
            self.on_asyncio, self.decided_by = on_asyncio, name
        elif self.on_asyncio is not on_asyncio:
            this, that = ("a coroutine function", "plain") if on_asyncio else ("plain", "a coroutine function")
            raise InvalidArgumentError(
                f"{name} is {this}, and {self.decided_by} is {that}: in one app either all functions are coroutine "
                "functions, or none is. Change one of them, or declare two apps"
            )

    def __str__(self) -> str:
        counts: dict[str, list[Any]] = {
            "handlers": self.handlers,
            "subscribers": self.subscribers,
            "scheduled functions": self.scheduled,
        }
        return f"the app ({', '.join(f'{name}: {len(each)}' for name, each in counts.items())})"
