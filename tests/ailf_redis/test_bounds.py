"""Each script is bounded, however much data there is: its commands are counted, and later calls do the rest."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from msgspec.structs import replace

import ailf
from ailf.checks import MAX_NAME, check_headers
from ailf.driver import Action, Charge, LimiterKey, Settlement
from ailf.limits.sliding_window import SlidingWindowAlgorithm
from ailf.runtime import run
from ailf.safe_text import LONGEST
from ailf.stream.lease import DeliveryLease
from ailf_redis.connection.blocking import BlockingExecutor
from ailf_redis.connection.resp import packed
from ailf_redis.keys import Keys
from ailf_redis.replies import headers_field, text
from ailf_redis.settings import Settings
from tests.support.effort import NEWEST
from tests.support.servers import Server

MANY = 1000
"""Size of the data: several times what one script may process."""

STEP = 900
"""The most commands that a script may run."""


@pytest.fixture
def raw(private: Server) -> Iterator[redis.Redis]:
    """A client of redis-py."""
    with private.client() as client:
        yield client


@pytest.fixture
def backend(private: Server) -> Iterator[ailf.Backend]:
    """A backend with a short timeout, for a server that is stuck."""
    with ailf.connect(f"{private.url}?timeout=2&retry_for=0") as opened:
        yield opened


def steps(raw: redis.Redis) -> tuple[int, float]:
    """Return how many scripts ran since the last call, and how many commands each ran on average."""
    ran = {name: each["calls"] - each["failed_calls"] for name, each in raw.info("commandstats").items()}
    raw.config_resetstat()
    scripts = ran.get("cmdstat_evalsha", 0) + ran.get("cmdstat_eval", 0)
    return scripts, sum(ran.values()) / max(1, scripts)


def reject(group: ailf.Group[Any], count: int) -> None:
    """Make the next messages of a group dead letters."""
    with group.consumer(prefetch=count) as consumer:
        for _ in range(count):
            delivery = consumer.get(5)
            assert delivery is not None
            delivery.reject("no")


def test_leaving_with_many_leases(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S6, S11: a consumer that leaves releases all its messages, without an attempt, in steps."""
    stream = backend.stream("s")
    stream.add_many(range(MANY))
    group = stream.group("g", lease=60)
    with group.consumer(prefetch=MANY) as consumer:
        assert consumer.get(5) is not None
        steps(raw)
    scripts, commands = steps(raw)
    assert scripts >= 2
    assert commands < 8 * STEP
    assert group.info().consumers == {}
    with group.consumer(prefetch=MANY) as consumer:
        taken = [consumer.get(0) for _ in range(MANY)]
        assert {(each.data, each.attempt) for each in taken if each} == {(number, 1) for number in range(MANY)}


def test_renewing_many_leases(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S4: a page of leases is extended by a few commands; one that was settled or taken meanwhile is not."""
    stream = backend.stream("s")
    stream.add_many(range(MANY))
    with stream.group("g", lease=60).consumer(prefetch=MANY) as consumer:
        held = [consumer.get(0) for _ in range(MANY)]
        receipts = [each._state.claim.receipt for each in held if each]
        driver = backend.engine.driver.stream()
        stolen = replace(receipts[7], consumer="another")
        run(driver.settle("s", "g", [Settlement(receipts[3], Action.ACK)], max_deliveries=5))
        page = [*receipts[:7], stolen, *receipts[8 : DeliveryLease.page]]
        steps(raw)
        kept = run(driver.extend("s", "g", page, lease=600))
        assert [at for at, each in enumerate(kept) if not each] == [3, 7]
        scripts, commands = steps(raw)
        assert scripts == 1
        assert commands < 15
        ends = dict(raw.zrange("{ailf:stream:s}:due:g", 0, -1, withscores=True))
        extended = {each.id for each in page} - {page[3].id, page[7].id}
        assert {text(member) for member, end in ends.items() if end > time.time() * 1000 + 300_000} == extended


def test_renewing_many_locks_and_slots(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L17, R9: a script extends a page of locks, or of calls with concurrency slots, and none is lost."""
    limiter = backend.rate_limiter("r", ailf.Concurrency(1, ttl=3))
    held: list[Any] = [backend.lock(f"{number}", ttl=3).acquire() for number in range(MANY // 4)]
    held += [limiter.try_acquire(f"{number}").permit for number in range(MANY // 4)]
    steps(raw)
    time.sleep(3)
    scripts, commands = steps(raw)
    assert scripts >= 2 * MANY // 4 // 100
    assert commands < STEP
    assert not any(each.lost for each in held)
    for each in held:
        each.release()


def test_releasing_many_messages(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S14: a worker that stops releases its buffer in pages, without an attempt."""
    stream = backend.stream("s")
    stream.add_many(range(MANY))
    group = stream.group("g", lease=60)

    def handler(_: Any) -> None:
        steps(raw)
        group.stop()

    group.process(handler, prefetch=MANY)
    scripts, commands = steps(raw)
    assert scripts >= MANY // 2 // 100  # a fetch leases half of them
    assert commands < STEP
    with group.consumer(prefetch=MANY) as consumer:
        taken = [consumer.get(0) for _ in range(MANY - 1)]
        assert {(each.data, each.attempt) for each in taken if each} == {(number, 1) for number in range(1, MANY)}


def test_a_seek_with_many_redriven_messages(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S9, S16: after a seek redriven messages are delivered in steps, with attempt 1, in order within a key."""
    stream = backend.stream("s")
    for number in range(MANY // 100):
        stream.add_many(range(number * 100, number * 100 + 100), key="one" if number % 5 == 0 else None)
    group = stream.group("g", lease=60, takeover=60)
    reject(group, MANY)
    assert group.dead_letters.redrive_all() == MANY
    held = group.consumer(prefetch=MANY // 2)
    assert held.get(5) is not None
    steps(raw)
    group.seek(ailf.LATEST)
    scripts, commands = steps(raw)
    assert scripts == MANY // 100 + 1
    assert commands < STEP
    held.close()
    seen = []
    with group.consumer(prefetch=MANY) as consumer:
        while (delivery := consumer.get(0.2)) is not None:
            assert delivery.attempt == 1
            seen.append(delivery.data)
            delivery.ack()
    assert sorted(seen) == list(range(MANY))
    keyed = [each for each in seen if each // 100 % 5 == 0]
    assert keyed == sorted(keyed)
    assert set(raw.hkeys("{ailf:stream:s}:notes:g")) == {b"base", b"sweep", b"lanes"}


@pytest.mark.parametrize("waits", [{"delay": 3600.0}, {"key": "one"}], ids=["delayed", "ordered"])
def test_parking_many_entries(backend: ailf.Backend, raw: redis.Redis, waits: dict[str, Any]) -> None:
    """S3, S7: a group behind many entries that wait sets them aside in steps; they are in no pending list."""
    stream = backend.stream("s")
    for _ in range(3):
        stream.add_many(range(MANY), **waits)
    last = stream.add("fresh")
    group = stream.group("g", lease=60, takeover=60)
    steps(raw)
    with group.consumer() as consumer:
        while (delivery := consumer.get(5)) is not None and delivery.id != last:
            assert delivery.data == 0  # the first one of the key
        assert delivery is not None
        scripts, commands = steps(raw)
        assert 3 * MANY / 300 < scripts <= 3 * MANY / 100
        assert commands < STEP
        first = int("key" in waits)
        assert raw.xpending("{ailf:stream:s}", "g")["pending"] == 1 + first
        info = group.info()
        assert (info.delayed, info.pending) == (3 * MANY - first, 1 + first)


def test_reading_on_behind_a_backlog(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S20: a key behind a long backlog is found in bounded steps; a backlog without keys costs no further command."""
    stream = backend.stream("s")
    for _ in range(10):
        stream.add_many(range(MANY), key="busy")
    stream.add("quiet", key="quiet")
    with stream.group("g", lease=60, takeover=60).consumer(prefetch=1) as consumer:
        steps(raw)
        seen, most = [], 0.0
        while "quiet" not in seen:
            delivery = consumer.get(5)
            assert delivery is not None
            seen.append(delivery.data)
            most = max(most, steps(raw)[1])
            delivery.ack()
    assert len(seen) <= 10 * MANY / 150 + 2
    assert most < STEP


def test_a_backlog_without_keys_is_not_set_aside(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S20: where no keys compete a fetch reads only what it leases, also beside a message with a key."""
    for name, key in (("plain", None), ("distinct", "k")):
        stream = backend.stream(name)
        for number in range(50):
            stream.add(number, key=key and f"{key}{number}")
        with stream.group("g", lease=60, takeover=60).consumer(prefetch=1) as consumer:
            for number in range(20):
                delivery = consumer.get(5)
                assert delivery is not None
                assert delivery.data == number
                info = stream.group("g").info()
                assert (info.lag, info.delayed) == (49 - number, 0)
                delivery.ack()


def test_large_entries_are_not_all_read_on(backend: ailf.Backend) -> None:
    """S20: a fetch reads on no further than a few large entries."""
    stream = backend.stream("s", type=bytes)
    stream.add_many([bytes(100_000)] * 60, key="busy")
    group = stream.group("g", lease=60, takeover=60)
    with group.consumer(prefetch=1) as consumer:
        assert consumer.get(5) is not None
        assert 0 < group.info().delayed < 10


def test_an_idle_consumer_beside_many_delayed_messages(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S7, S12: looking for what other programs left pending takes no longer the more messages are delayed."""
    stream = backend.stream("s")
    stream.add_many(range(3 * MANY))
    group = stream.group("g", lease=1, takeover=4)
    with group.consumer(prefetch=MANY) as consumer:
        for _ in range(3 * MANY):  # they are in the pending list, unlike messages that were added with a delay
            delivery = consumer.get(5)
            assert delivery is not None
            delivery.nack(delay=3600)
        steps(raw)
        assert consumer.get(2.5) is None
    scripts, commands = steps(raw)
    assert scripts < 20
    assert commands < 30


@pytest.fixture
def pending(backend: ailf.Backend) -> Iterator[list[Any]]:
    """The deliveries of a group that holds three times `MANY` messages; its consumer is closed later."""
    stream = backend.stream("s")
    stream.add_many(range(3 * MANY))
    held = stream.group("g", lease=60, takeover=60).consumer(prefetch=MANY)
    yield [held.get(5) for _ in range(3 * MANY)]
    held.close()


def test_a_seek_with_many_pending_messages(backend: ailf.Backend, raw: redis.Redis, pending: list[Any]) -> None:
    """S9: a seek forgets many pending messages in steps; old receipts are invalid, and all are delivered again."""
    group = backend.stream("s").group("g", lease=60, takeover=60)
    steps(raw)
    group.seek(ailf.EARLIEST)
    scripts, commands = steps(raw)
    assert 3 <= scripts <= 5
    assert commands < 30
    with pytest.raises(ailf.LeaseLostError):
        pending[0].ack()
    assert raw.hkeys("{ailf:stream:s}:notes:g") == [b"base"]
    with group.consumer(prefetch=MANY) as consumer:
        seen = [consumer.get(5) for _ in range(3 * MANY)]
        assert [(each.data, each.attempt) for each in seen if each] == [(number, 1) for number in range(3 * MANY)]


def test_a_seek_that_was_interrupted(
    backend: ailf.Backend, raw: redis.Redis, pending: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """S9, S11: after one step of a seek no old receipt is valid; fetches do the rest, and lease nothing before."""
    monkeypatch.setattr("ailf_redis.stream.RESET_STEPS", 0)
    group = backend.stream("s").group("g", lease=60, takeover=60)
    group.seek(ailf.EARLIEST)
    assert raw.xpending("{ailf:stream:s}", "g")["pending"] == 2 * MANY
    info = group.info()
    assert (info.pending, info.delayed, list(info.consumers.values())) == (0, 0, [0])
    with pytest.raises(ailf.LeaseLostError):
        pending[-1].ack()
    with group.consumer(prefetch=MANY) as consumer:
        for number in range(3 * MANY):
            delivery = consumer.get(5)
            assert delivery is not None
            assert (delivery.data, delivery.attempt) == (number, 1)
            delivery.ack()
        assert consumer.get(0) is None
    assert raw.xpending("{ailf:stream:s}", "g")["pending"] == 0


def test_a_dead_letter_that_is_redriven_during_a_seek(
    backend: ailf.Backend, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3, S16: it comes behind those of its key that were redriven before the seek, and all are delivered."""
    stream = backend.stream("s")
    group = stream.group("g", lease=60, takeover=60)
    stream.add_many(range(150))
    stream.add_many(range(150, 153), key="one")
    reject(group, 153)
    letters = [each.id for each in group.dead_letters.list(limit=153)]
    assert group.dead_letters.redrive(*letters[:-1]) == 152
    monkeypatch.setattr("ailf_redis.stream.RESET_STEPS", 0)
    group.seek(ailf.LATEST)
    assert raw.hexists("{ailf:stream:s}:notes:g", "anew")
    assert group.dead_letters.redrive(letters[-1]) == 1
    with group.consumer() as consumer:
        seen = []
        while (delivery := consumer.get(0.2)) is not None:
            seen.append(delivery.data)
            delivery.ack()
    assert [each for each in seen if each >= 150] == [150, 151, 152]
    assert len(seen) == 153


def test_messages_that_many_other_consumers_left_pending(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S12: however many consumers of another program hold a few messages each, a step looks at a page of these."""
    stream = backend.stream("s")
    stream.add_many(range(MANY))
    group = stream.group("g", lease=0.2, takeover=60)
    group.open()
    for number in range(MANY // 10):
        raw.xreadgroup("g", f"other {number}", {"{ailf:stream:s}": ">"}, count=10)
    time.sleep(0.3)
    steps(raw)
    with group.consumer() as consumer:
        assert consumer.get(5) is not None
        _, commands = steps(raw)
        assert commands < 200


def test_deleting_a_group_with_many_pending_messages(
    backend: ailf.Backend, raw: redis.Redis, pending: list[Any]
) -> None:
    """S9: a group with many pending messages is deleted in steps, and leaves no key."""
    steps(raw)
    backend.stream("s").group("g").delete()
    scripts, commands = steps(raw)
    assert 3 <= scripts <= 5
    assert commands < 30
    assert {key for key in raw.scan_iter() if b":bell:" not in key} == {
        b"{ailf:stream:s}",
        b"{ailf:stream:s}:meta",
    }
    with pytest.raises(ailf.LeaseLostError):
        pending[0].ack()


def test_the_ids_of_many_added_messages(backend: ailf.Backend) -> None:
    """S1: however many messages one call adds, it returns their ids."""
    ids = backend.stream("s").add_many([0] * 120_000)
    assert len(set(ids)) == 120_000
    assert backend.stream("s").group("g").info().length == 120_000


def test_listing_many_dead_letters(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S16: however large the limit, each request reads a page."""
    stream = backend.stream("s")
    stream.add_many(range(250))
    group = stream.group("g", lease=60, takeover=60)
    reject(group, 250)
    raw.config_resetstat()
    letters = group.dead_letters.list(limit=10**30)
    assert [json.loads(each.body) for each in letters] == list(range(250))
    assert raw.info("commandstats")["cmdstat_xrange"]["calls"] == 3


def test_redriving_many_named_dead_letters(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S16: however many dead letters a call names, each step takes a page of them."""
    stream = backend.stream("s")
    stream.add_many(range(MANY))
    group = stream.group("g", lease=60, takeover=60)
    reject(group, MANY)
    letters = [each.id for each in group.dead_letters.list(limit=MANY)]
    steps(raw)
    assert group.dead_letters.redrive(*letters) == MANY
    scripts, commands = steps(raw)
    assert scripts == MANY // 100
    assert commands < STEP


def test_a_large_prefetch(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S2: one step leases a bounded number of messages, new ones and ones that are due again, whatever is asked for."""
    stream = backend.stream("s")
    stream.add_many(range(3 * MANY))
    group = stream.group("g", lease=60, takeover=60)
    for attempt in (1, 2):
        steps(raw)
        with group.consumer(prefetch=3 * MANY) as consumer:
            for _ in range(3 * MANY):
                assert consumer.get(5) is not None
            scripts, commands = steps(raw)
            assert scripts >= 6
            assert commands < STEP, attempt


def dead_waiters(raw: redis.Redis, key: str) -> None:
    """Fill a wait queue with waiters that are dead."""
    raw.zadd(f"{key}:queue", {f"{number}": number for number in range(MANY)})
    raw.hset(f"{key}:waiters", mapping={f"{number}": "1 1 0 nowhere" for number in range(MANY)})


def test_a_wait_queue_of_dead_waiters(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L12, R10: however many waiters are dead, each request passes some of them, and a living one is granted."""
    limiter = backend.rate_limiter("r", "5/minute")
    for key, attempt in (
        ("{ailf:lock:l}", lambda: backend.lock("l", fair=True).try_acquire()),
        ("{ailf:limit:r:k}", lambda: limiter.try_acquire("k").allowed or None),
    ):
        dead_waiters(raw, key)
        steps(raw)
        tries = 1
        while attempt() is None:
            tries += 1
            assert tries <= MANY // 100 + 2
        assert tries > 2
        assert steps(raw)[1] < STEP


def test_a_wait_queue_without_subscribers(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L11: if no waiter is subscribed, a release notifies a bounded number of them."""
    lease = backend.lock("l").acquire()
    soon = int(time.time() * 1000) + 60_000
    raw.zadd("{ailf:lock:l}:queue", {f"{number}": number for number in range(MANY)})
    raw.hset("{ailf:lock:l}:waiters", mapping={f"{number}": f"{soon} {soon} 0 nowhere" for number in range(MANY)})
    steps(raw)
    lease.release()
    assert steps(raw)[1] < STEP


def test_a_semaphore_with_many_ended_grants(backend: ailf.Backend, raw: redis.Redis) -> None:
    """L16: permits whose grants have ended are free again, a bounded number with each request."""
    semaphore = backend.semaphore("l", MANY)
    raw.zadd("{ailf:lock:l}", {f"{number}": 1 for number in range(MANY)})
    leases = []
    for _ in range(MANY // 50):
        steps(raw)
        leases.append(semaphore.try_acquire())
        assert steps(raw)[1] < STEP
    assert None not in leases
    assert len(semaphore.inspect().holders) == len(leases)


WINDOW = ailf.SlidingWindow(10, per=1.0, buckets=10)


def test_a_window_with_sums_that_are_rounded(backend: ailf.Backend, raw: redis.Redis) -> None:
    """R7, R9: two calls that were settled to more than a double holds don't let a later call loop for ever."""
    limiter = backend.rate_limiter("r", WINDOW)
    limiter.try_acquire("k")
    key = "{ailf:limit:r:k}"
    began = str(raw.get(key), "ascii").partition(",")[0]  # type: ignore[arg-type]
    raw.set(key, f"{began},3,{2**53};")  # the state after two calls in two buckets were settled to these costs
    assert not limiter.try_acquire("k", cost=10).allowed
    assert raw.ping()


def test_a_window_that_was_charged_when_the_clock_was_ahead(backend: ailf.Backend, raw: redis.Redis) -> None:
    """R6, R9: settling a call of another time takes as many steps as a window has buckets, on both backends."""
    limiter_key, far = LimiterKey("r", "k"), int(time.time() * 10) + 2_000_000
    driver = backend.engine.driver.rate_limiter()
    backend.rate_limiter("r", WINDOW).try_acquire("k")
    run(driver.settle(limiter_key, "token", [Charge("", WINDOW, 1, (far,), 5)]))
    assert raw.get("{ailf:limit:r:k}").split(b":")[1].count(b",") <= 12  # type: ignore[union-attr]
    state: Any = SlidingWindowAlgorithm(WINDOW).settle((1000, 1), 1000, (10**6,), 1, 5)
    assert len(state) <= 12


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_a_page_of_the_largest_headers(any_server: Server, namespace: str, flavour: str) -> None:
    """S1, S17: entries can be read however long their headers are as JSON: here 70 MB, six bytes for each."""
    url = f"{any_server.url}?namespace={namespace}&max_payload=1000&timeout=20"
    headers = {"h": "\x01" * 65_000}

    async def main() -> list[ailf.Entry[Any]]:
        async with ailf.connect_async(url) as backend:
            return await backend.stream("s").read(limit=180)

    with ailf.connect(url) as backend:
        stream = backend.stream("s")
        stream.add_many(range(180), headers=headers)
        entries = stream.read(limit=180) if flavour == "blocking" else asyncio.run(main())
        assert [each.data for each in entries] == list(range(180))
        assert entries[-1].headers == headers
        stream.delete()


def test_an_entry_of_ours_at_its_largest() -> None:
    """B5: an entry or dead letter of the largest size is no larger than a page allows for each."""
    headers = check_headers({f"{number:02}" + "\x01" * 510: "\x01" * 512 for number in range(64)})
    longest = ("\U0001f98a" * LONGEST).encode()
    head = [b"ailf.origin", b"9" * 41, b"ailf.reason", longest, b"ailf.error", longest, b"ailf.attempts", b"9" * 20]
    name, namespace = "}" * MAX_NAME, "n" * MAX_NAME
    how = [b"ailf.how", b"9" * 60 + b"k" * MAX_NAME, b"ailf.once", Keys(namespace).once(name, name).encode()]
    fields = [*head, *how, b"ailf.body", b"x" * 1000, b"ailf.headers", headers_field(headers)]
    executor = BlockingExecutor(Settings.from_url("redis://h?max_payload=1000"))
    assert executor.entry > len(packed([fields]))
    assert executor.max_size(1000) >= 1000 * executor.entry
    with pytest.raises(ailf.InvalidArgumentError):
        check_headers({**headers, "one": "more"})


LARGE, HUGE = 23_000_000, 68_000_000
"""Bytes of an entry of which no reply can hold three, and of an entry that no reply can hold."""


@NEWEST
def test_large_entries_of_others(server: Server, namespace: str) -> None:
    """S5, S13, S16: foreign entries too large for one fetch become dead letters, which can be purged; others don't."""
    url = f"{server.url}?namespace={namespace}&max_payload=1000&timeout=20"
    with ailf.connect(url) as backend, server.client() as admin:
        stream = backend.stream("s")
        stream.add("first", key="k")
        for _ in range(3):
            admin.xadd(f"{{{namespace}:stream:s}}", {"x": b"x" * LARGE})
        stream.add("second", key="k")
        stream.add("third")
        group = stream.group("g", max_deliveries=1)
        with group.consumer(prefetch=10) as consumer:
            for expected in ("first", "third", "second"):  # the last one waited for the first of its key
                delivery = consumer.get(5)
                assert delivery is not None
                assert (delivery.data, delivery.attempt) == (expected, 1)
                delivery.ack()
        assert (group.info().dead, group.info().pending, group.info().delayed) == (3, 0, 0)
        assert group.dead_letters.purge_all() == 3
        stream.delete()


def test_a_page_of_large_entries_of_others(any_server: Server, namespace: str) -> None:
    """S16, S17: a page of entries or dead letters that no reply can hold together is read in pieces, in order."""
    url = f"{any_server.url}?namespace={namespace}&max_payload=1000&timeout=20"
    with ailf.connect(url) as backend, any_server.client() as admin:
        stream, key = backend.stream("s"), f"{{{namespace}:stream:s}}"
        group = stream.group("g")
        group.open()
        for each in (key, f"{key}:dead:g"):
            ids = [admin.xadd(each, {"x": b"x" * LARGE}).decode() for _ in range(3)]
        assert [(each.id, len(each.body) > LARGE) for each in group.dead_letters.list()] == [
            (each, True) for each in ids
        ]
        with pytest.raises(ailf.DecodeError, match="max_payload"):
            stream.read(limit=10)
        stream.delete()


def test_entries_put_off_keep_their_order(server: Server, namespace: str) -> None:
    """S2, S3: entries that don't fit in one reply come with later ones, in order, to any consumer, with attempt 1."""
    url = f"{server.url}?namespace={namespace}&max_payload=5000000&timeout=20"
    with ailf.connect(url) as backend:
        stream = backend.stream("s", type=bytes)
        stream.add_many([b"%02d" % number + bytes(4_000_000) for number in range(13)])
        group = stream.group("g", max_deliveries=1, lease=60, takeover=60)
        with group.consumer(prefetch=13) as one, group.consumer(prefetch=13) as other:
            first = one.get(5)
            assert first is not None
            begun = [other.get(5) for _ in range(5)]
            taken = [first, *(one.get(5) for _ in range(7)), *begun]
            assert [each and (int(each.data[:2]), each.attempt) for each in taken] == [(n, 1) for n in range(13)]
            for each in taken:
                assert each is not None
                each.ack()
        assert (group.info().pending, group.info().dead) == (0, 0)
        stream.delete()


def test_parked_entries_put_off_keep_their_options(server: Server, namespace: str) -> None:
    """S5: delayed entries that don't fit in one reply keep their order and their own `max_deliveries`."""
    url = f"{server.url}?namespace={namespace}&max_payload=20000000&timeout=20"
    with ailf.connect(url) as backend, server.client() as admin:
        stream = backend.stream("s", type=bytes)
        group = stream.group("g", lease=60, takeover=60)
        for number in range(3):
            stream.add(b"%d" % number + bytes(15_000_000), delay=3600, max_deliveries=1)
        with group.consumer(prefetch=3) as consumer:
            assert consumer.get(0) is None
            due = f"{{{namespace}:stream:s}}:due:g"
            for rank, (member, _) in enumerate(admin.zrange(due, 0, -1, withscores=True)):
                admin.zadd(due, {member: rank})
            for number in range(3):
                delivery = consumer.get(10)
                assert delivery is not None
                assert (delivery.data[:1], delivery.attempt) == (b"%d" % number, 1)
                delivery.nack()
            assert consumer.get(0) is None
        assert group.info().dead == 3
        stream.delete()


def test_an_entry_that_no_reply_can_hold(any_server: Server, namespace: str) -> None:
    """S13, S16: an entry that no reply can hold becomes a dead letter, which is listed by id, redriven and purged."""
    url = f"{any_server.url}?namespace={namespace}&max_payload=1000&timeout=20"
    with ailf.connect(url) as backend, any_server.client() as admin:
        stream = backend.stream("s")
        entry = admin.xadd(f"{{{namespace}:stream:s}}", {"x": b"x" * HUGE}).decode()
        stream.add("behind it")
        group = stream.group("g", max_deliveries=1)
        with group.consumer(prefetch=10) as consumer:
            delivery = consumer.get(5)
            assert delivery is not None
            assert delivery.data == "behind it"
            delivery.ack()
            letters = group.dead_letters
            assert [(each.reason, each.body, str(HUGE)[:2] in each.error) for each in letters.list()] == [
                ("undecodable", b"", True)
            ]
            assert letters.redrive_all() == 1
            assert consumer.get(0) is None
        assert letters.purge_all() == 1
        with pytest.raises(ailf.DecodeError, match=f"{entry}.*more than a reply"):
            stream.read(limit=2)
        stream.delete()


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_following_past_an_entry_that_no_reply_can_hold(any_server: Server, namespace: str, flavour: str) -> None:
    """S17: a tail passes an entry that no reply can hold: when it is read, waited for, or the last one."""
    url = f"{any_server.url}?namespace={namespace}&max_payload=1000&timeout=20"

    async def flow() -> None:
        backend: Any = await ailf.connect_async(url) if flavour == "asyncio" else ailf.connect(url)
        driver = backend.engine.driver.stream()
        with any_server.client() as admin:
            key = f"{{{namespace}:stream:s}}"
            waiter = driver.waiter("s", None)
            entry = admin.xadd(key, {"x": b"x" * HUGE}).decode()
            assert await waiter.wait("0-0", 1.0)
            await waiter.close()
            assert await driver.last_id("s") == entry
            admin.xadd(key, {"ailf.body": "1"})
            records = await driver.read("s", ailf.EARLIEST, ailf.LATEST, 10)
            assert [(each.id == entry, each.body, "bytes" in each.problem) for each in records] == [
                (True, b"", True), (False, b"1", False)
            ]  # fmt: skip
            admin.delete(key)
        await backend.aclose() if flavour == "asyncio" else backend.close()

    if flavour == "asyncio":
        asyncio.run(flow())
    else:
        run(flow())


@pytest.mark.parametrize("stored", ["a b " + "x" * 60_000 + "  ", "{epoch} t 1-1" + " " * 60_000, "{epoch} t x", ""])
def test_a_dedup_key_of_another_program(server: Server, namespace: str, stored: str) -> None:
    """S7: a dedup key that isn't ours makes no duplicate, however long it is, and is replaced."""
    with ailf.connect(f"{server.url}?namespace={namespace}&timeout=2&retry_for=0") as backend, server.client() as admin:
        key, stream = f"{{{namespace}:stream:s}}", backend.stream("s")
        stream.add_once("first", 1)
        admin.set(f"{key}:once:id", stored.replace("{epoch}", admin.hget(f"{key}:meta", "epoch").decode()))
        timed = admin.xadd(key, {"ailf.how": f"{2**52}||", "ailf.once": f"{key}:once:id", "ailf.body": "1"})
        assert stream.cancel(timed.decode())
        added = stream.add_once("id", 2)
        assert not added.duplicate
        assert stream.add_once("id", 3) == ailf.Added(added.id, duplicate=True)
        for junk in ("", "a b", "x" * 60_000):
            admin.hset(f"{key}:meta", "epoch", junk)
            assert [stream.add_once("id", 4).duplicate for _ in range(2)] == [False, True]
        stream.delete()


@pytest.mark.parametrize("junk", ["junk", "0" * 20_000 + "x", ""])
def test_a_lane_with_junk_in_it(server: Server, namespace: str, junk: str) -> None:
    """S3: messages with an ordering key are delivered, whatever another program adds to their lane."""
    with ailf.connect(f"{server.url}?namespace={namespace}&timeout=2&retry_for=0") as backend, server.client() as admin:
        stream = backend.stream("s")
        group = stream.group("g")
        group.open()
        admin.zadd(f"{{{namespace}:stream:s}}:queue:g", {f"1:k:{junk}": 0})
        stream.add_many(range(3), key="k")
        with group.consumer() as consumer:
            for number in range(3):
                delivery = consumer.get(1)
                assert delivery is not None
                assert delivery.data == number
                delivery.ack()
        stream.delete()
