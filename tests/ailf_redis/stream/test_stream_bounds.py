"""What retention and `info` cost the server: each step is bounded, and reads no body but those that it must.

Commands and bodies are counted, and not the time: each state is several times larger than the bound of one step.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import pytest
import redis

import ailf
from ailf import Retention, Trimmed
from ailf_redis import scripts
from ailf_redis.scripts import Script
from tests.support.effort import NEWEST
from tests.support.servers import NewServer, Server

MOST, LARGE, PAGE, ROOM = 1000, 22, 100, 256 * 1024
"""The bounds of ``lua/shared/retention.lua``; ``info.lua`` has the same room."""

STEP = 1300
"""The most commands of one step."""

BIG = "x" * 100_000

COUNTS = """
local call, bodies, bytes = redis.call, 0, 0
local redis = setmetatable({ call = function(command, ...)
  local reply = call(command, ...)
  if (command == 'XRANGE' or command == 'XREVRANGE') and (...) == KEYS[1] then
    bodies = bodies + #reply
    for _, entry in ipairs(reply) do
      for _, text in ipairs(entry[2]) do bytes = bytes + #text end
    end
  end
  return reply
end }, { __index = redis })
local function counted(...)
"""
"""Put before a script: it counts the entries that the script reads, and their bytes."""

COUNTED = """
end
local reply = counted()
call('SET', 'counted', bodies .. ' ' .. bytes)
return reply
"""


@attrs.frozen
class Step:
    """What one script did: its commands, the entries that it read, and the bytes of these."""

    commands: int
    bodies: int
    size: int


@attrs.define
class Steps:
    """Counts what each script of the driver does."""

    raw: redis.Redis
    counting: bool = True
    taken: list[Step] = attrs.field(factory=list)

    def watch(self, executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let every script count."""
        call_page = executor.call_page
        texts = {each.sha: each.text for each in vars(scripts).values() if isinstance(each, Script)}

        async def watched(entries: int, command: str, sha: str, *rest: Any) -> Any:
            if command != "EVALSHA" or not self.counting:
                return await call_page(entries, command, sha, *rest)
            self.raw.config_resetstat()
            reply = await call_page(entries, "EVAL", COUNTS + texts[sha] + COUNTED, *rest)
            ran = self.raw.info("commandstats")
            commands = sum(each["calls"] for name, each in ran.items() if name not in {"cmdstat_info", "cmdstat_eval"})
            bodies, size = map(int, (self.raw.get("counted") or b"").split())
            self.taken.append(Step(commands, bodies, size))
            return reply

        monkeypatch.setattr(executor, "call_page", watched)

    def pop(self) -> list[Step]:
        """Return the steps since the last call."""
        taken, self.taken = self.taken, []
        return taken


@pytest.fixture
def raw(any_private: Server) -> Iterator[redis.Redis]:
    """A client of redis-py."""
    with any_private.client() as client:
        yield client


@pytest.fixture
def any_private(server: Server, new_server: NewServer) -> Server:
    """A server of this test alone, of each version, so that its command counts are this test's."""
    return new_server(version=server.version)


@pytest.fixture
def backend(any_private: Server) -> Iterator[ailf.Backend]:
    """A backend."""
    with ailf.connect(f"{any_private.url}?timeout=20") as opened:
        yield opened


@pytest.fixture
def steps(backend: ailf.Backend, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The counts of every script of the backend."""
    counted = Steps(raw)
    counted.watch(backend.engine.driver.executor, monkeypatch)  # type: ignore[attr-defined]
    return counted


def take(group: ailf.Group[Any], count: int) -> None:
    """Take and acknowledge messages."""
    with group.consumer(prefetch=1) as consumer:
        for _ in range(count):
            delivery = consumer.get(5)
            assert delivery is not None
            delivery.ack()


def filled(backend: ailf.Backend, bodies: Sequence[Any], *, settled: bool) -> ailf.Group[Any]:
    """Fill a stream, of which a group has settled all messages or has read none; return the group."""
    stream = backend.stream("s")
    for at in range(0, len(bodies), 500):
        stream.add_many(bodies[at : at + 500])
    group = stream.group("g", lease=600, takeover=600)
    group.open()
    if settled:
        group.seek(ailf.LATEST)
    return group


RETENTIONS = {
    "length": Retention(max_len=10_000_000),
    "age": Retention(max_age=1000.0),
    "settled": Retention.settled(),
    "hard": Retention(max_len=10_000_000, max_age=1000.0, hard=True),
}


@pytest.mark.parametrize("kind", RETENTIONS)
def test_an_add_that_removes_nothing_reads_nothing(backend: ailf.Backend, steps: Steps, kind: str) -> None:
    """S8: while nothing has to go an add reads no entry, whether the entries are unread, pending or delayed."""
    group = filled(backend, [BIG] * 10, settled=False)
    stream = backend.stream("s", retention=RETENTIONS[kind])
    stream.add(BIG, delay=1000)
    with group.consumer(prefetch=5) as consumer:
        for _ in range(3):
            assert consumer.get(5) is not None
            steps.pop()
            stream.add(BIG)
            (step,) = steps.pop()
            assert step.bodies == 0
            assert step.commands < 20


@pytest.mark.parametrize("kind", ["no group", "settled", "only settled", "hard"])
@pytest.mark.parametrize("size", ["small", "medium", "large"])
@NEWEST
def test_a_grown_stream(backend: ailf.Backend, steps: Steps, raw: redis.Redis, kind: str, size: str) -> None:
    """S8: a grown stream that gets a retention shrinks with each add, none is refused, and no large body is read."""
    bound = LARGE if size == "large" else MOST
    body = {"small": "x", "medium": "x" * 1000, "large": BIG}[size]
    group = filled(backend, [body] * (10 * bound), settled=True)
    if kind == "no group":
        group.delete()
    retention = Retention.settled(max_len=10) if kind == "only settled" else Retention(max_len=10, hard=kind == "hard")
    stream = backend.stream("s", retention=retention)
    steps.pop()
    length = 10 * bound
    for _ in range(3):
        stream.add("new")
        (step,) = steps.pop()
        left = raw.xlen("{ailf:stream:s}")
        assert bound - PAGE < length - left <= bound
        assert step.commands < STEP
        assert step.size < 10_000
        length = left
    assert stream.trim() == Trimmed(length - (10 if kind != "only settled" else 3), 0)
    assert 7 <= len(steps.taken) <= 9
    assert all(step.size < 10_000 and step.commands < STEP for step in steps.pop())


def test_many_at_once_into_a_full_stream(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S8: an add of many makes room for all of them, however large the entries are that go."""
    filled(backend, [BIG] * 10 + ["x"] * 390, settled=True)
    stream = backend.stream("s", retention=Retention(max_len=400))
    stream.add_many(range(400))
    assert raw.xlen("{ailf:stream:s}") == 400
    assert [entry.data for entry in stream.read(limit=1000)] == list(range(400))


def test_settled_entries_behind_one_that_waits(backend: ailf.Backend, steps: Steps, raw: redis.Redis) -> None:
    """S8: settled entries behind an unsettled one are read one at a time, and no more than a step has room for."""
    stream = backend.stream("s")
    stream.add("reminder", delay=1000)
    group = stream.group("g", lease=600)
    stream.add_many([BIG] * 40)
    take(group, 40)
    bounded = backend.stream("s", retention=Retention(max_len=30))
    most, length = ROOM // len(BIG) + 1, 41
    for _ in range(7):
        steps.pop()
        bounded.add("x")
        (step,) = steps.pop()
        removed = length + 1 - raw.xlen("{ailf:stream:s}")
        assert step.bodies == removed == min(most, length + 1 - 30)
        assert step.size <= ROOM + len(BIG) + 100
        length += 1 - removed
    assert length == 30
    assert bounded.trim(Retention(max_len=2)).removed == 22
    assert all(step.bodies <= most for step in steps.pop())
    assert [entry.data for entry in stream.read(limit=10)] == ["reminder"] + ["x"] * 7


def test_small_messages_replace_large_ones(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S8: adds aren't refused while large settled entries go more slowly than small ones are added."""
    stream = backend.stream("s")
    stream.add("reminder", delay=1000)
    stream.add_many([BIG] * 99)
    group = stream.group("g", lease=600)
    bounded = backend.stream("s", retention=Retention(max_len=100))
    take(group, 99)
    for _ in range(30):
        bounded.add_many(range(10))
        take(group, 10)
    stream.trim(Retention(max_len=100))
    assert raw.xlen("{ailf:stream:s}") == 100


@pytest.mark.parametrize("state", ["held", "unread", "waiting"])
def test_a_hard_retention_with_much_unsettled(
    backend: ailf.Backend, steps: Steps, raw: redis.Redis, state: str
) -> None:
    """S8: a hard retention removes many unsettled entries in bounded steps, counts each, and reads one body a step."""
    count = 10 * PAGE if state != "unread" else 8 * MOST
    group = filled(backend, ["x"] * count, settled=False)
    stream = backend.stream("s", retention=Retention(max_len=10, hard=True))
    with group.consumer(prefetch=count if state != "unread" else 1) as consumer:
        for _ in range(count if state != "unread" else 0):
            assert consumer.get(5) is not None
        if state == "waiting":
            consumer.close()
        steps.pop()
        for number in range(3):
            stream.add("new")
            (step,) = steps.pop()
            assert step.commands < STEP
            assert step.bodies <= 1 + PAGE
            info = group.info()
            assert info.evicted == count + number + 1 - info.length > number
            steps.pop()
        removed = raw.xlen("{ailf:stream:s}") - 10
        assert stream.trim() == Trimmed(removed, removed)
        taken = steps.pop()
        assert len(taken) >= 3
        assert all(step.commands < STEP for step in taken)
        assert group.info().length == 10
        if state == "waiting":
            assert group.info().delayed == raw.xpending("{ailf:stream:s}", "g")["pending"] == 7
        for number in range(5):  # the removed ones that are held stay pending: they are passed each time
            stream.add(number)
            assert group.info().length == 10


def test_a_hard_retention_and_a_group_behind(backend: ailf.Backend, raw: redis.Redis) -> None:
    """S8: with two groups each removed entry counts once as unsettled, and not if both had settled it."""
    group = filled(backend, range(20), settled=False)
    other = backend.stream("s").group("other", lease=600)
    with group.consumer(prefetch=15) as consumer, other.consumer(prefetch=8) as behind:
        for number in range(15):
            delivery = consumer.get(5)
            assert delivery is not None
            if number not in {2, 12}:
                delivery.ack()
        for number in range(8):
            delivery = behind.get(5)
            assert delivery is not None
            if number not in {2, 6}:
                delivery.ack()
        # 2 and 6 are held, 8 to 14 are unread by one group, 15 to 19 by both
        for keep, removed, unsettled in ((18, 2, 0), (17, 1, 1), (14, 3, 0), (11, 3, 2), (7, 4, 4), (2, 5, 5)):
            trimmed = backend.stream("s").trim(Retention(max_len=keep, hard=True))
            assert trimmed == Trimmed(removed, unsettled), keep
        assert raw.xlen("{ailf:stream:s}") == 2


@pytest.mark.parametrize("retention", [Retention(max_age=1000.0), Retention.settled(), Retention(max_len=10)])
def test_an_add_to_a_server_without_memory(backend: ailf.Backend, raw: redis.Redis, retention: Retention) -> None:
    """S8: a server without memory refuses an add that removes nothing, although a trim is a write; else it passes."""
    group = filled(backend, ["x"] * 10, settled=False)
    stream = backend.stream("s", retention=retention)
    raw.config_set("maxmemory", 1)
    try:
        with pytest.raises(ailf.BackendFullError):
            stream.add(1)
        assert raw.xlen("{ailf:stream:s}") == 10
        group.seek(ailf.LATEST)
        if retention.max_age is None:
            stream.add(1)
    finally:
        raw.config_set("maxmemory", 0)


# --- info --------------------------------------------------------------------------------------------------------

COUNTED_ENTRIES = 200
"""How many entries ``info.lua`` counts on each side of a group's position."""


@pytest.mark.parametrize("read", [1, 30])
def test_info_of_large_entries(backend: ailf.Backend, steps: Steps, read: int) -> None:
    """S10: `info` reads few large bodies: the lag is exact if that is enough to count one side, else None."""
    group = filled(backend, [BIG] * 60, settled=False)
    stream = backend.stream("s")
    assert stream.cancel(stream.add("later", delay=60))
    take(group, read)
    steps.pop()
    info = group.info()
    (step,) = steps.pop()
    assert info.lag == (59 if read == 1 else None)
    assert step.size <= ROOM + 2 * len(BIG)
    assert info.oldest is not None


@pytest.mark.parametrize("removed", ["nothing", "settled", "behind", "unread", "by others"])
@NEWEST
def test_info_of_many_entries(
    backend: ailf.Backend, steps: Steps, raw: redis.Redis, server: Server, removed: str
) -> None:
    """S10: with many entries the lag is exact if the server tells it and only settled ones went, else None."""
    steps.counting = False
    reads, unread = 320, 330  # more than COUNTED_ENTRIES on each side, also after the trim
    stream = backend.stream("s")
    if removed == "behind":
        stream.add("reminder", delay=1000)
    group = filled(backend, ["x"] * (reads + unread), settled=False)
    first = stream.read(limit=1)[0].id
    take(group, reads)
    gone = {"settled": 100, "behind": 100, "unread": 1, "by others": 3}.get(removed, 0)
    if removed == "unread":
        stream.cancel(stream.add("later", delay=60))
        gone = 0
    elif removed == "by others":
        raw.xtrim("{ailf:stream:s}", minid=f"{first.split('-')[0]}-{int(first.split('-')[1]) + 3}", approximate=False)
    else:
        stream.trim(Retention(max_len=reads + unread - gone + (removed == "behind")))
    steps.counting = True
    steps.pop()
    info = group.info()
    (step,) = steps.pop()
    known = server.version != "6.2" and removed in {"nothing", "settled", "behind"}
    assert info.lag == (unread if known else None)
    assert step.bodies <= (1 if known else 2 * COUNTED_ENTRIES)
    assert step.commands < STEP
    take(group, unread - COUNTED_ENTRIES + 1)
    assert group.info().lag == COUNTED_ENTRIES - 1


@pytest.mark.parametrize("first", ["redriven", "unread"])
def test_the_oldest_of_a_redriven_and_an_unread_message(backend: ailf.Backend, steps: Steps, first: str) -> None:
    """S10: the older one of a redriven and of an unread message counts, whatever the server knows of the lag."""
    stream = backend.stream("s")
    group = stream.group("g")
    stream.add("rejected")
    with group.consumer() as consumer:
        delivery = consumer.get(5)
        assert delivery is not None
        delivery.reject("no")
    calls: list[Any] = [group.dead_letters.redrive_all, lambda: stream.add("unread")]
    for call in calls if first == "redriven" else reversed(calls):
        time.sleep(0.2)
        call()
    steps.pop()
    oldest = group.info().oldest
    assert oldest is not None
    assert 0.2 <= oldest < 2


# --- dead letters and pages --------------------------------------------------------------------------------------


def test_purging_large_dead_letters(backend: ailf.Backend, steps: Steps) -> None:
    """S16: the ids of large dead letters are found in steps, each of which reads a megabyte."""
    group = filled(backend, [BIG] * 40, settled=False)
    with group.consumer(prefetch=40) as consumer:
        for _ in range(40):
            delivery = consumer.get(5)
            assert delivery is not None
            delivery.reject("no")
    letters = list(group.dead_letters.list(limit=50))
    assert len(letters) == 40
    steps.pop()
    assert group.dead_letters.purge_all() == 40
    taken = steps.pop()
    assert len(taken) >= 5
    assert all(step.size < 1_200_000 and step.commands < STEP for step in taken)
    assert group.info().dead == 0


# --- delete ------------------------------------------------------------------------------------------------------


def test_deleting_a_stream(backend: ailf.Backend, steps: Steps, raw: redis.Redis) -> None:
    """S1: a stream is deleted in one step, whatever it holds, and its memory is freed in the background."""
    group = filled(backend, ["x"] * (10 * PAGE), settled=False)
    backend.stream("s").group("other").open()
    with group.consumer(prefetch=5 * PAGE) as consumer:
        assert consumer.get(5) is not None
    steps.pop()
    backend.stream("s").delete()
    (step,) = steps.pop()
    assert step.commands <= 8
    assert raw.dbsize() == 1  # the count of this test
    stats = raw.info("commandstats")
    assert "cmdstat_del" not in stats
    assert stats["cmdstat_unlink"]["calls"] == 4


@pytest.mark.parametrize(("body", "most"), [("x", 101), (BIG, 8)])
def test_inspect_of_many_redriven(backend: ailf.Backend, steps: Steps, body: str, most: int) -> None:
    """S28: `inspect` compares an entry with a hundred redriven messages, fewer large ones, and else doesn't know."""
    steps.counting = False
    group = filled(backend, [body] * 130, settled=False)
    stream = backend.stream("s")
    ids = [each.id for each in stream.read(limit=130)]
    with group.consumer(prefetch=100) as consumer:
        for _ in ids:
            delivery = consumer.get(timeout=5)
            assert delivery is not None
            delivery.reject("no")
    group.dead_letters.redrive_all()
    steps.counting = True
    steps.pop()
    assert group.inspect(ids[0]).state is ailf.MessageState.WAITING
    assert group.inspect(ids[-1]).state is ailf.MessageState.UNKNOWN
    for step in steps.pop():
        assert step.bodies <= most
        assert step.commands < STEP
        assert step.size <= ROOM + 2 * len(BIG)
