"""Each fault of a script does on memory and on Redis, in both flavours, what it says."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import pytest

import ailf
from ailf.testing import Faults, Recorder
from tests.support.flavours import Flavour, flavours


@pytest.fixture(params=["memory-blocking", "memory-asyncio", "redis-blocking", "redis-asyncio"])
def flavour(request: pytest.FixtureRequest, namespace: str) -> Flavour:
    """Both flavours on both backends."""
    return flavours(request, namespace)


def test_an_error_at_the_next_request(flavour: Flavour) -> None:
    """`next` lets one request fail and nothing be sent; the one after it succeeds."""

    async def scenario(backend: Any) -> None:
        faults = Faults(backend)
        stream = backend.stream("s")
        faults.next("add", ailf.BackendFullError)
        with pytest.raises(ailf.BackendFullError, match="a fault that a test has scripted"):
            await flavour.wait(stream.add(1))
        assert faults.pending == []
        await flavour.wait(stream.add(2))
        assert [each.data for each in await flavour.wait(stream.read())] == [2]

    flavour.run(scenario)


def test_an_unknown_outcome(flavour: Flavour) -> None:
    """`OutcomeUnknownError` reaches the caller, whether the request was carried out or not."""

    async def scenario(backend: Any) -> None:
        faults = Faults(backend)
        stream = backend.stream("s")
        for data, carried_out in ((1, False), (2, True)):
            faults.next("add", ailf.OutcomeUnknownError, carried_out=carried_out)
            with pytest.raises(ailf.OutcomeUnknownError) as raised:
                await flavour.wait(stream.add(data))
            assert raised.value.maybe_applied
        assert [each.data for each in await flavour.wait(stream.read())] == [2]

    flavour.run(scenario)


def test_a_refused_connection_is_repeated(flavour: Flavour) -> None:
    """A `ConnectionLostError` before anything was sent is hidden by a repetition, `times` times in a row."""

    async def scenario(backend: Any) -> None:
        faults = Faults(backend)
        faults.next("stream.add", times=2)
        await flavour.wait(backend.stream("s").add(1))
        assert faults.pending == []
        assert [each.data for each in await flavour.wait(backend.stream("s").read())] == [1]

    flavour.run(scenario)


def test_the_third_reply_is_dropped(flavour: Flavour) -> None:
    """`drop_reply` carries the request out, so the caller can't know; the first two are not affected."""

    async def scenario(backend: Any) -> None:
        faults = Faults(backend)
        stream = backend.stream("s")
        faults.drop_reply("add", nth=3)
        for data in (1, 2):
            await flavour.wait(stream.add(data))
        with pytest.raises(ailf.OutcomeUnknownError):
            await flavour.wait(stream.add(3))
        assert [each.data for each in await flavour.wait(stream.read())] == [1, 2, 3]

    flavour.run(scenario)


def test_a_dropped_reply_of_a_settlement(flavour: Flavour) -> None:
    """An ack whose reply is lost is repeated: it then reports that its outcome is unknown, and nothing comes again."""

    async def scenario(backend: Any) -> None:
        faults = Faults(backend)
        stream = backend.stream("s")
        await flavour.wait(stream.add(1))
        group = stream.group("g")
        async with flavour.entered(group.consumer()) as consumer:
            delivery = await flavour.wait(consumer.get(timeout=5))
            faults.drop_reply("settle")
            with pytest.raises(ailf.OutcomeUnknownError):
                await flavour.wait(delivery.ack())
            assert await flavour.wait(consumer.get(timeout=0)) is None
        assert (await flavour.wait(group.info())).pending == 0

    flavour.run(scenario)


def test_the_backend_is_away_for_a_while(flavour: Flavour) -> None:
    """`backend_away(seconds)` lets all requests fail; they are repeated, and succeed when it is back."""

    async def scenario(backend: Any) -> None:
        faults = Faults(backend)
        begin = time.monotonic()
        faults.backend_away(0.3)
        await flavour.wait(backend.stream("s").add(1))
        assert time.monotonic() >= begin + 0.29
        assert recorder.of(ailf.instruments.ConnectionRestored) or recorder.of(ailf.instruments.MessageSent)

    recorder = Recorder()
    flavour.run(scenario, recorder)


def test_the_backend_is_away_until_it_is_back(flavour: Flavour) -> None:
    """A lock isn't granted by a backend that is away; `backend_back` ends that."""

    async def scenario(backend: Any) -> None:
        faults = Faults(backend)
        faults.backend_away()
        with pytest.raises(ailf.LockTimeoutError, match="the backend is away"):
            await flavour.wait(backend.lock("l").acquire(timeout=0.1))
        faults.backend_back()
        lease = await flavour.wait(backend.lock("l").acquire(timeout=5))
        await flavour.wait(lease.release())

    flavour.run(scenario)


def test_a_gap_now(flavour: Flavour) -> None:
    """`gap` interrupts subscriptions: each yields a `Gap`, and gets later messages."""

    async def scenario(backend: Any) -> None:
        faults = Faults(backend)
        pubsub = backend.pubsub()
        async with flavour.entered(pubsub.listen("c")) as subscription:
            faults.gap("it is a test")
            gap = await flavour.wait(subscription.get(timeout=5))
            assert isinstance(gap, ailf.Gap)
            assert gap.reason == "it is a test"
            await flavour.wait(pubsub.publish("c", 1))
            assert (await flavour.wait(subscription.get(timeout=5))).data == 1

    flavour.run(scenario)


def test_a_lost_delivery(flavour: Flavour) -> None:
    """A delivery whose lease is ended is lost at once, can't be acked, and is another consumer's next attempt."""

    async def scenario(backend: Any) -> None:
        faults = Faults(backend)
        stream = backend.stream("s")
        await flavour.wait(stream.add(1))
        group = stream.group("g")
        async with flavour.entered(group.consumer()) as one, flavour.entered(group.consumer()) as other:
            delivery = await flavour.wait(one.get(timeout=5))
            assert faults.lose_leases() == 1
            assert delivery.lost
            with pytest.raises(ailf.LeaseLostError):
                await flavour.wait(delivery.ack())
            again = await flavour.wait(other.get(timeout=5))
            assert (again.data, again.attempt) == (1, 2)
            await flavour.wait(again.ack())
        assert len(recorder.of(ailf.instruments.LeaseExpired)) == 1

    recorder = Recorder()
    flavour.run(scenario, recorder)


def test_a_lost_lock_and_a_lost_permit(flavour: Flavour) -> None:
    """A lock and a concurrency slot whose leases are ended are lost, and free for others."""

    async def scenario(backend: Any) -> None:
        faults = Faults(backend)
        lock = backend.lock("l")
        limiter = backend.rate_limiter("r", ailf.Concurrency(1))
        lease = await flavour.wait(lock.acquire(timeout=5))
        permit = (await flavour.wait(limiter.try_acquire("k"))).permit
        assert faults.lose_leases() == 2
        assert lease.lost
        next_lease = await flavour.wait(lock.acquire(timeout=0))
        assert next_lease.fence > lease.fence
        assert (await flavour.wait(limiter.try_acquire("k"))).allowed
        await flavour.wait(next_lease.release())
        del permit

    flavour.run(scenario)


@pytest.mark.parametrize("url", ["memory", "redis"])
def test_a_handler_is_cancelled_when_its_lease_is_lost(url: str, request: Any, namespace: str) -> None:
    """On asyncio the handler of a lost delivery is cancelled, and the message is handled again."""
    address = f"memory://{namespace}" if url == "memory" else request.getfixturevalue("any_server").url
    attempts = []

    async def main() -> None:
        async with ailf.connect_async(f"{address}?namespace={namespace}") as backend:
            faults = Faults(backend)
            group = backend.stream("s").group("g", backoff=ailf.Backoff(initial=0, jitter=0))
            await backend.stream("s").add(1)

            async def handle(delivery: Any) -> None:
                attempts.append(delivery.attempt)
                if delivery.attempt == 1:
                    faults.lose_leases()
                    await asyncio.sleep(10)

            await asyncio.wait_for(group.process(handle, until_idle=True, signals=False), 5)

    asyncio.run(main())
    assert attempts == [1, 2]


def test_unknown_operations_are_refused() -> None:
    """An operation that doesn't exist would never happen, so the error lists those that do."""
    faults = Faults()
    for name in ("ad", "lock.add", "nothing.add", "stream.together", ""):
        with pytest.raises(ailf.InvalidArgumentError, match="no operation"):
            faults.next(name)
    with pytest.raises(ailf.InvalidArgumentError, match="error must be"):
        faults.next("add", 7)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ailf.InvalidArgumentError, match="nth"):
        faults.next("add", nth=0)
    with pytest.raises(ailf.InvalidArgumentError, match="not int"):
        Faults(7)  # type: ignore[arg-type]  # what is tested
    assert faults.pending == []
    faults.next("add", nth=3)
    assert faults.pending == ["ConnectionLostError at add (1 more, after 2 others)"]
    faults.clear()
    assert faults.pending == []


def test_a_backend_in_use_is_refused() -> None:
    """Subscriptions and consumers have the driver already, so faults would not reach them."""
    with (
        ailf.connect("memory://in-use") as backend,
        backend.pubsub().listen("c"),
        pytest.raises(ailf.InvalidArgumentError, match="right after it was opened"),
    ):
        Faults(backend)


def test_a_partitioned_stream_meets_faults(flavour: Flavour) -> None:
    """The requests of partitions go through the script, too."""

    async def scenario(backend: Any) -> None:
        faults = Faults(backend)
        stream = backend.stream("s", partitions=4)
        await flavour.wait(stream.add_many(range(20)))
        faults.next("fetch", times=3)
        group = stream.group("g")
        handled = []
        processed = group.process(
            flavour.handler(lambda delivery: handled.append(delivery.data)), until_idle=True, signals=False
        )
        if isinstance(processed, Awaitable):
            await processed
        assert sorted(handled) == list(range(20))
        assert faults.pending == []

    flavour.run(scenario)
