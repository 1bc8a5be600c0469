"""The traps of streams, as tests that ours passes and that a naive queue, written for each, is caught by.

The traps are those that other libraries fell into; the naive ones are in ``naive.py``, and what they differ from in
one thing each is in ``plain.py``.
"""

import asyncio
import contextlib
from collections import Counter
from typing import Any

import pytest
import redis
from redis import asyncio as aredis

import ailf

from tests.redis.traps import naive
from tests.redis.traps.plain import Plain
from tests.redis.traps.scene import LEASE, PATIENCE, Case, Scene, clock, later, nothing, take, trap
from tests.servers import Server

SLOW = 2.5 * LEASE
"""Seconds that a slow handler takes."""

SOON = 0.5
"""Seconds for what needs no lease to end."""

LONG = 60.0
"""Seconds of a lease that doesn't end in any test."""


def test_naive_queues_work(server: Server, namespace: str) -> None:
    """Each naive queue does the plain thing right: it is caught by its trap, and not because it does nothing."""

    async def works(scene: Scene) -> None:
        queue = scene.queue(lease=LONG)
        await queue.open()
        assert await queue.add("a", "b")
        member = queue.member("m", prefetch=2)
        for data in ("a", "b"):
            message = await take(member)
            assert (message.data, message.attempt) == (data, 1)
            assert await message.ack()
        assert await scene.pending() == 0
        await member.close()

    for number, kind in enumerate((Plain, *naive.everyone())):
        Case(kind).play(works, server, f"{namespace}-{number}")


# --- 1: leases ---------------------------------------------------------------------------------------------------


@trap(Case(naive.NeverRenews, "handled twice"))
async def test_trap_01_slow_handlers(scene: Scene) -> None:
    """S4, trap 1: a handler that is slower than the idle threshold runs once, and not in a second worker at once."""
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
    """S4, trap 1: a message that waits in a prefetch buffer does not age there."""
    queue = scene.queue()
    await queue.add("in hand", "in the buffer")
    busy, idle = queue.member("busy", prefetch=2), scene.queue().member("idle")
    first = await take(busy)
    await nothing(idle, SLOW)
    assert await first.ack()
    second = await take(busy)
    assert (second.data, second.attempt) == ("in the buffer", 1)
    assert await second.ack()


# --- 2: renewing -------------------------------------------------------------------------------------------------


@trap(Case(naive.RenewsAnybodys, "took a lost lease back"))
async def test_trap_02_renewing_a_lost_lease(scene: Scene) -> None:
    """S4, trap 2: renewing a lease that was lost does not steal it back from who has it now."""
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
    """S5, trap 2: renewing a lease counts no attempt, as a plain XCLAIM does."""
    queue = scene.queue()
    await queue.add("x")
    member = queue.member("m")
    message = await take(member)
    await asyncio.sleep(SLOW)
    assert await message.renew()
    assert await message.nack(), "the renewals were counted as deliveries: the receipt is no good"
    assert (await take(member)).attempt == 2, "the renewals were counted as deliveries"


@trap(Case(naive.RenewsWithBodies, "bytes"))
async def test_trap_02_renewing_sends_no_bodies(scene: Scene) -> None:
    """S4, trap 2: renewing a lease brings no bodies back."""
    queue = scene.queue()
    await queue.add("x" * 500_000)
    member = queue.member("m")
    message = await take(member)
    before = (await scene.redis.info("stats"))["total_net_output_bytes"]
    await asyncio.sleep(SLOW)
    sent = (await scene.redis.info("stats"))["total_net_output_bytes"] - before
    assert sent < 100_000, f"{sent} bytes came for a few renewals"
    assert await message.ack()


# --- 3: settling -------------------------------------------------------------------------------------------------


@trap(Case(naive.AcksPlainly, "the old owner's ack was accepted"))
async def test_trap_03_stale_acks(scene: Scene) -> None:
    """S4, trap 3: the ack of an old owner does not delete the new owner's lease."""
    queue = scene.queue()
    await queue.add("x")
    stale = await take(queue.member("old", renews=False))
    current = await take(scene.queue().member("new"))
    assert not await stale.ack(), "the old owner's ack was accepted"
    assert await current.nack()
    assert (await take(queue.member("third"))).attempt == 3


@trap(Case(naive.ChecksTheOwner, "an ack of the first delivery was accepted"))
async def test_trap_03_the_owner_is_no_fence(scene: Scene) -> None:
    """S4, trap 3: a consumer that gets its message a second time can't settle it by the first delivery."""
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
    """S4, trap 3: wherever the requests of an ack are held up, it is refused or nobody else has the message."""

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


# --- 4, 5: taking over -------------------------------------------------------------------------------------------


@trap(Case(naive.SweepsFromTheStart, "nothing came"))
async def test_trap_04_fresh_ones_hide_stale_ones(scene: Scene) -> None:
    """S2, trap 4: fifty messages in living hands do not hide ten stale ones behind them."""
    queue = scene.queue()
    await queue.add(*range(60))
    alive, dead = queue.member("alive", prefetch=50), queue.member("dead", prefetch=10, renews=False)
    await take(alive)
    await take(dead)
    other = scene.queue().member("other", prefetch=5)
    came = [(await take(other)).data for _ in range(10)]
    assert sorted(came) == list(range(50, 60))


@trap(Case(naive.SweepsInOneGo, "stalled the server"), private=True)
async def test_trap_04_no_sweep_stalls_the_server(scene: Scene) -> None:
    """S2, trap 4: what a program left pending, however much, is taken over in small steps."""
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


@trap(Case(naive.SweepsUnderMutex, "nobody took it over"))
async def test_trap_05_a_death_while_taking_over(scene: Scene) -> None:
    """S2, trap 5: a member that dies at any step of taking over leaves nothing that keeps the others from it."""

    async def play(after: int) -> int | None:
        stream = f"{scene.stream}-{after}"
        gate = scene.gate()
        queue, dying = scene.queue(stream=stream), scene.queue(stream=stream, port=gate.port, timeout=0.5)
        await queue.open()
        victim = dying.member("victim", renews=False)
        await nothing(victim)
        await queue.add("x")
        await take(queue.member("dead", renews=False))
        await asyncio.sleep(LEASE * 1.1)
        gate.hold(after)
        dies = scene.task(victim.get(SOON))
        await asyncio.wait([dies], timeout=SOON)
        gate.cut()
        message = await queue.member("other").get(LEASE + PATIENCE)
        return after if message is None else None

    stuck = [each for each in await asyncio.gather(*map(play, range(6))) if each is not None]
    assert not stuck, f"after a death behind request {stuck} nobody took it over"


# --- 6: what comes back ------------------------------------------------------------------------------------------


@trap(Case(naive.WaitsForNewOnes, "nothing came"))
async def test_trap_06_a_nack_wakes_who_waits(scene: Scene) -> None:
    """S7, trap 6: a message that is nacked wakes a consumer that waits, as a new one does."""
    queue = scene.queue(lease=LONG)
    await queue.add("x")
    message = await take(queue.member("fails"))
    waiting = scene.task(take(scene.queue(lease=LONG).member("waits"), SOON * 2))
    await asyncio.sleep(SOON)
    assert await message.nack()
    assert (await waiting).attempt == 2


@trap(Case(naive.DelaysByTime, "early"))
async def test_trap_06_delays_longer_than_a_lease(scene: Scene) -> None:
    """S7, trap 6: a delay that is longer than a lease is kept; XCLAIM clamps a time that is to come."""
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
    """S5, trap 6: a message that is given back has not been delivered."""
    queue = scene.queue()
    await queue.add("x")
    member = queue.member("m")
    for _ in range(3):
        message = await take(member)
        assert message.attempt == 1, "a release was counted"
        assert await message.release()


# --- 7: retries and beginnings -----------------------------------------------------------------------------------


@trap(Case(naive.RetriesByAdding, "other groups saw the retry"))
async def test_trap_07_retries_are_the_groups_own(scene: Scene) -> None:
    """S11, trap 7: what one group fails at, it alone gets again, and the stream has it once."""
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


@trap(Case(naive.StartsAtTheEnd, "nothing came"))
async def test_trap_07_what_was_added_before_the_group(scene: Scene) -> None:
    """S1, S9, trap 7: a group gets what was added before anybody opened it, unless told otherwise."""
    queue = scene.queue()
    await queue.add("early")
    await queue.open()
    assert (await take(queue.member("m"), SOON)).data == "early"


@trap(Case(naive.ReadsFromItsStart, "handed out twice"))
async def test_trap_07_where_it_was_made_and_where_it_reads(scene: Scene) -> None:
    """S3, S9, trap 7: a group made at the beginning reads on from where it is: what is in hand does not come again."""
    queue = scene.queue(lease=LONG)
    await queue.add("a", "b", "c")
    member = queue.member("m")
    came = [(await take(member)).data for _ in range(3)]
    assert came == ["a", "b", "c"], f"handed out twice: {came}"


# --- 8: cancelling -----------------------------------------------------------------------------------------------


@trap(Case(naive.WaitsOnTheSocket, "lost in cancelled calls"))
async def test_trap_08_cancelled_waits(scene: Scene) -> None:
    """S6, trap 8: of fifty messages that come just when a waiting call is cancelled, none is lost."""
    queue = scene.queue(lease=LONG)
    await queue.open()
    member = queue.member("m")
    came = []
    with scene.server.client() as producer:
        for number in range(50):
            waiting = asyncio.ensure_future(member.get(5))
            await asyncio.sleep(0.01)
            producer.xadd(scene.stream, {queue.field: number})  # while this loop stands still: it is on its way now
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                came.append(await waiting)
    while (message := await member.get(0.1)) is not None:
        came.append(message)
    lost = Counter(range(50)) - Counter(each.data for each in came if each is not None)
    assert not lost, f"{lost.total()} of 50 were lost in cancelled calls"


# --- 9: trimming and deleting ------------------------------------------------------------------------------------


@trap(Case(naive.TrimsByLength, "were eaten"))
async def test_trap_09_trimming_eats_nothing(scene: Scene) -> None:
    """S8, trap 9: a stream of bounded length gives up nothing that a group has not settled; it refuses more."""
    queue = scene.queue(lease=LONG, max_len=5)
    await queue.open()
    member = queue.member("m")
    accepted = [number for number in range(5) if await queue.add(number)]
    in_hand = [await take(member) for _ in range(2)]
    accepted += [number for number in range(5, 9) if await queue.add(number)]
    came = [each.data for each in in_hand]
    while (message := await member.get(0.1)) is not None:
        came.append(message.data)
    assert came == accepted, f"{set(accepted) - set(came)} were eaten"
    kept = {json_of(fields, queue.field) for _, fields in await scene.redis.xrange(scene.stream)}
    assert kept >= set(accepted), f"{set(accepted) - kept} were eaten"


@trap(Case(naive.NeverTrims, "grows for ever"))
async def test_trap_09_streams_end(scene: Scene) -> None:
    """S8, trap 9: a stream of bounded length does not grow with what is settled."""
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
    """S11, trap 9: what one group has done is still there for the others."""
    queue, other = scene.queue(lease=LONG), scene.queue("other", lease=LONG)
    await queue.open()
    await other.open()
    await queue.add("x")
    assert await (await take(queue.member("m"))).ack()
    message = await other.member("m").get(SOON)
    assert message is not None, "hidden from the other group"


@trap(Case(naive.DeletesItself, "dropped with its consumer"))
async def test_trap_09_leaving_drops_nothing(scene: Scene) -> None:
    """S6, S11, trap 9: a consumer that leaves gives back what it has in hand; nothing is dropped with its name."""
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
    """S11, S12, trap 9: when a dead consumer is forgotten, what it had in hand goes to others."""
    queue = scene.queue(takeover=0.3, lease=1.0)
    await queue.add("in hand")
    await take(queue.member("dies", renews=False))
    other = queue.member("other")
    message = await other.get(1.0 + SOON)
    assert message is not None, "dropped with its consumer"
    assert (message.data, message.attempt) == ("in hand", 2)
    assert await message.ack()


@trap(Case(naive.DeletesTheIdle, "dropped with its consumer"))
async def test_trap_09_idle_consumers_come_back(scene: Scene) -> None:
    """S11, S12, trap 9: a consumer that fetches just when another takes it for dead loses nothing."""

    async def play(after: int) -> None:
        stream = f"{scene.stream}-{after}"
        gate = scene.gate()
        options = {"stream": stream, "takeover": 0.2, "lease": 0.4}
        queue, others = scene.queue(**options), scene.queue(port=gate.port, **options)
        await queue.add("first")
        member, tidy = queue.member("was idle"), others.member("tidies")
        assert await (await take(member)).ack()
        await nothing(tidy)
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
    """Return the number that an entry carries."""
    return int(fields[field.encode()])


# --- 10: deleted entries -----------------------------------------------------------------------------------------


NEWER = ("7.0", "valkey-8.1", "8.2")
"""What takes a deleted entry off the pending list when it is claimed, and gives nil for none."""


@trap(
    Case(naive.ChokesOnNil, "receiving failed", passes_on=NEWER),
    Case(naive.SkipsTheNil, "is pending for ever", passes_on=NEWER),
    Case(naive.CountsOnTheNil, "the ack was refused", passes_on=("6.2",)),
)
async def test_trap_10_deleted_entries(scene: Scene) -> None:
    """S2, trap 10: an entry that somebody deleted while it was pending holds up nothing, and is not pending for ever.

    Before 7.0 it stays pending, and what claims it gets nil in its place; from then on, nothing in its place. So what is
    right on the one is wrong on the other, and each naive queue here passes where it was written for.
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
    await nothing(other, LEASE + 0.1)
    assert await claims(scene) <= before + 5, "it is claimed again and again"
    assert await scene.pending() == 0, "the deleted entry is pending for ever"


async def claims(scene: Scene) -> int:
    """Return how often the server has run XCLAIM."""
    stats = await scene.redis.info("commandstats")
    return int(stats.get("cmdstat_xclaim", {"calls": 0})["calls"])


# --- 11: errors --------------------------------------------------------------------------------------------------


@trap(Case(naive.NacksNothing, "nothing came"))
async def test_trap_11_a_nack_is_sent(scene: Scene) -> None:
    """S5, S7, trap 11: a message that is nacked comes again, although its lease would last."""
    queue = scene.queue(lease=LONG)
    await queue.add("x")
    assert await (await take(queue.member("fails"))).nack()
    assert (await take(queue.member("other"), SOON)).attempt == 2


@trap(Case(naive.AcksOnError, "lost by its handler's error"))
async def test_trap_11_an_error_is_no_ack(scene: Scene) -> None:
    """S15, trap 11: a message whose handler raises is handled again."""
    handled: list[Any] = []

    async def handler(data: Any) -> None:
        handled.append(data)
        if len(handled) == 1:
            raise RuntimeError("a handler's error")

    queue = scene.queue()
    await queue.add("x")
    scene.task(queue.work(handler))
    until = clock() + SOON
    while len(handled) < 2 and clock() < until:
        await asyncio.sleep(0.01)
    assert handled == ["x", "x"], "lost by its handler's error"


# --- 12: what is not as it was left ------------------------------------------------------------------------------


async def vanish(scene: Scene, way: str) -> None:
    """Let the group vanish under a consumer that works, and see that it works on."""
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
        with contextlib.suppress(redis.ConnectionError, ailf.BackendError):  # it may find out by an error
            added = added or await queue.add("after")
            came = await member.get(0.2)
    assert came is not None, "nothing ever came again"
    assert (came.data, came.attempt) == ("after", 1)
    assert await came.ack()


@trap(Case(naive.TriesWithoutGroup, "nothing ever came again"), private=True)
async def test_trap_12_flushed(scene: Scene) -> None:
    """S9, trap 12: after FLUSHALL a consumer makes its group again, and works on."""
    await vanish(scene, "flush")


@trap(Case(naive.TriesWithoutGroup, "nothing ever came again"))
async def test_trap_12_evicted(scene: Scene) -> None:
    """S9, trap 12: after its stream was evicted a consumer makes its group again, and works on."""
    await vanish(scene, "evict")


@trap(Case(naive.TriesWithoutGroup, "nothing ever came again"), private=True)
async def test_trap_12_restarted(scene: Scene) -> None:
    """S9, trap 12: after a restart of the server without its data a consumer makes its group again, and works on."""
    await vanish(scene, "restart")


@trap(Case(naive.ParsesUnguarded, "raised"))
async def test_trap_12_foreign_entries(scene: Scene) -> None:
    """S13, trap 12: an entry that another program wrote, or that nobody can read, holds up nothing behind it."""
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
        except ValueError as error:
            raise AssertionError(f"the loop that reads raised {error!r}") from error
        except KeyError as error:
            raise AssertionError(f"the loop that reads raised {error!r}") from error
        if message is not None:
            came.append(message.data)
            assert await message.ack()
    assert "good" in came
    assert await scene.pending() == 0


# --- 13: timeouts ------------------------------------------------------------------------------------------------


@trap(Case(naive.BlocksLonger, "TimeoutError"))
async def test_trap_13_waits_longer_than_the_timeout(scene: Scene) -> None:
    """S6, trap 13: a consumer that waits for longer than a socket may be silent is not disturbed."""
    queue = scene.queue(timeout=0.3, lease=LONG)
    await queue.open()
    member = queue.member("m")
    adding = scene.task(later(0.8, lambda: scene.queue().add("x")))
    assert (await take(member, 1.5)).data == "x"
    await adding


@pytest.mark.parametrize("flavour", [redis.Redis, aredis.Redis], ids=["blocking", "asyncio"])
def test_trap_13_the_timeout_that_nobody_asked_for(flavour: Any) -> None:
    """Trap 13: redis-py's own timeout is 5 s, so that the test above is about each program that sets none."""
    assert flavour().connection_pool.connection_kwargs["socket_timeout"] == 5


@trap(Case(naive.WaitsForEver, "hangs"))
async def test_trap_13_a_server_that_says_nothing(scene: Scene) -> None:
    """S1, trap 13: a server that takes requests and answers none is noticed within the timeout."""
    gate = scene.gate()
    queue = scene.queue(port=gate.port, timeout=0.2)
    await queue.add("x")
    gate.stall()
    adding = scene.task(queue.add("y"))
    done, _ = await asyncio.wait([adding], timeout=PATIENCE)
    gate.cut()
    gate.resume()
    assert done, "it hangs"
    assert adding.exception() is not None


# --- 14, 15: lag and leaving -------------------------------------------------------------------------------------


@trap(Case(naive.TrustsLag, "the lag is"))
async def test_trap_14_lag_after_deletions(scene: Scene) -> None:
    """S10, trap 14: the lag is right after unread entries were deleted; the server's own is NULL then, or missing."""
    queue = scene.queue(lease=LONG)
    await queue.add(*range(10))
    member = queue.member("m")
    for _ in range(3):
        assert await (await take(member)).ack()
    ids = [entry for entry, _ in await scene.redis.xrange(scene.stream)]
    await scene.redis.xdel(scene.stream, ids[5], ids[7])
    lag = await queue.lag()
    assert lag == 5, f"the lag is {lag} instead of 5"


@trap(Case(naive.TrustsLag, "the lag is", passes_on=("8.2",)))  # where it was mended
async def test_trap_14_lag_after_trimming(scene: Scene) -> None:
    """S10, trap 14: the lag is right after unread entries were trimmed; the server's own still counts them."""
    queue = scene.queue(lease=LONG)
    await queue.add(*range(10))
    assert await (await take(queue.member("m"))).ack()
    await scene.redis.xtrim(scene.stream, maxlen=4, approximate=False)
    lag = await queue.lag()
    assert lag == 4, f"the lag is {lag} instead of 4"


@trap(Case(naive.ForgetsItsBuffer, "waits for a whole lease"))
async def test_trap_15_shutting_down(scene: Scene) -> None:
    """S14, trap 15: what a consumer had fetched and not begun is there for others at once when it shuts down, as new."""
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
