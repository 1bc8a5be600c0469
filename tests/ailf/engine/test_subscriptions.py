"""Many subscriptions over one connection: drops are counted, each message comes once, interruptions are reported."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from ailf import AsyncMessage, BackendTimeoutError, ClosedError, Gap, Message, Overflow, PubSub
from ailf.driver import Filter, Frame
from ailf.engine.inbox import PendingReply
from ailf.engine.subscriptions import MessageBuffer
from ailf.runtime import ThreadRuntime, run
from ailf_memory import AsyncMemoryBackend, MemoryBackend, MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    """The store, which stands for the server."""
    return MemoryStore()


@pytest.fixture
def pubsub(store: MemoryStore) -> Iterator[PubSub[int]]:
    """Pub/sub over the store."""
    with MemoryBackend(store=store) as backend:
        yield backend.pubsub(type=int)


def soon(condition: Callable[[], object], within: float = 5.0) -> bool:
    """Wait for a condition; return whether it came true."""
    until = time.monotonic() + within
    while not condition() and time.monotonic() < until:
        time.sleep(0.002)
    return bool(condition())


def data(item: Message[int] | Gap | None) -> int:
    """Return the payload of an item that must be a message."""
    assert isinstance(item, Message)
    return item.data


def test_a_connection_that_is_late(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """B10: a subscriber waits for the shared connection until its deadline; the next one uses it when it is open."""

    async def main() -> None:
        allowed = asyncio.Event()
        async with asyncio.timeout(10), AsyncMemoryBackend(store=store) as backend:
            subscriptions, runtime = backend.engine.subscriptions, backend.engine.runtime
            kind = type(backend.engine.driver.pubsub())
            listen = kind.listen

            async def listen_late(driver: Any) -> Any:
                await allowed.wait()
                return await listen(driver)

            monkeypatch.setattr(kind, "listen", listen_late)
            buffer = MessageBuffer(runtime.event(), size=1, overflow=Overflow.DROP_OLDEST)
            with pytest.raises(BackendTimeoutError, match=r"no connection within 0\.0[45]"):
                await subscriptions.attach(buffer, [Filter("news")], runtime.now() + 0.05)
            allowed.set()
            async with backend.pubsub().listen("news") as events:
                await backend.pubsub().publish("news", 1)
                assert await events.get(5) == AsyncMessage("news", 1)

    asyncio.run(main())


@pytest.mark.parametrize("left", [0.05, -1.5])
def test_a_connection_that_is_late_on_threads(store: MemoryStore, monkeypatch: pytest.MonkeyPatch, left: float) -> None:
    """B10: the same while another thread opens the connection, also for a deadline that has passed already."""
    allowed = threading.Event()
    with MemoryBackend(store=store) as backend:
        subscriptions, runtime = backend.engine.subscriptions, backend.engine.runtime
        kind = type(backend.engine.driver.pubsub())
        listen = kind.listen

        async def listen_late(driver: Any) -> Any:
            allowed.wait(10)
            return await listen(driver)

        monkeypatch.setattr(kind, "listen", listen_late)
        first = backend.pubsub(type=int).listen("news")
        starting = threading.Thread(target=first.__enter__)
        starting.start()
        time.sleep(0.05)
        buffer, begin = MessageBuffer(runtime.event(), size=1, overflow=Overflow.DROP_OLDEST), time.monotonic()
        with pytest.raises(BackendTimeoutError, match="no connection within"):
            run(subscriptions.attach(buffer, [Filter("news")], runtime.now() + left))
        assert time.monotonic() - begin < 2
        allowed.set()
        starting.join(5)
        backend.pubsub().publish("news", 1)
        assert data(first.get(5)) == 1


# --- overflow ----------------------------------------------------------------------------------------------------


def test_the_oldest_are_dropped_and_counted(pubsub: PubSub[int]) -> None:
    """A slow subscriber keeps the newest messages and learns how many bytes it missed."""
    with pubsub.listen("news", buffer=3) as slow:
        pubsub.publish_many([("news", number) for number in range(10)])
        assert soon(lambda: slow.dropped == 7)
        assert slow.dropped_bytes == 7
        assert [data(slow.get(1)) for _ in range(3)] == [7, 8, 9]


def test_the_newest_are_dropped_and_counted(pubsub: PubSub[int]) -> None:
    """With DROP_NEWEST it keeps the oldest."""
    with pubsub.listen("news", buffer=3, overflow=Overflow.DROP_NEWEST) as slow:
        pubsub.publish_many([("news", number) for number in range(10)])
        assert soon(lambda: slow.dropped == 7)
        assert [data(slow.get(1)) for _ in range(3)] == [0, 1, 2]
        pubsub.publish("news", 10)
        assert data(slow.get(1)) == 10


def test_a_full_subscription_is_closed_with_close(pubsub: PubSub[int]) -> None:
    """With CLOSE it yields the messages of its buffer, and then an error instead of a silent gap."""
    with pubsub.listen("news", buffer=3, overflow=Overflow.CLOSE) as slow, pubsub.listen("news") as other:
        pubsub.publish_many([("news", number) for number in range(10)])
        assert [data(other.get(1)) for _ in range(10)] == list(range(10))
        assert [data(next(slow)) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ClosedError, match="'news' was closed: its buffer of 3 messages was full"):
            next(slow)
        assert slow.dropped == 0


def test_a_slow_subscriber_does_not_delay_others(pubsub: PubSub[int]) -> None:
    """P4: a subscriber that keeps up misses nothing, and the publisher waits for no subscriber."""
    with pubsub.listen("news", buffer=1) as slow, pubsub.listen("news", buffer=500) as quick:
        for number in range(300):
            pubsub.publish("news", number)
        assert [data(quick.get(1)) for _ in range(300)] == list(range(300))
        assert soon(lambda: slow.dropped == 299)


def test_dropping_is_logged_once_an_episode(pubsub: PubSub[int], caplog: pytest.LogCaptureFixture) -> None:
    """A flood of messages doesn't cause a flood of log lines."""
    with pubsub.listen("news", buffer=2) as slow:
        for episode in (1, 2):
            pubsub.publish_many([("news", number) for number in range(20)])
            assert soon(lambda episode=episode: slow.dropped == 18 * episode)
            assert [data(slow.get(1)) for _ in range(2)] == [18, 19]
    assert sum("buffer of 2 messages full" in each.getMessage() for each in caplog.records) == 2


G1, G2, G3 = Gap("one", 1.0), Gap("two", 2.0), Gap("three", 4.0)


def frame(number: int) -> Frame:
    """Return a frame of one byte."""
    return Frame(Filter("news"), "news", b"%d" % number)


def full(overflow: Overflow, items: Sequence[int | Gap], size: int = 2) -> tuple[list[int | Gap], int]:
    """Put frames and gaps into a buffer without a reader; return its items and the number of dropped messages."""
    buffer = MessageBuffer(ThreadRuntime().event(), size=size, overflow=overflow)
    for each in items:
        buffer.put(each if isinstance(each, Gap) else frame(each))
    taken = iter(buffer.take, None)
    return [each if isinstance(each, Gap) else int(each.body) for each in taken], buffer.dropped


@pytest.mark.parametrize(
    ("items", "held", "dropped"),
    [
        ([1, 2, G1, 3, 4], [G1, 3, 4], 2),
        ([G1, 1, 2, 3, 4], [G1, 3, 4], 2),
        ([G1, 1, G2, 2, 3], [Gap("two", 3.0), 2, 3], 1),
        ([1, G1, 2, G2, 3, 4, 5], [Gap("two", 3.0), 4, 5], 3),
        ([1, 2, G1], [1, 2, G1], 0),
        ([1, 2, G1, G2, G3], [1, 2, Gap("three", 7.0)], 0),
        ([G1, G2, 1, G3, 2, 3, 4], [Gap("three", 7.0), 3, 4], 2),
    ],
)
def test_a_gap_outlives_the_messages_that_are_dropped_around_it(
    items: list[int | Gap], held: list[int | Gap], dropped: int
) -> None:
    """P2, P5: with DROP_OLDEST every gap stays before the messages that follow it; adjacent ones become one."""
    assert full(Overflow.DROP_OLDEST, items) == (held, dropped)


@pytest.mark.parametrize(
    ("items", "held", "dropped"),
    [
        ([1, G1, 2, 3, G2, 4], [1, G1, 2, G2], 2),
        ([1, 2, G1, 3, G2], [1, 2, Gap("two", 3.0)], 1),
        ([G1, 1, 2, 3], [G1, 1, 2], 1),
    ],
)
def test_a_gap_does_not_count_as_a_message(items: list[int | Gap], held: list[int | Gap], dropped: int) -> None:
    """With DROP_NEWEST a full buffer accepts a gap, and no message is dropped for it."""
    assert full(Overflow.DROP_NEWEST, items) == (held, dropped)


def test_a_gap_does_not_close_a_subscription() -> None:
    """With CLOSE only messages fill the buffer, and the gap is read before the error."""
    buffer = MessageBuffer(ThreadRuntime().event(), size=2, overflow=Overflow.CLOSE)
    for each in (G1, frame(1), G2, frame(2)):
        buffer.put(each)
    assert not buffer.ended
    buffer.put(frame(3))
    assert [run(buffer.get(0)) for _ in range(4)] == [G1, frame(1), G2, frame(2)]
    with pytest.raises(ClosedError, match="full"):
        run(buffer.get(0))


def test_the_buffer_stays_bounded() -> None:
    """Whatever is put, there are at most `size` messages, and one gap before each."""
    for overflow in (Overflow.DROP_OLDEST, Overflow.DROP_NEWEST):
        held, dropped = full(overflow, [each for number in range(1000) for each in (G1, number, G2)], size=10)
        assert len(held) <= 21
        assert dropped == 990
        assert sum(each.seconds for each in held if isinstance(each, Gap)) == 3000.0


def test_gaps_and_messages_stay_in_order_under_load() -> None:
    """A reader during a flood gets the messages in order, each gap in its place, and every drop is counted."""
    buffer = MessageBuffer(ThreadRuntime().event(), size=3, overflow=Overflow.DROP_OLDEST)
    seen: list[Frame | Gap] = []

    def read() -> None:
        while (item := run(buffer.get(5))) is not None:
            seen.append(item)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(20_000):
        buffer.put(frame(number))
        if number % 5 == 4:
            buffer.put(Gap(str(number), 1.0))
    buffer.end()
    reader.join(10)
    numbers = [int(each.body) for each in seen if isinstance(each, Frame)]
    assert numbers == sorted(numbers)
    assert len(numbers) + buffer.dropped == 20_000
    assert sum(each.seconds for each in seen if isinstance(each, Gap)) == 4000.0
    positions = [int(each.reason) + 0.5 if isinstance(each, Gap) else int(each.body) for each in seen]
    assert positions == sorted(positions)


def test_every_item_wakes_its_reader() -> None:
    """However `put` and `get` interleave, the reader is woken for the last item, too."""
    buffer = MessageBuffer(ThreadRuntime().event(), size=5000, overflow=Overflow.CLOSE)
    seen: list[Frame | Gap | None] = []
    reader = threading.Thread(target=lambda: seen.extend(run(buffer.get(5)) for _ in range(2000)))
    reader.start()
    frames = [Frame(Filter("news"), "news", b"%d" % number) for number in range(2000)]
    for number, frame in enumerate(frames):
        buffer.put(frame)
        if number % 7 == 0:  # let the reader run dry now and then
            assert soon(lambda number=number: len(seen) > number)
    reader.join(10)
    assert seen == frames


# --- one copy (P3) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "patterns"),
    [
        (["news.art"], ["news.*"]),
        (["news.art"], ["news.*", "*.art", "n*"]),
        ([], ["news.*", "*.art"]),
        (["news.art", "news.art"], None),
        ([], ["news.*", "news.*"]),
    ],
)
def test_a_message_that_matches_several_times_comes_once(
    pubsub: PubSub[int], channels: list[str], patterns: list[str] | None
) -> None:
    """P3: a subscription gets one copy of a message, however many of its channels and patterns match."""
    with pubsub.listen(*channels, pattern=patterns) as subscription:
        pubsub.publish_many([("news.art", 1), ("news.art", 2)])
        assert [data(subscription.get(1)) for _ in range(2)] == [1, 2]
        assert subscription.get(0.05) is None


@pytest.mark.parametrize("patterns", [["x*"], ["x*", "y*"], ["y*", "x*"]])
def test_a_message_that_only_the_backend_matches(pubsub: PubSub[int], store: MemoryStore, patterns: list[str]) -> None:
    """A message arrives although our own matching differs: the match of the backend counts."""
    heard: list[Message[int]] = []
    with pubsub.listen(pattern=patterns) as subscription, pubsub.listen("other") as other:
        pubsub.subscribe("x*", heard.append, pattern=True)
        pubsub.run_in_thread()
        (listener,) = store.listeners
        listener._queue.append(Frame(Filter("x*", is_pattern=True), "bear", b"1"))
        pubsub.publish("other", 2)
        assert data(other.get(1)) == 2
        assert subscription.get(1) == Message("bear", 1)
        assert soon(lambda: heard == [Message("bear", 1)])


def test_each_subscription_gets_a_copy_of_its_own(pubsub: PubSub[int]) -> None:
    """Subscriptions that share a connection get a copy each."""
    with pubsub.listen("a") as one, pubsub.listen(pattern="*") as two, pubsub.listen("a", "b") as three:
        pubsub.publish_many([("a", 1), ("b", 2)])
        assert data(one.get(1)) == 1
        assert [data(two.get(1)) for _ in range(2)] == [1, 2]
        assert [data(three.get(1)) for _ in range(2)] == [1, 2]
        assert one.get(0.02) is None


def test_unsubscribing_does_not_affect_others(pubsub: PubSub[int]) -> None:
    """A channel stays subscribed until its last subscription ends."""
    with pubsub.listen("news") as stays:
        with pubsub.listen("news"):
            pass
        pubsub.publish("news", 1)
        assert data(stays.get(1)) == 1


# --- gaps (P5) ---------------------------------------------------------------------------------------------------


def test_an_interruption_is_one_gap_in_every_subscription(pubsub: PubSub[int], store: MemoryStore) -> None:
    """After an interruption each subscription yields one gap, in its place among the messages, and continues."""
    with pubsub.listen("a") as one, pubsub.listen(pattern="*") as two:
        pubsub.publish("a", 1)
        assert [data(each.get(1)) for each in (one, two)] == [1, 1]
        store.break_subscriptions("the cable was pulled")
        gaps = [each.get(5) for each in (one, two)]
        assert all(isinstance(each, Gap) and each.reason == "the cable was pulled" for each in gaps)
        pubsub.publish("a", 2)
        assert [data(each.get(1)) for each in (one, two)] == [2, 2]
        assert one.get(0.02) is None


def test_a_gap_comes_after_what_was_received_before(pubsub: PubSub[int], store: MemoryStore) -> None:
    """Messages that arrived before an interruption are kept, and come before the gap."""
    with pubsub.listen("a") as subscription, pubsub.listen("a") as witness:
        pubsub.publish("a", 1)
        assert data(witness.get(1)) == 1
        store.break_subscriptions()
        assert isinstance(witness.get(5), Gap)
        pubsub.publish("a", 2)
        items = [subscription.get(1) for _ in range(3)]
        assert [type(each) for each in items] == [Message, Gap, Message]


def test_every_interruption_is_a_gap(pubsub: PubSub[int], store: MemoryStore) -> None:
    """A second interruption is a second gap."""
    with pubsub.listen("a") as subscription:
        for _ in range(2):
            store.break_subscriptions()
            assert isinstance(subscription.get(5), Gap)


def test_a_subscription_made_after_an_interruption_has_no_gap(pubsub: PubSub[int], store: MemoryStore) -> None:
    """A new subscription has missed nothing."""
    with pubsub.listen("a") as old:
        store.break_subscriptions()
        assert isinstance(old.get(5), Gap)
        with pubsub.listen("a") as new:
            pubsub.publish("a", 1)
            assert data(new.get(1)) == 1


# --- closing -----------------------------------------------------------------------------------------------------


def test_closing_the_backend_ends_subscriptions(store: MemoryStore) -> None:
    """B3: a subscription raises when its backend is closed, and the connection is given back."""
    backend = MemoryBackend(store=store)
    with backend.pubsub(type=int).listen("a") as subscription:
        assert len(store.listeners) == 1
        backend.close()
        with pytest.raises(ClosedError):
            next(subscription)
    assert store.listeners == []


# --- timeouts ----------------------------------------------------------------------------------------------------


def ends(wait: Callable[[], object], disturb: Callable[[], object]) -> object:
    """Return the result of a wait that is disturbed again and again, which must not restart its timeout."""
    results: list[object] = []
    waiting = threading.Thread(target=lambda: results.append(wait()), daemon=True)
    waiting.start()
    assert soon(lambda: (disturb(), time.sleep(0.02), not waiting.is_alive())[-1], within=10), "it never ends"
    return results[0]


def test_get_ends_among_undecodable_messages(store: MemoryStore, pubsub: PubSub[int]) -> None:
    """`get` returns after `timeout` seconds although messages come that can't be decoded."""
    with MemoryBackend(store=store) as other, pubsub.listen("numbers") as subscription:
        others = other.pubsub(type=bytes)
        assert ends(lambda: subscription.get(timeout=0.3), lambda: others.publish("numbers", b"no number")) is None
        assert pubsub.errors > 0


def test_get_returns_a_buffered_message_behind_bad_ones(store: MemoryStore, pubsub: PubSub[int]) -> None:
    """`get` finds it even with timeout 0."""
    with MemoryBackend(store=store) as other, pubsub.listen("numbers") as subscription:
        others = other.pubsub(type=bytes)
        others.publish_many([("numbers", b"no number"), ("numbers", b"nor this"), ("numbers", b"5")])
        assert soon(lambda: len(subscription._entered) == 3)
        assert data(subscription.get(timeout=0)) == 5
        assert subscription.get(timeout=0) is None


def test_a_buffer_ends_its_wait_although_others_take_the_items() -> None:
    """`get` times out although another reader of the same buffer takes every item."""
    ready = ThreadRuntime().event()
    buffer = MessageBuffer(ready, size=1, overflow=Overflow.DROP_OLDEST)
    assert ends(lambda: run(buffer.get(0.3)), ready.set) is None


def test_a_pending_reply_ends_its_wait_in_spite_of_interruptions() -> None:
    """An interruption of the subscription doesn't restart the timeout of a request."""
    pending = PendingReply(ThreadRuntime().event(), time.monotonic)
    assert ends(lambda: run(pending.next(0.3)), lambda: pending.interrupt("a test")) is None
