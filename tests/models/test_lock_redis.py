"""Redis' locks do, step for step, what memory's and the model's do.

A server's time can't be moved. Time passes here by moving what is stored: whatever says when something ends is set
back, and what the server lets go by itself goes so much sooner. What has really passed since then is made up for. No
sum of what passes is near to a length of a grant or a place in line: the real milliseconds of a step decide nothing.
"""

import itertools
import time
from collections.abc import Iterator

import pytest
from hypothesis.stateful import run_state_machine_as_test

from ailf.runtime import ThreadRuntime, run
from ailf_redis.driver import RedisDriver
from ailf_redis.settings import Settings
from tests.models.lock_machine import NAMES, LockMachine, LockSide, LockTimes
from tests.models.lock_model import HEARD
from tests.models.test_lock_memory import MemorySide
from tests.support.effort import SLOW, examples
from tests.support.servers import Server

TIMES = LockTimes(
    ttls=(430.0, 1030.0, 2130.0),
    leases=(260.0, 760.0, 1860.0),
    passing=(100.0, 300.0, 700.0, 100.0, 1200.0, 100_000.0),
    always=0.5,
)

DAY = 86_400.0
"""Seconds for which a lock is remembered that nobody uses."""

SET_BACK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local by = ARGV[1] - (now - ARGV[2])
for i = 1, #KEYS, 5 do
  for _, token in ipairs(redis.call('ZRANGE', KEYS[i], 0, -1)) do
    redis.call('ZINCRBY', KEYS[i], -by, token)
  end
  local waiters = redis.call('HGETALL', KEYS[i + 4])
  for at = 1, #waiters, 2 do
    local alive, looks, channel = string.match(waiters[at + 1], '^(%d+) (%d+) (.*)$')
    redis.call('HSET', KEYS[i + 4], waiters[at], string.format('%.0f %.0f %s', alive - by, looks - by, channel))
  end
end
for _, key in ipairs(KEYS) do
  local left = redis.call('PTTL', key)
  if left == -1 then return redis.error_reply(key .. ' would stay for ever') end
  if left >= 0 then redis.call('PEXPIRE', key, left - by) end
end
return now
"""
"""KEYS: those of each lock, in the order of ``lua/shared/lock.lua``.

ARGV: milliseconds, the server's time at the last run.
"""

_numbers = itertools.count()


class RedisSide(LockSide):
    """Locks of their own on a server."""

    def __init__(self, backend: RedisDriver, server: Server) -> None:
        super().__init__(backend.lock(), f"-{next(_numbers)}")
        self._call = backend.executor.call
        self._keys = [key for name in NAMES for key in backend.keys.lock(self.name(name))]
        self._client = server.client()
        self._at = round(time.time() * 1000)
        self._ears = self._client.pubsub()
        self._ears.subscribe(backend.keys.channel(HEARD))
        self._ears.get_message(timeout=5.0)

    def let_pass(self, seconds: float) -> None:
        """Set back what is stored."""
        script = ("EVAL", SET_BACK, len(self._keys), *self._keys, round(seconds * 1000), self._at)
        self._at = run(self._call(*script))

    def woken(self) -> list[str]:
        """Return what came before the answer to a PING."""
        self._ears.ping()
        heard = []
        while (message := self._ears.get_message(timeout=5.0)) and message["type"] != "pong":
            heard.append(message["data"].decode())
        assert message, "the server is silent"
        return heard

    def line(self, name: str) -> list[str]:
        """Look into the keys."""
        *_, queue, waiters = self._keys[NAMES.index(name) * 5 :][:5]
        known = iter(run(self._call("HGETALL", waiters)))
        alive = {token for token, told in zip(known, known, strict=True) if int(told.split()[0]) > time.time() * 1000}
        return [token.decode() for token in run(self._call("ZRANGE", queue, 0, -1)) if token in alive]

    def close(self) -> None:
        """See that nothing is left of what nobody uses for a day."""
        try:
            self.let_pass(DAY)
            left = [key for key in self._keys if run(self._call("EXISTS", key))]
            assert not left
        finally:
            self._ears.close()
            self._client.close()


@pytest.fixture
def backend(server: Server, namespace: str) -> Iterator[RedisDriver]:
    """A driver on a namespace of its own."""
    driver = RedisDriver(Settings.from_url(f"{server.url}?namespace={namespace}"), ThreadRuntime())
    run(driver.ping())
    yield driver
    run(driver.close())


@SLOW
def test_redis_does_what_the_model_does(backend: RedisDriver, server: Server) -> None:
    """Every answer is the model's and memory's, and so are who is woken and how each lock stands after every step."""
    run_state_machine_as_test(
        lambda: LockMachine(TIMES, [RedisSide(backend, server), MemorySide()]),
        settings=examples(40, stateful_step_count=40),
    )
