"""Every call of the public interface checks its arguments first, in both flavours, and a wrong one changes nothing.

A row is an argument: a call that passes it, and values that are refused. Both flavours have the same methods, so a row
serves both. A new method or argument belongs in the table; the exceptions are listed at the end of this file.
"""

import asyncio
import inspect
import math
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from typing import Any

import attrs
import fakeredis
import pytest

import ailf
from ailf import Concurrency, FixedWindow, InvalidArgumentError, SlidingWindow, TokenBucket
from ailf.llm import llm_limits
from ailf.testing import ManualClock
from ailf_memory import AsyncMemoryBackend, MemoryBackend, MemoryStore
from ailf_redis import RedisBackend, Settings

FLAVOURS = ["blocking", "asyncio"]

NAMES: list[Any] = ["", None, 5, b"name", ["name"], "n" * 513, "\ud800"]
TEXTS: list[Any] = ["", 5, b"text", ["text"]]
FLAGS: list[Any] = ["yes", "", 0, 1, None]
SIGNALS: list[Any] = ["yes", "", 0, 1]
COUNTS: list[Any] = [0, -1, 1.0, 1.5, True, "1", b"1", [1], math.nan]
WAITS: list[Any] = [-1, -0.001, math.nan, math.inf, -math.inf, "1", b"1", True, [1]]
TIMES: list[Any] = [*WAITS, 0]
COSTS: list[Any] = [-1, 1.0, 1.5, True, "1", None, math.nan]
SOME_KEYS: list[Any] = [5, ["a"], "a", {}, {"c": "k"}, {"a": 5}, {"a": ""}, {"a": ["k"]}, {"a": "n" * 513}]
KEYS: list[Any] = [{"a": "k"}, *({"b": "k"} | each if isinstance(each, dict) else each for each in SOME_KEYS)]
"""Keys of a budget tree that lack one, have one too many, or one that can't be used."""
PREFIXES: list[Any] = [None, 5, b"name", ["name"], "n" * 513, "\ud800"]
SIZES: list[Any] = [*COUNTS, None, 10_001]
CURSORS: list[Any] = [
    None,
    5,
    b"c",
    "0",
    "nonsense",
    "streams",
    "streams:a:b",
    "streams:%",
    "\ud800",
    "\udc80",
    "c" * 99_999,
]
CALLABLES: list[Any] = [5, "handler", [print]]
HEADERS: list[Any] = [
    5, "a", b"a", ["a"], [("a", "b")], (), 0, {"a": 1}, {1: "a"}, {"": "a"}, {"a": ""}, {"a": None}, {"a": "\ud800"},
    {str(number): "a" for number in range(65)},
]  # fmt: skip
LISTS: list[Any] = [5, "text", b"bytes", None, {"a": 1}]
POSITIONS: list[Any] = ["", 5, "\0", b"0-1", None, datetime(2026, 1, 1), ["0-1"]]  # noqa: DTZ001 - it has no zone


def body(message: Any) -> None:
    """A handler that does nothing."""


@attrs.frozen
class Targets:
    """The objects whose methods are called."""

    backend: Any
    pubsub: Any
    stream: Any
    group: Any
    lock: Any
    limiter: Any
    many: Any
    tree: Any

    @classmethod
    def on(cls, backend: Any) -> "Targets":
        """Make the objects on a backend."""
        stream = backend.stream("s")
        return cls(
            backend=backend,
            pubsub=backend.pubsub(),
            stream=stream,
            group=stream.group("g"),
            lock=backend.lock("l"),
            limiter=backend.rate_limiter("r", "5/hour"),
            many=backend.rate_limiter("many", a="5/hour", b="2 parallel"),
            tree=backend.rate_limiter("tree", root="r", a="5/hour", b="2 parallel"),
        )


def worker(targets: Targets, handler: Any, **options: Any) -> Any:
    """Call `process_messages` of the stream, with a group."""

    async def on_asyncio() -> None:
        await targets.stream.create_consumer_group("joined")
        try:
            await targets.stream.process_messages(handler, **options)
        finally:
            await targets.stream.group("joined").delete()

    if isinstance(targets.stream, ailf.AsyncStream):
        return on_asyncio()
    targets.stream.create_consumer_group("joined")
    try:
        return targets.stream.process_messages(handler, **options)
    finally:
        targets.stream.group("joined").delete()


Give = Callable[[Targets, Any], Any]

ROWS: dict[str, tuple[Give, list[Any]]] = {
    # --- the backend
    "pubsub(on_error=)": (lambda o, bad: o.backend.pubsub(on_error=bad), CALLABLES),
    "pubsub(sharded=)": (lambda o, bad: o.backend.pubsub(sharded=bad), FLAGS),
    "pubsub(validate=)": (lambda o, bad: o.backend.pubsub(validate=bad), FLAGS),
    "stream(validate=)": (lambda o, bad: o.backend.stream("s", validate=bad), FLAGS),
    "stream(name)": (lambda o, bad: o.backend.stream(bad), NAMES),
    "stream(retention=)": (lambda o, bad: o.backend.stream("s", retention=bad), [5, "100", {"max_len": 5}, 0, False]),
    "stream(partitions=)": (lambda o, bad: o.backend.stream("s", partitions=bad), [*COUNTS, 257]),
    "lock(*names)": (lambda o, bad: o.backend.lock("l", bad), NAMES),
    "lock()": (lambda o, bad: o.backend.lock(*bad), [()]),
    "lock(ttl=)": (lambda o, bad: o.backend.lock("l", ttl=bad), [*TIMES, None]),
    "lock(fair=)": (lambda o, bad: o.backend.lock("l", fair=bad), FLAGS),
    "lock(renew=)": (lambda o, bad: o.backend.lock("l", renew=bad), FLAGS),
    "semaphore(name)": (lambda o, bad: o.backend.semaphore(bad, 2), NAMES),
    "semaphore(permits)": (lambda o, bad: o.backend.semaphore("l", bad), [*COUNTS, None]),
    "semaphore(ttl=)": (lambda o, bad: o.backend.semaphore("l", 2, ttl=bad), [*TIMES, None]),
    "semaphore(fair=)": (lambda o, bad: o.backend.semaphore("l", 2, fair=bad), FLAGS),
    "semaphore(renew=)": (lambda o, bad: o.backend.semaphore("l", 2, renew=bad), FLAGS),
    "rate_limiter(name)": (lambda o, bad: o.backend.rate_limiter(bad, "5/hour"), NAMES),
    "rate_limiter(limit)": (lambda o, bad: o.backend.rate_limiter("r", bad), [5, "", "many", b"5/hour", ["5/hour"]]),
    "rate_limiter(**limits)": (lambda o, bad: o.backend.rate_limiter("r", a=bad), [5, "", None, ["5/hour"]]),
    "rate_limiter(on_backend_error=)": (
        lambda o, bad: o.backend.rate_limiter("r", "5/hour", on_backend_error=bad),
        ["", "ignore", None, 5, ["allow"]],
    ),
    "rate_limiter(root=)": (
        lambda o, bad: o.backend.rate_limiter("r", a="5/hour", root=bad),
        [each for each in NAMES if each is not None],
    ),
    "rate_limiter(count_denied=)": (lambda o, bad: o.backend.rate_limiter("r", "5/hour", count_denied=bad), FLAGS),
    "rate_limiter(cache_denials=)": (lambda o, bad: o.backend.rate_limiter("r", "5/hour", cache_denials=bad), FLAGS),
    "instrument(*instruments)": (lambda o, bad: o.backend.instrument(bad), [5, "otel", None, object()]),
    "streams(prefix)": (lambda o, bad: o.backend.streams(bad), PREFIXES),
    "streams(page_size=)": (lambda o, bad: o.backend.streams(page_size=bad), SIZES),
    "locks(prefix)": (lambda o, bad: o.backend.locks(bad), PREFIXES),
    "locks(page_size=)": (lambda o, bad: o.backend.locks(page_size=bad), SIZES),
    "limiters(prefix)": (lambda o, bad: o.backend.limiters(bad), PREFIXES),
    "limiters(page_size=)": (lambda o, bad: o.backend.limiters(page_size=bad), SIZES),
    "page(cursor)": (lambda o, bad: o.backend.streams().page(bad), [*CURSORS, "groups:a"]),
    "page(max_items)": (lambda o, bad: o.backend.streams().page("", bad), SIZES),
    "unwrap(kind)": (lambda o, bad: o.backend.unwrap(bad), [5, "redis", None, int]),
    # --- pub/sub
    "publish(channel)": (lambda o, bad: o.pubsub.publish(bad, 1), NAMES),
    "publish(headers=)": (lambda o, bad: o.pubsub.publish("c", 1, headers=bad), HEADERS),
    "publish_many(messages)": (
        lambda o, bad: o.pubsub.publish_many(bad),
        [*LISTS, ["ab"], [5], [("c",)], [("c", 1, 2)], [("c", 1), ("", 2)], [("c", 1), None]],
    ),
    "publish_many(headers=)": (lambda o, bad: o.pubsub.publish_many([("c", 1)], headers=bad), HEADERS),
    "request(channel)": (lambda o, bad: o.pubsub.request(bad, 1), NAMES),
    "request(timeout=)": (lambda o, bad: o.pubsub.request("c", 1, timeout=bad), [*TIMES, None]),
    "request(headers=)": (lambda o, bad: o.pubsub.request("c", 1, headers=bad), HEADERS),
    "request_many(channel)": (lambda o, bad: o.pubsub.request_many(bad, 1), NAMES),
    "request_many(count=)": (lambda o, bad: o.pubsub.request_many("c", 1, count=bad), COUNTS),
    "request_many(timeout=)": (lambda o, bad: o.pubsub.request_many("c", 1, timeout=bad), [*TIMES, None]),
    "request_many(headers=)": (lambda o, bad: o.pubsub.request_many("c", 1, headers=bad), HEADERS),
    "channels(prefix)": (lambda o, bad: o.pubsub.channels(bad), PREFIXES),
    "listen(*channels)": (lambda o, bad: o.pubsub.listen("c", bad), NAMES),
    "listen()": (lambda o, bad: o.pubsub.listen(*bad), [()]),
    "listen(pattern=)": (lambda o, bad: o.pubsub.listen("c", pattern=bad), ["", 5, b"p", [""], [5], ["p", None]]),
    "listen(buffer=)": (lambda o, bad: o.pubsub.listen("c", buffer=bad), [*COUNTS, None]),
    "listen(overflow=)": (
        lambda o, bad: o.pubsub.listen("c", overflow=bad),
        ["drop_oldest", "close", None, 1, ailf.Overflow, ailf.OnLost.CANCEL],
    ),
    "subscribe(channel)": (lambda o, bad: o.pubsub.subscribe(bad, body), NAMES),
    "subscribe(handler)": (lambda o, bad: o.pubsub.subscribe("c", bad), [*CALLABLES, None]),
    "subscribe(pattern=)": (lambda o, bad: o.pubsub.subscribe("c", body, pattern=bad), FLAGS),
    "unsubscribe(channel)": (lambda o, bad: o.pubsub.unsubscribe(bad), NAMES),
    "unsubscribe(pattern=)": (lambda o, bad: o.pubsub.unsubscribe("c", pattern=bad), FLAGS),
    # --- streams
    "add(headers=)": (lambda o, bad: o.stream.add(1, headers=bad), HEADERS),
    "add(key=)": (lambda o, bad: o.stream.add(1, key=bad), ["", 5, b"k", ["k"], "n" * 513]),
    "add(delay=)": (lambda o, bad: o.stream.add(1, delay=bad), WAITS),
    "add(at=)": (lambda o, bad: o.stream.add(1, at=bad), [5, "tomorrow", datetime(2026, 1, 1), 0]),  # noqa: DTZ001
    "add(max_deliveries=)": (lambda o, bad: o.stream.add(1, max_deliveries=bad), COUNTS),
    "add_many(items)": (lambda o, bad: o.stream.add_many(bad), LISTS),
    "add_many(headers=)": (lambda o, bad: o.stream.add_many([1], headers=bad), HEADERS),
    "add_many(key=)": (lambda o, bad: o.stream.add_many([1], key=bad), ["", 5]),
    "add_many(delay=)": (lambda o, bad: o.stream.add_many([1], delay=bad), WAITS),
    "add_many(at=)": (lambda o, bad: o.stream.add_many([1], at=bad), [5, "tomorrow"]),
    "add_many(max_deliveries=)": (lambda o, bad: o.stream.add_many([1], max_deliveries=bad), COUNTS),
    "add_once(dedup_id)": (lambda o, bad: o.stream.add_once(bad, 1), NAMES),
    "add_once(window=)": (lambda o, bad: o.stream.add_once("d", 1, window=bad), [*TIMES, None]),
    "add_once(headers=)": (lambda o, bad: o.stream.add_once("d", 1, headers=bad), HEADERS),
    "add_once(key=)": (lambda o, bad: o.stream.add_once("d", 1, key=bad), ["", 5]),
    "add_once(delay=)": (lambda o, bad: o.stream.add_once("d", 1, delay=bad), WAITS),
    "add_once(at=)": (lambda o, bad: o.stream.add_once("d", 1, at=bad), [5, "tomorrow"]),
    "add_once(max_deliveries=)": (lambda o, bad: o.stream.add_once("d", 1, max_deliveries=bad), COUNTS),
    "cancel(id)": (lambda o, bad: o.stream.cancel(bad), [*TEXTS, None]),
    "trim(retention)": (lambda o, bad: o.stream.trim(bad), [5, "100", 0, None, ailf.Retention()]),
    "read(start)": (lambda o, bad: o.stream.read(bad), POSITIONS),
    "read(end=)": (lambda o, bad: o.stream.read(end=bad), POSITIONS),
    "read(limit=)": (lambda o, bad: o.stream.read(limit=bad), [*COUNTS, None]),
    "tail(start)": (lambda o, bad: o.stream.tail(bad), POSITIONS),
    "group(name)": (lambda o, bad: o.stream.group(bad), NAMES),
    "group(start=)": (lambda o, bad: o.stream.group("g", start=bad), POSITIONS),
    "group(lease=)": (lambda o, bad: o.stream.group("g", lease=bad), [*TIMES, None]),
    "group(takeover=)": (lambda o, bad: o.stream.group("g", takeover=bad), [*TIMES, None]),
    "group(max_deliveries=)": (lambda o, bad: o.stream.group("g", max_deliveries=bad), [*COUNTS, None]),
    "group(backoff=)": (lambda o, bad: o.stream.group("g", backoff=bad), [1.0, 0, False, "exponential", {}, [1, 2]]),
    "group(max_processing=)": (lambda o, bad: o.stream.group("g", max_processing=bad), [*TIMES, None]),
    "group(on_event=)": (lambda o, bad: o.stream.group("g", on_event=bad), CALLABLES),
    "group(key_concurrency=)": (lambda o, bad: o.stream.group("g", key_concurrency=bad), [*COUNTS, 101, None]),
    "create_consumer_group(group)": (lambda o, bad: o.stream.create_consumer_group(bad), NAMES),
    "create_consumer_group(consumer)": (lambda o, bad: o.stream.create_consumer_group("g", bad), TEXTS),
    "process_messages(handler)": (worker, [*CALLABLES, None]),
    "process_messages(concurrency=)": (lambda o, bad: worker(o, body, concurrency=bad), [*COUNTS, None]),
    "process_messages(prefetch=)": (lambda o, bad: worker(o, body, prefetch=bad), COUNTS),
    "process_messages(drain=)": (lambda o, bad: worker(o, body, drain=bad), [*WAITS, None]),
    "process_messages(timeout=)": (lambda o, bad: worker(o, body, timeout=bad), TIMES),
    "process_messages(on_lost=)": (lambda o, bad: worker(o, body, on_lost=bad), ["cancel", None, 0, True]),
    "process_messages(signals=)": (lambda o, bad: worker(o, body, signals=bad), SIGNALS),
    "run(concurrency=)": (lambda o, bad: o.pubsub.run(concurrency=bad), [*COUNTS, None]),
    "run(signals=)": (lambda o, bad: o.pubsub.run(signals=bad), SIGNALS),
    "create_consumer_group(start=)": (lambda o, bad: o.stream.create_consumer_group("g", start=bad), POSITIONS),
    "groups(page_size=)": (lambda o, bad: o.stream.groups(page_size=bad), SIZES),
    "page(cursor) of groups": (lambda o, bad: o.stream.groups().page(bad), [*CURSORS, "streams:a"]),
    # --- groups
    "consumers(page_size=)": (lambda o, bad: o.group.consumers(page_size=bad), SIZES),
    "page(cursor) of consumers": (lambda o, bad: o.group.consumers().page(bad), [*CURSORS, "groups:a"]),
    "seek(position)": (lambda o, bad: o.group.seek(bad), POSITIONS),
    "inspect(id)": (lambda o, bad: o.group.inspect(bad), [*TEXTS, None]),
    "consumer(name)": (lambda o, bad: o.group.consumer(bad), TEXTS),
    "consumer(prefetch=)": (lambda o, bad: o.group.consumer(prefetch=bad), [*COUNTS, None]),
    "consumer.take(timeout)": (lambda o, bad: o.group.consumer().take(bad), WAITS),
    "consumer.get(timeout)": (lambda o, bad: o.group.consumer().get(bad), WAITS),
    "consumer.get_many(n)": (lambda o, bad: o.group.consumer().get_many(bad, 0), [*COUNTS, None]),
    "consumer.get_many(timeout)": (lambda o, bad: o.group.consumer().get_many(1, bad), WAITS),
    "process(batch=)": (lambda o, bad: o.group.process(body, batch=bad), COUNTS),
    "process(linger=)": (lambda o, bad: o.group.process(body, batch=2, linger=bad), [*WAITS, None]),
    "process(handler)": (lambda o, bad: o.group.process(bad), [*CALLABLES, None]),
    "process(concurrency=)": (lambda o, bad: o.group.process(body, concurrency=bad), [*COUNTS, None]),
    "process(prefetch=)": (lambda o, bad: o.group.process(body, prefetch=bad), COUNTS),
    "process(drain=)": (lambda o, bad: o.group.process(body, drain=bad), [*WAITS, None]),
    "process(consumer=)": (lambda o, bad: o.group.process(body, consumer=bad), TEXTS),
    "process(timeout=)": (lambda o, bad: o.group.process(body, timeout=bad), TIMES),
    "process(on_lost=)": (lambda o, bad: o.group.process(body, on_lost=bad), ["cancel", None, 0, True]),
    "process(threads=)": (lambda o, bad: o.group.process(body, threads=bad), FLAGS),
    "process(signals=)": (lambda o, bad: o.group.process(body, signals=bad), SIGNALS),
    "process(until_idle=)": (lambda o, bad: o.group.process(body, until_idle=bad), FLAGS),
    "dead_letters.list(after=)": (lambda o, bad: o.group.dead_letters.list(after=bad), [5, None, b"1", ["1"]]),
    "dead_letters.list(limit=)": (lambda o, bad: o.group.dead_letters.list(limit=bad), [*COUNTS, None]),
    "dead_letters.redrive(*letters)": (lambda o, bad: o.group.dead_letters.redrive(bad), [*TEXTS, None]),
    "dead_letters.redrive()": (lambda o, bad: o.group.dead_letters.redrive(*bad), [()]),
    "dead_letters.purge(*letters)": (lambda o, bad: o.group.dead_letters.purge(bad), [*TEXTS, None]),
    # --- locks
    "lock.acquire(timeout)": (lambda o, bad: o.lock.acquire(bad), [*WAITS, False]),
    "lock.hold(timeout)": (lambda o, bad: o.lock.hold(bad), [*WAITS, False]),
    "lock.hold(on_lost=)": (lambda o, bad: o.lock.hold(on_lost=bad), ["cancel", None, 1, ailf.OnLost]),
    "lock.held(timeout)": (lambda o, bad: o.lock.held(bad), [*WAITS, False, body]),
    "lock.held(on_lost=)": (lambda o, bad: o.lock.held(on_lost=bad), ["cancel", None, 1, ailf.OnLost]),
    "lock.held()(function)": (lambda o, bad: o.lock.held()(bad), [*CALLABLES, None]),
    "lock.break_(fence)": (lambda o, bad: o.lock.break_(bad), [*COUNTS, None]),
    # --- rate limiters
    "try_acquire(keys=)": (lambda o, bad: o.tree.try_acquire(keys=bad), KEYS),
    "acquire(keys=)": (lambda o, bad: o.tree.acquire(keys=bad), KEYS),
    "hold(keys=)": (lambda o, bad: o.tree.hold(keys=bad), KEYS),
    "limited(keys=)": (lambda o, bad: o.tree.limited(keys=bad), KEYS),
    "reserve(keys=)": (lambda o, bad: o.tree.reserve(keys=bad), KEYS),
    "peek(keys=)": (lambda o, bad: o.tree.peek(keys=bad), SOME_KEYS),
    "reset(keys=)": (lambda o, bad: o.tree.reset(keys=bad), SOME_KEYS),
    "observe(keys=)": (lambda o, bad: o.tree.observe(keys=bad, limit="a", remaining=1), [*SOME_KEYS, {"b": "k"}]),
    "try_acquire(key)": (lambda o, bad: o.limiter.try_acquire(bad), [*NAMES[1:], {}, True]),
    "try_acquire(cost=)": (lambda o, bad: o.limiter.try_acquire(cost=bad), COSTS),
    "try_acquire(**costs)": (lambda o, bad: o.many.try_acquire(**bad), [{"c": 1}, {"cost": 1}, {"a": -1}, {"b": "1"}]),
    "acquire(key)": (lambda o, bad: o.limiter.acquire(bad), [*NAMES[1:], {}]),
    "acquire(timeout=)": (lambda o, bad: o.limiter.acquire(timeout=bad), WAITS),
    "acquire(**costs)": (lambda o, bad: o.many.acquire(**bad), [{"c": 1}, {"cost": 1}, {"a": -1}]),
    "hold(key)": (lambda o, bad: o.limiter.hold(bad), [*NAMES[1:], {}]),
    "hold(timeout=)": (lambda o, bad: o.limiter.hold(timeout=bad), WAITS),
    "hold(**costs)": (lambda o, bad: o.many.hold(**bad), [{"c": 1}, {"cost": 1}, {"a": -1}]),
    "limited(key)": (lambda o, bad: o.limiter.limited(bad), [None, 5, b"k", ["k"], {}, "n" * 513]),
    "limited(timeout=)": (lambda o, bad: o.limiter.limited(timeout=bad), WAITS),
    "limited(**costs)": (lambda o, bad: o.many.limited(**bad), [{"c": 1}, {"cost": 1}, {"a": -1}]),
    "limited()(function)": (lambda o, bad: o.limiter.limited()(bad), [*CALLABLES, None]),
    "reserve(key)": (lambda o, bad: o.limiter.reserve(bad), [*NAMES[1:], {}]),
    "reserve(within=)": (lambda o, bad: o.limiter.reserve(within=bad), WAITS),
    "reserve(**costs)": (lambda o, bad: o.limiter.reserve(cost=bad), COSTS),
    "peek(key)": (lambda o, bad: o.limiter.peek(bad), [*NAMES[1:], {}]),
    "reset(key)": (lambda o, bad: o.limiter.reset(bad), [*NAMES[1:], {}]),
    "observe(key)": (lambda o, bad: o.limiter.observe(bad, remaining=1), [*NAMES[1:], {}]),
    "observe(limit=)": (lambda o, bad: o.many.observe(limit=bad), ["", "c", None, 5, ["a"], "b"]),
    "observe(remaining=)": (lambda o, bad: o.limiter.observe(remaining=bad), [each for each in COSTS if each]),
    "observe(reset_after=)": (lambda o, bad: o.limiter.observe(reset_after=bad), WAITS),
    "observe(retry_after=)": (lambda o, bad: o.limiter.observe(retry_after=bad), [*WAITS, sys.float_info.max]),
}


def dump(store: MemoryStore) -> Any:
    """Return the parts of a store that a call may change."""
    return (
        {
            name: (len(each.keys), sorted(each.groups))
            for name, each in store.streams.items()
            if each.keys or each.groups
        },
        sorted(map(repr, store.locks)),
        {key: {name: kept.state for name, kept in each.stored.items()} for key, each in store.limiters.items()},
        len(store.listeners),
    )


async def done(result: Any) -> None:
    """Complete a call: await its result, or take its first item."""
    if inspect.isawaitable(result):
        await result
    elif isinstance(result, AsyncIterator):
        await anext(result)
    elif isinstance(result, Iterator):
        next(result)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("row", ROWS)
def test_a_bad_argument_is_refused_where_it_is_given(row: str, flavour: str) -> None:
    """A wrong argument of any type raises `InvalidArgumentError` and changes nothing."""
    give, values = ROWS[row]

    async def main() -> None:
        store = MemoryStore(ManualClock())
        made = AsyncMemoryBackend(store=store) if flavour == "asyncio" else MemoryBackend(store=store)
        targets = Targets.on(made)
        before = dump(store)
        for bad in values:
            try:
                await done(give(targets, bad))
            except InvalidArgumentError as error:
                assert str(error)  # noqa: PT017 - the message is the point
            except Exception as error:  # noqa: BLE001 - the failure names it
                pytest.fail(f"{row} with {bad!r}: {type(error).__name__}: {error}")
            else:
                pytest.fail(f"{row} with {bad!r} is accepted")
            assert dump(store) == before, f"{row} with {bad!r} changed the store"
        if isinstance(made, AsyncMemoryBackend):
            await made.aclose()
        else:
            made.close()

    asyncio.run(main())


# --- what is opened, and what there is only after a call ----------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_things_that_calls_return(flavour: str) -> None:
    """The same of a subscription, a delivery, a message, a permit; the good call still works afterwards."""

    async def each(give: Callable[[Any], Any], values: list[Any]) -> None:
        for bad in values:
            with pytest.raises(InvalidArgumentError):
                await done(give(bad))

    async def value(result: Any) -> Any:
        return await result if inspect.isawaitable(result) else result

    async def main() -> None:
        backend: Any = AsyncMemoryBackend() if flavour == "asyncio" else MemoryBackend()
        targets = Targets.on(backend)
        subscription = targets.pubsub.listen("c")
        await value(getattr(subscription, "__aenter__" if flavour == "asyncio" else "__enter__")())
        await each(subscription.get, WAITS)
        await value(targets.pubsub.publish("c", 1))
        message = await value(subscription.get(5))
        await each(message.reply, [1])  # it is no request
        await value(targets.stream.add(1))
        consumer = targets.group.consumer()
        await value(getattr(consumer, "__aenter__" if flavour == "asyncio" else "__enter__")())
        delivery = await value(consumer.get(5))
        await each(delivery.extend, [*TIMES, None])
        await each(delivery.nack, WAITS)
        await value(delivery.ack())
        permit = await value(targets.limiter.acquire())
        await each(lambda bad: permit.settle(cost=bad), COSTS)
        await each(lambda bad: permit.settle(**bad), [{"a": 1}])
        await value(permit.settle(cost=2))
        await value(backend.aclose() if flavour == "asyncio" else backend.close())

    asyncio.run(main())


MADE: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "MemoryBackend(clock)": (MemoryBackend, [5, "now", datetime(2026, 1, 1), ManualClock]),  # noqa: DTZ001
    "MemoryBackend(store=)": (lambda bad: MemoryBackend(store=bad), [5, {}, MemoryStore]),
    "MemoryBackend(clock, store=)": (lambda bad: MemoryBackend(bad, store=MemoryStore()), [ManualClock()]),
    "MemoryBackend(max_payload=)": (lambda bad: MemoryBackend(max_payload=bad), [*COUNTS, None]),
    "MemoryBackend(url=)": (lambda bad: MemoryBackend(url=bad), [*TEXTS, None]),
    "ManualClock.advance": (lambda bad: ManualClock().advance(bad), [*WAITS, None]),
    "ManualClock.step_back": (lambda bad: ManualClock().step_back(bad), [*WAITS, None]),
    "connect(url)": (ailf.connect, ["", " ", "memory", 5, b"memory://", ["memory://"]]),
    "connect_async(url)": (ailf.connect_async, ["", "memory", 5]),
    "connect(wait=)": (lambda bad: ailf.connect("memory://", wait=bad), [*WAITS, None]),
    "connect_async(wait=)": (lambda bad: ailf.connect_async("memory://", wait=bad), [*WAITS, None]),
    "RedisBackend(where)": (RedisBackend, ["", "localhost", "memory://", 5, b"redis://h"]),
    "from_client(client)": (RedisBackend.from_client, [None, 5, "redis://h"]),
    "from_client(timeout=)": (lambda bad: from_client(timeout=bad), TIMES),
    "from_client(namespace=)": (lambda bad: from_client(namespace=bad), [None, 5, b"n", "\0"]),
    "from_client(max_connections=)": (lambda bad: from_client(max_connections=bad), [*COUNTS, None, 10**10]),
    "from_client(max_payload=)": (lambda bad: from_client(max_payload=bad), [*COUNTS, None]),
    "from_client(retry_for=)": (lambda bad: from_client(retry_for=bad), [*WAITS, None]),
    "TokenBucket(rate)": (TokenBucket, [*COUNTS, None, 2**53 + 1]),
    "TokenBucket(per=)": (lambda bad: TokenBucket(1, per=bad), [*TIMES, None, 0.0001, 0.0015]),
    "TokenBucket(burst=)": (lambda bad: TokenBucket(1, burst=bad), [*COUNTS, None, 2**53]),
    "FixedWindow(limit)": (FixedWindow, [*COUNTS, None, 2**53 + 1]),
    "FixedWindow(per=)": (lambda bad: FixedWindow(1, per=bad), [*TIMES, None]),
    "SlidingWindow(limit)": (SlidingWindow, [*COUNTS, None]),
    "SlidingWindow(per=)": (lambda bad: SlidingWindow(1, per=bad), [*TIMES, None]),
    "SlidingWindow(buckets=)": (lambda bad: SlidingWindow(1, buckets=bad), [*COUNTS, None, 65]),
    "Concurrency(limit)": (Concurrency, [*COUNTS, None]),
    "Concurrency(ttl=)": (lambda bad: Concurrency(1, ttl=bad), [*TIMES, None]),
    "parse_limit": (
        ailf.parse_limit,
        ["", "many", 5, None, b"5/hour", f"{'9' * 5000}/s", f"1/{'9' * 5000}s", f"1/s sliding in {'9' * 5000}"],
    ),
    "llm_limits(requests=)": (lambda bad: llm_limits(requests=bad), [0, -1, True, 1.5, "many", []]),
    "llm_limits(ttl=)": (lambda bad: llm_limits(parallel=1, ttl=bad), [*TIMES, None]),
    "Retry(delay=)": (lambda bad: ailf.Retry(delay=bad), WAITS),
    "Retention(max_len=)": (lambda bad: ailf.Retention(max_len=bad), COUNTS),
    # --- Redis: how to reach a server
    "Settings(host=)": (lambda bad: Settings(host=bad), [*TEXTS, None]),
    "Settings(port=)": (lambda bad: Settings(port=bad), [*COUNTS, None, 65_536]),
    "Settings(db=)": (lambda bad: Settings(db=bad), [-1, 1.0, True, "1", None, 2**31]),
    "Settings(username=)": (lambda bad: Settings(username=bad), [5, b"u", ""]),
    "Settings(password=)": (lambda bad: Settings(password=bad), [5, b"p", "", "\ud800"]),
    "Settings(path=)": (lambda bad: Settings(path=bad), [5, "", "/tmp/\0"]),
    "Settings(tls=)": (lambda bad: Settings(tls=bad), FLAGS),
    "Settings(tls_ca=)": (lambda bad: Settings(tls_ca=bad), [5, "", True]),
    "Settings(tls_verify=)": (lambda bad: Settings(tls_verify=bad), FLAGS),
    "Settings(credentials=)": (lambda bad: Settings(credentials=bad), [5, "user:secret", ("user", "secret")]),
    "Settings(connect_timeout=)": (lambda bad: Settings(connect_timeout=bad), [*TIMES, None, 1e-9, 1e10]),
    "Settings(timeout=)": (lambda bad: Settings(timeout=bad), [*TIMES, None, 1e-9, 1e10]),
    "Settings(keepalive=)": (lambda bad: Settings(keepalive=bad), FLAGS),
    "Settings(max_connections=)": (lambda bad: Settings(max_connections=bad), [*COUNTS, None, 9_999_999_999]),
    "Settings(namespace=)": (lambda bad: Settings(namespace=bad), [5, None, b"n", "\0"]),
    "Settings(max_payload=)": (lambda bad: Settings(max_payload=bad), [*COUNTS, None, 2**40]),
    "Settings(retry_for=)": (lambda bad: Settings(retry_for=bad), [*WAITS, None, 1e10]),
    "URL options": (
        lambda bad: Settings.from_url(f"redis://h/?{bad}"),
        ["timeout=nan", "timeout=inf", "timeout=-1", "timeout=0", "timeout=1e-9", "timeout=1e10", "timeout=soon",
         "connect_timeout=0", "connect_timeout=-1", "connect_timeout=nan", "connect_timeout=inf", "max_connections=0",
         "max_connections=-1", "max_connections=9999999999", "max_connections=1.5", "max_payload=-1", "max_payload=0",
         "db=-1", "db=9999999999", "retry_for=nan", "retry_for=-1", "keepalive=maybe", "tls_ca=", "nope=1", "timeout",
         "timeout=1&timeout=1"],
    ),
}  # fmt: skip


def from_client(**options: Any) -> RedisBackend:
    """Make a backend from a user's client."""
    return RedisBackend.from_client(fakeredis.FakeRedis(), **options)


@pytest.mark.parametrize("row", MADE)
def test_what_is_made_is_checked(row: str) -> None:
    """Values, backends and settings refuse wrong arguments when they are made, without showing secrets."""
    make, values = MADE[row]
    for bad in values:
        try:
            made = make(bad)
        except InvalidArgumentError as error:
            assert "secret" not in str(error)  # noqa: PT017 - the message is the point
        except Exception as error:  # noqa: BLE001 - the failure names it
            pytest.fail(f"{row} with {bad!r}: {type(error).__name__}: {error}")
        else:
            pytest.fail(f"{row} with {bad!r} is accepted: {made!r}")


def test_an_enum_error_names_the_members() -> None:
    """A text instead of an enum member is an error that lists the members."""
    with MemoryBackend() as backend:
        with pytest.raises(InvalidArgumentError, match=r"overflow .*Overflow\.DROP_OLDEST, .*not 'drop_oldest'"):
            backend.pubsub().listen("c", overflow="drop_oldest")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match=r"on_lost .*OnLost\.CANCEL, OnLost\.SIGNAL, not 'cancel'"):
            backend.lock("l").hold(on_lost="cancel")  # type: ignore[arg-type]


# --- completeness --------------------------------------------------------------------------------------------------

UNCHECKED = {
    "data": "any payload; one that can't be encoded is an EncodeError",
    "type": "any type that msgspec supports; any other is refused with the first message",
    "engine": "the library's own",
    "kind": "of __exit__, and of unwrap",
    "error": "of __exit__",
}
"""Arguments without a row in the table, with the reason."""


@pytest.mark.parametrize(
    "public_class", [ailf.Backend, ailf.Listing, ailf.PubSub, ailf.Stream, ailf.Group, ailf.Lock, ailf.RateLimiter]
)
def test_the_table_has_every_argument(public_class: type) -> None:
    """Every public method and argument has a row."""
    rows = " ".join(ROWS)
    for name, method in inspect.getmembers(public_class, inspect.isfunction):
        if name.startswith("_") or name == "run_in_thread":
            continue
        for argument in list(inspect.signature(method).parameters)[1:]:
            if argument not in UNCHECKED:
                assert any(
                    f"{name}({form}{argument}{end}" in rows for form in ("", "*", "**") for end in (")", "=)")
                ), f"{public_class.__name__}.{name}({argument})"
