"""The recorder keeps what the events of a backend say, on memory and on Redis, in both flavours."""

import time
from typing import Any

import pytest

import ailf
from ailf.instruments import MessageDied, MessageSent, Waited
from ailf.testing import Recorder, run_until_idle, run_until_idle_async
from tests.support.flavours import Flavour, flavours


@pytest.fixture(params=["memory-blocking", "memory-asyncio", "redis-blocking", "redis-asyncio"])
def flavour(request: pytest.FixtureRequest, namespace: str) -> Flavour:
    """Both flavours on both backends."""
    return flavours(request, namespace)


def test_published_and_received(flavour: Flavour) -> None:
    """Each message counts for its own channel, also where one call publishes on several."""
    recorder = Recorder()

    async def scenario(backend: Any) -> None:
        pubsub = backend.pubsub()
        async with flavour.entered(pubsub.listen("a")) as subscription:
            await flavour.wait(pubsub.publish("a", {"n": 1}))
            await flavour.wait(pubsub.publish_many([("a", 2), ("b", 3)]))
            for _ in range(2):
                await flavour.wait(subscription.get(timeout=5))

    flavour.run(scenario, recorder)
    assert recorder.published("a") == [{"n": 1}, 2]
    assert recorder.published("b") == [3]
    assert recorder.published() == [{"n": 1}, 2, 3]
    assert recorder.received("a") == recorder.received() == [{"n": 1}, 2]
    assert recorder.added() == recorder.published("c") == []


def test_added_consumed_and_dead(flavour: Flavour) -> None:
    """Messages are recorded when they are added, delivered, acked and given up, by stream and group."""
    recorder = Recorder()

    async def scenario(backend: Any) -> None:
        stream = backend.stream("s")
        await flavour.wait(stream.add("good"))
        await flavour.wait(stream.add_many(["bad", "worse"]))
        for _ in range(2):
            await flavour.wait(stream.add_once("id", "once"))

        def handle(delivery: Any) -> bool:
            if delivery.data == "bad":
                raise ailf.Reject("no use")
            return bool(delivery.data != "worse")

        group = stream.group("g", max_deliveries=2, backoff=ailf.Backoff(initial=0, jitter=0))
        await flavour.wait(group.process(flavour.handler(handle), until_idle=True, signals=False))

    flavour.run(scenario, recorder)
    assert recorder.added("s") == ["good", "bad", "worse", "once"]
    assert sorted(recorder.consumed("s")) == sorted(recorder.consumed(group="g")) == ["good", "once"]
    assert sorted(recorder.delivered("s", "g")) == ["bad", "good", "once", "worse", "worse"]
    assert sorted(recorder.dead("s", "g")) == ["bad", "worse"]
    assert recorder.dead("other") == recorder.consumed("s", "other") == []
    assert sorted(each.reason for each in recorder.of(MessageDied)) == ["max_deliveries", "rejected"]
    recorder.clear()
    assert recorder.events == []


def test_what_failed_was_not_sent(flavour: Flavour) -> None:
    """A call that raises has added nothing for certain; its event is there all the same."""
    recorder = Recorder()

    async def scenario(backend: Any) -> None:
        with pytest.raises(ailf.EncodeError):
            await flavour.wait(backend.stream("s").add(object()))
        await flavour.wait((await flavour.wait(backend.lock("l").acquire())).release())

    flavour.run(scenario, recorder)
    assert recorder.added() == []
    assert [type(each.error) for each in recorder.of(MessageSent)] == [ailf.EncodeError]
    assert [each.name for each in recorder.of(Waited)] == ["l"]


def test_a_full_recorder_says_so() -> None:
    """A recorder that has left out events doesn't answer as if it had not."""
    recorder = Recorder(limit=2)
    with ailf.connect("memory://full", instruments=[recorder]) as backend:
        for number in range(3):
            backend.stream("s").add(number)
        with pytest.raises(ailf.InvalidArgumentError, match="full with 2 events and has left out 1"):
            recorder.added("s")
        recorder.clear()
        backend.stream("s").add(4)
    assert recorder.added("s") == [4]


# --- a crew until it is idle -------------------------------------------------------------------------------------


def test_a_crew_runs_until_it_is_idle(flavour: Flavour) -> None:
    """Handlers add messages for each other's groups; all are handled before it returns."""

    async def scenario(backend: Any) -> None:
        pages, texts = backend.stream("pages"), backend.stream("texts")
        await flavour.wait(pages.add_many(range(3)))
        seen = []

        def read(delivery: Any) -> Any:
            return flavour_add(texts, delivery.data)

        def write(delivery: Any) -> Any:
            seen.append(delivery.data)
            return flavour_add(pages, delivery.data - 1) if delivery.data > 0 else None

        def flavour_add(stream: Any, data: int) -> Any:
            return stream.add(data)

        crew = ((pages.group("readers"), read), (texts.group("writers"), write))
        run = run_until_idle_async(*crew) if flavour.is_async else run_until_idle(*crew)
        assert await flavour.wait(run) == 12
        assert sorted(seen) == [0, 0, 0, 1, 1, 2]

    flavour.run(scenario)


def test_a_crew_that_is_never_idle_ends(flavour: Flavour) -> None:
    """Handlers that answer each other for ever end with an error after the timeout."""

    async def scenario(backend: Any) -> None:
        stream = backend.stream("s")
        await flavour.wait(stream.add(0))
        crew = (stream.group("g"), lambda delivery: stream.add(delivery.data + 1))
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match="was not idle within"):
            await flavour.wait(
                run_until_idle_async(crew, timeout=0.3) if flavour.is_async else run_until_idle(crew, timeout=0.3)
            )
        assert time.monotonic() < begin + 3

    flavour.run(scenario)


def test_a_crew_is_pairs() -> None:
    """What isn't a pair of a group and a handler is refused before anything runs."""
    with ailf.connect("memory://pairs") as backend:
        group = backend.stream("s").group("g")
        with pytest.raises(ailf.InvalidArgumentError, match="pairs of Group and handler"):
            run_until_idle((print, group))  # type: ignore[arg-type]  # what is tested
        with pytest.raises(ailf.InvalidArgumentError, match="needs pairs"):
            run_until_idle()
