"""Commands of another program on a stream: XDEL, XTRIM, DEL, FLUSHALL; and a restart of the server."""

import time

import pytest

import ailf
from tests.support.servers import NewServer, Server

SHORT = 0.1
"""Seconds of a lease that ends during the test."""


def test_a_pending_entry_is_deleted(server: Server, namespace: str) -> None:
    """S2: an entry that is deleted while it is pending delays no other, and doesn't stay pending.

    Before 7.0 XCLAIM returns nil for it and leaves it pending; since then XCLAIM removes it from the pending list.
    """
    key = f"{{{namespace}:stream:s}}"
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        stream = backend.stream("s")
        _, deleted, _ = stream.add_many(["a", "deleted", "c"])
        group = stream.group("g", lease=SHORT, takeover=1000, max_processing=0.001)
        with group.consumer(prefetch=3) as dead, group.consumer(prefetch=3) as other:
            assert dead.get(5) is not None
            admin.xdel(key, deleted)
            time.sleep(SHORT * 1.2)
            taken = [other.get(5) for _ in range(2)]
            assert [(each.data, each.attempt) for each in taken if each] == [("a", 2), ("c", 2)]
            for each in taken:
                assert each is not None
                each.ack()
            assert other.get(0) is None
            assert admin.xpending(key, "g")["pending"] == 0
            assert group.info().pending == 0


@pytest.mark.parametrize("command", ["XDEL", "XTRIM"])
def test_the_lag_without_removed_entries(server: Server, namespace: str, command: str) -> None:
    """S10: the lag doesn't count removed entries: the server's own is NULL after XDEL, and counts them after XTRIM."""
    key = f"{{{namespace}:stream:s}}"
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        stream = backend.stream("s")
        ids = stream.add_many(range(10))
        group = stream.group("g")
        with group.consumer() as consumer:
            for _ in range(3):
                delivery = consumer.get(5)
                assert delivery is not None
                delivery.ack()
        if command == "XDEL":
            admin.xdel(key, ids[5], ids[7])
        else:
            admin.xtrim(key, maxlen=5, approximate=False)
        assert group.info().lag == 5


@pytest.mark.parametrize("way", ["DEL", "FLUSHALL", "restart"])
def test_a_stream_that_vanished(server: Server, new_server: NewServer, way: str) -> None:
    """S9: after another program's DEL or FLUSHALL, or a restart without data, a consumer recreates its group."""
    private = new_server(version=server.version)
    with ailf.connect(private.url) as backend, private.client() as admin:
        stream = backend.stream("s")
        stream.add("before")
        with stream.group("g", lease=60).consumer() as consumer:
            delivery = consumer.get(5)
            assert delivery is not None
            delivery.ack()
            if way == "DEL":
                admin.delete("{ailf:stream:s}")
            elif way == "FLUSHALL":
                admin.flushall()
            else:
                private.kill()
                private.restart()
            stream.add("after")
            delivery = consumer.get(5)
            assert delivery is not None
            assert (delivery.data, delivery.attempt) == ("after", 1)
            delivery.ack()
