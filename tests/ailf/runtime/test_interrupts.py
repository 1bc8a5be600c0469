"""Ctrl-C or a cancellation anywhere between a grant and its holder leaves no lease that is renewed for ever."""

import asyncio
import contextlib
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ailf
import ailf_memory
from ailf_memory import AsyncMemoryBackend, MemoryBackend
from tests.support.interruption import Interruption

FAR = 100.0
"""Seconds that a lease lasts: none ends by itself within a test."""


UNTOUCHED = (
    "LeaseFlow.__del__",
    "LeasedPermitFlow.__del__",
    "Renewer.discard",
    "Lock.__exit__",
    "<genexpr>",
    "Slot.__del__",
)
"""Code that drops a grant or begins to release it: it is not interrupted, as the tests are about acquiring."""


OURS = tuple(str(Path(each.__file__ or "").parent) + "/" for each in (ailf, ailf_memory))


def _lock(backend: Any) -> Any:
    return backend.lock("l", ttl=FAR)


def _limiter(backend: Any) -> Any:
    return backend.rate_limiter("r", ailf.Concurrency(1, ttl=FAR))


def _enter(thing: Any) -> None:
    with thing:
        pass


BLOCKING: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "lock.acquire": (_lock, lambda lock: lock.acquire(timeout=FAR)),
    "fair lock.acquire": (lambda backend: backend.lock("l", ttl=FAR, fair=True), lambda lock: lock.acquire()),
    "lock.hold": (_lock, lambda lock: _enter(lock.hold())),
    "with lock": (_lock, _enter),
    "limiter.acquire": (_limiter, lambda limiter: limiter.acquire(timeout=FAR)),
    "limiter.hold": (_limiter, lambda limiter: _enter(limiter.hold())),
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize(("make", "use"), BLOCKING.values(), ids=BLOCKING)
def test_ctrl_c_anywhere(make: Callable[[Any], Any], use: Callable[[Any], Any]) -> None:
    """Wherever Ctrl-C comes, no lease is renewed afterwards but the next holder's."""
    moment = 0
    places = set()
    while True:
        moment += 1
        with MemoryBackend() as backend:
            thing = make(backend)
            with (
                Interruption(moment, within=OURS, spared=UNTOUCHED) as interruption,
                contextlib.suppress(KeyboardInterrupt),
            ):
                use(thing)
            if backend.engine.renewer._leases:
                gc.collect()
            assert backend.engine.renewer._leases == set(), interruption.at
            other = backend.lock("other", ttl=FAR).acquire(timeout=0)
            thread = backend.engine.renewer._thread
            assert thread is not None, interruption.at
            assert thread.is_alive(), interruption.at
            other.release()
        if not interruption.at:
            break
        places.add(interruption.at)
    assert len(places) > 20


async def _enter_async(thing: Any) -> None:
    async with thing:
        await asyncio.sleep(0)


ASYNC: dict[str, Callable[[Any], Any]] = {
    "lock.try_acquire": lambda backend: _lock(backend).try_acquire(),
    "lock.acquire": lambda backend: _lock(backend).acquire(timeout=FAR),
    "lock.hold": lambda backend: _enter_async(_lock(backend).hold()),
    "with lock": lambda backend: _enter_async(_lock(backend)),
    "limiter.try_acquire": lambda backend: _limiter(backend).try_acquire(),
    "limiter.acquire": lambda backend: _limiter(backend).acquire(timeout=FAR),
    "limiter.hold": lambda backend: _enter_async(_limiter(backend).hold()),
}


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("acquire", ASYNC.values(), ids=ASYNC)
def test_cancelled_anywhere(acquire: Callable[[Any], Any], busy: bool) -> None:
    """Wherever a task is cancelled, whether it acquires at once or waits first, no lease is renewed afterwards."""

    async def main() -> None:
        for moment in range(60):
            async with AsyncMemoryBackend() as backend:
                lease = await _lock(backend).acquire() if busy else None
                permit = await _limiter(backend).acquire() if busy else None
                task = asyncio.ensure_future(acquire(backend))
                for _ in range(moment):
                    await asyncio.sleep(0)
                    if moment > 20 and lease is not None and permit is not None and not lease._flow.released:
                        await lease.release()
                        await permit.release()
                task.cancel()
                await asyncio.wait([task])
                if lease is not None and permit is not None:
                    await lease.release()
                    await permit.release()
                del task
                await asyncio.sleep(0)
                if backend.engine.renewer._leases:
                    gc.collect()
                assert backend.engine.renewer._leases == set(), moment

    asyncio.run(main())
