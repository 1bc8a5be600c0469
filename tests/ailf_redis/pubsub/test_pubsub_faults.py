"""Faults of the network and the server: a missing message lies in a reported gap or drop, and none comes twice."""

import asyncio
import threading
import time
from typing import Any

import pytest

import ailf
from tests.ailf_redis.pubsub.sequences import AsyncReceiver, Receiver, Sender, faults
from tests.support.proxy import Proxy
from tests.support.servers import NewServer, Server

RECEIVERS = pytest.mark.parametrize("receiver", [Receiver, AsyncReceiver], ids=["blocking", "asyncio"])


@pytest.mark.parametrize(
    ("items", "dropped", "count"),
    [
        ([1, 2, 3], 0, 0),
        ([5, 6, "gap: x", 9, 10], 0, 0),
        ([1, "gap: x", "gap: y", 2], 0, 0),
        ([1, 2, 2], 0, 1),
        ([1, 3, 2], 0, 2),
        ([1, 2, 5], 0, 1),
        ([1, 2, 5], 2, 0),
        ([1, "gap: x", 4, 6], 0, 1),
        (["gap: x", 3, 2], 0, 1),
    ],
)
def test_the_check_finds_every_fault(items: list[int | str], dropped: int, count: int) -> None:
    """Numbers that are doubled, out of order or missing unreported are found, and nothing else."""
    assert len(faults(items, dropped)) == count


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let listeners ping a quiet server soon."""
    monkeypatch.setattr("ailf_redis.pubsub.QUIET", 0.5)
    monkeypatch.setattr("ailf_redis.pubsub.PATIENCE", 0.5)


@RECEIVERS
def test_every_missing_number_is_accounted_for(new_server: NewServer, quick: None, receiver: type[Receiver]) -> None:
    """P1, P5: with killed connections and a server that freezes, dies and restarts, each missing number is reported."""
    server = new_server()
    with receiver(f"{server.url}?timeout=1") as received, Sender(server.port) as sender:
        received.wait_for(0)
        for gaps in range(1, 4):
            sender.more()
            with server.client() as admin:
                admin.client_kill_filter(_type="pubsub")
            received.wait_for(gaps)
        sender.more()
        server.pause()
        time.sleep(2.5)  # longer than a listener trusts a silent server
        server.resume()
        received.wait_for(4)
        server.kill()
        time.sleep(0.3)
        server.restart()
        received.wait_for(5)
        sender.more()
    assert faults(received.items) == []
    assert sum(isinstance(item, str) for item in received.items) >= 5


@RECEIVERS
def test_connections_that_are_cut_or_stall(new_server: NewServer, quick: None, receiver: type[Receiver]) -> None:
    """P5: a connection that is cut is a gap, and so is one on which nothing arrives any more."""
    server = new_server()
    with (
        Proxy(server.port) as proxy,
        receiver(f"redis://127.0.0.1:{proxy.port}/0?timeout=1") as received,
        Sender(server.port),
    ):
        received.wait_for(0)
        proxy.cut()
        received.wait_for(1)
        proxy.stall()
        time.sleep(2.0)
        proxy.resume()
        received.wait_for(2)
    assert faults(received.items) == []


@RECEIVERS
def test_a_message_beyond_the_output_buffer(new_server: NewServer, receiver: type[Receiver]) -> None:
    """P5, trap 18: a message of 40 MB makes the server drop the subscriber, which is a gap; later messages arrive."""
    server = new_server()
    with receiver(server.url) as received, Sender(server.port, pause=0.005):
        received.wait_for(0)
        with server.client() as raw:
            raw.publish("ailf:channel:numbers", b"x" * 40_000_000)
        received.wait_for(1)
    assert faults(received.items) == []


@RECEIVERS
@pytest.mark.parametrize("overflow", [ailf.Overflow.DROP_OLDEST, ailf.Overflow.DROP_NEWEST])
def test_drops_of_a_full_buffer_are_counted(any_server: Server, receiver: type[Receiver], overflow: Any) -> None:
    """P4: for a slow subscriber the number of missing messages is the number that it reports as dropped."""
    with receiver(any_server.url, buffer=50, overflow=overflow) as received:
        received.slow = 0.01
        with Sender(any_server.port, pause=0.0005) as sender:
            received.wait_for(0)
            time.sleep(1.0)
        received.slow = 0.0
        time.sleep(0.5)
    assert received.dropped > 0
    assert faults(received.items, received.dropped) == []
    assert len(received.items) + received.dropped <= sender.sent


MANY = 10_000


def clients(server: Server) -> int:
    """Return how many clients a server has, without the one that asks."""
    with server.client() as admin:
        return len(admin.client_list()) - 1


def test_ten_thousand_channels(new_server: NewServer) -> None:
    """P2, B4: ten thousand channels and a thousand subscriptions of one backend use no more connections than one."""
    server = new_server()
    with ailf.connect(server.url) as backend:
        pubsub = backend.pubsub()
        count = MANY // 1000
        opened = [pubsub.listen(*(f"c{first + step}" for step in range(count))) for first in range(0, MANY, count)]
        for subscription in opened:
            subscription.__enter__()
        assert clients(server) <= 2
        pubsub.publish_many([(f"c{number}", number) for number in range(MANY)])
        received = [item.data for one in opened for item in (one.get(10) for _ in range(count)) if item is not None]
        assert received == list(range(MANY))
        begun = time.monotonic()
        for subscription in opened:
            subscription.close()
        assert time.monotonic() - begun < 10
        assert clients(server) <= 2


def test_ten_thousand_channels_on_asyncio(new_server: NewServer) -> None:
    """P2, B4: the same on asyncio."""
    server = new_server()

    async def main() -> None:
        async with ailf.connect_async(server.url) as backend:
            pubsub = backend.pubsub()
            count = MANY // 1000
            opened = [pubsub.listen(*(f"c{first + step}" for step in range(count))) for first in range(0, MANY, count)]
            await asyncio.gather(*(subscription.__aenter__() for subscription in opened))
            assert clients(server) <= 2
            await pubsub.publish_many([(f"c{number}", number) for number in range(MANY)])
            received = [
                item.data for one in opened for item in [await one.get(10) for _ in range(count)] if item is not None
            ]
            assert received == list(range(MANY))
            await asyncio.gather(*(subscription.aclose() for subscription in opened))

    threads = set(threading.enumerate())
    asyncio.run(main())
    assert set(threading.enumerate()) == threads
