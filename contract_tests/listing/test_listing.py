"""N1 to N5: names of streams, locks and limiters, page by page, with a prefix."""

import asyncio
from typing import Any

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import needs
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.LISTING,)

NAMES = (
    "a", "ab", "a*b", "a*", "*", "a?c", "[a]", "a[", "a\\", "a\\*", "^-a", "{a}", "{}%", "a}b{", "%7b", "a:b", "a::",
    ":", "ä", "日本", "a\nb", "tasks/3", "tasks/x", "/0", "3/", "a" * 512,
)  # fmt: skip
"""Names with every character that means something in a pattern or in a key."""


async def everything(listing: Any, max_items: int = 7) -> list[Any]:
    """Return all items, read in pages; fail if a page is too large."""
    items: list[Any] = []
    cursor = ""
    for _ in range(10_000):
        page = await listing.page(cursor, max_items)
        assert len(page.items) <= max_items
        items += page.items
        if not page.cursor:
            return items
        cursor = page.cursor
    raise AssertionError("the listing has no end")


@needs(Capability.STREAM)
async def test_streams_with_a_prefix(world: World) -> None:
    """N1: each stream whose name begins with the prefix comes, and no other, whatever it consists of."""
    backend = await world.connect()
    other = await world.connect(harness=world.harness.other_namespace())
    assert await everything(backend.streams()) == []
    for name in NAMES:
        await backend.stream(name).add(1)
    await other.stream("other").add(1)
    for prefix in ("", *NAMES, "b", "a*c", "?", "a?b", "[a", "\\", "t", "日", "%", "{", "tasks/", "nothing"):
        expected = sorted(name for name in NAMES if name.startswith(prefix))
        assert sorted(await everything(backend.streams(prefix))) == expected, prefix
        assert sorted([name async for name in backend.streams(prefix, page_size=3)]) == expected, prefix


@needs(Capability.LOCK)
async def test_locks_with_a_prefix(world: World) -> None:
    """N1, N4: each held lock whose name begins with the prefix comes, and no other, whatever it consists of."""
    backend = await world.connect()
    for name in NAMES:
        assert await backend.lock(name, ttl=100).try_acquire() is not None
    for prefix in ("", *NAMES, "a?b", "b"):
        found = await everything(backend.locks(prefix))
        assert sorted(each.name for each in found) == sorted(name for name in NAMES if name.startswith(prefix)), prefix


@needs(Capability.RATE_LIMITER)
async def test_limiters_with_a_prefix(world: World) -> None:
    """N1, N5: each charged key of a limiter whose name begins with the prefix comes, whatever it consists of."""
    backend = await world.connect()
    keys = ("", "k", "a:b", "{}%", "ü")
    for name in NAMES:
        for key in keys:
            assert await backend.rate_limiter(name, "9/hour").try_acquire(key)
    for prefix in ("", "a", "a*", ":", "b", "a?b"):
        found = await everything(backend.limiters(prefix), 50)
        expected = {(name, key) for name in NAMES for key in keys if name.startswith(prefix)}
        assert {(each.name, each.key) for each in found} == expected
        assert len(found) == len(expected)


@needs(Capability.STREAM)
async def test_pages(world: World) -> None:
    """N2: pages have at most the items asked for, and each cursor continues in any listing of the same kind."""
    backend = await world.connect()
    names = {f"s{number}" for number in range(30)}
    for name in names:
        await backend.stream(name).add(1)
    for max_items in (1, 2, 29, 30, 31, 10_000):
        assert sorted(await everything(backend.streams(), max_items)) == sorted(names)
    found: list[str] = []
    cursor = ""
    while not found or cursor:
        page = await backend.streams().page(cursor, max_items=4)
        found += page.items
        cursor = page.cursor
    assert sorted(found) == sorted(names)
    assert await everything(backend.streams("nothing")) == []


async def test_cursors_that_are_none(world: World) -> None:
    """N2: a text that is no cursor, or the cursor of a listing of another kind, raises an error."""
    backend = await world.connect()
    listings = [
        *([backend.streams()] if Capability.STREAM in backend.capabilities else []),
        *([backend.locks()] if Capability.LOCK in backend.capabilities else []),
        *([backend.limiters()] if Capability.RATE_LIMITER in backend.capabilities else []),
    ]
    for listing in listings:
        for cursor in ("0", "x", ":", "streams", "limiters:::::::", "locks:1:2:3:4:5", "%", "\0", "ü"):
            with pytest.raises(ailf.InvalidArgumentError, match="not a cursor"):
                await listing.page(cursor)


@needs(Capability.STREAM, Capability.LOCK)
async def test_a_cursor_of_another_kind(world: World) -> None:
    """N2: the cursor of a listing of streams is none of a listing of locks."""
    backend = await world.connect()
    for name in ("a", "b", "c"):
        await backend.stream(name).add(1)
    page = await backend.streams().page(max_items=1)
    assert page.cursor
    with pytest.raises(ailf.InvalidArgumentError, match="not a cursor of a listing of locks"):
        await backend.locks().page(page.cursor)


@needs(Capability.STREAM)
async def test_changes_between_pages(world: World) -> None:
    """N1: streams that exist from the first page to the last come, whatever is deleted and added in between."""
    backend = await world.connect()
    stays = {f"stays{number}" for number in range(40)}
    for number in range(40):
        await backend.stream(f"stays{number}").add(1)
        await backend.stream(f"goes{number}").add(1)
    found: list[str] = []
    cursor = ""
    for number in range(1000):
        page = await backend.streams().page(cursor, 3)
        found += page.items
        cursor = page.cursor
        if not cursor:
            break
        if number < 40:
            await backend.stream(f"goes{number}").delete()
            await backend.stream(f"zcomes{number}").add(1)
    assert not cursor
    assert stays <= set(found)
    assert all(name.startswith(("stays", "goes", "zcomes")) for name in found)
    left = await everything(backend.streams())
    assert stays <= set(left)
    assert not any(name == f"goes{number}" for name in left for number in range(10))


@needs(Capability.STREAM)
async def test_what_is_a_stream(world: World) -> None:
    """N3: a stream is listed while it has an entry or a group; asking for one makes none, and deleting it ends it."""
    backend = await world.connect()
    stream = backend.stream("s")
    await stream.group("g").info()
    await stream.read()
    await stream.info()
    assert await everything(stream.groups()) == []
    assert await everything(backend.streams()) == []
    await backend.stream("grouped").group("g").open()
    await stream.add(1)
    assert sorted(await everything(backend.streams())) == ["grouped", "s"]
    await stream.group("g").open()
    async with stream.group("g").consumer() as consumer:
        await (await world.take(consumer)).reject("no")  # a dead letter is no stream
    await stream.trim(ailf.Retention.settled())
    assert sorted(await everything(backend.streams())) == ["grouped", "s"]
    await stream.delete()
    assert await everything(backend.streams()) == ["grouped"]


@needs(Capability.STREAM)
async def test_partitions_are_not_listed(world: World) -> None:
    """N3: a partitioned stream comes once, under its own name, and its partitions don't come."""
    backend = await world.connect()
    tasks = backend.stream("tasks", partitions=5)
    await tasks.add_many(range(3), key="k")
    await backend.stream("tasks/7").add(1)  # no partition: a stream of its own
    assert sorted(await everything(backend.streams(), 1)) == ["tasks", "tasks/7"]
    assert await everything(backend.streams("tasks/")) == ["tasks/7"]
    await tasks.group("g").open()
    assert sorted(await everything(backend.streams())) == ["tasks", "tasks/7"]
    await tasks.delete()
    assert await everything(backend.streams()) == ["tasks/7"]


@needs(Capability.LOCK)
async def test_held_locks(world: World) -> None:
    """N4: a held lock has the holders and waiters that `inspect` tells; one that was released or has ended is gone."""
    backend = await world.connect()
    lock, semaphore = backend.lock("lock", ttl=100), backend.semaphore("semaphore", 3, ttl=100)
    lease, permits = await lock.acquire(), [await semaphore.acquire() for _ in range(2)]
    assert await backend.lock("short", ttl=world.lease, renew=False).try_acquire() is not None
    found = {each.name: each for each in await everything(backend.locks())}
    assert set(found) == {"lock", "semaphore", "short"}
    assert [each.fence for each in found["lock"].holders] == [lease.fence]
    assert 90 < found["lock"].holders[0].remaining <= 100
    assert [each.fence for each in found["semaphore"].holders] == [each.fence for each in permits]
    assert found["lock"].waiting == 0
    await world.advance(1.1 * world.lease)
    await permits[0].release()
    found = {each.name: each for each in await everything(backend.locks())}
    assert {name: len(each.holders) for name, each in found.items()} == {"lock": 1, "semaphore": 1}
    await lease.release()
    await permits[1].release()
    assert await everything(backend.locks()) == []


@needs(Capability.LOCK)
async def test_waiters_of_a_held_lock(world: World) -> None:
    """N4: a held lock tells how many wait for it."""
    backend = await world.connect()
    async with backend.lock("l", ttl=100) as lease:
        other = await world.connect()
        waiting = other.lock("l", fair=True)
        task = asyncio.ensure_future(waiting.acquire())
        await world.until_async(lambda: _waits(backend))
        await lease.release()
        await (await world.within_patience(task)).release()


async def _waits(backend: Any) -> bool:
    (held,) = await everything(backend.locks())
    return bool(held.waiting == 1)


@needs(Capability.RATE_LIMITER)
async def test_charged_keys(world: World) -> None:
    """N5: a key comes while it has a charge or a taken slot, with or without refunds, and never because of a peek."""
    backend = await world.connect()
    rate = backend.rate_limiter("rate", "2/hour")
    await rate.peek("peeked")
    await rate.try_acquire("charged")
    both = backend.rate_limiter("both", rate="5/hour", parallel=ailf.Concurrency(2, 100.0))
    await both.acquire("k")
    slots = backend.rate_limiter("slots", "2 parallel")
    permit = await slots.acquire()
    final = backend.rate_limiter("final", "1/hour", cache_denials=True)
    await final.try_acquire("k")
    found = {(each.name, each.key) for each in await everything(backend.limiters())}
    assert found == {("rate", "charged"), ("both", "k"), ("slots", ""), ("final", "k")}
    await permit.release()
    await rate.reset("charged")
    found = {(each.name, each.key) for each in await everything(backend.limiters())}
    assert found == {("both", "k"), ("final", "k")}
