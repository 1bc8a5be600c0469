"""B11: instruments observe every interface, and never change what it does."""

from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from ailf.instruments import (
    Destination,
    Event,
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
from contract_tests.fixtures import needs
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.STREAM,)


class Recorder(Instrument):
    """Records every event, sends a header, and notes what is handled."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.handled: list[tuple[str, Any]] = []

    def _record(self, event: Any) -> None:
        self.events.append(event)

    message_sent = message_received = message_settled = message_died = waited = lease_expired = _record
    messages_missed = messages_dropped = connection_lost = connection_restored = _record

    def sending(self, destination: Destination, headers: Any) -> Any:
        """Add a header that names the destination."""
        return {**headers, "sent-to": destination.name}

    def handling(self, handled: Any) -> AbstractContextManager[object]:
        """Note the beginning and the end, with the error."""

        @contextmanager
        def around() -> Any:
            self.handled.append(("begin", handled))
            try:
                yield
            except BaseException as error:
                self.handled.append((type(error).__name__, handled))
                raise
            self.handled.append(("end", handled))

        return around()

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the events of one kind."""
        return [each for each in self.events if isinstance(each, kind)]


@pytest.fixture
def recorder() -> Recorder:
    """Return an instrument."""
    return Recorder()


async def observed(world: World, recorder: Recorder) -> Any:
    """Open a backend that the recorder observes."""
    backend = await world.connect()
    getattr(backend, "_inner", backend).instrument(recorder)
    return backend


async def test_events_of_a_message(world: World, recorder: Recorder) -> None:
    """B11: a message makes an event where it is sent, received, settled, and where it dies."""
    backend = await observed(world, recorder)
    stream = backend.stream("s")
    entry = await stream.add(1, headers={"own": "header"})
    group = stream.group("g", max_deliveries=2, backoff=ailf.Backoff(initial=0.0))

    async def handler(delivery: Any) -> bool:
        assert delivery.headers == {"own": "header", "sent-to": "s"}
        if delivery.attempt == 2:
            group.stop()
        raise ZeroDivisionError("by zero")

    await world.within_patience(group.process(handler))
    source = Destination(getattr(backend, "_inner", backend).url, "stream", "s")
    headers = {"own": "header", "sent-to": "s"}
    (sent,) = recorder.of(MessageSent)
    assert (sent.destination, sent.headers, sent.count, sent.ids, sent.error) == (source, headers, 1, (entry,), None)
    assert 0 <= sent.seconds < world.patience
    received, settled = recorder.of(MessageReceived), recorder.of(MessageSettled)
    assert [(each.source, each.headers, each.group, each.id, each.attempt) for each in received] == [
        (source, headers, "g", entry, 1),
        (source, headers, "g", entry, 2),
    ]
    assert [(each.id, each.attempt, each.outcome, each.dead, each.error) for each in settled] == [
        (entry, 1, "nack", False, "ZeroDivisionError: by zero"),
        (entry, 2, "nack", True, "ZeroDivisionError: by zero"),
    ]
    assert len({each.consumer for each in received + settled}) == 1
    assert all(0 <= each.queued < 60 for each in received + settled)
    assert all(0 <= each.handled < world.patience for each in settled)
    assert recorder.of(MessageDied) == [MessageDied(source, "g", entry, "max_deliveries")]
    assert [what for what, _ in recorder.handled] == ["begin", "ZeroDivisionError"] * 2


async def test_events_of_batches_and_failures(world: World, recorder: Recorder) -> None:
    """B11: a call that sends several messages makes one event, also if it fails, and also if it adds nothing."""
    backend = await observed(world, recorder)
    stream = backend.stream("s")
    ids = await stream.add_many([1, 2, 3])
    added = await stream.add_once("d", 4)
    await stream.add_once("d", 4)
    with pytest.raises(ailf.EncodeError) as failed:
        await stream.add(object())
    sent = recorder.of(MessageSent)
    assert [(each.count, each.ids) for each in sent] == [(3, tuple(ids)), (1, (added.id,)), (1, ()), (1, ())]
    assert sent[3].error is failed.value
    assert await stream.add_many([]) == []
    assert len(recorder.of(MessageSent)) == 4


async def test_events_of_deliveries_without_a_handler(world: World, recorder: Recorder) -> None:
    """B11: what a program settles itself, or gives back by closing, is observed; so is a lost lease, once."""
    backend = await observed(world, recorder)
    stream = backend.stream("s")
    ids = await stream.add_many(["acked", "rejected", "lost", "given back"])
    group = stream.group("g", lease=world.lease, takeover=1000, max_processing=0.001)
    async with group.consumer() as consumer:
        await (await world.take(consumer)).ack()
        async with await world.take(consumer) as delivery:
            await delivery.reject("no")
        lost = await world.take(consumer)
        await world.advance(world.lease * 1.2)
        for _ in range(2):
            with pytest.raises(ailf.LeaseLostError):
                await lost.ack()
    async with stream.group("h").consumer(prefetch=4) as consumer:
        await world.take(consumer)
    settled = [(each.id, each.outcome, each.dead) for each in recorder.of(MessageSettled) if each.group == "g"]
    assert settled == [(ids[0], "ack", False), (ids[1], "reject", True), (ids[2], "lost", False)]
    (expired,) = recorder.of(LeaseExpired)
    assert ids[2] in expired.lease
    assert [each.outcome for each in recorder.of(MessageSettled) if each.group == "h"] == ["release"] * 3
    assert [what for what, _ in recorder.handled] == ["begin", "end"]


@needs(Capability.PUBSUB)
async def test_events_of_channels(world: World, recorder: Recorder) -> None:
    """B11: a published message makes an event where it is sent, received and dropped; so does a gap."""
    backend = await observed(world, recorder)
    pubsub = backend.pubsub()
    async with pubsub.listen("c", buffer=1) as subscription:
        await pubsub.publish("c", 1)
        assert (await world.take(subscription)).headers == {"sent-to": "c"}
        await pubsub.publish_many([("c", number) for number in range(3)])
        await world.until(lambda: subscription.dropped == 2)
    source = Destination(getattr(backend, "_inner", backend).url, "channel", "c")
    assert [(each.destination, each.count, each.ids) for each in recorder.of(MessageSent)] == [
        (source, 1, ()),
        (source, 3, ()),
    ]
    assert [(each.names, each.payloads) for each in recorder.of(MessageSent)] == [
        (("c",), (1,)),
        (("c", "c", "c"), (0, 1, 2)),
    ]
    assert recorder.of(MessageReceived) == [MessageReceived(source, {"sent-to": "c"}, payload=1)]
    assert [each.source for each in recorder.of(MessagesDropped)] == [source, source]


@needs("interrupt_subscriptions", Capability.PUBSUB)
async def test_events_of_gaps(world: World, recorder: Recorder) -> None:
    """B11: an interruption of the subscriptions makes one event, however many there are."""
    backend = await observed(world, recorder)
    pubsub = backend.pubsub()
    async with pubsub.listen("c") as one, pubsub.listen("d") as two:
        await world.harness.interrupt_subscriptions()
        for each in (one, two):
            assert isinstance(await world.take(each), ailf.Gap)
    (missed,) = recorder.of(MessagesMissed)
    assert missed.subscriptions == 2


@needs(Capability.LOCK)
async def test_events_of_locks(world: World, recorder: Recorder) -> None:
    """B11: each `acquire` of a lock makes an event with its duration, and its error."""
    backend = await observed(world, recorder)
    lock = backend.lock("l")
    lease = (await lock.acquire(timeout=0)).hand_over()
    with pytest.raises(ailf.LockTimeoutError) as late:
        await lock.acquire(timeout=0.01)
    await lease.release()
    waited = recorder.of(Waited)
    assert [(each.kind, each.name, each.key, each.error) for each in waited] == [
        ("lock", "l", "", None),
        ("lock", "l", "", late.value),
    ]
    assert waited[1].seconds >= 0.01


@needs(Capability.RATE_LIMITER)
async def test_events_of_rate_limiters(world: World, recorder: Recorder) -> None:
    """B11: each `acquire` of a rate limiter makes an event with its duration, and its error."""
    backend = await observed(world, recorder)
    limiter = backend.rate_limiter("r", "1/day")
    await limiter.acquire("k")
    with pytest.raises(ailf.RateLimitedError) as late:
        await limiter.acquire("k", timeout=0)
    assert [(each.kind, each.name, each.key, each.error) for each in recorder.of(Waited)] == [
        ("rate_limiter", "r", "k", None),
        ("rate_limiter", "r", "k", late.value),
    ]


class Broken(Instrument):
    """An instrument whose hooks raise."""

    def __init__(self) -> None:
        self.calls = 0

    def sending(self, destination: Destination, headers: Any) -> Any:
        """Fail."""
        self.calls += 1
        raise ValueError("broken")

    def message_sent(self, event: MessageSent) -> None:
        """Count a call that must not come."""
        self.calls += 1


async def test_an_instrument_that_raises(world: World, recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """B11: an instrument that raises is logged once and removed; others, and the call, go on."""
    backend, broken = await world.connect(), Broken()
    getattr(backend, "_inner", backend).instrument(broken, recorder)
    stream = backend.stream("s")
    await stream.add(1)
    await stream.add(2)
    async with stream.group("g").consumer() as consumer, await world.take(consumer) as delivery:
        assert delivery.data == 1
    assert broken.calls == 1
    assert len(recorder.of(MessageSent)) == 2
    errors = [each.getMessage() for each in caplog.records if each.name == "ailf.instruments"]
    assert errors == [f"instrument {__name__}.Broken: sending failed, so it is removed"]
