"""Commands of another program on a stream: XDEL, XTRIM, DEL, FLUSHALL; and a restart of the server."""

import contextlib
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


def test_a_group_that_is_set_back(server: Server, namespace: str) -> None:
    """S2, S7: after another program's XGROUP SETID entries that are parked are read again, and stay parked once."""
    key = f"{{{namespace}:stream:s}}"
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        stream = backend.stream("s")
        stream.add("acked")
        stream.add("delayed", delay=0.3)
        for number in range(3):
            stream.add(number, key="one")
        group = stream.group("g", lease=60)
        with group.consumer(prefetch=1) as consumer:
            taken = [consumer.get(5) for _ in range(2)]
            assert consumer.get(0) is None
            admin.xgroup_setid(key, "g", "0")
            seen = []
            for delivery in taken:
                assert delivery is not None
                delivery.ack()
                seen.append(delivery.data)
            while (delivery := consumer.get(0.6)) is not None:
                seen.append(delivery.data)
                with contextlib.suppress(ailf.LeaseLostError):  # it was read again while it was leased
                    delivery.ack()
        assert seen.count("delayed") == 1
        assert set(seen) == {"acked", "delayed", 0, 1, 2}
        ordered = [each for each in seen if each in {0, 1, 2}]
        assert ordered[0] == 0
        assert ordered[-3:] == [0, 1, 2]
        info = group.info()
        assert (info.pending, info.delayed) == (0, 0)
        assert not admin.exists(f"{key}:parked:g")


def test_a_group_that_is_set_back_to_a_leased_message(server: Server, namespace: str) -> None:
    """S2, S3: after XGROUP SETID a leased message with an ordering key is delivered again, and those behind it too."""
    key = f"{{{namespace}:stream:s}}"
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        stream = backend.stream("s")
        for number in range(3):
            stream.add(number, key="one")
        group = stream.group("g", lease=60)
        with group.consumer() as consumer, group.consumer() as other:
            assert consumer.get(5) is not None
            assert consumer.get(0) is None
            admin.xgroup_setid(key, "g", "0")
            seen = []
            while (delivery := other.get(0.2)) is not None:
                seen.append(delivery.data)
                delivery.ack()
        assert seen == [0, 1, 2]
        assert not admin.exists(f"{key}:parked:g", f"{key}:queue:g")


def test_a_parked_entry_is_deleted(server: Server, namespace: str) -> None:
    """S2, S3: an entry that another program deletes while it waits delays no other of its key, and leaves nothing."""
    key = f"{{{namespace}:stream:s}}"
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        stream = backend.stream("s")
        soon = stream.add("soon", delay=0.2)
        ids = [stream.add(number, key="one") for number in range(3)]
        group = stream.group("g", lease=60)
        with group.consumer() as consumer:
            first = consumer.get(5)
            assert first is not None
            assert consumer.get(0) is None
            admin.xdel(key, soon, ids[1])
            first.ack()
            second = consumer.get(5)
            assert second is not None
            assert (second.data, second.attempt) == (2, 1)
            second.ack()
            assert consumer.get(0.4) is None
        info = group.info()
        assert (info.pending, info.delayed) == (0, 0)
        assert {name.decode() for name in admin.keys(f"{key}:*")} <= {
            f"{key}:meta",
            f"{key}:notes:g",
            f"{key}:bell:g",
        }


def test_due_times_that_vanished(server: Server, namespace: str) -> None:
    """S12, S7: if another program deletes the key of due times, all messages that wait come within a lease."""
    key = f"{{{namespace}:stream:s}}"
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        stream = backend.stream("s")
        stream.add_many(range(3))
        group = stream.group("g", lease=SHORT, takeover=1000)
        stream.add_many(range(3, 153), delay=0.5)
        stream.add_many(range(153, 156), key="one")
        with group.consumer(prefetch=3) as consumer:
            for _ in range(4):
                delivery = consumer.get(5)
                assert delivery is not None
                delivery.nack(delay=3600)
            admin.delete(f"{key}:due:g")
            back = []
            for _ in range(156):
                delivery = consumer.get(5)
                assert delivery is not None
                delivery.ack()
                back.append((delivery.data, delivery.attempt))
        assert sorted(back) == [(number, 2 if number in {0, 1, 2, 153} else 1) for number in range(156)]
        assert [number for number, _ in back if number > 152] == [153, 154, 155]


def test_due_times_of_parked_entries_that_vanished(server: Server, namespace: str) -> None:
    """S7, S12: messages that wait for their first delivery come back too, in order and not before their time."""
    key = f"{{{namespace}:stream:s}}"
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        stream = backend.stream("s")
        begun = time.monotonic()
        stream.add_many([f"late {number}" for number in range(120)], delay=1)
        stream.add_many(range(3), key="one", delay=1)
        group = stream.group("g", lease=SHORT, takeover=1000)
        with group.consumer() as consumer:
            assert consumer.get(0) is None
            admin.delete(f"{key}:due:g", f"{key}:queue:g")
            seen = []
            for _ in range(123):
                delivery = consumer.get(5)
                assert delivery is not None
                assert time.monotonic() > begun + 0.9
                delivery.ack()
                seen.append(delivery.data)
        assert sorted(each for each in seen if isinstance(each, str)) == sorted(f"late {n}" for n in range(120))
        assert [each for each in seen if isinstance(each, int)] == [0, 1, 2]
        assert not admin.exists(f"{key}:parked:g", f"{key}:due:g")


def test_due_times_that_are_not_ours(server: Server, namespace: str) -> None:
    """S2: members that another program adds to the due times cost nothing, and are removed."""
    key = f"{{{namespace}:stream:s}}"
    junk = ["junk", "~junk", "1-" + "9" * 25, "1-1", "-", "+", "", "~", "9" * 50_000]
    with ailf.connect(f"{server.url}?namespace={namespace}&retry_for=0") as backend, server.client() as admin:
        stream = backend.stream("s")
        group = stream.group("g")
        group.open()
        admin.zadd(f"{key}:due:g", dict.fromkeys(junk, 0))
        admin.zadd(f"{key}:queue:g", {f"3:one:{'9' * 25}-1": 0})
        stream.add_many(range(2), key="one")
        with group.consumer() as consumer:
            for number in range(2):
                delivery = consumer.get(5)
                assert delivery is not None
                assert delivery.data == number
                delivery.ack()
        assert not admin.exists(f"{key}:due:g", f"{key}:queue:g")


def test_what_another_program_left_pending(server: Server, namespace: str) -> None:
    """S12: entries that another program has read come when they were idle for a lease, also behind fresh ones."""
    key = f"{{{namespace}:stream:s}}"
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        stream = backend.stream("s")
        stream.add_many(range(450))
        group = stream.group("g", lease=SHORT, takeover=1000)
        group.open()
        admin.xreadgroup("g", "another", {key: ">"}, count=200)
        admin.xreadgroup("g", "ailf.waiting.too", {key: ">"}, count=200)
        with group.consumer(prefetch=100) as consumer:
            taken = []
            for _ in range(450):
                delivery = consumer.get(5)
                assert delivery is not None
                delivery.ack()
                taken.append(delivery.data)
        assert sorted(taken) == list(range(450))
