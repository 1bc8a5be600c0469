"""Bad input and refusals: a clear error that names what to do, and everything else flows on."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import ailf
from ailf.errors import (
    BackendError,
    BackendFullError,
    BackendReadOnlyError,
    ConnectionLostError,
    EncodeError,
    InvalidArgumentError,
    PermissionDeniedError,
    UnsupportedError,
)
from tests.support.servers import NewServer, Server

ODD_NAMES = ["a{b}c", "{}", "}{", "two words", "star*[x]?", "emoji 🦊", "a:b:due:g", "%7b", "new\nline", "\x00nul", "}"]


def test_wrong_password(new_server: NewServer) -> None:
    """B1: a wrong password fails at once and is in no message."""
    server = new_server(password="right")
    url = f"redis://:wrong@127.0.0.1:{server.port}/0"
    with pytest.raises(PermissionDeniedError, match="Check the user, the password") as caught:
        ailf.connect(url)
    assert "wrong@" not in str(caught.value)
    assert f"redis://127.0.0.1:{server.port}/0" in str(caught.value)
    with pytest.raises(PermissionDeniedError):
        ailf.connect(f"redis://127.0.0.1:{server.port}/0")
    with ailf.connect(server.url) as backend:
        assert "right" not in repr(backend)


def test_server_down() -> None:
    """B1: a server that is down is an error that says so, on both flavours."""
    with pytest.raises(ConnectionLostError, match=r"can't reach redis://127\.0\.0\.1:1/0"):
        ailf.connect("redis://127.0.0.1:1/0")

    async def main() -> None:
        with pytest.raises(ConnectionLostError, match=r"can't reach redis://127\.0\.0\.1:1/0"):
            await ailf.connect_async("redis://127.0.0.1:1/0")

    asyncio.run(main())


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """A server that gives one answer to everything; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while connection.recv(1000):
                    connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(5)


@pytest.mark.parametrize(
    "reply",
    [
        b"-ERR unknown command `HELLO`, with args beginning with: \r\n",
        b"-ERR wrong number of arguments for 'hello' command\r\n",
        b"*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n6.0.16\r\n",
    ],
)
def test_too_old(reply: bytes) -> None:
    """B1: a server before 6.2 is refused when it is opened."""
    with answering(reply) as port, pytest.raises(UnsupportedError, match="too old"):
        ailf.connect(f"redis://127.0.0.1:{port}/0")


def test_payloads_that_have_no_json_form(any_server: Server, namespace: str) -> None:
    """A payload that can't be encoded is refused before anything is sent."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend:
        stream = backend.stream("s")
        with pytest.raises(EncodeError, match="stream 's': a payload of type object"):
            stream.add(object())
        with pytest.raises(EncodeError):
            backend.stream("s", type=bytes).add("text")  # type: ignore[arg-type]  # that is the point
        with pytest.raises(InvalidArgumentError, match="max_payload"):
            stream.add("x" * (1024 * 1024))
        assert stream.read() == []


def test_an_undecodable_entry_is_quarantined(server: Server, namespace: str) -> None:
    """S13: entries that raw XADD wrote and nobody can decode become dead letters, whole, and the rest flows."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        stream = backend.stream("s")
        key = f"{{{namespace}:stream:s}}"
        admin.xadd(key, {"ailf.body": b"{not json"})
        admin.xadd(key, {"x": b"\xff\xfe"})
        admin.xadd(key, {"ailf.body": b"1", "ailf.headers": b"[]"})
        admin.xadd(key, {"plain": "text", "n": "1"})
        stream.add("ours")
        group = stream.group("g")
        with group.consumer(prefetch=10) as consumer:
            first, second = consumer.get(5), consumer.get(5)
            assert first is not None
            assert second is not None
            assert (first.data, second.data) == ({"plain": "text", "n": "1"}, "ours")
            first.ack()
            second.ack()
        letters = group.dead_letters.list()
        assert [letter.reason for letter in letters] == ["undecodable"] * 3
        assert letters[0].body == b"{not json"
        assert admin.xpending(key, "g")["pending"] == 0


FORGED = {
    "an origin": {"ailf.origin": "1-1"},
    "an origin that is no text": {"ailf.origin": "\udcff"},
    "an origin of an entry of ours": {"ailf.origin": "1-1", "ailf.how": "0||", "ailf.body": "1"},
    "packed fields": {"ailf.packed": "1:a1:b"},
    "packed fields that aren't": {"ailf.packed": "9999999999999999999999:a"},
    "a time without end": {"ailf.how": "9" * 400 + "||", "ailf.body": "1"},
    "the head of a dead letter": {"ailf.origin": "1-1", "ailf.reason": "r", "ailf.error": "e", "ailf.attempts": "x"},
}


@pytest.mark.parametrize(
    ("forged", "many"),
    [(forged, 0) for forged in FORGED]
    + [(forged, many) for forged in ("an origin", "packed fields") for many in (999, 1000, 1001, 4001, 9000)],
)
def test_foreign_entries_come_back_whole(any_server: Server, namespace: str, forged: str, many: int) -> None:
    """S13, S16: an entry of any fields is delivered, dies, is redriven, and is the same each time."""
    raw = {key: value.encode("utf-8", "surrogateescape") for key, value in FORGED[forged].items()}
    raw |= {f"field-{number}": b"%d" % number for number in range(many)}
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend, any_server.client() as admin:
        stream, bodies = backend.stream("s"), []
        entry = admin.xadd(f"{{{namespace}:stream:s}}", raw).decode()  # type: ignore[arg-type]
        stream.add("behind it")
        group = stream.group("g", max_deliveries=2)
        for _ in range(3):
            with group.consumer(prefetch=2) as consumer:
                while (delivery := consumer.get(0)) is not None:
                    assert delivery.id == entry or delivery.data == "behind it"
                    bodies.append(delivery.data)
                    delivery.ack() if delivery.data == "behind it" else delivery.nack(delay=0)
            letters = group.dead_letters.list()
            if forged == "a time without end":
                assert not letters
                break
            ((origin, body),) = [(each.origin, each.body) for each in letters]
            assert origin == entry
            if "ailf.body" not in raw:
                assert set(json.loads(body)) == set(FORGED[forged]) | {f"field-{number}" for number in range(many)}
            assert group.dead_letters.redrive_all() == 1
        assert all(each == bodies[0] for each in bodies if each != "behind it")


def test_dead_letters_of_another_program(any_server: Server, namespace: str) -> None:
    """S16: what another program adds to the dead letters can be listed, redriven and purged."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend, any_server.client() as admin:
        stream = backend.stream("s")
        group = stream.group("g")
        group.open()
        head = {"ailf.origin": "1-1", "ailf.reason": "r", "ailf.error": "", "ailf.attempts": "2"}
        for fields in ({"x": "y"}, {"ailf.origin": "1-1"}, head, {**head, "ailf.attempts": "x", "ailf.body": "1"},
                       {str(number): "x" for number in range(5000)}):  # fmt: skip
            admin.xadd(f"{{{namespace}:stream:s}}:dead:g", fields)  # type: ignore[arg-type]
        assert [letter.attempts for letter in group.dead_letters.list()] == [0, 0, 2, 0, 0]
        assert group.dead_letters.redrive_all() == 5
        with group.consumer(prefetch=5) as consumer:
            taken = [consumer.get(0) for _ in range(5)]
            for each in taken:
                assert each is not None
                each.reject("again")
        assert len(group.dead_letters.list()) == 5
        assert group.dead_letters.purge_all() == 5


@pytest.mark.parametrize("last", [f"5-{2**64 - 1}", f"{2**64 - 1}-{2**64 - 1}"])
def test_the_largest_ids(any_server: Server, namespace: str, last: str) -> None:
    """S1, S8: entries of the largest ids are read, delivered, counted, trimmed; after the last of all none is added."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend, any_server.client() as admin:
        ids = [f"5-{2**63 + number}" for number in range(200)] + [last]
        for each in ids:
            admin.xadd(f"{{{namespace}:stream:s}}", {"x": "y"}, id=each)
        stream = backend.stream("s")
        group = stream.group("g")
        assert [each.id for each in stream.read(limit=500)] == ids
        assert stream.read(last) == [ailf.Entry(last, {"x": "y"}, {})]
        with group.consumer(prefetch=50) as consumer:
            for _ in ids:
                delivery = consumer.get(0)
                assert delivery is not None
                delivery.ack()
        assert (group.info().pending, group.info().lag, group.info().length) == (0, 0, 201)
        assert stream.trim(ailf.Retention(max_len=2)).removed == 199
        group.seek(ids[-2])
        assert group.info().lag == 1
        if last.startswith("5-"):
            assert backend.stream("s", retention=ailf.Retention(max_len=10)).add(1)
        else:
            with pytest.raises(BackendError, match="last possible ID"):
                stream.add(1)


def test_an_entry_that_names_a_dedup_id(server: Server, namespace: str) -> None:
    """An entry of another program can be cancelled, and frees no dedup id and touches no key but its own."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        stream, other = backend.stream("s"), backend.stream("other")
        added = [stream.add_once("id", 1, delay=60), other.add_once("id", 1, delay=60)]
        key = f"{{{namespace}:stream:s}}"
        admin.set(f"{key}:once:text", "as it was")
        admin.hset(f"{key}:once:hash", "as", "it was")
        for once in (b"\xff", b"", f"{key}:once:id", f"{{{namespace}:stream:other}}:once:id", f"{key}:once:text",
                     f"{key}:once:hash", f"{key}:once:missing", key):  # fmt: skip
            forged = admin.xadd(key, {"ailf.how": f"{2**52}||", "ailf.once": once, "ailf.body": "1"})
            assert stream.cancel(forged.decode())
        assert [each.add_once("id", 2) for each in (stream, other)] == [
            ailf.Added(each.id, duplicate=True) for each in added
        ]
        assert (admin.get(f"{key}:once:text"), admin.hgetall(f"{key}:once:hash")) == (b"as it was", {b"as": b"it was"})
        malformed = admin.xadd(key, {"ailf.how": "soon", "ailf.body": "1"})
        assert not stream.cancel(malformed.decode())
        for each in (stream, other):
            each.delete()


def test_odd_names_never_share_state(server: Server, namespace: str) -> None:
    """B5: streams, groups and channels of any text are kept apart, also under the namespace ""."""
    for chosen in (namespace, ""):
        with ailf.connect(f"{server.url}?namespace={chosen}") as backend:
            pubsub = backend.pubsub()
            for name in ODD_NAMES:
                stream = backend.stream(name + namespace)
                stream.add(name)
                with stream.group(name).consumer() as consumer, pubsub.listen(name) as subscription:
                    pubsub.publish(name, name)
                    delivery = consumer.get(5)
                    message = subscription.get(5)
                    assert delivery is not None
                    assert delivery.data == name
                    delivery.nack(delay=0)
                    assert isinstance(message, ailf.Message)
                    assert (message.channel, message.data) == (name, name)
            for name in ODD_NAMES:
                assert [entry.data for entry in backend.stream(name + namespace).read()] == [name]
                backend.stream(name + namespace).delete()


def test_wrong_type_of_key(any_server: Server, namespace: str) -> None:
    """A key that another program uses otherwise is an error that says so."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend, any_server.client() as admin:
        admin.set(f"{{{namespace}:stream:s}}", "text")
        with pytest.raises(BackendError, match=r"WRONGTYPE|wrong kind"):
            backend.stream("s").add(1)
        with pytest.raises(BackendError, match=r"WRONGTYPE|wrong kind"):
            backend.stream("s").group("g").open()


def test_out_of_memory(new_server: NewServer) -> None:
    """A full server is a BackendFullError, and what is there can still be settled."""
    server = new_server()
    with ailf.connect(server.url) as backend, server.client() as admin:
        stream = backend.stream("s")
        stream.add(1)
        admin.config_set("maxmemory", "1mb")
        with pytest.raises(BackendFullError, match="maxmemory"):
            stream.add_many(["x" * 100_000] * 100)


def test_read_only_replica(new_server: NewServer) -> None:
    """A replica is a BackendReadOnlyError."""
    server, master = new_server(), new_server()
    with ailf.connect(server.url) as backend, server.client() as admin:
        admin.replicaof("127.0.0.1", master.port)
        with pytest.raises(BackendReadOnlyError, match="can't write"):
            backend.stream("s").add(1)


def test_acl(new_server: NewServer) -> None:
    """A user who may not is told so: at a call, and at a subscription, at once."""
    server = new_server()
    with server.client() as admin:
        admin.acl_setuser(
            "agent", enabled=True, passwords=["+pw"], keys=["{ailf:*"], channels=["ailf:channel:mine"],
            commands=["+@all", "-@dangerous", "-xrange"], reset=True,
        )  # fmt: skip
    with ailf.connect(f"redis://agent:pw@127.0.0.1:{server.port}/0") as backend:
        stream, pubsub = backend.stream("s"), backend.pubsub()
        stream.add(1)
        with pytest.raises(PermissionDeniedError):
            stream.read()
        with pytest.raises(PermissionDeniedError):
            pubsub.publish("others", 1)
        with pytest.raises(PermissionDeniedError), pubsub.listen("others"):
            pass
        with pubsub.listen("mine") as subscription:
            pubsub.publish("mine", 1)
            assert subscription.get(5) == ailf.Message("mine", 1)
