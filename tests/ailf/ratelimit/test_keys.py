"""The keys and costs of calls on a budget tree: what is refused where it is given, and what each method takes."""

import asyncio
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest

import ailf
from ailf import Concurrency
from ailf.testing import Faults
from ailf_memory import MemoryBackend

KEYS = {"run": "r", "team": "t"}


@pytest.fixture
def backend() -> Iterator[ailf.Backend]:
    """A memory backend."""
    with MemoryBackend() as opened:
        yield opened


@pytest.fixture
def tree(backend: ailf.Backend) -> ailf.RateLimiter:
    """A limiter of runs and teams, and of parallel calls of a team."""
    return backend.rate_limiter("budget", root="acme", run="100/day fixed", team="300/day fixed")


def left(limiter: ailf.RateLimiter, **keys: str) -> dict[str, int]:
    """Return what remains of each limit."""
    return {name: each.remaining for name, each in limiter.peek(keys=keys).limits.items()}


@pytest.mark.parametrize(
    ("key", "keys", "message"),
    [
        ("", None, r"has a root, so each call needs keys, one for each limit \('run', 'team'\)"),
        ("", {"run": "r"}, "lacks a key for limit 'team'"),
        ("", {}, "lacks a key for limit 'run'"),
        ("", {**KEYS, "user": "u"}, "a key for 'user', and there is no such limit; there are: 'run', 'team'"),
        ("", {**KEYS, 5: "u"}, "a key for 5"),
        ("", [("run", "r"), ("team", "t")], "keys must be a mapping .*, not list"),
        ("", "run", "not str"),
        ("", {"run": 5, "team": "t"}, "key for limit 'run' must be text, not int"),
        ("", {"run": "r", "team": None}, "key for limit 'team' must be text, not NoneType"),
        ("", {"run": "r", "team": ["t"]}, "key for limit 'team' must be text, not list"),
        ("", {"run": "r", "team": ""}, "key for limit 'team' must not be empty"),
        ("", {"run": "r" * 513, "team": "t"}, "key for limit 'run' is 513 bytes long; at most 512"),
        ("k", KEYS, "one key, or keys=.*, but not both"),
        (5, None, "must be text"),
        ("k" * 513, None, "513 bytes long"),
    ],
)
def test_keys_that_are_refused(tree: ailf.RateLimiter, key: Any, keys: Any, message: str) -> None:
    """A missing, unknown, wrong or too long key is refused by each call, which names the limit, and charges nothing."""
    for call in (tree.try_acquire, tree.acquire, tree.hold, tree.reserve, tree.limited):
        with pytest.raises(ailf.InvalidArgumentError, match=message):
            call(key, keys=keys)
    assert left(tree, **KEYS) == {"run": 100, "team": 300}


def test_keys_of_a_limiter_without_a_root(backend: ailf.Backend) -> None:
    """Without a root `keys` is refused, and the error says how to declare one."""
    limiter = backend.rate_limiter("plain", run="5/day", team="5/day")
    for call in (limiter.try_acquire, limiter.acquire, limiter.hold, limiter.peek, limiter.reset):
        with pytest.raises(ailf.InvalidArgumentError, match=r"declare a root, .*rate_limiter\('plain', root='…', …\)"):
            call(keys=KEYS)
    assert limiter.root is None


def test_declarations_that_are_refused(backend: ailf.Backend) -> None:
    """A root that can't be used, a limit called `keys`, and `count_denied` are refused where they are declared."""
    for root in ("", 5, "r" * 513):
        with pytest.raises(ailf.InvalidArgumentError, match="root of rate limiter 'budget'"):
            backend.rate_limiter("budget", run="5/day", root=root)  # type: ignore[arg-type]
    with pytest.raises(ailf.InvalidArgumentError, match="can't be called 'keys'"):
        backend.rate_limiter("budget", keys="5/day", root="acme")
    with pytest.raises(ailf.InvalidArgumentError, match="count_denied can't be combined with root"):
        backend.rate_limiter("budget", run="5/day", root="acme", count_denied=True)


def test_costs(backend: ailf.Backend) -> None:
    """`cost` is the cost by each rate that is not named, in a call and in `settle`; a concurrency limit costs 1."""
    limiter = backend.rate_limiter(
        "budget", root="acme", run="100/day fixed", team="300/day fixed", calls=Concurrency(3)
    )
    keys = MappingProxyType({"run": "r", "team": "t", "calls": "c"})
    permit = limiter.acquire(keys=keys, cost=30, run=20)
    assert repr(permit) == "<Permit 'run=r team=t calls=c' run=20, team=30, calls=1>"
    assert left(limiter, **keys) == {"run": 80, "team": 270, "calls": 2}
    permit.settle(cost=5, team=7)
    assert left(limiter, **keys) == {"run": 95, "team": 293, "calls": 2}
    permit.release()
    assert left(limiter, **keys) == {"run": 95, "team": 293, "calls": 3}
    with pytest.raises(ailf.InvalidArgumentError, match="the cost"):
        limiter.try_acquire(keys=keys, cost=-1)
    with pytest.raises(ailf.InvalidArgumentError, match="no limit 'tokens'"):
        limiter.try_acquire(keys=keys, tokens=1)
    with pytest.raises(ailf.RateLimitedError, match=r"keys run='r', team='t', calls='c': a cost of 101 .* limit 'run'"):
        limiter.acquire(keys=keys, cost=101)


def test_one_limit_with_a_root(backend: ailf.Backend) -> None:
    """A root with a single unnamed limit is a tree too: its state is not that of a limiter without a root."""
    limiter = backend.rate_limiter("single", "10/day fixed", root="acme")
    assert limiter.try_acquire("k", cost=4).remaining == 6
    assert limiter.peek(keys={"": "k"}).remaining == 6
    assert backend.rate_limiter("single", "10/day fixed").peek("k").remaining == 10
    assert list(backend.limiters()) == [ailf.LimiterName("single", "k", "acme", "")]


def test_some_keys(tree: ailf.RateLimiter) -> None:
    """`peek` and `reset` take the keys of some limits, `observe` at least that of its limit."""
    tree.try_acquire(keys=KEYS, cost=50)
    decision = tree.peek(keys={"team": "t"})
    assert (list(decision.limits), decision.remaining, decision.bound, decision.permit) == (["team"], 250, None, None)
    tree.observe(keys={"team": "t"}, limit="team", remaining=10)
    with pytest.raises(ailf.InvalidArgumentError, match=r"observe\(limit='run'\) needs the key of that limit"):
        tree.observe(keys={"team": "t"}, limit="run", remaining=1)
    for call in (tree.peek, tree.reset):
        with pytest.raises(ailf.InvalidArgumentError, match="name at least one limit's key"):
            call(keys={})
        with pytest.raises(ailf.InvalidArgumentError, match="no such limit"):
            call(keys={"user": "u"})
    tree.reset(keys={"run": "r"})
    assert left(tree, **KEYS) == {"run": 100, "team": 10}


def test_decorated_functions(tree: ailf.RateLimiter) -> None:
    """`limited` takes keys, or a function of the call's arguments that returns them."""

    @tree.limited(keys=lambda run, **_: {"run": run, "team": "t"}, cost=10)
    def work(run: str, *, steps: int) -> str:
        return f"{run} {steps}"

    @tree.limited(keys=KEYS)
    def fixed() -> Iterator[int]:
        yield from range(3)

    assert work("r7", steps=2) == "r7 2"
    assert left(tree, run="r7", team="t") == {"run": 90, "team": 290}
    assert list(fixed()) == [0, 1, 2]
    assert left(tree, **KEYS) == {"run": 99, "team": 289}
    with pytest.raises(ailf.InvalidArgumentError, match="key or keys"):
        tree.limited(lambda: "k", keys=KEYS)
    wrong = tree.limited(keys=lambda: {"run": "r"})(lambda: None)
    with pytest.raises(ailf.InvalidArgumentError, match="lacks a key for limit 'team'"):
        wrong()


def test_a_generator_that_would_wait_for_itself(backend: ailf.Backend) -> None:
    """A thread that holds the last slot of a team by one generator can't begin another run of this team."""
    limiter = backend.rate_limiter("budget", root="acme", run="9/day", team=Concurrency(1))

    @limiter.limited(keys=lambda run, team: {"run": run, "team": team})
    def numbers(run: str, team: str) -> Iterator[int]:
        yield from range(len(run + team))

    first, other_team = numbers("r1", "a"), numbers("r1", "b")
    assert next(first) == next(other_team) == 0
    with pytest.raises(ailf.RateLimitedError, match=r"run='r2', team='a': generators .* would wait for itself"):
        next(numbers("r2", "a"))
    first.close()
    assert next(numbers("r2", "a")) == 0


def test_an_entered_hold_names_its_keys(tree: ailf.RateLimiter) -> None:
    """A `hold` that is entered twice is refused with its keys."""
    hold = tree.hold(keys=KEYS)
    with hold, pytest.raises(ailf.InvalidArgumentError, match="keys run='r', team='t': already entered"), hold:
        pass


def test_on_asyncio() -> None:
    """Every method of the asyncio class takes keys."""

    async def main() -> None:
        async with ailf.connect_async("memory://") as backend:
            limiter = backend.rate_limiter("budget", root="acme", run="100/day", team="300/day")
            async with limiter.hold(keys=KEYS, cost=10) as permit:
                assert (permit.key, permit.keys) == ("", KEYS)
            await (await limiter.acquire(keys=KEYS, timeout=0)).cancel()
            assert await limiter.try_acquire(keys=KEYS)
            await limiter.reserve(keys=KEYS)

            @limiter.limited(keys=KEYS)
            async def work() -> None:
                pass

            await work()
            await limiter.observe(keys=KEYS, limit="run", remaining=5)
            assert (await limiter.peek(keys={"run": "r"})).remaining == 5
            await limiter.reset(keys=KEYS)
            assert (await limiter.peek(keys=KEYS)).remaining == 100

    asyncio.run(main())


def test_a_mapping_that_changes_before_the_call() -> None:
    """What was checked is what is charged."""
    with MemoryBackend() as backend:
        tree = backend.rate_limiter("tree", root="all", run="5/day")
        keys = {"run": "first"}
        held = tree.hold(keys=keys)
        keys["run"] = "second"
        with held:
            pass
        assert [tree.peek(each).remaining for each in ("first", "second")] == [4, 5]


@pytest.mark.parametrize("name", ["self", "engine", "key", "timeout"])
def test_names_that_no_limit_can_have(name: str) -> None:
    """The name of a parameter is refused at the declaration."""
    with MemoryBackend() as backend, pytest.raises(ailf.InvalidArgumentError, match=f"can't be called {name!r}"):
        backend.rate_limiter("r", **{name: "5/day"})


def test_denied_while_the_backend_is_away() -> None:
    """With "deny" a call that would wait is denied at once, and its error has the backend's as its cause."""
    with MemoryBackend() as backend:
        faults = Faults(backend)
        limiter = backend.rate_limiter("r", "5/day", on_backend_error="deny")
        faults.backend_away()
        for call in (lambda: limiter.acquire(timeout=60), limiter.reserve):
            with pytest.raises(ailf.RateLimitedError) as raised:
                call()
            assert isinstance(raised.value.__cause__, ailf.BackendError)
