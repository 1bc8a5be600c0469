"""A client of the lock driver itself, which makes requests like one in another process."""

import asyncio
from typing import Any

import pytest

import ailf
from ailf.driver import Denied, Granted, LockRequest
from ailf.runtime import ThreadRuntime, run
from contract_tests.helpers.threads import in_thread
from contract_tests.world import World

__all__ = ["AWAY", "TICK", "RawLockClient", "fences", "in_queue", "same"]

AWAY = 60.0
"""Seconds: longer than any test."""

TICK = 0.00099
"""Seconds by which a time may differ: a backend may count in whole milliseconds."""


class RawLockClient:
    """A client that calls the lock driver directly, on the thread runtime and over its own connections."""

    def __init__(self, world: World, backend: Any) -> None:
        self._twin = backend.engine.driver.with_runtime(ThreadRuntime())
        self._driver = self._twin.lock()
        world._opened.append(self)

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the driver."""
        return await in_thread(lambda: run(getattr(self._driver, method)(*args)))

    async def expect_granted(self, request: LockRequest) -> int:
        """Request the lock, which must be granted, and return the fence."""
        reply = await self.call("acquire", request)
        assert isinstance(reply, Granted), reply
        return reply.fence

    async def expect_denied(self, request: LockRequest) -> float:
        """Request the lock, which must be denied, and return the seconds until another try may succeed."""
        reply = await self.call("acquire", request)
        assert isinstance(reply, Denied), reply
        return reply.retry_after

    async def aclose(self) -> None:
        """Close its connections."""
        await in_thread(lambda: run(self._twin.close()))


async def in_queue(world: World, lock: Any, count: int) -> None:
    """Wait until `count` waiters are in the wait queue of the lock."""
    for _ in range(round(world.patience / 0.005)):
        waiting = (await lock.inspect()).waiting
        if waiting == count:
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"{waiting} waiters are in the wait queue of {lock.names}, and {count} should be")


def same(before: ailf.LockInfo, after: ailf.LockInfo) -> bool:
    """Return whether the state is the same, except for the time that has passed."""
    return (
        [each.fence for each in before.holders] == [each.fence for each in after.holders]
        and before.waiting == after.waiting
        and all(now.remaining <= then.remaining for then, now in zip(before.holders, after.holders, strict=True))
    )


async def fences(lock: Any) -> list[int]:
    """Return the fences of the lock's holders."""
    return [holder.fence for holder in (await lock.inspect()).holders]
