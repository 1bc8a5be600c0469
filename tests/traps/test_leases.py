"""Traps 1 to 3: leases, their renewal, and settling."""

import asyncio
from typing import Any

from tests.traps import naive
from tests.traps.scene import LEASE, SLOW, SOON, Case, Scene, expect_none, take, trap

# --- 1: leases ---------------------------------------------------------------------------------------------------


@trap(Case(naive.NeverRenews, "handled twice"))
async def test_trap_01_slow_handlers(scene: Scene) -> None:
    """S4, trap 1: a handler that is slower than the idle threshold runs once, and not also in a second worker."""
    begun: list[Any] = []

    async def handler(data: Any) -> None:
        begun.append(data)
        await asyncio.sleep(SLOW)

    workers = [scene.queue() for _ in range(2)]
    for each in workers:
        scene.task(each.work(handler))
    await workers[0].open()
    await workers[0].add("slow")
    await asyncio.sleep(SLOW + LEASE)
    assert begun, "never handled"
    assert len(begun) == 1, f"handled twice: {len(begun)} times"
    assert await scene.pending() == 0


@trap(Case(naive.RenewsInHandOnly, "came, attempt 2"), Case(naive.NeverRenews, "came, attempt 2"))
async def test_trap_01_prefetched_messages(scene: Scene) -> None:
    """S4, trap 1: the lease of a message doesn't end while it waits in a prefetch buffer."""
    queue = scene.queue()
    await queue.add("in hand", "in the buffer")
    busy, idle = queue.member("busy", prefetch=2), scene.queue().member("idle")
    first = await take(busy)
    await expect_none(idle, SLOW)
    assert await first.ack()
    second = await take(busy)
    assert (second.data, second.attempt) == ("in the buffer", 1)
    assert await second.ack()


# --- 2: renewing -------------------------------------------------------------------------------------------------


@trap(Case(naive.RenewsWithoutCheck, "took a lost lease back"))
async def test_trap_02_renewing_a_lost_lease(scene: Scene) -> None:
    """S4, trap 2: renewing a lost lease doesn't take the message from its current holder."""
    queue = scene.queue()
    await queue.add("x")
    stale = await take(queue.member("was cut off", renews=False))
    current = await take(scene.queue().member("has it now"))
    assert (current.data, current.attempt) == ("x", 2)
    assert not await stale.renew(), "took a lost lease back"
    assert await current.renew()
    assert await current.ack()


@trap(Case(naive.RenewsWithBodies, "counted as deliveries"))
async def test_trap_02_renewing_is_no_delivery(scene: Scene) -> None:
    """S5, trap 2: renewing a lease counts no attempt, while a plain XCLAIM does."""
    queue = scene.queue()
    await queue.add("x")
    member = queue.member("m")
    message = await take(member)
    await asyncio.sleep(SLOW)
    assert await message.renew()
    assert await message.nack(), "the renewals were counted as deliveries, and the receipt was refused"
    assert (await take(member)).attempt == 2, "the renewals were counted as deliveries"


@trap(Case(naive.RenewsWithBodies, "bytes"))
async def test_trap_02_renewing_sends_no_bodies(scene: Scene) -> None:
    """S4, trap 2: renewing a lease returns no bodies."""
    queue = scene.queue()
    await queue.add("x" * 500_000)
    member = queue.member("m")
    message = await take(member)
    before = (await scene.redis.info("stats"))["total_net_output_bytes"]
    await asyncio.sleep(SLOW)
    sent = (await scene.redis.info("stats"))["total_net_output_bytes"] - before
    assert sent < 100_000, f"{sent} bytes were sent for a few renewals"
    assert await message.ack()


# --- 3: settling -------------------------------------------------------------------------------------------------


@trap(Case(naive.AcksPlainly, "the old holder's ack was accepted"))
async def test_trap_03_stale_acks(scene: Scene) -> None:
    """S4, trap 3: the ack of an old holder doesn't end the new holder's lease."""
    queue = scene.queue()
    await queue.add("x")
    stale = await take(queue.member("old", renews=False))
    current = await take(scene.queue().member("new"))
    assert not await stale.ack(), "the old holder's ack was accepted"
    assert await current.nack()
    assert (await take(queue.member("third"))).attempt == 3


@trap(Case(naive.ChecksTheHolder, "an ack of the first delivery was accepted"))
async def test_trap_03_the_holder_is_no_fence(scene: Scene) -> None:
    """S4, trap 3: a consumer that gets a message a second time can't settle it with the first delivery."""
    queue = scene.queue()
    await queue.add("x")
    member = queue.member("m", renews=False)
    first = await take(member)
    second = await take(member)
    assert (first.attempt, second.attempt) == (1, 2)
    assert not await first.ack(), "an ack of the first delivery was accepted"
    assert await second.ack()


@trap(Case(naive.ChecksThenAcks, "was lost by an ack"))
async def test_trap_03_checking_and_acking_are_one_step(scene: Scene) -> None:
    """S4, trap 3: an ack whose requests are delayed at any point is refused, or no other consumer has the message."""

    async def play(after: int) -> None:
        stream = f"{scene.stream}-{after}"
        gate = scene.gate()
        slow, fast = scene.queue(port=gate.port, stream=stream), scene.queue(stream=stream)
        await fast.add("x")
        stale = await take(slow.member("slow", renews=False))
        gate.hold(after)
        acking = scene.task(stale.ack())
        other = fast.member("fast")
        current = await other.get(LEASE + SOON)
        gate.open()
        acked = await acking
        assert acked is (current is None), f"held after {after} requests, the message was lost by an ack"
        assert current is None or await current.ack(), f"held after {after}, the lease was lost by an ack"

    await asyncio.gather(*map(play, range(3)))
