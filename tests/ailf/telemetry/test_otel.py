"""Spans form one trace over the life of a message, and metrics follow the conventions for messaging."""

import asyncio
import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import ailf
from ailf.instruments import (
    ConnectionLost,
    ConnectionRestored,
    Destination,
    Instrument,
    LeaseExpired,
    MessageReceived,
    MessagesDropped,
    MessageSent,
    MessageSettled,
    MessagesMissed,
)
from ailf.otel import SCHEMA_URL, OpenTelemetry
from ailf.otel.messages import MOST_ATTEMPTS, MOST_MESSAGES
from ailf.tracing import carrying
from tests.support.flavours import Flavour

AT_ONCE = ailf.Backoff(0)
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@attrs.frozen
class Telemetry:
    """An instrument, and what it has recorded."""

    spans_of: InMemorySpanExporter
    reader: InMemoryMetricReader
    provider: TracerProvider
    meters: MeterProvider

    def instrument(self, **options: Any) -> OpenTelemetry:
        """Return an instrument that records here."""
        return OpenTelemetry(self.provider, self.meters, **options)

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """Return the spans that have ended, or those with a name, in order of their beginnings."""
        ended = sorted(self.spans_of.get_finished_spans(), key=lambda span: span.start_time or 0)
        return [span for span in ended if name is None or span.name == name]

    def points(self, name: str) -> list[tuple[dict[str, Any], float]]:
        """Return the attributes and values of a metric: the sum of a counter, the count of a histogram."""
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        metrics = [
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        return [
            (dict(point.attributes or {}), getattr(point, "value", None) or getattr(point, "count", 0))
            for metric in metrics
            for point in metric.data.data_points
        ]


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """The SDK's exporters in memory."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    meters = MeterProvider([reader], shutdown_on_exit=False)
    yield Telemetry(exporter, reader, provider, meters)
    provider.shutdown()
    meters.shutdown()


def id_of(span: ReadableSpan | None) -> int:
    """Return the id of a span."""
    assert span is not None
    assert span.context is not None
    return span.context.span_id


def trace_of(span: ReadableSpan) -> int:
    """Return the id of a span's trace."""
    assert span.context is not None
    return span.context.trace_id


def links_of(span: ReadableSpan) -> list[int]:
    """Return the ids of the spans that a span links to."""
    return [link.context.span_id for link in span.links]


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    """Return the attributes of a span."""
    return span.attributes or {}


# --- traces ------------------------------------------------------------------------------------------------------


def test_one_trace_from_add_to_ack(flavour: Flavour, telemetry: Telemetry) -> None:
    """Add, nack, redelivery, dead letter, redrive and ack are one trace, whose attempts link to one another."""

    async def scenario(backend: Any) -> None:
        stream = backend.stream("tasks")
        group = stream.group("g", max_deliveries=2, backoff=AT_ONCE)
        outcomes: list[Any] = [ValueError("first"), ValueError("second"), None]

        def handle(_: Any) -> None:
            outcome = outcomes.pop(0)
            if outcome is None or len(outcomes) == 1:
                group.stop()
            if outcome is not None:
                raise outcome

        await flavour.wait(stream.add("x"))
        await flavour.wait(group.process(flavour.handler(handle)))
        assert await flavour.wait(group.dead_letters.redrive_all()) == 1
        await flavour.wait(group.process(flavour.handler(handle)))

    flavour.run(scenario, telemetry.instrument())
    spans = telemetry.spans()
    assert len({trace_of(span) for span in spans}) == 1
    (add,) = telemetry.spans("add tasks")
    processes = telemetry.spans("process tasks")
    assert [id_of(add)] * 3 == [span.parent.span_id for span in processes if span.parent]
    first, second, third = map(id_of, processes)
    assert [links_of(span) for span in processes] == [
        [id_of(add)],
        [id_of(add), first],
        [id_of(add), first, second],
    ]
    assert [attributes_of(span).get("error.type") for span in processes] == ["ValueError", "ValueError", None]
    assert [span.status.status_code for span in processes] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    settled = {id_of(each): each for name in ("nack tasks", "ack tasks") for each in telemetry.spans(name)}
    assert [(span.name, span.parent.span_id) for span in settled.values() if span.parent] == [
        ("nack tasks", first), ("nack tasks", second), ("ack tasks", third),
    ]  # fmt: skip
    assert [attributes_of(span).get("ailf.message.dead") for span in settled.values()] == [None, True, None]
    (dead,) = telemetry.spans("dead_letter tasks")
    assert dead.parent is not None
    assert dead.parent.span_id == id_of(add)
    assert links_of(dead) == [id_of(add), first, second]
    assert attributes_of(dead)["ailf.reason"] == "max_deliveries"
    assert len(telemetry.spans("receive tasks")) == 3


def test_spans_by_the_conventions(flavour: Flavour, telemetry: Telemetry) -> None:
    """Kinds, names and attributes of spans are those of the semantic conventions."""

    async def scenario(backend: Any) -> None:
        stream = backend.stream("tasks")
        ids = await flavour.wait(stream.add("x"))
        async with (
            flavour.entered(stream.group("g").consumer("c")) as consumer,
            flavour.entered(await flavour.wait(consumer.get())),
        ):
            pass
        found.append(ids)

    found: list[str] = []
    flavour.run(scenario, telemetry.instrument())
    spans = {span.name.partition(" ")[0]: span for span in telemetry.spans()}
    kinds = {name: span.kind for name, span in spans.items()}
    assert kinds == {
        "add": SpanKind.PRODUCER, "receive": SpanKind.CLIENT, "process": SpanKind.CONSUMER, "ack": SpanKind.CLIENT,
    }  # fmt: skip
    system = "memory" if flavour.url.startswith("memory") else "redis"
    types = {"add": "send", "receive": "receive", "process": "process", "ack": "settle"}
    for name, span in spans.items():
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.schema_url == SCHEMA_URL
        attributes = dict(attributes_of(span))
        assert attributes.pop("server.address") is not None
        assert attributes.pop("server.port", 0) is not None
        assert attributes.pop("messaging.client.id", "c:").startswith("c:")
        attempt = {} if name == "add" else {
            "messaging.consumer.group.name": "g", "ailf.message.attempt": 1,
        }  # fmt: skip
        assert attributes == {
            "messaging.system": system,
            "messaging.operation.name": name,
            "messaging.operation.type": types[name],
            "messaging.destination.name": "tasks",
            "messaging.message.id": found[0],
            "ailf.kind": "stream",
            **attempt,
        }


def test_the_span_is_current_in_a_handler(flavour: Flavour, telemetry: Telemetry) -> None:
    """Sends of a handler, and of `with delivery`, are children of its span, and their messages continue the trace."""

    async def scenario(backend: Any) -> None:
        stream, results = backend.stream("tasks"), backend.stream("results")
        group = stream.group("g")
        await flavour.wait(stream.add_many([1, 2]))
        async with flavour.entered(group.consumer()) as consumer:
            async with flavour.entered(await flavour.wait(consumer.get())):
                await flavour.wait(results.add("by a body"))
            assert not trace.get_current_span().get_span_context().is_valid

        async def send(_: Any) -> None:
            await results.add("by a handler")
            group.stop()

        def send_blocking(_: Any) -> None:
            results.add("by a handler")
            group.stop()

        await flavour.wait(group.process(send if flavour.is_async else send_blocking))
        headers = [each.headers for each in await flavour.wait(results.read())]
        assert [each["traceparent"].split("-")[2] for each in headers] == [
            f"{id_of(span):016x}" for span in telemetry.spans("add results")
        ]

    flavour.run(scenario, telemetry.instrument())
    processes = [id_of(span) for span in telemetry.spans("process tasks")]
    assert [span.parent.span_id for span in telemetry.spans("add results") if span.parent] == processes
    assert len({trace_of(span) for span in telemetry.spans()}) == 1


def test_a_batch_has_one_span(flavour: Flavour, telemetry: Telemetry) -> None:
    """The span of a batch links to the creation context of each message, and is current in the handler."""
    tracer = telemetry.provider.get_tracer("test")

    async def scenario(backend: Any) -> None:
        stream = backend.stream("tasks")
        group = stream.group("g")
        for each in range(3):
            with tracer.start_as_current_span(f"request {each}"):
                await flavour.wait(stream.add(each))

        def handle(_: list[Any]) -> None:
            with tracer.start_as_current_span("work"):
                group.stop()

        await flavour.wait(group.process(flavour.handler(handle), batch=3, linger=1))

    flavour.run(scenario, telemetry.instrument())
    (process,) = telemetry.spans("process tasks")
    adds = telemetry.spans("add tasks")
    assert links_of(process) == [id_of(span) for span in adds]
    ids = [attributes_of(span)["messaging.message.id"] for span in adds]
    assert [(link.attributes or {})["messaging.message.id"] for link in process.links] == ids
    assert attributes_of(process)["messaging.batch.message_count"] == 3
    assert process.parent is None
    (work,) = telemetry.spans("work")
    assert work.parent is not None
    assert work.parent.span_id == id_of(process)
    assert [span.parent.span_id for span in telemetry.spans("ack tasks") if span.parent] == [id_of(process)] * 3


def test_messages_sent_together(flavour: Flavour, telemetry: Telemetry) -> None:
    """A call that adds many messages has one span, with their number; each message has its context."""

    async def scenario(backend: Any) -> None:
        await flavour.wait(backend.stream("tasks").add_many([1, 2, 3]))
        await flavour.wait(backend.pubsub().publish_many([("a", 1), ("b", 2)]))

    flavour.run(scenario, telemetry.instrument(names=("stream", "channel")))
    add, publish = telemetry.spans()
    assert attributes_of(add)["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in attributes_of(add)
    assert attributes_of(publish)["messaging.batch.message_count"] == 2
    assert "messaging.destination.name" not in attributes_of(publish), "they are for several channels"
    assert {value for _, value in telemetry.points("messaging.client.sent.messages")} == {2, 3}


def test_channels(flavour: Flavour, telemetry: Telemetry) -> None:
    """A handler of a channel has a span, whose parent is the span of the publish."""

    async def scenario(backend: Any) -> None:
        pubsub = backend.pubsub()

        def handle(_: Any) -> None:
            pubsub.stop()
            raise ValueError("no")

        await flavour.wait(pubsub.subscribe("news", flavour.handler(handle)))
        await flavour.wait(pubsub.publish("news", "x"))
        await flavour.wait(pubsub.run())
        await flavour.wait(pubsub.close() if not flavour.is_async else pubsub.aclose())

    flavour.run(scenario, telemetry.instrument())
    publish, receive, process = telemetry.spans()
    assert [span.name for span in (publish, receive, process)] == ["publish", "receive", "process"]
    assert [attributes_of(span)["messaging.destination.name"] for span in (publish, receive, process)] == ["news"] * 3
    assert [span.parent.span_id for span in (receive, process) if span.parent] == [id_of(publish)] * 2
    assert links_of(process) == [id_of(publish)]
    assert attributes_of(process)["error.type"] == "ValueError"
    assert attributes_of(process)["messaging.system"] == attributes_of(publish)["messaging.system"]
    ((attributes, count),) = telemetry.points("messaging.process.duration")
    assert count == 1
    assert "messaging.destination.name" not in attributes, "channels may have many names"


def test_a_cancelled_handler(namespace: str, telemetry: Telemetry) -> None:
    """A handler that is cancelled has an error, and its message is released."""

    async def main() -> None:
        started = asyncio.Event()

        async def handle(_: Any) -> None:
            started.set()
            await asyncio.sleep(60)

        async with ailf.connect_async(f"memory://{namespace}", instruments=[telemetry.instrument()]) as backend:
            stream = backend.stream("tasks")
            await stream.add(1)
            worker = asyncio.create_task(stream.group("g").process(handle))
            await started.wait()
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker

    asyncio.run(main())
    (process,) = telemetry.spans("process tasks")
    assert attributes_of(process)["error.type"] == "CancelledError"
    (release,) = telemetry.spans("release tasks")
    assert release.parent is not None
    assert release.parent.span_id == id_of(process)


def test_tasks_and_threads_keep_their_own_spans(flavour: Flavour, telemetry: Telemetry) -> None:
    """Handlers that run at the same time each have their own current span."""
    seen: dict[Any, int] = {}

    async def scenario(backend: Any) -> None:
        stream = backend.stream("tasks")
        group = stream.group("g")
        meet, together = threading.Barrier(3), asyncio.Barrier(3) if sys.version_info >= (3, 11) else None

        def after(delivery: Any) -> None:
            seen[delivery.id] = trace.get_current_span().get_span_context().span_id
            if len(seen) == 3:
                group.stop()

        async def handle_async(delivery: Any) -> None:
            assert together is not None
            await together.wait()
            after(delivery)

        def handle(delivery: Any) -> None:
            meet.wait(20)
            after(delivery)

        await flavour.wait(stream.add_many([1, 2, 3]))
        await flavour.wait(group.process(handle_async if flavour.is_async else handle, concurrency=3, prefetch=3))

    flavour.run(scenario, telemetry.instrument())
    assert seen == {
        attributes_of(span)["messaging.message.id"]: id_of(span) for span in telemetry.spans("process tasks")
    }
    assert len(set(seen.values())) == 3


def test_no_handler(flavour: Flavour, telemetry: Telemetry) -> None:
    """A delivery that is settled without a handler has spans of its receipt and of its settlement."""

    async def scenario(backend: Any) -> None:
        stream = backend.stream("tasks")
        await flavour.wait(stream.add(1))
        async with flavour.entered(stream.group("g").consumer()) as consumer:
            delivery = await flavour.wait(consumer.get())
            await flavour.wait(delivery.reject("bad"))

    flavour.run(scenario, telemetry.instrument())
    add, receive, *settled = telemetry.spans()
    assert receive.name == "receive tasks"
    assert [span.name for span in settled] == ["reject tasks", "dead_letter tasks"]
    assert [span.parent.span_id for span in (receive, *settled) if span.parent] == [id_of(add)] * 3


# --- context -----------------------------------------------------------------------------------------------------


def test_the_current_span_wins(namespace: str, telemetry: Telemetry) -> None:
    """A send is a child of the current span; without one, of the trace that `ailf.tracing` carries."""
    tracer = telemetry.provider.get_tracer("test")
    with ailf.connect(f"memory://{namespace}", instruments=[telemetry.instrument()]) as backend:
        stream = backend.stream("tasks")
        with carrying({"traceparent": PARENT, "tracestate": "a=b"}):
            stream.add(1)
            with tracer.start_as_current_span("request") as request:
                stream.add(2)
        headers = [entry.headers for entry in stream.read()]
    first, second = telemetry.spans("add tasks")
    assert first.parent is not None
    assert f"{first.parent.span_id:016x}" in PARENT
    assert headers[0] == {"traceparent": f"{PARENT[:36]}{id_of(first):016x}-01", "tracestate": "a=b"}
    assert second.parent == request.get_span_context()
    assert f"{id_of(second):016x}" in headers[1]["traceparent"]


def test_a_callers_own_context_is_kept(namespace: str, telemetry: Telemetry) -> None:
    """A send with a ``traceparent`` of the caller's is a CLIENT span that links to it, however many share it."""
    own = {"traceparent": PARENT, "other": "x"}
    with ailf.connect(f"memory://{namespace}", instruments=[telemetry.instrument()]) as backend:
        stream = backend.stream("tasks")
        stream.add(1, headers=own)
        stream.add(2, headers=own)
        assert [entry.headers for entry in stream.read()] == [own, own]
    spans = telemetry.spans()
    assert [span.kind for span in spans] == [SpanKind.CLIENT] * 2
    assert [f"{link:016x}" in PARENT for span in spans for link in links_of(span)] == [True, True]
    assert len({attributes_of(span)["messaging.message.id"] for span in spans}) == 2


def test_the_scope_of_a_worker(namespace: str, telemetry: Telemetry) -> None:
    """A worker inside a span: the span of the handler belongs to the message's trace, and links to that span."""
    tracer = telemetry.provider.get_tracer("test")
    with ailf.connect(f"memory://{namespace}", instruments=[telemetry.instrument()]) as backend:
        stream = backend.stream("tasks")
        stream.add(1)
        with tracer.start_as_current_span("worker") as worker, stream.group("g").consumer() as consumer:
            with consumer.get():
                pass
            assert trace.get_current_span() is worker
    (add,), (process,) = telemetry.spans("add tasks"), telemetry.spans("process tasks")
    assert trace_of(process) == trace_of(add)
    assert links_of(process) == [id_of(add), worker.get_span_context().span_id]


def test_baggage_travels_if_there_is_room(namespace: str, telemetry: Telemetry) -> None:
    """Baggage goes with the message and is in effect in its handler; without room it is left out first."""
    found = []
    with ailf.connect(f"memory://{namespace}", instruments=[telemetry.instrument()]) as backend:
        stream = backend.stream("tasks")
        token = context.attach(baggage.set_baggage("user", "ann"))
        stream.add(1)
        stream.add(2, headers={f"h{each}": "v" for each in range(63)})
        stream.add(3, headers={f"h{each}": "v" for each in range(64)})
        context.detach(token)
        with stream.group("g").consumer() as consumer:
            for _ in range(3):
                with consumer.get() as delivery:
                    found.append((baggage.get_baggage("user"), "traceparent" in delivery.headers))
    assert found == [("ann", True), (None, True), (None, False)]


def test_a_delivery_that_is_left_in_another_task(
    namespace: str, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """A delivery that one task enters and another leaves has its span, and nothing is logged."""

    async def main() -> None:
        async with ailf.connect_async(f"memory://{namespace}", instruments=[telemetry.instrument()]) as backend:
            stream = backend.stream("tasks")
            await stream.add(1)
            async with stream.group("g").consumer() as consumer:
                delivery = await consumer.get()
                await asyncio.create_task(delivery.__aenter__())
                await asyncio.create_task(delivery.__aexit__(None, None, None))
            assert not trace.get_current_span().get_span_context().is_valid

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert len(telemetry.spans("process tasks")) == 1
    assert caplog.records == []


@pytest.mark.parametrize(
    "parent", ["", "x", "é" * 55, "x" * 60_000, PARENT.upper(), "00-" + "0" * 32 + "-00f067aa0ba902b7-01"]
)
def test_headers_that_are_no_trace(namespace: str, telemetry: Telemetry, parent: str) -> None:
    """A message whose ``traceparent`` is none is handled in a trace of its own."""
    telemetry_ = telemetry.instrument()
    with ailf.connect(f"memory://{namespace}") as backend:
        stream = backend.stream("tasks")
        stream.add(1, headers={"traceparent": parent or "-", "tracestate": "\x00", "baggage": ";;=,%"})
        backend.instrument(telemetry_)
        with stream.group("g").consumer() as consumer, consumer.get():
            pass
    (process,) = telemetry.spans("process tasks")
    assert process.parent is None
    assert process.links == ()


class AwkwardError(Exception):
    """An error whose text can't be had."""

    def __str__(self) -> str:
        raise SystemExit("no text")


@pytest.mark.parametrize("error", [AwkwardError(), ValueError("\ud800" * 5000), ExceptionGroup("g", [AwkwardError()])])
def test_awkward_errors(namespace: str, telemetry: Telemetry, error: Exception) -> None:
    """An error whose text is too long, can't be encoded or can't be had is recorded safely."""
    with ailf.connect(f"memory://{namespace}", instruments=[telemetry.instrument()]) as backend:
        stream = backend.stream("tasks")
        stream.add(1)
        with stream.group("g").consumer() as consumer, contextlib.suppress(type(error)), consumer.get():
            raise error
        stream.add(2)
    (process,) = telemetry.spans("process tasks")
    assert attributes_of(process)["error.type"] == type(error).__name__
    (event,) = process.events
    for text in (*(event.attributes or {}).values(), process.status.description):
        assert isinstance(text, str)
        assert len(text.encode()) <= 20_000
    assert len(telemetry.spans("add tasks")) == 2, "it observes still"


# --- sends that fail ---------------------------------------------------------------------------------------------


def test_a_send_that_fails(flavour: Flavour, telemetry: Telemetry) -> None:
    """A send that fails has a span with the error, and is counted with its class; so is one with invalid headers."""

    async def scenario(backend: Any) -> None:
        stream = backend.stream("tasks")
        with pytest.raises(ailf.EncodeError):
            await flavour.wait(stream.add(object()))
        with pytest.raises(ailf.InvalidArgumentError):
            await flavour.wait(stream.add(1, headers={"": ""}))
        await flavour.wait(stream.add(1))

    flavour.run(scenario, telemetry.instrument())
    assert [attributes_of(span).get("error.type") for span in telemetry.spans("add tasks")] == ["EncodeError", None]
    counted = {point.get("error.type"): value for point, value in telemetry.points("messaging.client.sent.messages")}
    assert counted == {"EncodeError": 1, "InvalidArgumentError": 1, None: 1}
    assert len(telemetry.points("messaging.client.operation.duration")) == 3


def test_sends_of_two_instruments(namespace: str, telemetry: Telemetry) -> None:
    """Two instruments on one backend each end the span that they have started."""
    instruments = [telemetry.instrument(), telemetry.instrument()]
    with ailf.connect(f"memory://{namespace}", instruments=instruments) as backend:
        backend.stream("tasks").add(1)
    outer, inner = telemetry.spans()
    assert [span.kind for span in (outer, inner)] == [SpanKind.PRODUCER, SpanKind.CLIENT]
    assert links_of(inner) == [id_of(outer)]


def test_without_spans(flavour: Flavour, telemetry: Telemetry) -> None:
    """Without spans a trace is propagated from the current span to the handler, and metrics are recorded."""
    tracer = telemetry.provider.get_tracer("test")
    seen = []

    async def scenario(backend: Any) -> None:
        stream = backend.stream("tasks")
        with tracer.start_as_current_span("request") as request:
            await flavour.wait(stream.add(1))
        async with (
            flavour.entered(stream.group("g").consumer()) as consumer,
            flavour.entered(await flavour.wait(consumer.get())),
        ):
            seen.append(trace.get_current_span().get_span_context().span_id)
        assert seen == [request.get_span_context().span_id]

    flavour.run(scenario, telemetry.instrument(spans=()))
    assert [span.name for span in telemetry.spans()] == ["request"]
    assert len(telemetry.points("messaging.process.duration")) == 1


def test_without_the_sdk(namespace: str) -> None:
    """Without the SDK nothing is recorded, and a trace that comes in is passed on."""
    with ailf.connect(f"memory://{namespace}", instruments=[OpenTelemetry()]) as backend:
        stream, results = backend.stream("tasks"), backend.stream("results")
        stream.add(1, headers={"traceparent": PARENT})
        with stream.group("g").consumer() as consumer, consumer.get():
            results.add(2)
        assert [entry.headers for entry in results.read()] == [{"traceparent": PARENT}]


# --- metrics -----------------------------------------------------------------------------------------------------


def test_metrics_of_messages(flavour: Flavour, telemetry: Telemetry) -> None:
    """Counters and durations have the attributes of the conventions, and no id of an entry or consumer."""

    async def scenario(backend: Any) -> None:
        stream = backend.stream("tasks")
        await flavour.wait(stream.add(1))
        async with (
            flavour.entered(stream.group("g").consumer("c")) as consumer,
            flavour.entered(await flavour.wait(consumer.get())),
        ):
            pass
        await flavour.wait(backend.lock("user:17").acquire(timeout=1))
        await flavour.wait(backend.rate_limiter("calls", "10/s").acquire("secret"))

    flavour.run(scenario, telemetry.instrument())
    common = {"ailf.kind": "stream", "messaging.destination.name": "tasks"}
    of_group = {**common, "messaging.consumer.group.name": "g"}
    expected: dict[str, dict[str, Any]] = {
        "messaging.client.sent.messages": {**common, **named("add", "send")},
        "messaging.client.operation.duration": {**common, **named("add", "send")},
        "messaging.client.consumed.messages": {**of_group, **named("receive", "receive")},
        "messaging.process.duration": {**of_group, **named("process", "process")},
        "ailf.queue.duration": of_group,
        "ailf.settled.messages": {**of_group, "ailf.outcome": "ack"},
    }
    for name, attributes in expected.items():
        ((found, value),) = telemetry.points(name)
        assert value == 1
        assert without_server(found) == attributes
    waits = [without_server(found) for found, _ in telemetry.points("ailf.wait.duration")]
    assert waits == [{"ailf.kind": "lock"}, {"ailf.kind": "rate_limiter", "ailf.name": "calls"}]


def named(operation: str, type_: str) -> dict[str, str]:
    """Return the attributes of an operation."""
    return {"messaging.operation.name": operation, "messaging.operation.type": type_}


def without_server(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes without those of the server."""
    return {
        name: value
        for name, value in attributes.items()
        if not name.startswith("server.") and name != "messaging.system"
    }


def test_other_events(telemetry: Telemetry) -> None:
    """Gaps, drops, lost leases and outages are counted."""
    url = "redis://example.org:6380/2"
    instrument = telemetry.instrument(names=["channel"])
    instrument.lease_expired(LeaseExpired(url, "the lease on lock 'x'", "gone"))
    instrument.messages_missed(MessagesMissed(url, "cut", 2.0, 3))
    instrument.messages_dropped(MessagesDropped(Destination(url, "channel", "news"), 10))
    instrument.connection_lost(ConnectionLost(url, ailf.BackendTimeoutError("late")))
    instrument.connection_restored(ConnectionRestored(url, 4.0))
    server = {"messaging.system": "redis", "server.address": "example.org", "server.port": 6380}
    assert telemetry.points("ailf.lost.leases") == [(server, 1)]
    assert telemetry.points("ailf.gap.duration") == [(server, 1)]
    channel = {**server, "ailf.kind": "channel", "messaging.destination.name": "news"}
    assert telemetry.points("ailf.dropped.messages") == [(channel, 1)]
    assert telemetry.points("ailf.outages") == [({**server, "error.type": "BackendTimeoutError"}, 1)]
    assert telemetry.points("ailf.outage.duration") == [(server, 1)]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rediss://h:1/0", {"messaging.system": "redis", "server.address": "h", "server.port": 1}),
        ("unix:///tmp/r.sock", {"messaging.system": "redis", "server.address": "/tmp/r.sock"}),
        ("redis://a:1,b:2/0", {"messaging.system": "redis"}),
        ("redis+sentinel://a:1/m", {"messaging.system": "redis"}),
        ("rediss+cluster://a:1", {"messaging.system": "redis"}),
        ("nats://h", {"messaging.system": "nats", "server.address": "h"}),
        ("", {"messaging.system": "ailf"}),
    ],
)
def test_servers(telemetry: Telemetry, url: str, expected: dict[str, Any]) -> None:
    """The system and the server's address come from the URL of the backend."""
    telemetry.instrument().lease_expired(LeaseExpired(url, "x", "y"))
    assert telemetry.points("ailf.lost.leases") == [(expected, 1)]


# --- bounds ------------------------------------------------------------------------------------------------------

STREAM = Destination("memory://", "stream", "s")


def test_names_are_bounded(telemetry: Telemetry) -> None:
    """More names than a metric should have are one label, and long ones are cut."""
    instrument = telemetry.instrument()
    for each in range(1000):
        instrument.message_sent(MessageSent(Destination("memory://", "stream", f"{each:04}" * 100), {}, 1, (), 0.0))
    points = telemetry.points("messaging.client.sent.messages")
    names = {attributes["messaging.destination.name"]: value for attributes, value in points}
    assert len(names) == 501
    assert names["_other"] == 500
    assert max(map(len, names)) <= 200


def test_messages_are_bounded(telemetry: Telemetry) -> None:
    """Messages that are never settled, and endless attempts of one, are forgotten in time."""
    instrument = telemetry.instrument()
    for each in range(MOST_MESSAGES + 10):
        instrument.message_received(MessageReceived(STREAM, {}, "g", "c", str(each)))
    assert len(instrument._messages._known) == MOST_MESSAGES

    class Handled:
        source, group, consumer, id, headers, attempt = STREAM, "g", "c", "1-1", {"traceparent": PARENT}, 1

    for _ in range(MOST_ATTEMPTS + 3):
        with instrument.handling(Handled()):
            pass
    assert len(telemetry.spans("process s")[-1].links) == MOST_ATTEMPTS + 1


def test_settled_messages_are_forgotten(namespace: str, telemetry: Telemetry) -> None:
    """Nothing is kept of messages that were acked."""
    instrument = telemetry.instrument()
    with ailf.connect(f"memory://{namespace}", instruments=[instrument]) as backend:
        stream = backend.stream("tasks")
        stream.add_many(list(range(50)))
        with stream.group("g").consumer(prefetch=10) as consumer:
            for _ in range(50):
                with consumer.get():
                    pass
    assert len(instrument._messages._known) == 0


def test_a_lost_lease(telemetry: Telemetry) -> None:
    """A delivery that is settled too late has a span with an error."""
    instrument = telemetry.instrument()
    lost = MessageSettled(STREAM, {"traceparent": PARENT}, "g", "c", "1-1", 1, "lost", False, 0.0, 0.0)
    instrument.message_settled(lost)
    (settle,) = telemetry.spans()
    assert (settle.name, settle.status.status_code) == ("settle s", StatusCode.ERROR)
    assert attributes_of(settle)["error.type"] == "LeaseLostError"


# --- arguments and the package -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"names": ["key"]}, {"names": "stream"}, {"spans": ["sent"]}, {"spans": [[]]}])
def test_arguments(options: dict[str, Any]) -> None:
    """Kinds and types that don't exist are refused."""
    with pytest.raises(ailf.InvalidArgumentError):
        OpenTelemetry(**options)


def isolated(code: str, *missing: str) -> str:
    """Return what a process prints in which some packages are not installed."""
    block = "".join(f"sys.modules[{name!r}] = None; " for name in missing)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; {block}\n{code}"],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_an_import_without_the_extra() -> None:
    """The error says how to install what is missing."""
    code = "try:\n    import ailf.otel\nexcept ImportError as error:\n    print(error, error.name)"
    assert isolated(code, "opentelemetry") == (
        'ailf.otel needs opentelemetry-api: pip install "ailf[otel]" opentelemetry\n'
    )


def test_an_import_without_other_extras() -> None:
    """Nothing else that is optional is needed, the SDK included."""
    assert isolated("import ailf.otel; ailf.otel.OpenTelemetry()", "prometheus_client", "opentelemetry.sdk") == ""


def test_the_core_imports_no_telemetry() -> None:
    """The core imports neither OpenTelemetry nor prometheus-client; redis-py may import OpenTelemetry itself."""
    code = (
        "import ailf, ailf_memory\n"
        "with ailf.connect('memory://') as backend: backend.stream('s').add(1)\n"
        "print(sorted({each.partition('.')[0] for each in sys.modules} & {'opentelemetry', 'prometheus_client'}))"
    )
    assert isolated(code) == "[]\n"


def test_every_hook_is_used(telemetry: Telemetry) -> None:
    """The instrument overrides every hook."""
    instrument = telemetry.instrument()
    own: Sequence[str] = [name for name in vars(Instrument) if not name.startswith("_")]
    assert [name for name in own if getattr(type(instrument), name) is getattr(Instrument, name)] == []
