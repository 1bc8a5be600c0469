"""Prometheus: counters and histograms of what a backend's interfaces do, and gauges of the state of groups.

>>> import ailf, prometheus_client
>>> from ailf.prometheus import Prometheus
>>> prometheus = Prometheus(prometheus_client.CollectorRegistry())
>>> with ailf.connect("memory://", instruments=[prometheus]) as backend:
...     first = backend.stream("tasks").add("a task")
>>> "ailf_sent_messages_total" in prometheus.render()
True

It needs the extra ``prometheus``: ``pip install "ailf[prometheus]"``.
"""

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final

import attrs

from ailf.checks import check_kind, check_seconds, check_text
from ailf.errors import ClosedError, InvalidArgumentError
from ailf.instruments import (
    ConnectionLost,
    ConnectionRestored,
    Destination,
    Instrument,
    LeaseExpired,
    MessageDied,
    MessageReceived,
    MessagesDropped,
    MessageSent,
    MessageSettled,
    MessagesMissed,
    Waited,
)
from ailf.labels import DEFAULT_NAMES, Labels
from ailf.logs import About, Log
from ailf.pubsub import Message
from ailf.safe_text import describe
from ailf.stream import AsyncGroup, Group
from ailf.values import GroupInfo

try:
    import prometheus_client
    from prometheus_client import Counter, Histogram
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        'ailf.prometheus needs prometheus-client: pip install "ailf[prometheus]"', name="prometheus_client"
    ) from error

__all__ = ["BUCKETS", "LONG_BUCKETS", "Prometheus", "render"]

log = Log("ailf.prometheus")

BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""The buckets for the durations of sends, handlers and waits, in seconds."""

LONG_BUCKETS: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0)
"""The buckets for times in a queue, and of interruptions, in seconds."""

GAUGES: Final = {
    "up": "Whether the group's state could be read: if not, its other gauges are missing.",
    "stream_length": "Entries in the group's stream.",
    "lag": "Entries that the group has never delivered; missing if the number is unknown.",
    "pending": "Messages that are leased to consumers.",
    "delayed": "Messages that wait for their delivery.",
    "dead_letters": "Dead letters.",
    "consumers": "Consumers that are open, or were dropped with messages leased.",
    "oldest_seconds": "Age of the oldest entry that the group has not settled; 0 without one.",
    "evicted": "Entries that a hard retention removed before all groups had settled them.",
    "paused": "Whether the group is paused.",
}

Key = tuple[str, str, str]


class Prometheus(Instrument):
    """The instrument for Prometheus. One object may observe any number of backends."""

    def __init__(
        self,
        registry: prometheus_client.CollectorRegistry | None = None,
        *,
        namespace: str = "ailf",
        names: Iterable[str] = DEFAULT_NAMES,
        timeout: float = 2.0,
        max_age: float = 60.0,
    ) -> None:
        """Register the metrics.

        Arguments:
            registry: The registry; the default one of prometheus-client if None. It has each metric once: let all
                backends of a program share one object.
            namespace: The prefix of the metrics' names.
            names: The kinds whose names are labels: some of ``stream``, ``channel``, ``lock`` and ``rate_limiter``.
                Give only kinds that have few names.
            timeout: Seconds for which a scrape, or `refresh`, waits for the state of the watched groups.
            max_age: Seconds for which the state of a group that `refresh` has read is shown.

        Raises:
            InvalidArgumentError: An argument is invalid, or the registry has metrics of these names.
        """
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}", check_text("namespace", namespace)):
            raise InvalidArgumentError(f"namespace must be letters, digits and _, as in 'ailf', not {namespace!r}")
        self._registry = prometheus_client.REGISTRY if registry is None else registry
        check_kind("registry", self._registry, prometheus_client.CollectorRegistry)
        self._labels = Labels(names)
        self._metrics = _Metrics(namespace)
        self._groups = _Groups(
            namespace,
            check_seconds("timeout", timeout, least=0.001),
            check_seconds("max_age", max_age, least=0.001),
        )
        _register(self._registry, [*vars(self._metrics).values(), self._groups])

    def render(self) -> str:
        """Return all metrics of the registry in Prometheus' text format, for a ``/metrics`` of your own."""
        return render(self._registry)

    def watch_groups(self, *groups: Group[Any] | AsyncGroup[Any]) -> None:
        """Show the state of groups as gauges, until their backend is closed.

        A scrape asks blocking groups, in a thread for each backend, and waits for `timeout` seconds. For asyncio groups
        call `refresh`.

        Arguments:
            groups: Objects that ``stream.group`` has returned. Another object of the same group replaces the first.

        Raises:
            InvalidArgumentError: An object isn't a group; none is watched.
        """
        given: Sequence[object] = groups
        if wrong := [each for each in given if not isinstance(each, Group | AsyncGroup)]:
            raise InvalidArgumentError(f"watch_groups takes groups of streams, not {type(wrong[0]).__name__}")
        for group in groups:
            self._groups.watch(group)

    async def refresh(self) -> None:
        """Read the state of the watched asyncio groups, for at most `timeout` seconds; await it before a scrape."""
        await self._groups.refresh()

    # --- hooks ---------------------------------------------------------------------------------------------------

    def message_sent(self, event: MessageSent) -> None:
        """Count messages that were sent, or failed to be."""
        labels = self._of(event.destination)
        self._metrics.sent.labels(*labels, self._labels.error(event.error)).inc(event.count)
        self._metrics.send_seconds.labels(*labels).observe(event.seconds)

    def message_received(self, event: MessageReceived) -> None:
        """Count a message, and record its time in the stream."""
        labels = (*self._of(event.source), self._group(event.group))
        self._metrics.received.labels(*labels).inc()
        if event.source.kind == "stream":
            self._metrics.queue_seconds.labels(*labels).observe(event.queued)

    def message_settled(self, event: MessageSettled) -> None:
        """Count a settlement by its outcome."""
        self._metrics.settled.labels(*self._of(event.source), self._group(event.group), event.outcome).inc()

    def message_died(self, event: MessageDied) -> None:
        """Count a dead letter by its reason."""
        self._metrics.dead.labels(*self._of(event.source), self._group(event.group), event.reason).inc()

    def waited(self, event: Waited) -> None:
        """Record how long ``acquire`` took."""
        labels = (self._backend(event.backend), event.kind, self._labels.name(event.kind, event.name))
        self._metrics.wait_seconds.labels(*labels, self._labels.error(event.error)).observe(event.seconds)

    def lease_expired(self, event: LeaseExpired) -> None:
        """Count a lost lease."""
        self._metrics.lost_leases.labels(self._backend(event.backend)).inc()

    def messages_missed(self, event: MessagesMissed) -> None:
        """Record a gap."""
        self._metrics.gap_seconds.labels(self._backend(event.backend)).observe(event.seconds)

    def messages_dropped(self, event: MessagesDropped) -> None:
        """Count a dropped message."""
        self._metrics.dropped.labels(*self._of(event.source)).inc()

    def connection_lost(self, event: ConnectionLost) -> None:
        """Count an outage."""
        self._metrics.outages.labels(self._backend(event.backend), self._labels.error(event.error)).inc()

    def connection_restored(self, event: ConnectionRestored) -> None:
        """Record the length of an outage."""
        self._metrics.outage_seconds.labels(self._backend(event.backend)).observe(event.seconds)

    def handling(self, handled: Any) -> AbstractContextManager[object]:
        """Return a context that records how long a handler runs."""
        if isinstance(handled, Message):
            return _Timer(self, Destination(handled.backend, "channel", handled.channel), "")
        first = handled[0] if isinstance(handled, list) else handled
        return _Timer(self, first.source, first.group)

    def observe_handler(self, source: Destination, group: str, seconds: float, error: BaseException | None) -> None:
        """Record how long a handler has run."""
        labels = (*self._of(source), self._group(group), self._labels.error(error))
        self._metrics.handler_seconds.labels(*labels).observe(seconds)

    # --- labels --------------------------------------------------------------------------------------------------

    def _of(self, destination: Destination) -> tuple[str, str, str]:
        kind = destination.kind
        return self._backend(destination.backend), kind, self._labels.name(kind, destination.name)

    def _backend(self, url: str) -> str:
        return self._labels.bounded("backend", url)

    def _group(self, name: str) -> str:
        return self._labels.bounded("group", name)


class _Timer(AbstractContextManager[None]):
    """Records how long a handler runs."""

    __slots__ = ("_began", "_group", "_instrument", "_source")

    def __init__(self, instrument: Prometheus, source: Destination, group: str) -> None:
        self._instrument = instrument
        self._source = source
        self._group = group

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        took = time.perf_counter() - self._began
        self._instrument.observe_handler(self._source, self._group, took, error)


class _Metrics:
    """The counters and histograms; all attributes are metrics."""

    def __init__(self, namespace: str) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace=namespace, registry=None)

        def seconds(name: str, text: str, *labels: str, buckets: Sequence[float] = BUCKETS) -> Histogram:
            return Histogram(f"{name}_seconds", text, labels, namespace=namespace, buckets=buckets, registry=None)

        place = ("backend", "kind", "name")
        group = (*place, "group")
        self.sent = counter("sent_messages", "Messages that were sent; with an error, failed to be.", *place, "error")
        self.send_seconds = seconds("send", "Duration of calls that send.", *place)
        self.received = counter("received_messages", "Messages that were received.", *group)
        self.queue_seconds = seconds(
            "queue", "Time from adding a message to receiving it.", *group, buckets=LONG_BUCKETS
        )
        self.handler_seconds = seconds("handler", "Duration of handlers.", *group, "error")
        self.settled = counter("settled_messages", "Deliveries that were settled.", *group, "outcome")
        self.dead = counter("dead_letters", "Messages that became dead letters.", *group, "reason")
        self.wait_seconds = seconds("wait", "Duration of acquire, of locks and rate limiters.", *place, "error")
        self.lost_leases = counter("lost_leases", "Leases that were lost.", "backend")
        self.gap_seconds = seconds(
            "gap", "Interruptions in which subscriptions may have missed messages.", "backend", buckets=LONG_BUCKETS
        )
        self.dropped = counter("dropped_messages", "Messages that did not fit a subscription's buffer.", *place)
        self.outages = counter("outages", "Outages of the backend that have begun.", "backend", "error")
        self.outage_seconds = seconds(
            "outage", "Outages of the backend that have ended.", "backend", buckets=LONG_BUCKETS
        )


def render(registry: prometheus_client.CollectorRegistry | None = None) -> str:
    """Return all metrics of a registry, by default that of prometheus-client, in Prometheus' text format."""
    return prometheus_client.generate_latest(prometheus_client.REGISTRY if registry is None else registry).decode()


def _register(registry: prometheus_client.CollectorRegistry, collectors: Sequence[Collector]) -> None:
    """Register all collectors, or none.

    Raises:
        InvalidArgumentError: The registry has a metric of the same name.
    """
    done: list[Collector] = []
    try:
        for each in collectors:
            registry.register(each)
            done.append(each)
    except ValueError as error:
        for each in done:
            registry.unregister(each)
        raise InvalidArgumentError(
            f"the registry can't take ailf's metrics: {error}. Let all backends share one Prometheus object, or give "
            "it a registry or a namespace of its own"
        ) from error


# --- the state of groups -----------------------------------------------------------------------------------------


@attrs.define
class _WatchedGroup:
    """A group, and its state.

    Attributes:
        group: The group.
        info: Its state; None if it could not be read the last time.
        at: When that was, on the monotonic clock.
        failing: Whether it could not be read the last time, which was logged.
    """

    group: Group[Any] | AsyncGroup[Any]
    info: GroupInfo | None = None
    at: float = 0.0
    failing: bool = False

    def keep(self, info: GroupInfo | None) -> None:
        """Keep a state that was read now, or that it could not be."""
        self.info, self.at, self.failing = info, time.monotonic(), info is None


@attrs.define
class _Reading:
    """A thread that asks the blocking groups of one backend, and when it began."""

    thread: threading.Thread
    began: float


class _Groups(Collector):
    """The gauges of the watched groups. A scrape waits for `timeout` seconds, and a backend has one thread at most."""

    def __init__(self, namespace: str, timeout: float, max_age: float) -> None:
        self._namespace = namespace
        self._timeout = timeout
        self._max_age = max_age
        self._watched: dict[Key, _WatchedGroup] = {}
        self._readings: dict[str, _Reading] = {}
        self._guard = threading.Lock()

    def watch(self, group: Group[Any] | AsyncGroup[Any]) -> None:
        """Show the state of a group."""
        with self._guard:
            self._watched[group.source.backend, group.source.name, group.name] = _WatchedGroup(group)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges without a sample, when they are registered."""
        yield from self._families().values()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Ask the blocking groups, and yield the gauges."""
        until = time.monotonic() + self._timeout
        with self._guard:
            readings = [self._reading(url) for url in {each[0] for each, _ in self._of(Group)}]
        for reading in readings:
            reading.thread.join(max(0.0, until - time.monotonic()))
        families = self._families()
        with self._guard:
            for key, watched in self._watched.items():
                self._add(families, key, watched)
        yield from families.values()

    async def refresh(self) -> None:
        """Ask the asyncio groups."""
        with self._guard:
            asked = self._of(AsyncGroup)
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await asyncio.gather(*(self._refresh(key, watched) for key, watched in asked))
        for key, watched in asked:
            if watched.at < began:
                self._failed(key, watched, TimeoutError(f"no answer within {self._timeout:g} s"))

    async def _refresh(self, key: Key, watched: _WatchedGroup) -> None:
        group = watched.group
        if isinstance(group, AsyncGroup):
            try:
                watched.keep(await group.info())
            except Exception as failure:  # noqa: BLE001 - whatever it is, the state is unknown, and `up` says so
                self._failed(key, watched, failure)

    def _reading(self, url: str) -> _Reading:
        """Return the thread that asks the groups of a backend; start one if there is none."""
        reading = self._readings.get(url)
        if reading is None or not reading.thread.is_alive():
            thread = threading.Thread(target=self._read, args=(url,), name="ailf-prometheus", daemon=True)
            reading = self._readings[url] = _Reading(thread, time.monotonic())
            thread.start()
        return reading

    def _read(self, url: str) -> None:
        """Ask the groups of a backend, one after another."""
        with self._guard:
            asked = [(key, watched) for key, watched in self._of(Group) if key[0] == url]
        for key, watched in asked:
            if isinstance(watched.group, Group):
                try:
                    watched.keep(watched.group.info())
                except Exception as failure:  # noqa: BLE001 - as above
                    self._failed(key, watched, failure)

    def _failed(self, key: Key, watched: _WatchedGroup, failure: Exception) -> None:
        """Keep that the state is unknown, and log it the first time; forget a group whose backend is closed."""
        if not watched.failing and not isinstance(failure, ClosedError):
            about = About(
                f"group {key[2]!r} of stream {key[1]!r}", {"backend": key[0], "stream": key[1], "group": key[2]}
            )
            log.warning(about, "its state is unknown: %s", describe(failure))
        watched.keep(None)
        if isinstance(failure, ClosedError):
            with self._guard:
                if self._watched.get(key) is watched:
                    del self._watched[key]
                if not any(each[0] == key[0] for each in self._watched):
                    self._readings.pop(key[0], None)

    def _of(self, kind: type) -> list[tuple[Key, _WatchedGroup]]:
        return [(key, watched) for key, watched in self._watched.items() if isinstance(watched.group, kind)]

    def _families(self) -> dict[str, GaugeMetricFamily]:
        labels = ("backend", "stream", "group")
        return {
            name: GaugeMetricFamily(f"{self._namespace}_group_{name}", text, labels=labels)
            for name, text in GAUGES.items()
        }

    def _add(self, families: dict[str, GaugeMetricFamily], key: Key, watched: _WatchedGroup) -> None:
        """Add the samples of one group."""
        info = watched.info
        reading = self._readings.get(key[0]) if isinstance(watched.group, Group) else None
        late = reading is not None and reading.thread.is_alive() and watched.at < reading.began
        if late or time.monotonic() - watched.at > self._max_age:
            info = None
        families["up"].add_metric(key, info is not None)
        if info is None:
            return
        values = {
            "stream_length": info.length,
            "lag": info.lag,
            "pending": info.pending,
            "delayed": info.delayed,
            "dead_letters": info.dead,
            "consumers": len(info.consumers),
            "oldest_seconds": info.oldest or 0.0,
            "evicted": info.evicted,
            "paused": int(info.paused),
        }
        for name, value in values.items():
            if value is not None:
                families[name].add_metric(key, value)
