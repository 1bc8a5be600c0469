"""A standalone lock opens a backend for its `with` blocks and closes it after the last one."""

import asyncio
import threading

import pytest

import ailf
from ailf_memory import AsyncMemoryLock, MemoryLock


def test_nothing_stays_open() -> None:
    """The backend closes with the last block, also after an error, and the next block opens another."""
    lock = MemoryLock("l")
    for _ in range(2):
        with lock as lease:
            assert lock.try_acquire.__self__ is lock
            assert lock.inspect().holders[0].fence == lease.fence
            engine = lock._own
            assert engine is not None
            assert not engine.closed
        assert engine.closed
        assert lock._own is None
        with pytest.raises(ValueError, match="mine"), lock:
            engine = lock._own
            raise ValueError("mine")
        assert engine is not None
        assert engine.closed


def test_nothing_stays_open_on_asyncio() -> None:
    """The same on asyncio, with several tasks at once."""

    async def main() -> None:
        lock = AsyncMemoryLock("l", permits=2)
        engines, fences = set(), set()

        async def worker() -> None:
            async with lock as lease:
                engines.add(lock._own)
                fences.add(lease.fence)
                await asyncio.sleep(0.01)

        await asyncio.gather(*(worker() for _ in range(4)))
        assert (len(engines), len(fences)) == (1, 4)
        assert all(each is not None and each.closed for each in engines)

    asyncio.run(main())


def test_the_last_thread_closes_it() -> None:
    """The backend stays open while a thread is in a block or waits for it."""
    lock, order = MemoryLock("l"), list[int]()

    def worker(number: int) -> None:
        for _ in range(20):
            with lock:
                order.append(number)

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(10)
    assert sorted(order) == [number for number in range(4) for _ in range(20)]
    assert lock._own is None


def test_what_was_acquired_otherwise_keeps_it_open() -> None:
    """A lease of `acquire` outlives the blocks, until `close`."""
    lock = MemoryLock("l", permits=2)
    with lock:
        lease = lock.acquire(timeout=0)
    assert not lease.lost
    lease.release()
    lock.close()
    with pytest.raises(ailf.ClosedError):
        lock.acquire()
