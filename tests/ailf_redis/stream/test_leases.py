"""Leases on a server's stream: the cost of renewal, refused receipts, and how ended leases are found."""

import asyncio
import time
from typing import Any

import pytest

import ailf
from ailf.driver import Action, Outcome
from ailf.runtime import run
from contract_tests.helpers.unmanaged_consumer import UnmanagedConsumer
from tests.support.proxy import Proxy
from tests.support.servers import NewServer, Server

SHORT = 0.1
"""Seconds of a lease that ends during the test."""

UNATTENDED: dict[str, Any] = {"lease": SHORT, "takeover": 1000, "max_processing": 0.001}
"""Options of a group whose consumers renew nothing."""


def test_renewing_sends_no_bodies(new_server: NewServer) -> None:
    """S4: extending the lease of a large message never returns its body."""
    server = new_server()
    with ailf.connect(server.url) as backend, server.client() as admin:
        stream = backend.stream("s")
        stream.add("x" * 500_000)
        with stream.group("g", lease=60).consumer() as consumer:
            delivery = consumer.get(5)
            assert delivery is not None
            before = admin.info("stats")["total_net_output_bytes"]
            for _ in range(5):
                delivery.extend(60)
            assert admin.info("stats")["total_net_output_bytes"] - before < 100_000
            delivery.ack()


def test_renewing_is_no_delivery(server: Server, namespace: str) -> None:
    """S5: extending a lease counts no attempt; a plain XCLAIM would."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend:
        stream = backend.stream("s")
        stream.add(1)
        with stream.group("g", lease=60).consumer() as consumer:
            for attempt in (1, 2):
                delivery = consumer.get(5)
                assert delivery is not None
                assert delivery.attempt == attempt
                for _ in range(3):
                    delivery.extend(60)
                delivery.nack(0)


def test_an_old_receipt_of_the_same_consumer(any_server: Server, namespace: str) -> None:
    """S4: after a second delivery to the same consumer the server refuses an ack with the first receipt."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend:
        stream = backend.stream("s")
        stream.add(1)
        stream.group("g").open()
        consumer = UnmanagedConsumer(backend, "s", "g", "c", lease=SHORT)
        first = consumer.claim_here().claims
        time.sleep(SHORT * 1.2)
        second = consumer.claim_here().claims
        assert [each.attempt for each in (*first, *second)] == [1, 2]
        assert asyncio.run(consumer.settle(first, Action.ACK)) == [Outcome.LOST]
        assert asyncio.run(consumer.settle(second, Action.ACK)) == [Outcome.DONE]
        asyncio.run(consumer.aclose())


def test_a_delay_longer_than_the_lease(any_server: Server, namespace: str) -> None:
    """S7: a nack's delay may be longer than the group's lease, although XCLAIM takes no times in the future."""
    delay = 5 * SHORT
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend:
        stream = backend.stream("s")
        stream.add(1)
        with stream.group("g", lease=SHORT).consumer() as consumer:
            delivery = consumer.get(5)
            assert delivery is not None
            before = time.monotonic()
            delivery.nack(delay)
            again = consumer.get(5)
            assert time.monotonic() - before >= delay - 0.002  # the server's clock counts milliseconds
            assert again is not None
            assert again.attempt == 2


def test_ended_leases_behind_others(server: Server, namespace: str) -> None:
    """S2: 15 messages with valid leases don't hide 3 with ended ones behind them; XAUTOCLAIM scans only ten."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend:
        stream = backend.stream("s")
        stream.add_many(range(18))
        group, unattended = stream.group("g", lease=60), stream.group("g", **UNATTENDED)
        with group.consumer(prefetch=15) as alive, unattended.consumer(prefetch=3) as dead, group.consumer() as other:
            for consumer in (alive, dead):
                assert consumer.get(5) is not None
            time.sleep(SHORT * 1.2)
            taken = [other.get(5) for _ in range(3)]
            assert sorted((each.data, each.attempt) for each in taken if each) == [(15, 2), (16, 2), (17, 2)]


FILL = """
for number = 1, tonumber(ARGV[1]) do redis.call('XADD', KEYS[1], '*', 'ailf.body', number) end
redis.call('XREADGROUP', 'GROUP', 'g', 'gone', 'COUNT', ARGV[1], 'STREAMS', KEYS[1], '>')
"""


def test_ended_leases_are_found_in_steps(new_server: NewServer) -> None:
    """S2: 30 000 entries that another program left pending are taken over in steps; no command scans all of them."""
    server = new_server()
    with ailf.connect(server.url) as backend, server.client() as admin:
        group = backend.stream("s").group("g", **UNATTENDED)
        group.open()
        admin.eval(FILL, 1, "{ailf:stream:s}", 30_000)  # type: ignore[arg-type]
        time.sleep(SHORT * 1.2)
        admin.config_resetstat()
        with group.consumer(prefetch=10) as consumer:
            assert len({delivery.data for _ in range(100) if (delivery := consumer.get(5))}) == 100
            stats = admin.info("commandstats")
        scripts = stats["cmdstat_evalsha"]["calls"]
        assert sum(each["calls"] for each in stats.values()) / scripts < 200, stats
        assert max(each["usec_per_call"] for each in stats.values()) < 10_000, stats


def test_a_lease_that_a_user_shortens_is_renewed(any_server: Server, namespace: str) -> None:
    """S4: a message that `extend` gave less time than its lease is kept, although it ends before the next check."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend:
        stream = backend.stream("s")
        stream.add(1)
        with stream.group("g", lease=60, takeover=60).consumer() as consumer:
            delivery = consumer.get(5)
            assert delivery is not None
            delivery.extend(0.3)
            time.sleep(0.6)
            assert not delivery.lost
            delivery.ack()


def test_leases_of_every_kind_are_extended_together(server: Server, namespace: str) -> None:
    """S4: one request extends leases of redriven messages, of two consumers, in any order, and refuses ended ones."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend:
        stream = backend.stream("s")
        stream.add_many(range(8))
        group = stream.group("g", lease=60)
        with group.consumer() as one, group.consumer() as other:
            for delivery in one.get_many(3, 5):
                delivery.reject("no")
            assert group.dead_letters.redrive_all() == 3
            held = [*one.get_many(5, 5), *other.get_many(3, 5)]
            assert sorted(each.data for each in held) == list(range(8))
            receipts = [each._state.claim.receipt for each in held]
            assert len([each for each in receipts if each.id.startswith("~")]) == 3
            held[2].ack()
            driver = backend.engine.driver.stream()
            for order in (receipts, receipts[::-1], receipts[1::2] + receipts[::2]):
                kept = run(driver.extend("s", "g", order, lease=60))
                assert [each for each, is_kept in zip(order, kept, strict=True) if not is_kept] == [receipts[2]]


HELD = 25_000
"""Messages of one consumer: the renewal of all of their leases takes seconds."""


def held_all(consumer: ailf.Consumer[Any], count: int) -> list[ailf.Delivery[Any]]:
    """Take this many messages, and settle none."""
    taken = [consumer.get(5) for _ in range(count)]
    assert None not in taken
    return [each for each in taken if each is not None]


def test_a_consumer_that_holds_many_messages_keeps_them(
    new_server: NewServer, caplog: pytest.LogCaptureFixture
) -> None:
    """S4: none of 25 000 leases is lost while they are renewed four times, in pages, and closing loses none."""
    server = new_server()
    with ailf.connect(server.url) as backend, server.client() as admin:
        stream = backend.stream("s")
        for _ in range(HELD // 1000):
            stream.add_many(range(1000))
        group = stream.group("g", lease=8)
        with group.consumer(prefetch=1000) as consumer:
            held = held_all(consumer, HELD)
            admin.config_resetstat()
            time.sleep(13)
            scripts = admin.info("commandstats")["cmdstat_evalsha"]["calls"]
            assert not any(each.lost for each in held)
            assert HELD / 500 * 3 <= scripts < HELD / 500 * 8
        assert caplog.messages == []
        with group.consumer(prefetch=1000) as consumer:
            first = consumer.get(5)
            assert first is not None
            assert (first.data, first.attempt) == (0, 1)


def test_a_slow_server_loses_no_leases(new_server: NewServer, caplog: pytest.LogCaptureFixture) -> None:
    """S4, S12: over a network that delays each reply, all pages are renewed in time, and heartbeats are given."""
    server = new_server()
    with Proxy(server.port) as proxy, ailf.connect(proxy.url) as backend, ailf.connect(server.url) as near:
        near.stream("s").add_many(range(10_000))
        with backend.stream("s").group("g", lease=8, takeover=6).consumer(prefetch=1000) as consumer:
            held = held_all(consumer, 10_000)
            proxy.forge = slowly
            time.sleep(12)
            assert not any(each.lost for each in held)
            proxy.forge = bytes
        assert caplog.messages == []


def slowly(reply: bytes) -> bytes:
    """Delay a reply."""
    time.sleep(0.08)
    return reply


def test_a_blocked_event_loop_loses_no_leases(any_server: Server, namespace: str) -> None:
    """S4, S12: 10 000 leases are renewed while a handler blocks the event loop for longer than they last."""

    async def main() -> None:
        async with ailf.connect_async(f"{any_server.url}?namespace={namespace}") as backend:
            stream = backend.stream("s")
            await stream.add_many(range(10_000))
            async with stream.group("g", lease=4, takeover=4).consumer(prefetch=1000) as consumer:
                held = [await consumer.get(5) for _ in range(10_000)]
                time.sleep(9)  # noqa: ASYNC251 - it blocks the event loop
                assert not any(each is None or each.lost for each in held)

    asyncio.run(main())
