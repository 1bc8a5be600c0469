"""Requests to the driver of locks itself, as another process makes them."""

import asyncio
from typing import Any

import pytest

import ailf
from ailf.driver import Denied, Granted, LockRequest
from ailf.runtime import ThreadRuntime, run
from contract_tests.helpers.threads import in_thread
from contract_tests.world import World

__all__ = ["AWAY", "TICK", "RawLocks", "fences", "in_line", "same"]

AWAY = 60.0
"""Seconds: longer than any test."""

TICK = 0.00099
"""Seconds: a backend may count in whole milliseconds, and what it rounds is less than one."""


class RawLocks:
    """Speaks to the driver of locks itself, over connections of its own, as somebody in another process does."""

    def __init__(self, world: World, backend: Any) -> None:
        self._twin = backend.engine.driver.with_runtime(ThreadRuntime())
        self._driver = self._twin.lock()
        world._opened.append(self)

    async def ask(self, method: str, *args: Any) -> Any:
        """Ask the driver."""
        return await in_thread(lambda: run(getattr(self._driver, method)(*args)))

    async def win(self, request: LockRequest) -> int:
        """Bid, which must succeed, and return the fence."""
        reply = await self.ask("acquire", request)
        assert isinstance(reply, Granted), reply
        return reply.fence

    async def lose(self, request: LockRequest) -> float:
        """Bid, which must be denied, and return after how long another try may do better."""
        reply = await self.ask("acquire", request)
        assert isinstance(reply, Denied), reply
        return reply.retry_after

    async def aclose(self) -> None:
        """Give back its connections."""
        await in_thread(lambda: run(self._twin.close()))


async def in_line(world: World, lock: Any, count: int) -> None:
    """Return when so many stand in line."""
    for _ in range(round(world.patience / 0.005)):
        waiting = (await lock.inspect()).waiting
        if waiting == count:
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"{waiting} stand in line, and {count} should")


def same(before: ailf.LockInfo, after: ailf.LockInfo) -> bool:
    """Tell whether nothing but time has passed."""
    return (
        [each.fence for each in before.holders] == [each.fence for each in after.holders]
        and before.waiting == after.waiting
        and all(now.remaining <= then.remaining for then, now in zip(before.holders, after.holders, strict=True))
    )


async def fences(lock: Any) -> list[int]:
    """Return the fences of those who have a lock."""
    return [holder.fence for holder in (await lock.inspect()).holders]
