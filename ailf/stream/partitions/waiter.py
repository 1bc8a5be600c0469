"""Waiting for all partitions at once: by one waiter of the driver, or by a waiter for each partition."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from ailf.driver import StreamDriver, StreamsWaiter, Waiter
from ailf.errors import BackendError
from ailf.runtime import Runtime, Task
from ailf.stream.partitions.group import GroupPartitions
from ailf.stream.partitions.ids import position_behind_all

__all__ = ["PartitionedWaiter", "SeparateWaiters", "waiter_of"]

PROBE: Final = 0.05
"""Seconds of a wait that only shows that a server replies."""

SLICE: Final = 1.0
"""The longest single wait for one partition, in seconds."""

ENDING: Final = 5.0
"""Seconds that the waits of all partitions together have to end after they were interrupted."""


def waiter_of(driver: StreamDriver, runtime: Runtime, streams: Sequence[str], group: str | None) -> StreamsWaiter:
    """Return a waiter for several streams: the driver's, if it has one."""
    return driver.streams_waiter(streams, group) or SeparateWaiters(driver, runtime, streams, group)


class PartitionedWaiter(Waiter):
    """Waits for the partitions of a group, where its fetches have left off; it notes to which of them something came.

    Arguments:
        waiter: The waiter for all partitions.
        find_state: Returns what is known about the partitions.
        fail: Notes the failure of a partition, and the seconds that it took; returns whether it is set aside.
    """

    def __init__(
        self,
        waiter: StreamsWaiter,
        find_state: Callable[[], GroupPartitions],
        fail: Callable[[int, BackendError, float], bool],
    ) -> None:
        self._waiter = waiter
        self._find_state = find_state
        self._fail = fail

    async def wait(self, position: Any, timeout: float) -> bool:
        state = self._find_state()
        state.refresh()
        state.probed = isinstance(self._waiter, SeparateWaiters)
        positions = tuple(state.positions)
        if None in positions:  # a fetch beside this wait has left something
            return True
        try:
            came = await self._waiter.wait(positions, timeout)
        except BackendError as error:
            failed = self._waiter.failed if isinstance(self._waiter, SeparateWaiters) else None
            if failed is None or not self._fail(failed[0], error, failed[1]):
                state.forget()
            elif not state.raises():
                return False
            raise
        except Exception:
            state.forget()
            raise
        state.came(positions, came)
        return bool(came)

    def interrupt(self) -> None:
        self._waiter.interrupt()

    async def close(self) -> None:
        await self._waiter.close()


class _StreamWait:
    """The wait for one stream, in a task of its own.

    Attributes:
        waiter: The waiter.
        task: The task, which may have ended.
        home: The process id or event loop of the task.
        under_way: Whether the task waits.
        came: Whether something may have come since this was last asked for.
        error: The error with which the wait has ended.
        took: The seconds after which the error came.
        rest_until: When the next wait may begin: a server that doesn't reply isn't asked all the time.
        probes: Whether the caller wants to know nothing but that the server replies.
    """

    __slots__ = ("came", "error", "home", "position", "probes", "rest_until", "task", "took", "under_way", "waiter")

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.position: Any = None
        self.task: Task | None = None
        self.home: object = None
        self.under_way = self.came = self.probes = False
        self.error: Exception | None = None
        self.took = self.rest_until = 0.0


class SeparateWaiters(StreamsWaiter):
    """Waits for several streams with a waiter for each, all at once.

    A wait that has begun goes on beside the caller's, also while the caller fetches: an arrival ends that of its own
    stream, and no other has to begin anew. When nobody has waited for a second, all of them end.

    A wait at the position behind all entries is a probe: it ends as soon as the server replies.

    Attributes:
        failed: The index of the stream whose error the last wait has raised, and the seconds that it took.
    """

    def __init__(self, driver: StreamDriver, runtime: Runtime, streams: Sequence[str], group: str | None) -> None:
        self._runtime = runtime
        self._streams = streams
        self._waits = [_StreamWait(driver.waiter(each, group)) for each in streams]
        self._ended = runtime.event()
        self._until = 0.0
        self._interrupted = self._closing = False
        self._behind_all = position_behind_all(driver)
        self.failed: tuple[int, float] | None = None

    async def wait(self, positions: Sequence[Any], timeout: float) -> Collection[int]:
        self._until = self._runtime.now() + timeout
        self._ended.clear()
        for name, each, position in zip(self._streams, self._waits, positions, strict=True):
            each.probes = position == self._behind_all
            self._start(name, each, position)
        try:
            if not (self._interrupted or any(each.came or each.error for each in self._waits)):
                await self._ended.wait(timeout)
            if self._interrupted:
                return ()
        finally:
            self._interrupted = False
        for at, each in enumerate(self._waits):
            if each.error is not None:
                error, each.error = each.error, None
                self.failed = at, each.took
                raise error
        came = [at for at, each in enumerate(self._waits) if each.came]
        for at in came:
            self._waits[at].came = False
        return came

    def _start(self, name: str, wait: _StreamWait, position: Any) -> None:
        """Begin to wait for a stream, unless that is under way, or something has come that the caller doesn't know."""
        if wait.came or wait.error is not None or (wait.under_way and wait.home == self._runtime.here()):
            return
        if self._runtime.now() < wait.rest_until:
            return
        wait.position, wait.home, wait.under_way = position, self._runtime.here(), True
        self._closing = False

        async def run() -> None:
            begin = self._runtime.now()
            try:
                while not self._closing and begin < self._until + SLICE:
                    if await wait.waiter.wait(position, PROBE if wait.probes else SLICE) or wait.probes:
                        wait.came = True
                        break
                    begin = self._runtime.now()
            except Exception as error:  # noqa: BLE001 - it is the caller's
                now = self._runtime.now()
                wait.took = now - begin
                wait.rest_until = now + wait.took
                wait.error = error
            finally:
                wait.under_way = False
                self._ended.set()

        try:
            wait.task = self._runtime.spawn(run, name=f"ailf-wait-{name}")
        except BaseException:
            wait.under_way = False
            raise

    def interrupt(self) -> None:
        self._interrupted = True
        self._ended.set()

    async def close(self) -> None:
        self._closing = True
        for each in self._waits:
            if each.under_way:
                each.waiter.interrupt()
        until = self._runtime.now() + ENDING
        for each in self._waits:
            if each.task is not None and each.home == self._runtime.here():  # one of a loop that has ended never ends
                await each.task.join(max(0.0, until - self._runtime.now()))
            each.task, each.came, each.error = None, False, None
            await each.waiter.close()
