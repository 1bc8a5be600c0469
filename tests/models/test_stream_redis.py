"""The streams of Redis agree with those of the memory backend and with the model, step by step.

A server's clock can't be moved, so time passes by moving the stored state: all stored times are set back. The time
inside an entry can't be set back, so entries have none here, or one that is past or never comes, and their ages are not
compared. Tests below cover both.

Steps are far apart and no two durations add up to a third, so that the real milliseconds of a step decide nothing.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis.stateful import run_state_machine_as_test

from ailf.driver import Action, Draft, Fetched, Receipt, Settlement, Swept
from ailf.runtime import ThreadRuntime, run
from ailf.values import EARLIEST, LATEST, Retention
from ailf_redis.driver import RedisDriver
from ailf_redis.scripts import ADD, DELETE_GROUP, FETCH
from ailf_redis.settings import Settings
from tests.models.side import NEVER, MemorySide, Side, Times
from tests.models.stream_machine import GROUPS, Machine
from tests.support.effort import SLOW, examples
from tests.support.servers import Server

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
"""KEYS: for each group `due`, `alive` and `notes`, then dedup ids. ARGV: milliseconds to pass, number of groups."""

DEDUP_IDS = ("one", "other")

END_TOGETHER = """
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
for _, member in ipairs(ARGV) do redis.call('ZADD', KEYS[1], 'XX', ends, member) end
"""
"""KEYS: `due` of a group. ARGV: members, which were leased in one step."""

_numbers = itertools.count()


class RedisSide(Side):
    """A driver on a server, with its own stream."""

    def __init__(self, backend: RedisDriver) -> None:
        super().__init__(backend.stream(), f"tasks-{next(_numbers)}")
        self._execute = backend.executor.call
        groups = [backend.keys.group(self.stream, group) for group in GROUPS]
        self._due = {group: keys.due for group, keys in zip(GROUPS, groups, strict=True)}
        self._keys = [key for each in groups for key in (each.due, each.alive, each.notes)]
        self._keys += [backend.keys.once(self.stream, each) for each in DEDUP_IDS]

    def now(self) -> float:
        """Return the server's time, which is this machine's."""
        return time.time()

    def fetch(self, group: str, consumer: str, count: int, times: Times, width: int = 1) -> Fetched:
        """Fetch, and let all leases end together: where it takes two scripts, a millisecond may pass between them."""
        fetched = super().fetch(group, consumer, count, times, width)
        if fetched.claims:
            due, members = self._due[group], [each.receipt.id for each in fetched.claims]
            run(self._execute("EVAL", END_TOGETHER, 1, due, *members))
        return fetched

    def let_pass(self, seconds: float) -> None:
        """Set back the stored times."""
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
    """Each step has the model's result, and the stream and its groups have the model's state after it."""
    run_state_machine_as_test(
        lambda: Machine(TIMES, [RedisSide(backend), MemorySide()]),
        settings=examples(25, stateful_step_count=40),
    )


def test_a_delay_passes(backend: RedisDriver) -> None:
    """A scheduled message that the group has read waits until it is due, and those behind it wait in its lane."""
    side = RedisSide(backend)
    drafts = [Draft(b"first", key="k", delay=330.0), Draft(b"second", key="k"), Draft(b"third", key="k", at=1.0)]
    ids = side.call("add", drafts, retention=None)
    waiting = _fetch(side)
    assert (waiting.claims, waiting.next_due) == ([], pytest.approx(330.0, abs=5))
    side.let_pass(320.0)
    assert _fetch(side).claims == []
    side.let_pass(20.0)
    assert not side.call("cancel", ids[1])
    for body in (b"first", b"second", b"third"):
        (claim,) = _fetch(side).claims
        assert (claim.record.body, claim.attempt) == (body, 1)
        side.call("settle", GROUPS[0], [Settlement(claim.receipt, Action.ACK)], max_deliveries=3)
    side.close()


def test_a_consumer_leaves_what_retention_removed(backend: RedisDriver) -> None:
    """A message that hard retention removed ends with its lease, and the next one of its key is due at once."""
    side = RedisSide(backend)
    ids = side.call("add", [Draft(b"x", key="k")] * 3, retention=None)
    assert [len(_fetch(side).claims) for _ in range(2)] == [1, 0]
    assert side.call("trim", Retention(max_len=2, hard=True)) == Swept(1, 1)
    side.call("leave", GROUPS[0], "anna")
    info = side.call("info", GROUPS[0])
    assert (info.pending, info.delayed) == (0, 2)
    due = backend.keys.group(side.stream, GROUPS[0]).due
    assert run(backend.executor.call("ZRANGE", due, 0, -1)) == [ids[1].encode()]
    side.close()


def test_old_entries_go(backend: RedisDriver) -> None:
    """The age of an entry follows from its id."""
    side = RedisSide(backend)
    run(backend.executor.call("XADD", backend.keys.stream(side.stream), "1000-0", "ailf.body", "of 1970"))
    (new,) = side.call("add", [Draft(b"new")], retention=None)
    side.call("open_group", GROUPS[0], EARLIEST)
    assert side.call("info", GROUPS[0]).oldest == pytest.approx(side.now() - 1, abs=5)
    assert side.call("trim", Retention(max_age=3600.0)) == Swept(0, 0)
    assert side.call("trim", Retention(max_age=3600.0, hard=True)) == Swept(1, 1)
    assert [each.id for each in side.call("read", EARLIEST, LATEST, 10)] == [new]
    side.close()


def test_what_is_stored_for_later(backend: RedisDriver) -> None:
    """A delay and a time are stored in whole milliseconds; an entry without options is stored as by any client."""
    side = RedisSide(backend)
    key, meta = backend.keys.stream(side.stream), backend.keys.meta(side.stream)
    plain, timed, retained = (
        side.call("add", [Draft(b"x", **how)], retention=retention)[0]
        for how, retention in (({}, None), ({"at": 4_000_000_002.007}, None), ({}, Retention(max_len=9)))
    )
    entries = dict(run(backend.executor.call("XRANGE", key, "-", "+")))
    assert entries[plain.encode()] == entries[retained.encode()] == [b"ailf.body", b"x"]
    assert entries[timed.encode()] == [b"ailf.how", b"4000000002007||", b"ailf.body", b"x"]
    once = backend.keys.once(side.stream, "id")
    options = {"dedup_id": "id", "token": "t", "window": 2.007, "retention": None}
    added = side.call("add_once", Draft(b"x", at=4_000_000_002.007), **options)
    (entry,) = run(backend.executor.call("XRANGE", key, added.id, added.id))
    assert entry[1] == [b"ailf.how", b"4000000002007||", b"ailf.once", once.encode(), b"ailf.body", b"x"]
    assert side.call("cancel", added.id)
    assert 0 < run(backend.executor.call("PTTL", once)) <= 2007
    run(backend.executor.call("DEL", key, meta, once))


def test_delays_are_sent_in_whole_milliseconds(backend: RedisDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delay of 2.007 s is sent as 2007 ms, as on the memory backend."""
    calls: list[Sequence[Any]] = []
    replies: list[list[Any]] = [[0, b"1-0"], [1]]

    async def call_page(entries: int, *arguments: Any) -> Any:
        calls.append(arguments)
        return replies.pop(0)

    monkeypatch.setattr(backend.executor, "call_page", call_page)
    driver = backend.stream()
    run(driver.add("s", [Draft(b"x", delay=2.007)], retention=None))
    run(driver.settle("s", "g", [Settlement(Receipt("1-0", "me", 1), Action.NACK, 2.007)], max_deliveries=3))
    assert [[str(each) for each in arguments].count("2007") for arguments in calls] == [1, 1]


RECORDS_READS = """
local call = redis.call
local redis = setmetatable({ call = function(command, ...)
  local reply = call(command, ...)
  if command == 'XRANGE' and (...) == KEYS[1] then
    for _, entry in ipairs(reply) do call('RPUSH', 'read', entry[1]) end
  end
  return reply
end }, { __index = redis })
"""


@pytest.mark.parametrize("retention", [Retention(max_len=5), Retention.settled(), Retention.settled(max_len=5)])
def test_adds_read_only_what_they_remove(
    backend: RedisDriver, monkeypatch: pytest.MonkeyPatch, retention: Retention
) -> None:
    """An add with a retention reads only the entries that it removes, as the bodies of the others may be large."""
    side = RedisSide(backend)
    side.call("open_group", GROUPS[0], EARLIEST)
    drafts = [Draft(b"settled"), Draft(b"later", delay=1000.0), *[Draft(b"settled"), Draft(b"in hand")] * 2]
    ids = side.call("add", drafts, retention=None)
    claims = side.fetch(GROUPS[0], "anna", 5, TIMES).claims
    settlements = [Settlement(each.receipt, Action.ACK) for each in claims if each.record.body == b"settled"]
    side.call("settle", GROUPS[0], settlements, max_deliveries=3)
    side.call("add", [Draft(b"unread")], retention=None)
    call, call_page = backend.executor.call, backend.executor.call_page

    async def watched(entries: int, command: str, sha: str, *rest: Any) -> Any:
        return await call_page(entries, "EVAL", RECORDS_READS + ADD.text, *rest)

    monkeypatch.setattr(backend.executor, "call_page", watched)
    side.call("add", [Draft(b"new")], retention=retention)
    monkeypatch.undo()
    left = [each.id for each in side.call("read", EARLIEST, LATEST, 100)]
    read = [each.decode() for each in run(call("LRANGE", "read", 0, -1))]
    run(call("DEL", "read"))
    assert read == [each for each in ids if each not in left]
    assert len(read) == (1 if retention == Retention.settled() else 3)
    side.close()


def _fetch(side: Side) -> Fetched:
    return side.fetch(GROUPS[0], "anna", 1, TIMES)


def test_a_group_made_again_at_once(backend: RedisDriver) -> None:
    """S9, S4: the receipts of a deleted group are invalid for a new one of its name, however soon that is made."""
    run(backend.stream().add("s", [Draft(b"message")], retention=None))
    key, keys = backend.keys.stream("s"), backend.keys.group("s", "g")
    fetch = ("EVAL", FETCH.text, len(keys), *keys, "g", "me", 1, 60_000, 60_000, 5)
    delete = ("EVAL", DELETE_GROUP.text, len(keys) + 1, *keys, backend.keys.wake("s", "g"), "g")
    replies = run(backend.executor.call_many([fetch, delete] * 200))
    grants = [grant for _, fresh, grant, *_ in replies[::2] if fresh]
    assert len(set(grants)) == 200
    run(backend.executor.call("DEL", key, *keys))
