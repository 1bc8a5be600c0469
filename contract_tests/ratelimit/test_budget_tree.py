"""R1, R3, R5, R7, R8, R10, R11, R13, R14: budget trees, in which a call has a key of its own for each limit."""

import asyncio
import random
import time
from typing import Any

import pytest

import ailf
from ailf import Concurrency, TokenBucket
from ailf.driver import Capability
from contract_tests.fixtures import needs
from contract_tests.helpers.envelopes import Call, excess
from contract_tests.ratelimit.test_ratelimit import HOUR, TICK, call_of
from contract_tests.world import World

NEEDS: tuple[Capability, ...] = (Capability.RATE_LIMITER, Capability.BUDGET_TREES)

LATE = 2.0
"""Seconds after which a call has certainly joined the wait queue."""


def tree(backend: Any, root: str | None = "acme", **options: Any) -> Any:
    """Return a limiter of runs, teams and organisations."""
    limits = {"run": TokenBucket(4, per=HOUR), "team": TokenBucket(8, per=HOUR), "org": TokenBucket(10, per=HOUR)}
    return backend.rate_limiter("budget", root=root, **limits | options)


def keys(run: str, team: str, org: str = "o") -> dict[str, str]:
    """Return the keys of a call."""
    return {"run": run, "team": team, "org": org}


def pair(backend: Any, **limits: Any) -> Any:
    """Return a limiter of teams and organisations."""
    return backend.rate_limiter(
        "pair", root="acme", **{"team": TokenBucket(10, per=HOUR), "org": TokenBucket(10, per=HOUR)} | limits
    )


async def left(limiter: Any, **given: str) -> dict[str, int]:
    """Return what remains of some limits under these keys."""
    return {name: each.remaining for name, each in (await limiter.peek(keys=given)).limits.items()}


async def queued(limiter: Any, of_team: str, of_org: str, /, **costs: int) -> None:
    """Wait until another call waits in the queue of a limit that this call needs: then it is denied by no limit."""
    until = time.monotonic() + LATE
    while time.monotonic() < until:
        decision = await limiter.try_acquire(keys={"team": of_team, "org": of_org}, **{"team": 0, "org": 0} | costs)
        if not decision and decision.bound is None:
            return
        if decision:
            await decision.permit.cancel()
        await asyncio.sleep(0.005)
    pytest.fail(f"no call waits for {costs} within {LATE} s")


async def test_a_key_for_each_limit(world: World) -> None:
    """R1, R13: a call is charged by each limit under its own key, by all of them or by none."""
    limiter = tree(await world.connect())
    assert await limiter.try_acquire(keys=keys("r1", "a"), cost=4)
    second = await limiter.try_acquire(keys=keys("r2", "a"), run=3, cost=4)
    assert {name: each.remaining for name, each in second.limits.items()} == {"run": 1, "team": 0, "org": 2}
    for given, bound in ((keys("r3", "a"), "team"), (keys("r1", "b"), "run")):
        denied = await limiter.try_acquire(keys=given)
        assert (denied.allowed, denied.bound, denied.permit) == (False, bound, None)
    denied = await limiter.try_acquire(keys=keys("r3", "b"), cost=3)
    assert (denied.allowed, denied.bound) == (False, "org")
    assert await left(limiter, **keys("r3", "b")) == {"run": 4, "team": 8, "org": 2}
    assert await limiter.try_acquire(keys=keys("r3", "b"), cost=2)
    assert await left(limiter, **keys("r1", "a")) == {"run": 0, "team": 0, "org": 0}


async def test_one_key_and_many_keys(world: World) -> None:
    """R13: a call with one key is charged by every limit under this key, and shares the states with all other calls."""
    limiter = tree(await world.connect())
    one = await limiter.try_acquire("x", cost=3)
    assert (one.permit.key, one.permit.keys) == ("x", keys("x", "x", "x"))
    many = await limiter.try_acquire(keys=keys("r", "x", "x"), cost=2)
    assert (many.permit.key, many.permit.keys) == ("", keys("r", "x", "x"))
    assert {name: each.remaining for name, each in many.limits.items()} == {"run": 2, "team": 3, "org": 5}
    assert {name: each.remaining for name, each in (await limiter.peek("x")).limits.items()} == {
        "run": 1,
        "team": 3,
        "org": 5,
    }


async def test_trees_share_nothing(world: World) -> None:
    """R13: other roots, limiters without a root, other limits with the same key, and other namespaces share nothing."""
    backend = await world.connect()
    elsewhere = await world.connect(harness=world.harness.other_namespace())
    limiter = tree(backend)
    assert await limiter.try_acquire(keys=keys("1", "2", "3"), run=1, team=2, org=3)
    assert await left(limiter, run="2", team="1", org="1") == {"run": 4, "team": 8, "org": 10}
    assert await left(limiter, run="1", team="2", org="3") == {"run": 3, "team": 6, "org": 7}
    whole = {"run": 4, "team": 8, "org": 10}
    for other in (tree(backend, "other"), tree(elsewhere)):
        assert await left(other, run="1", team="2", org="3") == whole
    plain = tree(backend, None)
    for key in ("1", "2", "3", "acme"):
        assert {name: each.remaining for name, each in (await plain.peek(key)).limits.items()} == whole


async def test_a_limit_of_the_tree_that_never_allows_it(world: World) -> None:
    """R3: a cost above the capacity of one limit can never pass: the error names that limit; nothing is charged."""
    limiter = tree(await world.connect())
    decision = await limiter.try_acquire(keys=keys("r", "a"), team=9)
    assert (decision.allowed, decision.retry_after) == (False, None)
    with pytest.raises(ailf.RateLimitedError, match="team") as raised:
        await world.within_patience(limiter.acquire(keys=keys("r", "a"), team=9))
    assert (raised.value.bound, raised.value.retry_after) == ("team", None)
    assert await left(limiter, **keys("r", "a")) == {"run": 4, "team": 8, "org": 10}


async def test_retry_after_of_a_tree(world: World) -> None:
    """R3: ``retry_after`` is that of the limit with the longest wait, exact to the tick."""
    limiter = pair(await world.connect(), team=TokenBucket(5, per=0.2), org=TokenBucket(20, per=0.2))
    for team in ("a", "b"):
        await limiter.try_acquire(keys={"team": team, "org": "o"}, cost=5)
        decision = await limiter.try_acquire(keys={"team": team, "org": "o"}, cost=5)
        while decision:  # on a busy machine it came back meanwhile
            decision = await limiter.try_acquire(keys={"team": team, "org": "o"}, cost=5)
        assert decision.bound == "team"
        until = decision.at + decision.retry_after
        while not (decision := await limiter.try_acquire(keys={"team": team, "org": "o"}, cost=5)):
            assert decision.at + decision.retry_after == pytest.approx(until, abs=TICK / 2)
            await world.advance(max(TICK, min(0.01, decision.retry_after - TICK)))
        assert decision.at >= until - TICK / 2


async def test_settling_in_a_tree(world: World) -> None:
    """R7: settling replaces the charge of each limit under its own key; `cancel` refunds all; no other key changes."""
    limiter = tree(await world.connect())
    other = await limiter.try_acquire(keys=keys("r2", "b"), cost=1)
    assert other
    permit = (await limiter.try_acquire(keys=keys("r1", "a"), cost=3)).permit
    await permit.settle(cost=1, org=2)
    assert await left(limiter, **keys("r1", "a")) == {"run": 3, "team": 7, "org": 7}
    more = (await limiter.try_acquire(keys=keys("r3", "a"), cost=2)).permit
    await more.settle(team=9)
    assert await left(limiter, **keys("r3", "a")) == {"run": 2, "team": 0, "org": 5}
    assert (await limiter.try_acquire(keys=keys("r4", "a"))).bound == "team"
    await (await limiter.try_acquire(keys=keys("r5", "b"), cost=3)).permit.cancel()
    assert await left(limiter, **keys("r2", "b")) == {"run": 3, "team": 7, "org": 5}
    with pytest.raises(ailf.InvalidArgumentError, match="tokens"):
        await other.permit.settle(tokens=1)


async def test_slots_in_a_tree(world: World) -> None:
    """R7, R8: a concurrency limit has its slots under its own key; they are renewed, and released one by one."""
    ttl = min(world.lease, 0.5)
    limiter = pair(await world.connect(), team=Concurrency(1, ttl=ttl), calls=Concurrency(2, ttl=60.0))
    one = await limiter.acquire(keys={"team": "a", "org": "o", "calls": "c"}, timeout=0, cost=2)
    assert await left(limiter, team="a", org="o", calls="c") == {"team": 0, "org": 8, "calls": 1}
    assert await left(limiter, team="b", org="c", calls="o") == {"team": 1, "org": 10, "calls": 2}
    for _ in range(3):
        await world.elapse(ttl / 2)
        assert not await limiter.try_acquire(keys={"team": "a", "org": "o", "calls": "c"})
    assert not one.lost
    async with limiter.hold(keys={"team": "b", "org": "o", "calls": "c"}, timeout=0) as two:
        assert await left(limiter, team="a", calls="c") == {"team": 0, "calls": 0}
        await one.release()
        assert await left(limiter, team="a", org="o", calls="c") == {"team": 1, "org": 7, "calls": 1}
        assert not two.lost
    assert await left(limiter, team="b", calls="c") == {"team": 1, "calls": 2}


async def test_some_keys_of_a_tree(world: World) -> None:
    """R5, R13: a peek, a report and a reset concern the limits whose keys they name, and change no other key."""
    limiter = tree(await world.connect())
    assert await limiter.try_acquire(keys=keys("r1", "a"), cost=4)
    assert await limiter.try_acquire(keys=keys("r2", "b"), cost=4)
    assert await left(limiter, team="a") == {"team": 4}
    assert (await limiter.peek(keys={"org": "o"})).remaining == 2
    await limiter.observe(keys={"team": "b"}, limit="team", remaining=1)
    assert await left(limiter, team="b", org="o") == {"team": 1, "org": 2}
    await limiter.reset(keys={"run": "r1", "team": "b"})
    assert await left(limiter, **keys("r1", "a")) == {"run": 4, "team": 4, "org": 2}
    assert await left(limiter, **keys("r2", "b")) == {"run": 0, "team": 8, "org": 2}
    await limiter.reset("o")
    assert await left(limiter, **keys("r1", "a")) == {"run": 4, "team": 4, "org": 10}


async def test_reservations_in_a_tree(world: World) -> None:
    """R3, R7: a reservation is charged by every limit at once, and ready when the last of them would allow it."""
    limiter = pair(await world.connect())
    now = world.loop.time()
    assert (await limiter.reserve(keys={"team": "a", "org": "o"}, cost=10)).ready_at <= world.loop.time()
    second = await limiter.reserve(keys={"team": "b", "org": "o"}, cost=5)
    assert second.ready_at - now == pytest.approx(HOUR / 2, abs=30)
    with pytest.raises(ailf.RateLimitedError, match="org"):
        await limiter.reserve(keys={"team": "c", "org": "o"}, cost=5, within=HOUR / 2)
    assert await left(limiter, team="c") == {"team": 10}
    await second.cancel()
    assert (await limiter.try_acquire(keys={"team": "b", "org": "o"})).retry_after == pytest.approx(HOUR / 10, abs=30)


async def test_remembered_denials_of_a_tree(world: World) -> None:
    """R11: a denial is remembered for the combination of keys that it concerns, and for no other."""
    limiter = tree(await world.connect(), cache_denials=True)
    assert await limiter.try_acquire(keys=keys("r1", "a"), cost=4)
    for _ in range(3):
        assert not await limiter.try_acquire(keys=keys("r1", "a"))
        assert not await limiter.try_acquire("r1", run=5)
    assert await limiter.try_acquire(keys=keys("r2", "a"), cost=4)
    assert (await limiter.try_acquire(keys=keys("r3", "a"))).bound == "team"
    assert await limiter.try_acquire(keys=keys("r3", "b"))
    assert await left(tree(await world.connect()), org="o") == {"org": 10}, "it shares state with another limiter"


@needs(Capability.LISTING)
async def test_listing_a_tree(world: World) -> None:
    """N5: the keys of a budget tree are listed with its root and the limit that they belong to."""
    backend = await world.connect()
    limiter = tree(backend, team=Concurrency(3))
    async with limiter.hold(keys=keys("r", "t")):
        await backend.rate_limiter("budget", "5/hour").try_acquire("plain")
        expected = {
            ailf.LimiterName("budget", "plain"),
            ailf.LimiterName("budget", "r", "acme", "run"),
            ailf.LimiterName("budget", "t", "acme", "team"),
            ailf.LimiterName("budget", "o", "acme", "org"),
        }
        assert {each async for each in backend.limiters("bud")} == expected
        cursor, found = "", set()
        while True:
            page = await backend.limiters().page(cursor, 1)
            found |= set(page.items)
            if not (cursor := page.cursor):
                break
        assert found == expected


# --- waiting -----------------------------------------------------------------------------------------------------


async def test_a_teams_wait_blocks_no_other_team(world: World) -> None:
    """R10, R14: a call that waits for its team holds up this team's calls, and no call of another one."""
    limiter = pair(await world.connect())
    held = (await limiter.try_acquire(keys={"team": "a", "org": "o"}, team=8, org=1)).permit
    waiter = asyncio.create_task(
        limiter.acquire(keys={"team": "a", "org": "o"}, timeout=2 * world.patience, team=5, org=1)
    )
    await queued(limiter, "a", "elsewhere", team=1)
    assert await limiter.try_acquire(keys={"team": "b", "org": "o"}), "a wait for team a blocks team b"
    assert await limiter.try_acquire(keys={"team": "a", "org": "o"}, team=0), "it blocks a call that doesn't need it"
    assert not await limiter.try_acquire(keys={"team": "a", "org": "o"}), "a call of its team overtakes it"
    assert await limiter.try_acquire(keys={"team": "o", "org": "a"}), "the same keys of other limits are mixed up"
    assert not waiter.done()
    await held.cancel()
    assert await world.within_patience(waiter)
    assert await left(limiter, team="a", org="o") == {"team": 5, "org": 7}


async def test_a_wait_for_the_shared_limit_blocks_all(world: World) -> None:
    """R10, R14: calls of all teams that wait for the limit they share pass in the order in which they came."""
    limiters = [pair(await world.connect()) for _ in range(2)]
    held = (await limiters[0].try_acquire(keys={"team": "z", "org": "o"}, cost=8)).permit

    async def wait(number: int) -> int:
        given = {"team": "ab"[number % 2], "org": "o"}
        acquiring = limiters[number % 2].acquire(keys=given, timeout=3 * world.patience, org=1 if number else 3)
        return int((await acquiring).limits["org"].remaining)

    tasks = []
    for number in range(6):
        tasks.append(asyncio.create_task(wait(number)))
        await asyncio.sleep(0.05)  # so that each call joins the queue before the next one
        await queued(limiters[0], "c", "o", org=1)
    assert not any(task.done() for task in tasks)
    await held.cancel()
    assert await world.within_patience(asyncio.gather(*tasks)) == [7, 6, 5, 4, 3, 2]
    assert await left(limiters[0], team="a", org="o") == {"team": 7, "org": 2}


async def test_a_wait_moves_to_the_limit_that_binds(world: World) -> None:
    """R14: a call whose team has enough, while another limit has too little by now, waits for that limit only.

    The call behind it in the team's queue passes at once.
    """
    limiter = pair(await world.connect())
    of_team = (await limiter.try_acquire(keys={"team": "a", "org": "o"}, team=8, org=0)).permit
    waiter = asyncio.create_task(limiter.acquire(keys={"team": "a", "org": "o"}, timeout=3 * world.patience, cost=5))
    await queued(limiter, "a", "o", team=1)
    behind = asyncio.create_task(
        limiter.acquire(keys={"team": "a", "org": "o"}, timeout=3 * world.patience, team=3, org=0)
    )
    await asyncio.sleep(0.2)
    of_org = (await limiter.try_acquire(keys={"team": "b", "org": "o"}, team=1, org=8)).permit
    begin = time.monotonic()
    await of_team.cancel()
    assert await world.within_patience(behind)
    assert time.monotonic() - begin < 1.5
    await queued(limiter, "c", "o", org=1)
    assert await limiter.try_acquire(keys={"team": "a", "org": "elsewhere"}), "it still waits for its team"
    assert not waiter.done()
    await of_org.cancel()
    assert await world.within_patience(waiter)
    assert await left(limiter, team="a", org="o") == {"team": 1, "org": 5}


async def test_a_later_wait_holds_up_no_earlier_one(world: World) -> None:
    """R14: a waiting call passes as soon as its limits allow it, although a later one waits for one of them."""
    limiter = pair(await world.connect())
    given = {"team": "a", "org": "o"}
    of_team = (await limiter.try_acquire(keys=given, team=9, org=0)).permit
    of_org = (await limiter.try_acquire(keys=given, team=0, org=8)).permit
    first = asyncio.create_task(limiter.acquire(keys=given, timeout=3 * world.patience, team=3, org=1))
    await queued(limiter, "a", "o", team=1)
    second = asyncio.create_task(limiter.acquire(keys=given, timeout=3 * world.patience, team=1, org=9))
    await queued(limiter, "c", "o", org=1)
    begin = time.monotonic()
    await of_team.cancel()
    assert await world.within_patience(first)
    assert time.monotonic() - begin < 1.5
    assert not second.done()
    await of_org.cancel()
    assert await world.within_patience(second)


async def test_a_wait_that_moves_keeps_its_turn(world: World) -> None:
    """R14: of two calls that wait for one limit, the one that came first passes first, wherever it waited before."""
    limiter = pair(await world.connect())
    of_team = (await limiter.try_acquire(keys={"team": "a", "org": "o"}, team=8, org=0)).permit
    of_org = (await limiter.try_acquire(keys={"team": "z", "org": "o"}, team=0, org=10)).permit
    keys_of = {team: {"team": team, "org": "o"} for team in "ab"}
    first = asyncio.create_task(limiter.acquire(keys=keys_of["a"], timeout=3 * world.patience, team=10, org=1))
    await queued(limiter, "a", "o", team=1)
    second = asyncio.create_task(limiter.acquire(keys=keys_of["b"], timeout=3 * world.patience, team=0, org=1))
    await asyncio.sleep(0.3)
    await of_team.cancel()  # from now on the first call waits for the organisation, as the second one does
    await asyncio.sleep(0.3)
    await of_org.settle(org=9)
    permit = await world.within_patience(first)
    assert not second.done(), "the call that came later passed first"
    await permit.cancel()
    assert await world.within_patience(second)


async def test_refunds_wake_the_waiting_call_of_their_key(world: World) -> None:
    """R10, R14: a refund, a freed slot or a reset wakes the call that waits for this limit and key at once."""
    limiter = pair(await world.connect(), calls=Concurrency(1, ttl=60.0))
    given = {"team": "a", "org": "o", "calls": "c"}
    for giving in ("settle", "release", "reset"):
        await limiter.reset(keys=given)
        held = (await limiter.try_acquire(keys=given, team=10 if giving != "release" else 1)).permit
        if giving != "release":
            await held.release()
        waiter = asyncio.create_task(limiter.acquire(keys=given, timeout=2 * world.patience, team=3))
        await asyncio.sleep(0.2)
        assert not waiter.done()
        begin = time.monotonic()
        if giving == "reset":
            await limiter.reset(keys={"team": "a"})
        else:
            await (held.settle(team=2) if giving == "settle" else held.release())
        permit = await world.within_patience(waiter)
        assert time.monotonic() - begin < 1.5, giving
        await permit.release()


async def test_a_wait_that_times_out_leaves_nothing(world: World) -> None:
    """R10: a call that gives up is charged under none of its keys, and leaves the queue in which it waits."""
    limiter = pair(await world.connect())
    for bound, other, given in (("team", "org", {"team": "a", "org": "o"}), ("org", "team", {"team": "b", "org": "p"})):
        await limiter.try_acquire(keys=given, **{bound: 8, other: 1})
        with pytest.raises(ailf.RateLimitedError, match=f"team='{given['team']}', org='{given['org']}'") as raised:
            await world.within_patience(limiter.acquire(keys=given, timeout=0.2, **{bound: 5, other: 2}))
        assert raised.value.bound == bound
        assert await left(limiter, **given) == {bound: 2, other: 9}
        assert await limiter.try_acquire(keys=given, cost=2), "it still waits in the queue"


async def test_every_wait_in_a_tree_ends(world: World) -> None:
    """R1, R10, R14: calls of many combinations of keys all pass, and each key stays within its limit's envelope."""
    limits = {"run": TokenBucket(60, burst=2), "team": TokenBucket(80, burst=3), "org": TokenBucket(100, burst=4)}
    limiters = [(await world.connect()).rate_limiter("crowd", root="acme", **limits) for _ in range(2)]
    chance = random.Random(3)
    admitted: dict[tuple[str, str], list[Call]] = {}

    async def work(number: int) -> None:
        for _ in range(4):
            given = {name: chance.choice("xyz") for name in limits}
            costs = {name: chance.choice([0, 1, 1, 2]) for name in limits}
            permit = await limiters[number % 2].acquire(keys=given, timeout=4 * world.patience, **costs)
            for name, key in given.items():
                admitted.setdefault((name, key), []).append(call_of(permit, costs[name]))

    tasks = [asyncio.create_task(work(number)) for number in range(12)]
    until = time.monotonic() + 4 * world.patience
    while not all(task.done() for task in tasks) and time.monotonic() < until:
        await world.advance(0.01)
        await asyncio.sleep(0.001)
    await world.within_patience(asyncio.gather(*tasks))
    assert sum(map(len, admitted.values())) == 12 * 4 * 3
    for (name, _), calls in admitted.items():
        assert excess(limits[name], [each for each in calls if each[1]]) == []
