"""The locks of Redis agree with those of the memory backend and with the model, step by step.

A server's clock can't be moved, so time passes by moving the stored state: all stored times are set back, and all TTLs
are shortened, less the real time since the last run. No sum of the times that pass is near a ttl or a waiter lease, so
that the real milliseconds of a step decide nothing.
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
    always=0.6,
)

DAY = 86_400.0
"""Seconds after which the state of an unused lock expires."""

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
    local alive, looks, turn, channel = string.match(waiters[at + 1], '^(%d+) (%d+) (%-?%d+) (.*)$')
    turn = tonumber(turn)
    if turn > 1000 then turn = turn - by end
    local text = string.format('%.0f %.0f %.0f %s', alive - by, looks - by, turn, channel)
    redis.call('HSET', KEYS[i + 4], waiters[at], text)
  end
end
for _, key in ipairs(KEYS) do
  local left = redis.call('PTTL', key)
  if left == -1 then return redis.error_reply(key .. ' has no TTL') end
  if left >= 0 then redis.call('PEXPIRE', key, left - by) end
end
return now
"""
"""KEYS: the keys of each lock, in the order of ``lua/shared/lock.lua``.

ARGV: the milliseconds to pass, the server's time in ms at the last run.
"""

_numbers = itertools.count()


class RedisSide(LockSide):
    """A driver on a server, with its own names of locks."""

    def __init__(self, backend: RedisDriver, server: Server) -> None:
        super().__init__(backend.lock(), f"-{next(_numbers)}")
        self._call = backend.executor.call
        self._keys = [key for name in NAMES for key in backend.keys.lock(self.name(name))]
        self._client = server.client()
        self._at = round(time.time() * 1000)
        self._listener = self._client.pubsub()
        self._listener.subscribe(backend.keys.channel(HEARD))
        self._listener.get_message(timeout=5.0)

    def let_pass(self, seconds: float) -> None:
        """Set back the stored times."""
        script = ("EVAL", SET_BACK, len(self._keys), *self._keys, round(seconds * 1000), self._at)
        self._at = run(self._call(*script))

    def woken(self) -> list[str]:
        """Return the tokens that arrive before the reply to a PING."""
        self._listener.ping()
        tokens = []
        while (message := self._listener.get_message(timeout=5.0)) and message["type"] != "pong":
            tokens.append(message["data"].decode())
        assert message, "the server did not reply to the PING"
        return tokens

    def queue(self, name: str) -> list[str]:
        """Return the tokens in the stored wait queue."""
        *_, queue, waiters = self._keys[NAMES.index(name) * 5 :][:5]
        fields = iter(run(self._call("HGETALL", waiters)))
        alive = {token for token, text in zip(fields, fields, strict=True) if int(text.split()[0]) > time.time() * 1000}
        return [token.decode() for token in run(self._call("ZRANGE", queue, 0, -1)) if token in alive]

    def close(self) -> None:
        """Check that the state of an unused lock expires after a day."""
        try:
            self.let_pass(DAY)
            left = [key for key in self._keys if run(self._call("EXISTS", key))]
            assert not left
        finally:
            self._listener.close()
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
    """Each step has the model's result and wakes the same waiters, and each lock has the model's state after it."""
    run_state_machine_as_test(
        lambda: LockMachine(TIMES, [RedisSide(backend, server), MemorySide()]),
        settings=examples(20, stateful_step_count=40),
    )
