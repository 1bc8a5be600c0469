"""The algorithms of limits agree with a list of charges, and Redis and memory agree with the algorithms, to the bit."""

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ailf import Concurrency, FixedWindow, Limit, SlidingWindow, TokenBucket
from ailf.driver import (
    Charge,
    LimiterKey,
    LimitRequest,
    LimitResult,
    Observation,
    RateLimiterDriver,
    SlotLease,
    WaiterInfo,
)
from ailf.limits import LARGEST, State, decide
from ailf.runtime import ThreadRuntime, run
from ailf_memory import MemoryStore
from ailf_memory.driver import MemoryDriver
from ailf_memory.state.ratelimit import kept_under
from ailf_redis import ratelimit as redis_ratelimit
from ailf_redis.connection.executor import Executor
from ailf_redis.driver import RedisDriver
from ailf_redis.scripts import Script
from ailf_redis.settings import Settings
from contract_tests.helpers.envelopes import excess
from tests.models.limit_model import History
from tests.models.test_lock_memory import TurnedClock
from tests.support.effort import CAMPAIGN, examples
from tests.support.servers import Server

RATES = [
    TokenBucket(3, per=1.0),
    TokenBucket(7, per=0.5, burst=20),
    TokenBucket(100_000, per=60.0, burst=20_000),
    TokenBucket(1, per=0.013, burst=2),
    TokenBucket(720_000_000, per=86_400.0),  # rate and period are divided by a common divisor
    FixedWindow(5, per=1.0),
    FixedWindow(1, per=0.007),
    SlidingWindow(5, per=1.0),
    SlidingWindow(9, per=0.1, buckets=7),
    SlidingWindow(4, per=1.0, buckets=1),
]

START = 1_700_000_000_000

rates = st.sampled_from(RATES)
steps = st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 6)), max_size=40)


# --- the algorithms ----------------------------------------------------------------------------------------------


@given(limit=rates, steps=steps)
@examples(300)
def test_every_answer_is_that_of_the_list(limit: Limit, steps: list[tuple[int, int]]) -> None:
    """R3, R4: `remaining` and `wait` equal those of the list of all charges."""
    its, state, history, now = limit.algorithm(), (), History(limit), START
    admitted = []
    for passing, share in steps:
        now += passing
        cost = share * limit.capacity // 4
        assert its.remaining(state, now) == history.remaining(now)
        wait = its.wait(state, now, cost)
        assert wait == history.wait(now, cost)
        if wait == 0 and cost:
            state, _ = its.charge(state, now, cost, "me")
            history.charge(now, cost)
            admitted.append((now, cost))
    assert excess(limit, admitted) == []
    ends = its.ends(state)
    assert its.remaining(state, max(ends, now)) == limit.capacity
    assert ends <= now or its.remaining(state, ends - 1) < limit.capacity or isinstance(limit, TokenBucket)


@given(limit=rates, steps=steps, at=st.integers(0, 39), actual=st.integers(0, 6))
@examples(300)
def test_a_settled_charge_equals_the_actual_cost(
    limit: Limit, steps: list[tuple[int, int]], at: int, actual: int
) -> None:
    """R7: after settling no more remains than if the actual cost had been charged at once; for a lone charge as much.

    In a window it is also as much, unless the charge had left the window at the last charge: its bucket, which was
    dropped then, may count once more for the rest of its width.
    """
    its, state, history, now = limit.algorithm(), (), History(limit), START
    granted: list[tuple[Any, Any, int]] = []
    for passing, share in steps:
        now += passing
        cost = share * limit.capacity // 4
        if cost and its.wait(state, now, cost) == 0:
            state, receipt = its.charge(state, now, cost, "me")
            granted.append((history.charge(now, cost), receipt, cost))
    if not granted:
        return
    charged, receipt, cost = granted[at % len(granted)]
    should = actual * limit.capacity // 4
    before = its.remaining(state, now)
    state = its.settle(state, now, receipt, cost, should)
    charged.cost = should
    assert its.remaining(state, now) <= history.remaining(now) or should >= cost
    in_window = isinstance(limit, SlidingWindow) and charged.at + limit.per_ms > granted[-1][0].at
    if len(granted) == 1 or in_window or isinstance(limit, FixedWindow):
        assert its.remaining(state, now) == history.remaining(now)
    assert (its.remaining(state, now) - before) * (cost - should) >= 0
    assert its.remaining(state, now) <= limit.capacity


def test_a_busy_bucket_gives_back_all() -> None:
    """R7: a refund is complete if the bucket was never full since its charge, and nothing if it was full."""
    its = TokenBucket(10, per=1.0, burst=100).algorithm()
    state, receipt = its.charge((), 0, 80, "me")
    for now in range(1000, 60_000, 1000):
        state, _ = its.charge(state, now, 10, "others")
    assert its.remaining(state, 60_000) == 30
    assert its.remaining(its.settle(state, 60_000, receipt, 80, 10), 60_000) == 100
    state, _ = its.charge(state, 90_000, 50, "others")
    assert its.settle(state, 90_000, receipt, 80, 10) == (90_000, 50_000, *state[2:])


@given(limit=rates, steps=st.lists(st.tuples(st.integers(-5000, 1500), st.integers(0, 6)), max_size=40))
@examples(200)
def test_time_that_steps_back_mints_nothing(limit: Limit, steps: list[tuple[int, int]]) -> None:
    """R6: however the clock steps, no more is admitted than the latest time so far allows."""
    its, state, now = limit.algorithm(), (), START
    admitted, latest = [], 0
    for passing, share in steps:
        now += passing
        cost = share * limit.capacity // 4
        before = its.remaining(state, now)
        assert its.remaining(state, now - 1_000_000) <= before
        if cost and its.wait(state, now, cost) == 0:
            latest = max(latest, now)
            state, _ = its.charge(state, now, cost, "me")
            admitted.append((latest, cost))
    assert excess(limit, admitted) == []


buckets = st.builds(lambda rate, burst: TokenBucket(rate, per=1.0, burst=burst), st.integers(1, 50), st.integers(1, 50))


@given(st.lists(st.tuples(buckets, st.integers(0, 1500), st.integers(0, 8), st.booleans()), max_size=40))
@examples(300)
def test_a_changed_bucket_is_full_within_its_own_time(steps: list[tuple[TokenBucket, int, int, bool]]) -> None:
    """R12: whatever limits charged a key before, it is idle within the new limit's own time from the last charge."""
    state: State = ()
    now = last = START
    for limit, passing, share, advance in steps:
        now += passing
        its = limit.algorithm()
        cost = share * limit.capacity // 4
        longest = -(-limit.capacity * limit.per_ms // limit.rate)
        assert its.ends(state) <= last + longest, "former charges last longer than the limit's own time"
        wait = its.wait(state, now, limit.capacity)
        assert wait is not None
        assert wait <= longest
        assert its.wait(state, now + wait, limit.capacity) == 0
        if cost and (advance or its.wait(state, now, cost) == 0):  # in advance, as a reservation does
            state, _ = its.charge(state, now, cost, "me")
            last = now
            if its.ends(state) - now > longest:  # a charge in advance, which counts for this limit only
                other = TokenBucket(limit.rate + 1, limit.per, limit.burst).algorithm()
                assert other.ends(state) <= now + longest
                state = ()


# --- the backends ------------------------------------------------------------------------------------------------


@pytest.fixture
def turned(
    server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RedisDriver, TurnedClock]]:
    """A driver whose scripts read the time from a key, and the clock that sets that key.

    Another key counts the requests that ``take.lua`` has decided.
    """
    clock, key = TurnedClock(), f"{namespace}:clock"
    time_from_key = f"""(function()
      local ms = redis.call('GET', '{key}')
      return {{ string.sub(ms, 1, -4), string.sub(ms, -3) .. '000' }}
    end)()"""

    def on_clock(script: Script) -> Script:
        text = script.text.replace("redis.call('TIME')", time_from_key)
        text = text.replace("'PX', left", "'PX', 3600000")  # TTLs follow the real clock
        text = text.replace("if taken then", f"if taken then redis.call('INCR', '{namespace}:taken')")

        class Turned(Script):
            async def run(self, executor: Executor, keys: Any, arguments: Any, read: Any, page: int = 0) -> Any:
                await executor.call("SET", key, str(clock.ms))
                reply = await executor.call("EVAL", self.text, str(len(keys)), *keys, *arguments)
                await executor.call_many([("PERSIST", each) for each in keys])  # no key may expire by the real clock
                return read(reply)

            async def run_many(self, executor: Executor, requests: Any) -> list[Any]:
                return [await self.run(executor, *each, read=lambda reply: reply) for each in requests]

        return Turned(script.name, text, script.sha)

    for name in ("DECIDE", "SETTLE_CHARGES", "OBSERVE", "RESET", "EXTEND_SLOTS"):
        monkeypatch.setattr(redis_ratelimit, name, on_clock(getattr(redis_ratelimit, name)))
    driver = RedisDriver(Settings.from_url(f"{server.url}?namespace={namespace}"), ThreadRuntime())
    yield driver, clock
    run(driver.executor.call("DEL", key, f"{namespace}:taken"))
    run(driver.close())


class Player:
    """Makes the same calls on the pure algorithms, on memory and on Redis, and compares them.

    Arguments:
        redis: The driver of Redis.
        clock: The clock of all of them.
        limits: The limits.
        key: The key, in a tree the root.
        keys: In a tree the keys of each limit; a call chooses one for each.
    """

    def __init__(
        self, redis: RedisDriver, clock: TurnedClock, limits: dict[str, Limit], key: str, keys: Sequence[str] = ()
    ) -> None:
        self.clock = clock
        self.limits = limits
        self.keys = keys
        self.limiter_key = LimiterKey("limiter", key) if not keys else LimiterKey("limiter", "", root=key)
        self.states: defaultdict[tuple[str, LimiterKey], State] = defaultdict(tuple)
        self.store = MemoryStore(clock)
        self.store.limiters.sweep = lambda _: None  # type: ignore[method-assign]  # Redis keeps idle states here too
        self.redis = redis
        self.drivers: list[RateLimiterDriver] = [
            MemoryDriver(self.store, ThreadRuntime()).rate_limiter(),
            redis.rate_limiter(),
        ]
        self.granted: list[tuple[LimiterKey, str, list[Charge]]] = []
        self.tokens = (f"t{number}" for number in itertools.count())

    def every(self, method: str, *args: Any) -> list[Any]:
        """Call a method on both backends, and return the results."""
        return [run(getattr(driver, method)(*args)) for driver in self.drivers]

    def choose(self, chance: random.Random) -> None:
        """Choose the keys of the next calls."""
        if self.keys:
            keys = tuple((name, chance.choice(self.keys)) for name in self.limits)
            self.limiter_key = replace(self.limiter_key, keys=keys)

    def place(self, name: str, charged: LimiterKey | None = None) -> tuple[str, LimiterKey]:
        """Return where the state of a limit is, under the chosen keys or those of an earlier call."""
        return name, (charged or self.limiter_key).branch_of(name)

    def decide(self, costs: dict[str, int], *, max_wait: int, count_denied: bool) -> None:
        """Decide on a call."""
        token = next(self.tokens)
        charges = [Charge(name, limit, costs[name]) for name, limit in self.limits.items()]
        request = LimitRequest(
            self.limiter_key, tuple(costs[name] for name in self.limits), token, max_wait / 1000, count_denied
        )
        (memory,), (redis,) = self.every("decide", tuple(self.limits.items()), [request])
        costed = [(each.limit.algorithm(), self.states[self.place(each.name)], each.cost) for each in charges]
        expected = decide(costed, self.clock.ms, token, max_wait=max_wait, count_denied=count_denied)
        self.states.update(zip(map(self.place, self.limits), expected.states, strict=True))
        assert memory.allowed is expected.allowed
        assert [each.retry_after for each in memory.levels] == [None if w is None else w / 1000 for w in expected.waits]
        assert _comparable(redis) == _comparable(memory)
        if memory.allowed:
            pairs = zip(charges, memory.receipts, strict=True)
            made = [replace(each, receipt=receipt) for each, receipt in pairs]
            self.granted.append((self.limiter_key, token, made))

    def settle(self, pick: int, share: float) -> None:
        """Settle one of the allowed calls."""
        charged, token, charges = self.granted.pop(pick % len(self.granted))
        settled = [
            replace(each, actual=round((each.cost or 1) * share))  # a slot is freed or kept
            for each in charges
            if each.cost or not isinstance(each.limit, Concurrency)
        ]
        self.every("settle", charged, token, settled)
        for each in settled:
            its, place = each.limit.algorithm(), self.place(each.name, charged)
            before = self.states[place]
            self.states[place] = its.true_up(before, self.clock.ms, token, each.receipt, each.cost, each.actual)

    def extend(self, pick: int) -> None:
        """Extend the slots of one call."""
        charged, token, charges = self.granted[pick % len(self.granted)]
        held = tuple((each.name, each.limit) for each in charges if each.cost and isinstance(each.limit, Concurrency))
        if not held:
            return
        memory, redis = self.every("extend", [SlotLease(charged, token, held)])
        assert memory == redis
        for name, limit in held:
            its, place = limit.algorithm(), self.place(name, charged)
            self.states[place] = its.extend(self.states[place], self.clock.ms, token) or self.states[place]  # type: ignore[attr-defined]

    def observe(self, name: str, remaining: int | None, reset: int, pause: int) -> None:
        """Observe a provider's report."""
        limit = self.limits[name]
        self.every("observe", self.limiter_key, Observation(name, limit, remaining, reset / 1000, pause / 1000))
        place = self.place(name)
        self.states[place] = limit.algorithm().observe(self.states[place], self.clock.ms, remaining, reset, pause)

    def change(self, name: str, chance: random.Random) -> None:
        """Make a limit larger or smaller from now on; former grants keep the limit that granted them."""
        share = chance.choice([0.1, 0.5, 1.0, 2.0, 10.0])
        limit = self.limits[name]
        if isinstance(limit, TokenBucket):
            changed: Limit = TokenBucket(
                _share(limit.rate, share), limit.per, _share(limit.burst, chance.choice([0.5, share]))
            )
        else:
            changed = attrs.evolve(limit, limit=_share(limit.limit, share))
        if kept_under(name, changed) == kept_under(name, limit) and changed.capacity < LARGEST:
            self.limits[name] = changed

    def reset(self) -> None:
        """Reset all limits under the chosen keys."""
        self.every("reset", self.limiter_key, tuple(self.limits.items()))
        for name in self.limits:
            self.states[self.place(name)] = ()
        self.granted.clear()

    def agree(self) -> None:
        """Check that all states under the chosen keys are equal, apart from slots that have ended."""
        for name, limit in self.limits.items():
            kept = self.store.limiters.get(self.limiter_key.branch_of(name))
            memory = kept.state_of(kept_under(name, limit)) if kept else ()
            assert self._alive(memory) == self._alive(self.states[self.place(name)]), name
        for branch in self.limiter_key.branches():
            assert self._stored(branch) == {
                redis_ratelimit._arguments(name, limit)[1]: state
                for name, limit in self.limits.items()
                if (state := self.states.get((name, branch), ())) and not isinstance(limit, Concurrency)
            }

    def _alive(self, state: State) -> State:
        return tuple(each for each in state if not isinstance(each, tuple) or each[0] > self.clock.ms)

    def _stored(self, branch: LimiterKey) -> dict[str, State]:
        """Return the states that Redis stores in a branch, by the id of the limit."""
        text = (run(self.redis.executor.call("GET", self.redis.keys.limiter(branch, ())[0])) or b"").decode()
        parts = (each.split(":") for each in text.split(";") if each)
        marked = ((id_, *numbers.partition("!")) for id_, numbers in parts)
        return {
            id_: (*(int(number) for number in numbers.split(",")), *([receipt] if sign else []))
            for id_, numbers, sign, receipt in marked
        }


def _share(number: int, share: float) -> int:
    return max(1, min(round(number * share), 2**40))


def _comparable(result: LimitResult) -> Any:
    """Return a result without the receipts of slots and of empty charges, which differ between backends."""
    receipts = [
        receipt if any(isinstance(each, int) and each for each in receipt) else () for receipt in result.receipts
    ]
    return replace(result, receipts=[tuple(each for each in receipt if each) for receipt in receipts])


SEEDS = [(0, ""), (1, "ab"), *(((2, ""), (3, "abc"), (4, ""), (5, "a")) if CAMPAIGN else ())]
"""Seeds, and the keys of each limit in a tree; none for a limiter without a root."""


@pytest.mark.parametrize(("seed", "keys"), SEEDS)
def test_redis_and_memory_agree_with_the_algorithms(
    turned: tuple[RedisDriver, TurnedClock], seed: int, keys: str
) -> None:
    """R1, R2, R6, R7, R12, R13, trap 27: results and states of 2000 calls of all kinds are equal, also in a tree.

    The clock steps forward and back, and the limits change.
    """
    chance = random.Random(seed)
    redis, clock = turned
    player: Player | None = None
    for number in range(2000):
        if player is None or chance.random() < 0.01:
            chosen = chance.sample(RATES, chance.randint(1, 3)) + [Concurrency(3, ttl=2.0)] * chance.randint(0, 1)
            limits = {f"l{at}": limit for at, limit in enumerate(chosen)}
            player = Player(redis, clock, limits, f"{seed}-{number}", keys)
        player.choose(chance)
        if chance.random() < 0.05:
            player.change(chance.choice(list(player.limits)), chance)
        clock.ms += chance.choice([0, 0, 1, 7, 100, 1000, 5000, -1, -300, 86_400_000])
        names = [name for name, limit in player.limits.items() if not isinstance(limit, Concurrency)]
        kind = chance.random()
        if kind < 0.55 or not player.granted:
            costs = {each: chance.choice([0, 1, 1, 2, limit.capacity // 2, limit.capacity, limit.capacity + 1])
                     for each, limit in player.limits.items()}  # fmt: skip
            buckets = all(isinstance(limit, TokenBucket) for limit in player.limits.values())
            max_wait = 3000 if buckets and chance.random() < 0.2 else 0
            player.decide(costs, max_wait=max_wait, count_denied=chance.random() < 0.1)
        elif kind < 0.85:
            player.settle(chance.randrange(100), chance.choice([0.0, 0.5, 1.0, 1.5, 3.0]))
        elif kind < 0.92:
            player.extend(chance.randrange(100))
        elif kind < 0.98:
            player.observe(
                chance.choice(names),
                chance.choice([None, 0, 1, 3]),
                chance.choice([0, 500]),
                chance.choice([0, 0, 900]),
            )
        else:
            player.reset()
        player.agree()


@pytest.mark.parametrize("seed", range(3))
def test_one_bucket(turned: tuple[RedisDriver, TurnedClock], namespace: str, seed: int) -> None:
    """R1, R2, R3, R4: calls on one token bucket are decided alike, also several at once and by ``take.lua``."""
    chance = random.Random(seed)
    redis, clock = turned
    passed = 0
    for number in range(20):
        limit = TokenBucket(chance.choice([3, 50, 720]), per=chance.choice([0.5, 1.0]), burst=chance.choice([5, 40]))
        player = Player(redis, clock, {"": limit}, f"{seed}-{number}")
        for _ in range(40):
            clock.ms += chance.choice([0, 0, 1, 3, 20, 40, 700, -2])
            requests = [
                LimitRequest(player.limiter_key, (chance.choice([1, 1, 1, 2, 5]),))
                for _ in range(chance.choice([1, 1, 2, 4]))
            ]
            memory, fetched = player.every("decide", (("", limit),), requests)
            assert list(map(_comparable, memory)) == list(map(_comparable, fetched))
            passed += all(each.allowed for each in memory)
            kept = player.store.limiters.get(player.limiter_key)
            player.states[player.place("")] = kept.state_of(kept_under("", limit)) if kept else ()
            player.agree()
    taken = int(run(redis.executor.call("GET", f"{namespace}:taken")))
    assert taken == passed > 300


@pytest.mark.parametrize("keys", ["", "ab"] if CAMPAIGN else ["ab"])
def test_the_wait_queues_agree(turned: tuple[RedisDriver, TurnedClock], keys: str) -> None:
    """R10, R14: calls that wait, try again, give up and die are decided alike and stand alike in the wait queues."""
    chance = random.Random(keys)
    redis, clock = turned
    limits = {"a": TokenBucket(3, per=0.5), "b": SlidingWindow(4, per=0.5), "c": Concurrency(2, ttl=1.0)}
    player, waiter = Player(redis, clock, limits, "k", keys), WaiterInfo("channel", 5.0)
    pending: dict[str, LimitRequest] = {}
    moved = 0
    for number in range(3000 if CAMPAIGN else 400):
        clock.ms += chance.choice([1, 1, 3, 20, 200]) if chance.random() < 0.995 else 6000  # the last: all have died
        token = chance.choice([*pending, f"t{number}"])
        if token in pending and chance.random() < 0.1:
            request = pending.pop(token)
            player.every("settle", request.limiter_key, token, ())
            continue
        player.choose(chance)
        fresh = LimitRequest(
            player.limiter_key, tuple(chance.choice([0, 1, 1, 2]) for _ in limits), token, waiter=waiter
        )
        request = pending.get(token, fresh)
        if chance.random() < 0.2:
            request = replace(fresh, token=f"once {number}", waiter=None)
        before = _queues(player, request)
        (memory,), (fetched,) = player.every("decide", tuple(limits.items()), [request])
        assert _comparable(fetched) == _comparable(memory)
        places = [[token in each for each in queues] for queues in (before, _queues(player, request))]
        moved += any(places[0]) and any(places[1]) and places[0] != places[1]
        if request.waiter is not None:
            pending[token] = request
            if memory.allowed:
                del pending[token]
    assert moved > 5 if keys else not moved, moved


def _queues(player: Player, request: LimitRequest) -> list[list[str]]:
    """Return the live waiters of each branch of a request, in order; they must be the same on both backends."""
    queues = []
    for branch in request.limiter_key.branches():
        kept, (_, queue, *_) = player.store.limiters.get(branch), player.redis.keys.limiter(branch, ())
        memory = (
            [] if kept is None else [each for each in kept.queue.waiters if kept.queue.alive(each, player.clock.ms)]
        )
        stored = [each.decode() for each in run(player.redis.executor.call("ZRANGE", queue, "0", "-1"))]
        assert [each for each in stored if each in memory] == memory
        queues.append(memory)
    return queues
