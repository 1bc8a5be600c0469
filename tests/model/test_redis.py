"""Redis does, step for step, what memory and the model do.

A server's time can't be moved. Time passes here by moving what is stored: everything that says when something is due
is set back. What an entry says of its own time can't be, so entries have none here, or one that never comes, or is
past; how old they are is not compared. Both have tests of their own below.

Steps are far apart and no two lengths of time add up to a third, so the real milliseconds that pass decide nothing.
"""

import itertools
import time
from collections.abc import Iterator

import pytest
from hypothesis.stateful import run_state_machine_as_test

from ailf.driver import Action, Draft, Fetched, Settlement
from ailf.runtime import ThreadRuntime, run
from ailf.values import EARLIEST, LATEST, Retention, Trimmed
from ailf_redis.backend import RedisDriver
from ailf_redis.scripts import FETCH, UNGROUP
from ailf_redis.settings import Settings
from tests.effort import SLOW, examples
from tests.model.machine import GROUPS, Machine
from tests.model.side import NEVER, MemorySide, Side, Times
from tests.servers import Server

TIMES = Times(
    tick=100.0,
    lease=1510.0,
    alive=820.0,
    delays=(0.0, 330.0, 1740.0),
    extensions=(150.0, 860.0, 2070.0),
    waits=(NEVER, NEVER, NEVER),
    windows=(180.0, 890.0, 3095.0),
    ages=(None, None, None),
    passing=(100.0, 700.0, 2000.0),
)

SET_BACK = """
local function set_back(scores)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', scores, '-inf', '(inf')) do
    redis.call('ZINCRBY', scores, -ARGV[1], name)
  end
end
local GROUPS = tonumber(ARGV[2])
for i = 1, GROUPS * 3, 3 do
  set_back(KEYS[i])
  set_back(KEYS[i + 1])
  if redis.call('HEXISTS', KEYS[i + 2], 'sweep') == 1 then
    redis.call('HINCRBY', KEYS[i + 2], 'sweep', -ARGV[1])
  end
end
for i = GROUPS * 3 + 1, #KEYS do
  local left = redis.call('PTTL', KEYS[i])
  if left > 0 then redis.call('PEXPIRE', KEYS[i], left - ARGV[1]) end
end
"""
"""KEYS: for each group `due`, `alive` and `notes`, then dedup ids. ARGV: milliseconds, the number of groups."""

DEDUP_IDS = ("one", "other")

_numbers = itertools.count()


class RedisSide(Side):
    """A stream of its own on a server."""

    def __init__(self, backend: RedisDriver) -> None:
        super().__init__(backend.stream(), f"tasks-{next(_numbers)}")
        self._execute = backend.executor.call
        groups = [backend.keys.group(self.stream, group) for group in GROUPS]
        self._keys = [key for each in groups for key in (each.due, each.alive, each.notes)]
        self._keys += [backend.keys.once(self.stream, each) for each in DEDUP_IDS]

    def now(self) -> float:
        """Return the server's time: it is this machine's."""
        return time.time()

    def let_pass(self, seconds: float) -> None:
        """Set back what is stored."""
        run(self._execute("EVAL", SET_BACK, len(self._keys), *self._keys, round(seconds * 1000), len(GROUPS)))


@pytest.fixture
def backend(server: Server, namespace: str) -> Iterator[RedisDriver]:
    """A driver on a namespace of its own."""
    driver = RedisDriver(Settings.from_url(f"{server.url}?namespace={namespace}"), ThreadRuntime())
    run(driver.ping())
    yield driver
    run(driver.close())


@SLOW
def test_redis_does_what_the_model_does(backend: RedisDriver) -> None:
    """Every answer is the model's and memory's, and so is how the stream and its groups stand after every step."""
    run_state_machine_as_test(
        lambda: Machine(TIMES, [RedisSide(backend), MemorySide()]),
        settings=examples(60, stateful_step_count=40),
    )


def test_a_delay_passes(backend: RedisDriver) -> None:
    """What a group has taken in waits for its time, and those behind it for their turn."""
    side = RedisSide(backend)
    drafts = [Draft(b"first", key="k", delay=330.0), Draft(b"second", key="k"), Draft(b"third", key="k", at=1.0)]
    ids = side.ask("add", drafts, retention=None)
    waiting = _fetch(side)
    assert (waiting.claims, waiting.next_due) == ([], pytest.approx(330.0, abs=5))
    side.let_pass(320.0)
    assert _fetch(side).claims == []
    side.let_pass(20.0)
    assert not side.ask("cancel", ids[1])
    for body in (b"first", b"second", b"third"):
        (claim,) = _fetch(side).claims
        assert (claim.record.body, claim.attempt) == (body, 1)
        side.ask("settle", GROUPS[0], [Settlement(claim.receipt, Action.ACK)], max_deliveries=3)
    side.close()


def test_old_entries_go(backend: RedisDriver) -> None:
    """An entry's age is told by its id."""
    side = RedisSide(backend)
    run(backend.executor.call("XADD", backend.keys.stream(side.stream), "1000-0", "ailf.body", "of 1970"))
    (new,) = side.ask("add", [Draft(b"new")], retention=None)
    side.ask("open_group", GROUPS[0], EARLIEST)
    assert side.ask("info", GROUPS[0]).oldest == pytest.approx(side.now() - 1, abs=5)
    assert side.ask("trim", Retention(max_age=3600.0)) == Trimmed(0, 0)
    assert side.ask("trim", Retention(max_age=3600.0, hard=True)) == Trimmed(1, 1)
    assert [each.id for each in side.ask("read", EARLIEST, LATEST, 10)] == [new]
    side.close()


def _fetch(side: Side) -> Fetched:
    return side.fetch(GROUPS[0], "anna", 1, TIMES)


def test_a_group_made_again_at_once(backend: RedisDriver) -> None:
    """S9, S4: a receipt of a group that was deleted proves nothing, however soon one of its name is there again."""
    run(backend.stream().add("s", [Draft(b"message")], retention=None))
    key, keys = backend.keys.stream("s"), backend.keys.group("s", "g")
    fetch = ("EVAL", FETCH.text, len(keys), *keys, "g", "me", 1, 60_000, 60_000, 5)
    delete = ("EVAL", UNGROUP.text, len(keys), *keys, "g")
    replies = run(backend.executor.call_many([fetch, delete] * 200))
    grants = [grant for _, fresh, grant, *_ in replies[::2] if fresh]
    assert len(set(grants)) == 200
    run(backend.executor.call("DEL", key, *keys))
