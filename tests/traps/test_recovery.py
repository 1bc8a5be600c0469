"""Traps 4 to 7: messages of dead consumers, nacked messages, and messages from before the group."""

import asyncio

from tests.traps import naive
from tests.traps.scene import LEASE, LONG, PATIENCE, SOON, Case, Scene, clock, expect_none, take, trap

# --- 4, 5: taking over -------------------------------------------------------------------------------------------


@trap(Case(naive.SweepsFromTheStart, "no message came"))
async def test_trap_04_fresh_ones_hide_stale_ones(scene: Scene) -> None:
    """S2, trap 4: fifteen fresh messages don't hide three stale ones, although XAUTOCLAIM scans only ten per entry."""
    queue = scene.queue(lease=0.4)
    await queue.add(*range(18))
    alive, dead = queue.member("alive", prefetch=15), queue.member("dead", prefetch=3, renews=False)
    await take(alive)
    await take(dead)
    other = scene.queue(lease=0.4).member("other")
    came = [(await take(other)).data for _ in range(3)]
    assert sorted(came) == [15, 16, 17]


@trap(Case(naive.SweepsInOneGo, "stalled the server"), private=True)
async def test_trap_04_no_sweep_stalls_the_server(scene: Scene) -> None:
    """S2, trap 4: any number of stale messages is taken over in small steps."""
    queue = scene.queue()
    await queue.open()
    await scene.redis.eval(
        """for i = 1, 30000 do redis.call('XADD', KEYS[1], '*', ARGV[1], i) end
        redis.call('XREADGROUP', 'GROUP', 'g', 'gone', 'COUNT', 30000, 'STREAMS', KEYS[1], '>')""",
        1, scene.stream, queue.field,
    )  # fmt: skip
    await asyncio.sleep(LEASE * 1.1)
    await scene.redis.config_set("slowlog-log-slower-than", 5000)
    await scene.redis.slowlog_reset()
    member = queue.member("m", prefetch=10, renews=False)
    assert len({(await take(member)).data for _ in range(100)}) == 100
    worst = max([each["duration"] / 1000 for each in await scene.redis.slowlog_get(100)], default=0)
    assert worst < 40, f"stalled the server for {worst:.0f} ms"


@trap(Case(naive.SweepsUnderMutex, "no consumer took it over"))
async def test_trap_05_a_death_while_taking_over(scene: Scene) -> None:
    """S2, trap 5: a member that dies at any step of a takeover doesn't keep the others from taking over."""

    async def play(after: int) -> int | None:
        stream = f"{scene.stream}-{after}"
        gate = scene.gate()
        queue, dying = scene.queue(stream=stream), scene.queue(stream=stream, port=gate.port, timeout=0.5)
        await queue.open()
        victim = dying.member("victim", renews=False)
        await expect_none(victim)
        await queue.add("x")
        await take(queue.member("dead", renews=False))
        await asyncio.sleep(LEASE * 1.1)
        gate.hold(after)
        dies = scene.task(victim.get(SOON))
        await asyncio.wait([dies], timeout=SOON)
        gate.cut()
        message = await queue.member("other").get(LEASE + PATIENCE)
        gate.open()  # so that closing the queue doesn't wait
        return after if message is None else None

    stuck = [each for each in await asyncio.gather(*map(play, range(6))) if each is not None]
    assert not stuck, f"after a death behind request {stuck} no consumer took it over"


# --- 6: messages that come back ----------------------------------------------------------------------------------


@trap(Case(naive.WaitsForNewOnes, "no message came"))
async def test_trap_06_a_nack_wakes_a_waiting_consumer(scene: Scene) -> None:
    """S7, trap 6: a nacked message wakes a waiting consumer, like a new one."""
    queue = scene.queue(lease=LONG)
    await queue.add("x")
    message = await take(queue.member("fails"))
    waiting = scene.task(take(scene.queue(lease=LONG).member("waits"), SOON * 2))
    await asyncio.sleep(SOON)
    assert await message.nack()
    assert (await waiting).attempt == 2


@trap(Case(naive.DelaysByTime, "early"))
async def test_trap_06_delays_longer_than_a_lease(scene: Scene) -> None:
    """S7, trap 6: a delay longer than a lease is kept, while XCLAIM clamps a future time."""
    queue = scene.queue()
    await queue.add("x")
    member = queue.member("m")
    delay = 2.5 * LEASE
    message = await take(member)
    before = clock()
    assert await message.nack(delay)
    again = await take(member, delay + PATIENCE)
    waited = clock() - before
    assert waited >= delay, f"{delay - waited:.3f} s early"
    assert waited <= delay + 0.25, f"{waited - delay:.3f} s late"
    assert again.attempt == 2


@trap(Case(naive.CountsReleases, "a release was counted"))
async def test_trap_06_giving_back_without_counting(scene: Scene) -> None:
    """S5, trap 6: a released message counts no attempt."""
    queue = scene.queue()
    await queue.add("x")
    member = queue.member("m")
    for _ in range(3):
        message = await take(member)
        assert message.attempt == 1, "a release was counted"
        assert await message.release()


# --- 7: retries and start positions ------------------------------------------------------------------------------


@trap(Case(naive.RetriesByAdding, "other groups saw the retry"))
async def test_trap_07_retries_are_the_groups_own(scene: Scene) -> None:
    """S11, trap 7: a message that fails in one group is retried in that group only, and is in the stream once."""
    queue, other = scene.queue(), scene.queue("other")
    await queue.open()
    await other.open()
    await queue.add("x")
    member = queue.member("m")
    assert await (await take(member)).nack()
    assert await (await take(member)).ack()
    bystander = other.member("bystander", prefetch=5)
    assert await (await take(bystander)).ack()
    again = await bystander.get(0.05)
    assert again is None, "other groups saw the retry"
    assert await scene.redis.xlen(scene.stream) == 1


@trap(Case(naive.StartsAtTheEnd, "no message came"))
async def test_trap_07_what_was_added_before_the_group(scene: Scene) -> None:
    """S1, S9, trap 7: by default a group gets the messages that were added before it was opened."""
    queue = scene.queue()
    await queue.add("early")
    await queue.open()
    assert (await take(queue.member("m"), SOON)).data == "early"


@trap(Case(naive.ReadsFromItsStart, "delivered twice"))
async def test_trap_07_where_it_was_made_and_where_it_reads(scene: Scene) -> None:
    """S3, S9, trap 7: a group that starts at the beginning reads on, and delivers no pending message again."""
    queue = scene.queue(lease=LONG)
    await queue.add("a", "b", "c")
    member = queue.member("m")
    came = [(await take(member)).data for _ in range(3)]
    assert came == ["a", "b", "c"], f"delivered twice: {came}"
