"""The streams of Redis agree with the model where delays pass and a step handles few messages.

The scripts run on a clock that the test moves, so that the time inside an entry passes too; and with small pages, so
that most fetches and seeks take several steps. Ids and the ages that follow from them have the server's time.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from ailf.runtime import ThreadRuntime, run
from ailf_redis import scripts
from ailf_redis.driver import RedisDriver
from ailf_redis.scripts import Script
from ailf_redis.settings import Settings
from tests.models.side import NEVER, MemorySide, Side, Times, Timing, Wanted
from tests.models.stream_machine import Machine
from tests.models.test_stream_redis import DEDUP_IDS
from tests.support.effort import SLOW, examples
from tests.support.servers import Server

TIMES = Times(
    tick=100.0,
    lease=1510.0,
    alive=820.0,
    delays=(0.0, 330.0, 1740.0),
    extensions=(150.0, 860.0, 2070.0),
    waits=(275.0, 1165.0, NEVER),
    windows=(180.0, 890.0, 3095.0),
    ages=(None, None, None),
    passing=(100.0, 700.0, 2000.0),
)

NOW = "redis.call('GET', 'now') * 1000"

CHANGES = {
    "time[1] * 1000000 + time[2]": NOW,
    "local PAGE = 100 -- messages": "local PAGE = 2 -- messages",
    "'-', '+', PAGE, consumer)": "'-', '+', 100, consumer)",
    "left = left or #rows == PAGE\n        if #rows < PAGE": "left = left or #rows == 100\n        if #rows < 100",
    "STALE_PAGE, STALE_PAGES = 500, 2": "STALE_PAGE, STALE_PAGES = 1, 2",
    "MOST_NEW, MOST_DUE, MOST_PARKED = 500, 200, 150": "MOST_NEW, MOST_DUE, MOST_PARKED = 3, 2, 3",
    "math.min(tonumber(ARGV[3]), MOST_DUE)\n": "tonumber(ARGV[3])\n",  # the model looks ahead behind a whole fetch
    "local FIRST, RUN = 4, 32": "local FIRST, RUN = 2, 1000",  # what is read beyond `count` counts as read in `info`
    "local FEW = 1000 -- pending": "local FEW = 2 -- pending",
}
"""Texts in the scripts, and what stands for them. The model ends all leases of a dead consumer at once."""

LET_PASS = """
for _, key in ipairs(KEYS) do
  local left = redis.call('PTTL', key)
  if left > 0 then redis.call('PEXPIRE', key, left - ARGV[1]) end
end
redis.call('INCRBY', 'now', ARGV[1])
"""
"""KEYS: dedup ids. ARGV: milliseconds to pass."""


class ClockedSide(Side):
    """A driver on a server, with the clock of the scripts."""

    def __init__(self, backend: RedisDriver) -> None:
        super().__init__(backend.stream(), "tasks")
        self._execute = backend.executor.call
        self._once = [backend.keys.once(self.stream, each) for each in DEDUP_IDS]
        self._now_ms = int(time.time() * 1000)
        run(self._execute("SET", "now", self._now_ms))

    def now(self) -> float:
        """Return the time of the clock."""
        return self._now_ms / 1000

    def let_pass(self, seconds: float) -> None:
        """Move the clock."""
        self._now_ms += round(seconds * 1000)
        run(self._execute("EVAL", LET_PASS, len(self._once), *self._once, round(seconds * 1000)))

    def close(self) -> None:
        """Delete the stream and the clock."""
        super().close()
        run(self._execute("DEL", "now", *self._once))


later = st.builds(
    Wanted,
    key=st.sampled_from(["k", "k", "l"]),
    timing=st.sampled_from([Timing.NONE, Timing.DELAY, Timing.AT]),
    wait=st.integers(0, 1),
)


class DelayMachine(Machine):
    """The machine with more delays behind ordering keys."""

    @rule(entries=st.lists(later, min_size=2, max_size=4))
    def add_later(self, entries: Sequence[Wanted]) -> None:
        """Add entries with ordering keys, some with a delay."""
        self.append(entries, None)


@pytest.fixture
def backend(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisDriver]:
    """A driver whose scripts are changed."""
    texts, used = {}, set()
    for script in [each for each in vars(scripts).values() if isinstance(each, Script)]:
        text = script.text
        for part, other in CHANGES.items():
            used |= {part} if part in text else set()
            text = text.replace(part, other)
        texts[script.sha] = text
    assert used == set(CHANGES)
    driver = RedisDriver(Settings.from_url(own_server.url), ThreadRuntime())
    call_page = driver.executor.call_page

    async def changed(entries: int, command: str, sha: str, *rest: Any) -> Any:
        if command == "EVALSHA":
            return await call_page(entries, "EVAL", texts[sha], *rest)
        return await call_page(entries, command, sha, *rest)

    monkeypatch.setattr(driver.executor, "call_page", changed)
    yield driver
    run(driver.close())


@SLOW
def test_redis_does_what_the_model_does_when_delays_pass(backend: RedisDriver) -> None:
    """Each step has the model's result, and the stream and its groups have the model's state after it."""
    run_state_machine_as_test(
        lambda: DelayMachine(TIMES, [ClockedSide(backend), MemorySide()]),
        settings=examples(20, stateful_step_count=40),
    )
