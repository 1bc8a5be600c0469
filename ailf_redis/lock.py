"""Locks over Redis: a sorted set of grants, the last fence, and a wait queue whose waiters are woken over pub/sub."""

from collections.abc import Hashable, Sequence
from typing import Any

from ailf.checks import to_ms
from ailf.driver import Denied, Granted, LockDriver, LockRequest
from ailf.errors import BackendError
from ailf.values import HeldLock, LockHolder, LockInfo, Page
from ailf_redis.connection.executor import Executor
from ailf_redis.errors import MISREAD, misread
from ailf_redis.keys import Keys
from ailf_redis.listing import Pass, encoded, scan
from ailf_redis.replies import as_flag
from ailf_redis.scripts import ACQUIRE, BREAK, EXTEND_LOCK, INSPECT, RELEASE

__all__ = ["RedisLockDriver"]


class RedisLockDriver(LockDriver):
    """The transitions of locks; each is one script."""

    def __init__(self, executor: Executor, keys: Keys) -> None:
        self._executor = executor
        self._keys = keys

    def _keys_of(self, request: LockRequest) -> Sequence[str]:
        """Return the keys of all requested locks."""
        if len(request.names) == 1:
            return self._keys.lock(request.names[0])
        return [key for name in request.names for key in self._keys.lock(name)]

    async def acquire(self, request: LockRequest) -> Granted | Denied:
        arguments = [
            request.token,
            str(to_ms(request.ttl)),
            str(request.permits),
            "1" if request.fair else "0",
            "",
            "0",
        ]
        if request.waiter is not None:
            arguments[4:] = (self._keys.waiter_channel(request.waiter.channel), str(to_ms(request.waiter.lease)))
        return await ACQUIRE.run(self._executor, self._keys_of(request), arguments, _as_grant)

    async def extend(self, requests: Sequence[LockRequest]) -> list[bool]:
        calls = [
            (self._keys_of(request), [len(request.names), request.token, to_ms(request.ttl)]) for request in requests
        ]
        return await EXTEND_LOCK.run_together(self._executor, calls)

    async def release(self, request: LockRequest) -> bool:
        return await RELEASE.run(self._executor, self._keys_of(request), [request.token], as_flag)

    async def inspect(self, name: str) -> LockInfo:
        # The reply grows with the holders of a semaphore, so it may be as large as a page.
        return await INSPECT.run(self._executor, self._keys.lock(name), [], _as_info, page=1)

    async def inspect_many(self, names: Sequence[str]) -> list[LockInfo]:
        replies = await INSPECT.run_many(self._executor, [(self._keys.lock(name), ()) for name in names])
        return [self._read_info(reply) for reply in replies]

    async def break_(self, name: str, fence: int) -> bool:
        return await BREAK.run(self._executor, self._keys.lock(name), [fence], as_flag)

    def server_of(self, name: str) -> Hashable:
        return self._executor.server_of(self._keys.lock(name)[0])

    async def list_locks(self, prefix: str, cursor: str, limit: int) -> Page[HeldLock]:
        holders = Pass(self._keys.locks_pattern(prefix), "zset", self._keys.lock_name)
        found = await scan(self._executor, "locks", [holders], cursor, limit)
        calls = [([encoded(key) for key in self._keys.lock(name)], ()) for name in found.names]
        replies = await INSPECT.run_many(self._executor, calls) if calls else []
        held = []
        for name, reply in zip(found.names, replies, strict=True):
            if type(reply) is BackendError:  # another program's key, which only looks like a lock
                continue
            info = self._read_info(reply)
            if info.holders:
                held.append(HeldLock(name, info.holders, info.waiting))
        return Page(tuple(held), found.cursor)

    def _read_info(self, reply: Any) -> LockInfo:
        """Return one result of `INSPECT.run_many`, or raise the error that it is."""
        if isinstance(reply, BackendError):
            raise reply
        try:
            return _as_info(reply)
        except MISREAD as error:
            raise misread(error, self._executor.where) from error


def _as_grant(reply: Sequence[Any]) -> Granted | Denied:
    granted, fence_or_wait_ms = reply
    return Granted(int(fence_or_wait_ms)) if int(granted) else Denied(fence_or_wait_ms / 1000)


def _as_info(reply: Sequence[Any]) -> LockInfo:
    holders, waiting = reply
    return LockInfo(tuple(LockHolder(int(fence), left / 1000) for fence, left in holders), int(waiting))
