"""Bad input and refusals: each is a clear error that says what to do, and costs no other message or call."""

import asyncio
import json
import re
import threading
from typing import Any

import pytest
from redis.client import PubSub

import ailf
from ailf.codecs import open_envelope, seal_envelope
from ailf.errors import (
    BackendError,
    BackendFullError,
    BackendReadOnlyError,
    ConnectionLostError,
    EncodeError,
    InvalidArgumentError,
    PermissionDeniedError,
    RequestFailedError,
    UnsupportedError,
)
from tests.support.scripted import Scripted
from tests.support.servers import NewServer, Server

ODD_NAMES = ["a{b}c", "{}", "}{", "two words", "star*[x]?", "emoji 🦊", "a:b:due:g", "%7b", "new\nline", "\x00nul", "}"]


def test_wrong_password(new_server: NewServer) -> None:
    """B1: a wrong password fails at once, and no message has it."""
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
    """B1: opening a server that is down is an error that says so, on both flavours."""
    with pytest.raises(ConnectionLostError, match=r"can't reach redis://127\.0\.0\.1:1/0"):
        ailf.connect("redis://127.0.0.1:1/0")

    async def main() -> None:
        with pytest.raises(ConnectionLostError, match=r"can't reach redis://127\.0\.0\.1:1/0"):
            await ailf.connect_async("redis://127.0.0.1:1/0")

    asyncio.run(main())


@pytest.mark.parametrize(
    "reply",
    [
        b"-ERR unknown command `HELLO`, with args beginning with: \r\n",
        b"-ERR wrong number of arguments for 'hello' command\r\n",
        b"*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n6.0.16\r\n",
    ],
)
def test_too_old(reply: bytes) -> None:
    """B1: a server before 6.2 is refused when the backend is opened."""
    with Scripted(lambda _: [reply], greets=False) as server, pytest.raises(UnsupportedError, match="too old"):
        ailf.connect(server.url)


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
    """S13: undecodable entries of another program become dead letters, whole, and the others are delivered."""
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
    """S13, S16: an entry of any fields is delivered, becomes a dead letter, is redriven, and stays the same."""
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
    """S16: dead letters that another program added can be listed, redriven and purged."""
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
    """S1, S8: entries of the largest ids are read, delivered, counted, trimmed; after the largest id none is added."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend, any_server.client() as admin:
        ids = [f"5-{2**63 + number}" for number in range(200)] + [last]
        for each in ids:
            admin.xadd(f"{{{namespace}:stream:s}}", {"x": "y"}, id=each)
        stream = backend.stream("s")
        group = stream.group("g")
        assert [each.id for each in stream.read(limit=500)] == ids
        assert stream.read(last) == [ailf.Entry(last, {"x": "y"}, {}, "s", "", int(last.partition("-")[0]) / 1000)]
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


LAST = f"{2**64 - 1}-{2**64 - 1}"
"""The largest id: no range begins after it, and no entry can be added after it."""


def acked(group: ailf.Group[Any], prefetch: int = 10, wait: float = 0) -> list[ailf.Delivery[Any]]:
    """Take and acknowledge every message that a group can deliver now."""
    with group.consumer(prefetch=prefetch) as consumer:
        taken = list(iter(lambda: consumer.get(wait), None))
        for each in taken:
            each.ack()
        return taken


@pytest.mark.parametrize("cursor", [None, f"({LAST}", "no id"])
def test_a_page_that_ends_with_the_largest_id(server: Server, namespace: str, cursor: str | None) -> None:
    """S12: entries that another program left pending are delivered, also if the largest id ends a page of a hundred."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        key = f"{{{namespace}:stream:s}}"
        group = backend.stream("s").group("g", lease=0.5)
        group.open()
        ids = [f"5-{number}" for number in range(99)] + [LAST]
        for each in ids:
            admin.xadd(key, {"x": "y"}, id=each)
        admin.xreadgroup("g", "other", {key: ">"}, count=100)
        admin.xclaim(key, "g", "other", 0, ids, idle=60_000, justid=True)
        if cursor:
            admin.hset(f"{key}:notes:g", "cursor", cursor)
        assert sorted(each.id for each in acked(group)) == sorted(ids)
        assert admin.hget(f"{key}:notes:g", "cursor") is None


def test_redriven_entries_with_odd_ids(server: Server, namespace: str) -> None:
    """S9, S16: after a seek all redriven entries are delivered, whatever their ids and the stored cursor."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        key = f"{{{namespace}:stream:s}}"
        group = backend.stream("s").group("g")
        group.open()
        for each in (*(f"5-{number}" for number in range(199)), LAST):
            admin.xadd(f"{key}:again:g", {"x": "y"}, id=each)
        admin.xgroup_create(f"{key}:again:g", "g", "0")
        admin.xreadgroup("g", "other", {f"{key}:again:g": ">"}, count=200)
        group.seek(ailf.LATEST)
        admin.hset(f"{key}:notes:g", "anew", "no id")
        assert len(acked(group, wait=0.2)) == 200  # not all is taken up in one step
        assert not admin.hexists(f"{key}:notes:g", "anew")


def test_the_largest_id_of_a_dead_letter(server: Server, namespace: str) -> None:
    """S5, S16: behind another program's entry of the largest id dead letters are still added, and redriven."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        key = f"{{{namespace}:stream:s}}"
        stream = backend.stream("s")
        group, letters = stream.group("g", max_deliveries=1), stream.group("g").dead_letters
        group.open()
        for helper in ("dead", "bell"):
            admin.xadd(f"{key}:{helper}:g", {"x": "y"}, id=LAST)
        assert letters.list(after=LAST) == []
        assert [each.id for each in letters.list()] == [LAST]
        stream.add("dies")
        with group.consumer() as consumer:
            delivery = consumer.get(0)
            assert delivery is not None
            delivery.reject("no")
        assert sorted(str(each.body, "utf-8") for each in letters.list()) == ['"dies"', '{"x":"y"}']
        assert letters.redrive_all() == 2
        ((rung, _),) = admin.xrange(f"{key}:bell:g")
        assert rung.decode() != LAST
        assert [each.data for each in acked(group)] == [{"x": "y"}, "dies"]
        admin.xadd(f"{key}:dead:g", {"x": "y"}, id=LAST)
        assert letters.purge_all() == 1


def test_trimming_around_the_largest_id(server: Server, namespace: str) -> None:
    """S8: a stream is trimmed whose last entry has the largest id and is pending in several groups."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        key, stream = f"{{{namespace}:stream:s}}", backend.stream("s")
        ids = ["5-1", "5-2", "5-3", LAST]
        for each in ids:
            admin.xadd(key, {"x": "y"}, id=each)
        for group in "gh":
            admin.xgroup_create(key, group, "0")
            admin.xreadgroup(group, "other", {key: ">"})
            admin.xack(key, group, "5-2")
        assert stream.trim(ailf.Retention(max_len=1)).removed == 1
        for group in "gh":
            admin.xack(key, group, "5-1", "5-3")
        assert stream.trim(ailf.Retention.settled(max_len=1)).removed == 2
        with pytest.raises(BackendError, match=r"last possible ID|equal or smaller|room"):
            backend.stream("s", retention=ailf.Retention(max_len=1)).add(1)
        assert [each.id for each in stream.read()] == [LAST]


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_numbers_of_thousands_of_digits(any_server: Server, namespace: str, flavour: str) -> None:
    """S13, S16: another program's dead letter with numbers that Python refuses to read costs no other message."""
    url, endless = f"{any_server.url}?namespace={namespace}", "9" * 5000
    head = {"ailf.origin": "1-1", "ailf.reason": "r", "ailf.error": "", "ailf.attempts": "2"}

    async def letters() -> list[ailf.DeadLetter[Any]]:
        async with ailf.connect_async(url) as backend:
            return await backend.stream("s").group("g").dead_letters.list()

    with ailf.connect(url) as backend, any_server.client() as admin:
        stream = backend.stream("s")
        group = stream.group("g")
        group.open()
        for fields in ({**head, "ailf.attempts": endless, "ailf.body": "1"}, {**head, "ailf.packed": f"{endless}:x"}):
            admin.xadd(f"{{{namespace}:stream:s}}:dead:g", fields)  # type: ignore[arg-type]
        stream.add("innocent")
        listed = asyncio.run(letters()) if flavour == "asyncio" else group.dead_letters.list()
        assert [each.attempts for each in listed] == [0, 2]
        assert group.dead_letters.redrive_all() == 2
        assert [each.data for each in acked(group)] == [1, {"ailf.packed": f"{endless}:x"}, "innocent"]


@pytest.mark.parametrize("origin", ["no id", "", "1", f"{2**64}-0", "1-" + "9" * 5000, b"\xff"])
def test_dead_letters_of_no_entry(any_server: Server, namespace: str, origin: str | bytes) -> None:
    """S26, S16: a dead letter whose origin is no id is its own origin and tells a time, also redriven."""
    head = {"ailf.origin": origin, "ailf.reason": "r", "ailf.error": "", "ailf.attempts": "2", "ailf.body": "1"}
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend, any_server.client() as admin:
        group = backend.stream("s").group("g")
        group.open()
        letter_id = admin.xadd(f"{{{namespace}:stream:s}}:dead:g", head)  # type: ignore[arg-type]
        (letter,) = group.dead_letters.list()
        assert (letter.origin, letter.data, letter.added) == (letter_id.decode(), 1, letter.died)
        assert group.dead_letters.redrive_all() == 1
        (delivery,) = acked(group)
        assert abs(delivery.added - letter.added) < 60


def test_a_delivery_count_of_another_program(server: Server, namespace: str) -> None:
    """S5, S16: a message whose delivery count another program set becomes a dead letter of ours, whatever the count."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        key, stream, count = f"{{{namespace}:stream:s}}", backend.stream("s"), 2**63 - 1
        entry = stream.add("poison")
        stream.add("innocent")
        group = stream.group("g")
        group.open()
        admin.xreadgroup("g", "other", {key: ">"}, count=1)
        admin.xclaim(key, "g", "other", 0, [entry], idle=60_000, retrycount=count, justid=True)
        assert [each.data for each in acked(group)] == ["innocent"]
        ((letter_id, fields),) = admin.xrange(f"{key}:dead:g")
        assert abs(int(fields[b"ailf.attempts"]) - count) <= 1  # Lua has 53 bits
        (letter,) = group.dead_letters.list()
        assert (letter.id, letter.origin, letter.body) == (letter_id.decode(), entry, b'"poison"')


def test_numbers_of_the_group_that_are_none(server: Server, namespace: str) -> None:
    """S5, S9, S10: junk that another program writes as the numbers of a group stops neither messages nor `info`."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        key, stream = f"{{{namespace}:stream:s}}", backend.stream("s")
        entry = stream.add(1)
        group = stream.group("g", max_deliveries=2)
        group.open()
        for junk in ("junk", "", "9" * 400):
            admin.hset(f"{key}:meta", "evicted", junk)
            admin.hset(f"{key}:notes:g", mapping=dict.fromkeys(("base", "sweep", f"{entry}:f", f"{entry}:m"), junk))
            with group.consumer() as consumer:
                delivery = consumer.get(0)
                assert delivery is not None
                delivery.nack(0)
            admin.hdel(f"{key}:notes:g", f"{entry}:f")
            admin.xclaim(key, "g", "other", 0, [entry], retrycount=0, justid=True)
            assert (group.info().pending, group.info().delayed) == (1, 0)
            admin.zadd(f"{key}:due:g", {entry: 1e300})
            with group.consumer() as consumer:
                assert consumer.get(0) is None
            admin.zadd(f"{key}:due:g", {entry: 1})


@pytest.mark.parametrize("key", [None, "k"])
def test_foreign_entries_among_redriven_ones(server: Server, namespace: str, key: str | None) -> None:
    """S16: redriven messages are delivered, whatever another program adds to the stream in which they wait."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        stream, again = backend.stream("s"), f"{{{namespace}:stream:s}}:again:g"
        group = stream.group("g")
        group.open()
        for number in range(3):
            admin.xadd(again, {"raw": "1"})
            stream.add(number, key=key)
            with group.consumer() as consumer:
                delivery = consumer.get(0)
                assert delivery is not None
                delivery.reject("no")
            assert group.dead_letters.redrive_all() == 1
            if number == 1:
                group.seek(ailf.LATEST)
            assert [(each.data, each.attempt) for each in acked(group)] == [(number, 1)]
        assert group.info().delayed == 0


HEAD = {"ailf.origin": "forged", "ailf.reason": "r", "ailf.error": "e", "ailf.attempts": "1"}


@pytest.mark.parametrize(
    "fields",
    [
        {"ailf.origin": "forged", "a": "1", "b": "2", "c": "3", "d": "4"},
        {**HEAD, "ailf.attempts": "-1", "d": "4"},
        {**HEAD, "ailf.attempts": "1" * 21, "d": "4"},
        {**HEAD, "ailf.attempts": "", "d": "4"},
    ],
)
def test_a_dead_letter_with_half_a_head_stays_whole(server: Server, namespace: str, fields: dict[str, str]) -> None:
    """S16: a dead letter listed as another program's is redriven as such, with all its fields and its own id."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        group = backend.stream("s").group("g")
        group.open()
        letter = admin.xadd(f"{{{namespace}:stream:s}}:dead:g", fields).decode()  # type: ignore[arg-type]
        assert [(each.origin, json.loads(each.body)) for each in group.dead_letters.list()] == [(letter, fields)]
        assert group.dead_letters.redrive_all() == 1
        assert [(each.id, each.data) for each in acked(group)] == [(letter, fields)]


def test_ids_that_are_none(any_server: Server, namespace: str) -> None:
    """A position that no id can have, or with digits that aren't ASCII, is refused before it is sent."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend:
        stream = backend.stream("s")
        group = stream.group("g")
        for wrong in (f"{2**64}-0", f"0-{2**64}", str(2**64), "\u0661-\u0661"):
            for call in (stream.read, group.seek, stream.cancel, group.dead_letters.purge):
                with pytest.raises(InvalidArgumentError):
                    call(wrong)
            with pytest.raises(InvalidArgumentError):
                group.dead_letters.list(after=wrong)


@pytest.mark.parametrize("cursor", ["junk", "", f"5-{2**64}"])
def test_a_trim_with_a_junk_cursor(server: Server, namespace: str, cursor: str) -> None:
    """S8: an add makes room, whatever another program stored as the cursor of the last one."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        key = f"{{{namespace}:stream:s}}"
        for number in range(102):
            admin.xadd(key, {"ailf.body": "1"}, id=f"5-{number + 1}")
        admin.xadd(key, {"ailf.body": "1"}, id="6-1")
        admin.xgroup_create(key, "g", "0")
        admin.xreadgroup("g", "other", {key: ">"})
        admin.xack(key, "g", "5-2")
        admin.hset(f"{key}:meta", "cursor", cursor)
        assert backend.stream("s", retention=ailf.Retention(max_len=103)).add(2)
        assert admin.xlen(key) == 103


def test_a_heartbeat_of_the_waiting_consumer(server: Server, namespace: str) -> None:
    """S11: waiting messages are kept if another program says that the consumer they wait under is dead."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        stream = backend.stream("s")
        stream.add(1)
        group = stream.group("g")
        with group.consumer() as consumer:
            delivery = consumer.get(0)
            assert delivery is not None
            delivery.nack(60)
        admin.zadd(f"{{{namespace}:stream:s}}:alive:g", {"ailf.waiting": 1})
        assert acked(group) == []
        assert group.info().delayed == 1


def test_an_entry_that_names_a_dedup_id(server: Server, namespace: str) -> None:
    """Cancelling an entry of another program frees no dedup id, and changes no key but the stream."""
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


def test_wrong_type_of_key(server: Server, namespace: str) -> None:
    """A key that another program uses for another type is an error with the server's own message, and no more."""
    message = re.escape(
        f"{server.url} refused the request: WRONGTYPE Operation against a key holding the wrong kind of"
    )
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend, server.client() as admin:
        for key in ("stream:s}", "stream:s}:notes:g", "lock:l}", "limit:r:k}:queue"):
            admin.set(f"{{{namespace}:{key}", "text")
        admin.hset(f"{{{namespace}:limit:r:k}}", "a", "hash")
        for attempt in (
            lambda: backend.stream("s").add(1),
            lambda: backend.stream("s").add_once("id", 1),
            backend.stream("s").group("g").open,
            backend.lock("l").try_acquire,
            lambda: backend.rate_limiter("r", "5/minute").try_acquire("k"),
        ):
            with pytest.raises(BackendError, match=f"{message} value$"):
                attempt()


JUNK_TRACES = (
    {"traceparent": ""},
    {"traceparent": "00-a", "tracestate": "x" * 100_000},
    {"traceparent": "", "ailf-reply-to": "replies", "ailf-request": "1"},
    {"traceparent": f"00-{1:032x}-{1:016x}-01", "tracestate": "x" * 100_000},
)


def test_handlers_of_messages_with_a_junk_trace(any_server: Server, namespace: str) -> None:
    """S15: whatever trace another program sends, a handler can send and reply."""
    headers = [json.dumps(each).encode() for each in JUNK_TRACES]
    carried = [{}, {}, {}, {"traceparent": JUNK_TRACES[3]["traceparent"]}]
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend, any_server.client() as admin:
        out, group = backend.stream("out"), backend.stream("s").group("g", backoff=ailf.Backoff(initial=0.0))
        for each in headers:
            admin.xadd(f"{{{namespace}:stream:s}}", {"ailf.body": b"1", "ailf.headers": each})

        def handle(delivery: ailf.Delivery[object]) -> None:
            out.add("sent")
            if delivery.headers == JUNK_TRACES[-1]:
                group.stop()

        group.process(handle)
        assert [each.headers for each in out.read()] == carried
        assert group.dead_letters.list() == []

        failures: list[BaseException] = []
        listening = backend.pubsub(on_error=lambda error, _: failures.append(error))

        def answer(message: ailf.Message[object]) -> str:
            out.add("sent")
            if message.data == len(headers):
                listening.stop()
            return "answered"

        listening.subscribe("c", answer)
        for number, each in enumerate(headers, 1):
            sealed = b"\0AILF\1" + len(each).to_bytes(4, "big") + each + b"%d" % number
            admin.publish(f"{namespace}:channel:c", sealed)
        listening.run()
        assert failures == []
        assert [each.headers for each in out.read()] == carried * 2


def test_a_responder_with_a_long_error(any_server: Server, namespace: str) -> None:
    """P9: the failure text of another program's responder is cut in the error that quotes it."""
    with ailf.connect(f"{any_server.url}?namespace={namespace}") as backend, any_server.client() as admin:

        def respond(listening: PubSub) -> None:
            message = next(each for each in listening.listen() if each["type"] == "message")
            _, headers = open_envelope(message["data"])
            failure = {"ailf-request": headers["ailf-request"], "ailf-failed": "no" * 10**6}
            admin.publish(f"{namespace}:channel:{headers['ailf-reply-to']}", seal_envelope(b"", failure))

        with admin.pubsub() as listening:
            listening.subscribe(f"{namespace}:channel:c")
            responder = threading.Thread(target=respond, args=[listening])
            responder.start()
            with pytest.raises(RequestFailedError, match="the responder failed: nono") as caught:
                backend.pubsub().request("c", 1, timeout=5)
            responder.join()
        assert len(str(caught.value)) < 2100


def test_out_of_memory(new_server: NewServer) -> None:
    """A write to a server without memory is a BackendFullError."""
    server = new_server()
    with ailf.connect(server.url) as backend, server.client() as admin:
        stream = backend.stream("s")
        stream.add(1)
        admin.config_set("maxmemory", "1mb")
        with pytest.raises(BackendFullError, match="maxmemory"):
            stream.add_many(["x" * 100_000] * 100)


def test_read_only_replica(new_server: NewServer) -> None:
    """A write to a replica is a BackendReadOnlyError."""
    server, master = new_server(), new_server()
    with ailf.connect(server.url) as backend, server.client() as admin:
        admin.replicaof("127.0.0.1", master.port)
        with pytest.raises(BackendReadOnlyError, match="can't write"):
            backend.stream("s").add(1)


def test_acl(new_server: NewServer) -> None:
    """A missing right is a PermissionDeniedError at once, at a call and at a subscription."""
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
