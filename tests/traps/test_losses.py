"""Traps 8 to 10: messages that cancelling, trimming and deleting lose, hide or leave over."""

import asyncio
import contextlib
from collections import Counter

from tests.traps import naive
from tests.traps.scene import LEASE, LONG, SOON, Case, Scene, expect_none, take, trap

# --- 8: cancelling -----------------------------------------------------------------------------------------------


@trap(Case(naive.WaitsOnTheSocket, "lost in cancelled calls"))
async def test_trap_08_cancelled_waits(scene: Scene) -> None:
    """S6, trap 8: of fifty messages that arrive just as a waiting call is cancelled none is lost."""
    queue = scene.queue(lease=LONG)
    await queue.open()
    member = queue.member("m")
    came = []
    with scene.server.client() as producer:
        for number in range(50):
            waiting = asyncio.ensure_future(member.get(5))
            await asyncio.sleep(0.01)
            producer.xadd(scene.stream, {queue.field: number})  # blocks this loop, so the message is on its way now
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                came.append(await waiting)
    while (message := await member.get(0.1)) is not None:
        came.append(message)
    lost = Counter(range(50)) - Counter(each.data for each in came if each is not None)
    assert not lost, f"{lost.total()} of 50 were lost in cancelled calls"


# --- 9: trimming and deleting ------------------------------------------------------------------------------------


@trap(Case(naive.TrimsByLength, "were trimmed unsettled"))
async def test_trap_09_trimming_keeps_unsettled_entries(scene: Scene) -> None:
    """S8, trap 9: a stream of bounded length removes no unsettled entry, and refuses more entries instead."""
    queue = scene.queue(lease=LONG, max_len=5)
    await queue.open()
    member = queue.member("m")
    accepted = [number for number in range(5) if await queue.add(number)]
    held = [await take(member) for _ in range(2)]
    accepted += [number for number in range(5, 9) if await queue.add(number)]
    came = [each.data for each in held]
    while (message := await member.get(0.1)) is not None:
        came.append(message.data)
    assert came == accepted, f"{set(accepted) - set(came)} were trimmed unsettled"
    kept = {json_of(fields, queue.field) for _, fields in await scene.redis.xrange(scene.stream)}
    assert kept >= set(accepted), f"{set(accepted) - kept} were trimmed unsettled"


@trap(Case(naive.NeverTrims, "grows for ever"))
async def test_trap_09_streams_end(scene: Scene) -> None:
    """S8, trap 9: a stream of bounded length removes settled entries."""
    queue = scene.queue(lease=LONG, max_len=10)
    await queue.open()
    member = queue.member("m")
    for number in range(30):
        assert await queue.add(number)
        assert await (await take(member)).ack()
    length = await scene.redis.xlen(scene.stream)
    assert length <= 10, f"the stream grows for ever: {length} entries"


@trap(Case(naive.DeletesOnAck, "hidden from the other group"))
async def test_trap_09_an_ack_is_the_groups_own(scene: Scene) -> None:
    """S11, trap 9: a message that one group has acked is still there for the others."""
    queue, other = scene.queue(lease=LONG), scene.queue("other", lease=LONG)
    await queue.open()
    await other.open()
    await queue.add("x")
    assert await (await take(queue.member("m"))).ack()
    message = await other.member("m").get(SOON)
    assert message is not None, "hidden from the other group"


@trap(Case(naive.DeletesItself, "dropped with its consumer"))
async def test_trap_09_leaving_drops_nothing(scene: Scene) -> None:
    """S6, S11, trap 9: a consumer that leaves gives back its messages; none is dropped with its name."""
    queue = scene.queue()
    await queue.add("in hand", "in the buffer")
    member = queue.member("leaves", prefetch=2)
    await take(member)
    await member.close()
    other = queue.member("other")
    for data in ("in hand", "in the buffer"):
        message = await other.get(LEASE + SOON)
        assert message is not None, "dropped with its consumer"
        assert message.data == data


@trap(Case(naive.DeletesTheDead, "dropped with its consumer"))
async def test_trap_09_the_dead_leave_their_messages(scene: Scene) -> None:
    """S11, S12, trap 9: when a dead consumer is removed, its messages go to others."""
    queue = scene.queue(takeover=0.3, lease=0.6)
    await queue.add("in hand")
    await take(queue.member("dies", renews=False))
    other = queue.member("other")
    message = await other.get(0.6 + SOON)
    assert message is not None, "dropped with its consumer"
    assert (message.data, message.attempt) == ("in hand", 2)
    assert await message.ack()


@trap(Case(naive.DeletesTheIdle, "dropped with its consumer"))
async def test_trap_09_idle_consumers_come_back(scene: Scene) -> None:
    """S11, S12, trap 9: a consumer that fetches just as another takes it for dead loses no message."""

    async def play(after: int) -> None:
        stream = f"{scene.stream}-{after}"
        gate = scene.gate()
        options = {"stream": stream, "takeover": 0.2, "lease": 0.4}
        queue, others = scene.queue(**options), scene.queue(port=gate.port, **options)
        await queue.add("first")
        member, tidy = queue.member("was idle"), others.member("tidies")
        assert await (await take(member)).ack()
        await expect_none(tidy)
        await asyncio.sleep(0.25)
        gate.hold(after)
        tidying = scene.task(tidy.get(SOON))
        await asyncio.sleep(0.2)
        await queue.add("second")
        message = await member.get(SOON)
        gate.open()
        other = await tidying
        acked = message is not None and await message.ack()
        assert acked or other or await queue.member("third").get(SOON), f"{after}: it was dropped with its consumer"

    await asyncio.gather(*map(play, range(6)))


def json_of(fields: dict[bytes, bytes], field: str) -> int:
    """Return the number in an entry."""
    return int(fields[field.encode()])


# --- 10: deleted entries -----------------------------------------------------------------------------------------


NEWER = ("7.0", "valkey-8.1", "8.2")
"""The servers on which XCLAIM takes a deleted entry off the pending list and never returns nil."""


@trap(
    Case(naive.FailsOnNil, "get() failed", passes_on=NEWER),
    Case(naive.SkipsTheNil, "stays pending", passes_on=NEWER),
    Case(naive.ExpectsTheNil, "the ack was refused", passes_on=("6.2",)),
)
async def test_trap_10_deleted_entries(scene: Scene) -> None:
    """S2, trap 10: an entry that was deleted while it was pending delays none behind it, and doesn't stay pending.

    Before 7.0 it stays pending, and a claim returns nil at its index; from 7.0 on a claim skips it. Code that is right
    for one version is wrong for the other, so each naive queue here passes on the versions that it was written for.
    """
    queue = scene.queue()
    await queue.add("a", "deleted", "c")
    await take(queue.member("dead", prefetch=3, renews=False))
    ids = [entry for entry, _ in await scene.redis.xrange(scene.stream)]
    await scene.redis.xdel(scene.stream, ids[1])
    other = queue.member("other", prefetch=3)
    came = [await take(other) for _ in range(2)]
    assert [(each.data, each.attempt) for each in came] == [("a", 2), ("c", 2)]
    for each in came:
        assert await each.ack(), "the ack was refused"
    before = await claims(scene)
    await expect_none(other, LEASE + 0.1)
    assert await claims(scene) <= before + 5, "it is claimed again and again"
    assert await scene.pending() == 0, "the deleted entry stays pending"


async def claims(scene: Scene) -> int:
    """Return the number of XCLAIM calls on the server."""
    stats = await scene.redis.info("commandstats")
    return int(stats.get("cmdstat_xclaim", {"calls": 0})["calls"])
