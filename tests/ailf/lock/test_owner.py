"""The owner of a lock: a thread or task that waits for itself is told so, and nobody else is."""

import asyncio
import concurrent.futures
import contextvars
import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

import ailf
from ailf.lock.owner import _OWNER
from ailf_memory import AsyncMemoryBackend, MemoryBackend


def owned() -> int:
    """Return how many grants the calling thread or task owns."""
    owner = _OWNER.get()
    return 0 if owner is None else len(owner.grants)


def test_a_decorated_function_that_calls_itself() -> None:
    """Recursion is a deadlock; the error says what to do, and the lock is free afterwards."""
    with MemoryBackend() as backend:

        @backend.lock("l").held()
        def count(number: int) -> int:
            return 0 if number == 0 else 1 + count(number - 1)

        with pytest.raises(ailf.DeadlockError, match=r"this thread holds 'l'.*release it first.*lease\.hand_over\(\)"):
            count(2)
        assert count(0) == 0

    async def main() -> None:
        async with AsyncMemoryBackend() as backend, backend.lock("k", "l"):
            with pytest.raises(RuntimeError, match=r"lock 'a' \+ 'l': this task holds 'l'"):
                await backend.lock("a", "l").acquire(timeout=60)

    asyncio.run(main())


def test_nothing_is_kept_of_a_grant_that_has_ended() -> None:
    """A released, a lost and a dropped lease are owned no more, and keep neither a backend nor a task alive."""

    def grants() -> list[weakref.ref[Any]]:
        with MemoryBackend() as backend:
            for _ in range(100):
                backend.lock("l").acquire().release()
                with backend.lock("l"):
                    assert owned() == 1
            assert owned() == 0
            lost = backend.lock("l").acquire()
            backend.lock("l").break_(lost.fence)
            with pytest.raises(ailf.LeaseLostError):
                lost.release()
            assert owned() == 0
            dropped = backend.lock("l").acquire()
            assert owned() == 1
            return [weakref.ref(each) for each in (backend.engine, dropped._flow)]

    async def main() -> list[weakref.ref[Any]]:
        async with AsyncMemoryBackend() as backend:

            async def acquire() -> ailf.AsyncLease:
                return await backend.lock("l").acquire()

            task = asyncio.create_task(acquire())
            return [weakref.ref(task), weakref.ref((await task)._flow), weakref.ref(backend.engine)]

    references = contextvars.copy_context().run(grants)
    gc.collect()
    assert [each() for each in references] == [None, None]
    references = asyncio.run(main())
    gc.collect()
    assert [each() for each in references] == [None, None, None]


def test_a_borrowed_thread_owns_nothing_after_the_call() -> None:
    """Two tasks that acquire in the threads of one pool are not taken for one owner."""

    async def main(backend: ailf.Backend) -> None:
        lock = backend.lock("l")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asyncio.get_running_loop().set_default_executor(pool)
            lease = await asyncio.to_thread(lock.acquire, 5)
            waiting = asyncio.create_task(asyncio.to_thread(lock.acquire, 5))
            await asyncio.sleep(0.05)
            lease.release()
            (await waiting).release()

    with MemoryBackend() as backend:
        asyncio.run(main(backend))


def test_children_wait_for_their_parent() -> None:
    """Child tasks, which have a copy of the parent's context, get the lock one after another."""

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            lock = backend.lock("l")

            async def child() -> None:
                async with lock.hold(timeout=5):
                    await asyncio.sleep(0)

            async with lock:
                children = [asyncio.create_task(child()) for _ in range(3)]
                await asyncio.sleep(0.01)
            await asyncio.gather(*children)

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_dropped_generator_blocks_nobody() -> None:
    """A generator that held the lock and was left in the middle releases it; a task that still holds it is told so."""

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            lock = backend.lock("l")

            @lock.held()
            async def decorated() -> AsyncIterator[int]:
                yield 1

            async def own() -> AsyncIterator[int]:
                async with lock.hold():
                    yield 1

            for generate in (decorated, own):
                async for _ in generate():
                    break
                async with lock.hold(timeout=20):
                    with pytest.raises(ailf.DeadlockError):
                        await lock.acquire(timeout=20)

    asyncio.run(main())


def test_a_forked_child_owns_none_of_its_parents_locks() -> None:
    """In a forked child the lock is the parent's, which may release it: the child waits."""
    with MemoryBackend() as backend:
        lease = backend.lock("l", ttl=60).acquire()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                backend.lock("l").acquire(timeout=0.05)
            except ailf.LockTimeoutError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        lease.release()


def test_an_owner_that_has_ended_blocks_nobody() -> None:
    """A thread that runs in the context of one that has ended owns none of its locks."""
    context, leases = contextvars.copy_context(), list[ailf.Lease]()
    with MemoryBackend() as backend:
        first = threading.Thread(target=context.run, args=(lambda: leases.append(backend.lock("l").acquire()),))
        first.start()
        first.join()
        del first
        errors = list[Exception]()

        def wait() -> None:
            try:
                backend.lock("l").acquire(timeout=0.05)
            except ailf.LockTimeoutError as error:
                errors.append(error)

        second = threading.Thread(target=context.run, args=(wait,))
        second.start()
        second.join()
        assert len(errors) == 1
        leases[0].release()
