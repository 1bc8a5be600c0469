"""Leases on a server's stream: the cost of renewal, refused receipts, and how ended leases are found."""

import asyncio
import time
from typing import Any

import ailf
from ailf.driver import Action, Outcome
from contract_tests.helpers.unmanaged_consumer import UnmanagedConsumer
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
