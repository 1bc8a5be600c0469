"""Traps 11 to 15: failing handlers, servers that lose data or don't reply, lag, and shutdown."""

import asyncio
import contextlib
from typing import Any

import pytest
import redis
from redis import asyncio as aredis

import ailf
from tests.traps import naive
from tests.traps.scene import LONG, PATIENCE, SOON, Case, Scene, clock, later, take, trap

# --- 11: errors --------------------------------------------------------------------------------------------------


@trap(Case(naive.NacksNothing, "no message came"))
async def test_trap_11_a_nack_is_sent(scene: Scene) -> None:
    """S5, S7, trap 11: a nacked message comes again before its lease would have ended."""
    queue = scene.queue(lease=LONG)
    await queue.add("x")
    assert await (await take(queue.member("fails"))).nack()
    assert (await take(queue.member("other"), SOON)).attempt == 2


@trap(Case(naive.AcksOnError, "lost by its handler's error"))
async def test_trap_11_an_error_is_no_ack(scene: Scene) -> None:
    """S15, trap 11: a message whose handler raises is handled again."""
    handled: list[Any] = []
    twice = asyncio.Event()

    async def handler(data: Any) -> None:
        handled.append(data)
        if len(handled) == 1:
            raise RuntimeError("a handler's error")
        twice.set()

    queue = scene.queue()
    await queue.add("x")
    scene.task(queue.work(handler))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(twice.wait(), SOON)
    assert handled == ["x", "x"], "lost by its handler's error"


# --- 12: lost groups and foreign entries -------------------------------------------------------------------------


async def vanish(scene: Scene, way: str) -> None:
    """Remove the group while it is consumed, and check that its consumer goes on."""
    queue = scene.queue(lease=LONG)
    await queue.open()
    await queue.add("before")
    member = queue.member("m")
    assert await (await take(member)).ack()
    if way == "flush":
        await scene.redis.flushall()
    elif way == "evict":
        await scene.redis.delete(scene.stream)
    else:
        scene.server.kill()
        scene.server.restart()
    deadline = clock() + PATIENCE
    added, came = False, None
    while came is None and clock() < deadline:
        with contextlib.suppress(redis.ConnectionError, ailf.BackendError):  # the first call may fail
            added = added or await queue.add("after")
            came = await member.get(0.2)
    assert came is not None, "no message came again"
    assert (came.data, came.attempt) == ("after", 1)
    assert await came.ack()


@trap(Case(naive.TriesWithoutGroup, "no message came again"), private=True)
async def test_trap_12_flushed(scene: Scene) -> None:
    """S9, trap 12: after FLUSHALL a consumer makes its group again, and goes on."""
    await vanish(scene, "flush")


@trap(Case(naive.TriesWithoutGroup, "no message came again"))
async def test_trap_12_evicted(scene: Scene) -> None:
    """S9, trap 12: after its stream was evicted a consumer makes its group again, and goes on."""
    await vanish(scene, "evict")


@trap(Case(naive.TriesWithoutGroup, "no message came again"), private=True)
async def test_trap_12_restarted(scene: Scene) -> None:
    """S9, trap 12: after a restart of the server without its data a consumer makes its group again, and goes on."""
    await vanish(scene, "restart")


@trap(Case(naive.ParsesUnguarded, "raised"))
async def test_trap_12_foreign_entries(scene: Scene) -> None:
    """S13, trap 12: an entry of another program, or one that can't be read, delays none behind it."""
    queue = scene.queue(lease=LONG)
    await queue.open()
    await scene.redis.xadd(scene.stream, {"foreign": "field"})
    await scene.redis.xadd(scene.stream, {queue.field: "no JSON {"})
    await scene.redis.xadd(scene.stream, {queue.field: b"\xff\xfe"})
    await queue.add("good")
    member = queue.member("m", prefetch=10)
    came: list[Any] = []
    until = clock() + SOON
    while "good" not in came and clock() < until:
        try:
            message = await member.get(0.2)
        except (KeyError, ValueError) as error:
            raise AssertionError(f"get() raised {error!r}") from error
        if message is not None:
            came.append(message.data)
            assert await message.ack()
    assert "good" in came
    assert await scene.pending() == 0


# --- 13: timeouts ------------------------------------------------------------------------------------------------


@trap(Case(naive.BlocksLonger, "TimeoutError"))
async def test_trap_13_waits_longer_than_the_timeout(scene: Scene) -> None:
    """S6, trap 13: a consumer can wait for longer than the timeout of its socket."""
    queue = scene.queue(timeout=0.3, lease=LONG)
    await queue.open()
    member = queue.member("m")
    adding = scene.task(later(0.8, lambda: scene.queue().add("x")))
    assert (await take(member, 1.5)).data == "x"
    await adding


@pytest.mark.parametrize("flavour", [redis.Redis, aredis.Redis], ids=["blocking", "asyncio"])
def test_trap_13_the_timeout_by_default(flavour: Any) -> None:
    """Trap 13: redis-py's default timeout is 5 s, so the trap above concerns each program that sets none."""
    assert flavour().connection_pool.connection_kwargs["socket_timeout"] == 5


@trap(Case(naive.HasNoTimeout, "did not end"))
async def test_trap_13_a_server_that_does_not_reply(scene: Scene) -> None:
    """S1, trap 13: a server that accepts requests and doesn't reply is noticed within the timeout."""
    gate = scene.gate()
    queue = scene.queue(port=gate.port, timeout=0.2)
    await queue.add("x")
    gate.stall()
    adding = scene.task(queue.add("y"))
    done, _ = await asyncio.wait([adding], timeout=PATIENCE)
    gate.cut()
    gate.resume()
    assert done, "the add did not end"
    assert adding.exception() is not None


# --- 14, 15: lag and leaving -------------------------------------------------------------------------------------


@trap(Case(naive.TrustsLag, "the lag is"))
async def test_trap_14_lag_after_deletions(scene: Scene) -> None:
    """S10, trap 14: the lag is right after unread entries were deleted; the server's own is then NULL or missing."""
    queue = scene.queue(lease=LONG)
    await queue.add(*range(10))
    member = queue.member("m")
    for _ in range(3):
        assert await (await take(member)).ack()
    ids = [entry for entry, _ in await scene.redis.xrange(scene.stream)]
    await scene.redis.xdel(scene.stream, ids[5], ids[7])
    lag = await queue.lag()
    assert lag == 5, f"the lag is {lag} instead of 5"


@trap(Case(naive.TrustsLag, "the lag is", passes_on=("8.2",)))  # 8.2 has the fix
async def test_trap_14_lag_after_trimming(scene: Scene) -> None:
    """S10, trap 14: the lag is right after unread entries were trimmed; the server's own lag still counts them."""
    queue = scene.queue(lease=LONG)
    await queue.add(*range(10))
    assert await (await take(queue.member("m"))).ack()
    await scene.redis.xtrim(scene.stream, maxlen=4, approximate=False)
    lag = await queue.lag()
    assert lag == 4, f"the lag is {lag} instead of 4"


@trap(Case(naive.ForgetsItsBuffer, "waits for a whole lease"))
async def test_trap_15_shutting_down(scene: Scene) -> None:
    """S14, trap 15: when a consumer leaves, its fetched and unstarted messages are available at once, as new."""
    queue = scene.queue(lease=LONG)
    await queue.add(*range(5))
    member = queue.member("leaves", prefetch=5)
    assert await (await take(member)).ack()
    await member.close()
    other = queue.member("other", prefetch=5)
    for number in range(1, 5):
        message = await other.get(SOON)
        assert message is not None, "the prefetch waits for a whole lease"
        assert (message.data, message.attempt) == (number, 1)
