"""`@lock.held()`: a decorated function holds the lock during each call, a generator while it is iterated."""

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest

import ailf
from ailf_memory import AsyncMemoryBackend, AsyncMemoryLock, MemoryBackend, MemoryLock
from tests.support.flavours import Flavour, flavours

flavour = pytest.fixture(params=["memory-blocking", "memory-asyncio", "redis-blocking", "redis-asyncio"])(flavours)


def numbers(count: int) -> Iterator[int]:
    """Stream."""
    yield from range(count)


async def numbers_async(count: int) -> AsyncIterator[int]:
    """Stream."""
    for number in range(count):
        yield number


class Numbers:
    """A callable object whose ``__call__`` is a generator function."""

    def __call__(self, count: int) -> Iterator[int]:
        """Stream."""
        yield from range(count)


async def broken(backend: ailf.AsyncBackend) -> None:
    """Break the grant of the lock ``l``."""
    lock = backend.lock("l")
    assert await lock.break_((await lock.inspect()).holders[0].fence)


def test_a_function_is_decorated_once_for_all_calls(flavour: Flavour) -> None:
    """Arguments, the result, the name and the docstring are the function's own; an error frees the lock."""

    async def scenario(backend: Any) -> None:
        lock = backend.lock("l")

        def greet(user: str, *, word: str = "hello") -> str:
            """Greet."""
            if not user:
                raise ValueError("no user")
            return f"{word} {user}"

        async def greet_async(user: str, *, word: str = "hello") -> str:
            """Greet."""
            return greet(user, word=word)

        held = lock.held(timeout=0)(greet_async if flavour.is_async else greet)
        assert (held.__doc__, held.__name__.partition("_")[0]) == ("Greet.", "greet")
        assert await flavour.wait(held("ann")) == "hello ann"
        with pytest.raises(ValueError, match="no user"):
            await flavour.wait(held(""))
        assert await flavour.wait(held("bob", word="bye")) == "bye bob"
        lease = await flavour.wait(lock.acquire(timeout=0))
        with pytest.raises(ailf.LockTimeoutError):
            await flavour.wait(held("ann"))
        await flavour.wait(lease.release())

    flavour.run(scenario)


@pytest.mark.parametrize("function", [numbers, partial(numbers), Numbers()])
def test_a_generator_holds_the_lock_while_it_is_iterated(function: Callable[[int], Iterator[int]]) -> None:
    """A generator has the lock from its first item to the end of the iteration, in any way."""
    with MemoryBackend() as backend:
        lock = backend.lock("l")
        held = lock.held(timeout=0)(function)
        assert inspect.isgeneratorfunction(held)
        first = held(2)
        assert lock.inspect() == ailf.LockInfo(), "the iteration has not begun"
        assert next(first) == 0
        assert len(lock.inspect().holders) == 1
        assert list(first) == [1]
        dropped = held(2)
        assert next(dropped) == 0
        del dropped
        gc.collect()
        assert lock.inspect() == ailf.LockInfo()


def test_an_async_generator_holds_the_lock_while_it_is_iterated() -> None:
    """The same on asyncio; values and errors pass through."""

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            lock = backend.lock("l")
            held = lock.held(timeout=0)(numbers_async)
            seen = []
            async for number in held(3):
                assert len((await lock.inspect()).holders) == 1
                seen.append(number)
            assert seen == [0, 1, 2]
            assert await lock.inspect() == ailf.LockInfo()
            failing: Any = held(3)
            await anext(failing)
            with pytest.raises(ValueError, match="no"):
                await failing.athrow(ValueError("no"))
            assert await lock.inspect() == ailf.LockInfo()

    asyncio.run(main())


@pytest.mark.parametrize("where", ["in a step", "between steps"])
def test_a_lost_lock_ends_the_generator_and_not_its_caller(where: str) -> None:
    """A loss raises LeaseLostError from the step under way, or from the next one; the caller isn't cancelled."""
    reached = []

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:

            @backend.lock("l").held()
            async def tokens() -> AsyncIterator[int]:
                yield 1
                reached.append("a step")
                if where == "in a step":
                    await asyncio.sleep(5)
                yield 2

            iteration = tokens()
            assert await anext(iteration) == 1
            if where == "in a step":
                asyncio.get_running_loop().call_later(0.01, lambda: asyncio.ensure_future(broken(backend)))
            else:
                await broken(backend)
                await asyncio.sleep(0.02)  # the code of the caller, which a cancellation would hit
            with pytest.raises(ailf.LeaseLostError):
                await asyncio.wait_for(anext(iteration), 2)
            task = asyncio.current_task()
            assert task is not None
            assert not task.cancelling()
            await (await backend.lock("l").acquire(timeout=1)).release()

    asyncio.run(main())
    assert reached == (["a step"] if where == "in a step" else [])


def test_a_cancelled_call_frees_the_lock() -> None:
    """A call that is cancelled ends with CancelledError, and the lock is free."""

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            task = asyncio.ensure_future(backend.lock("l").held()(asyncio.sleep)(5))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await backend.lock("l").inspect() == ailf.LockInfo()

    asyncio.run(main())


def test_what_cannot_be_decorated() -> None:
    """A function of the other flavour, and one that is not callable, are refused when they are decorated."""
    wrong: Any
    with MemoryBackend() as backend:
        for wrong in (asyncio.sleep, numbers_async, partial(numbers_async), 5, None):
            with pytest.raises(ailf.InvalidArgumentError):
                backend.lock("l").held()(wrong)
        with pytest.raises(ailf.InvalidArgumentError, match=r"@lock\.held\(\), with parentheses"):
            backend.lock("l").held(numbers)  # type: ignore[arg-type]
    lock: Any = AsyncMemoryBackend().lock("l")
    for wrong in (numbers, Numbers(), 5, None):
        with pytest.raises(ailf.InvalidArgumentError):
            lock.held()(wrong)

    async def main() -> None:
        async with AsyncMemoryBackend() as on_loop:
            held: Any = on_loop.lock("l").held()
            with pytest.raises(ailf.InvalidArgumentError, match="plain function"):
                await held(lambda: 5)()

    asyncio.run(main())


def test_decorating_opens_nothing() -> None:
    """A standalone lock may decorate when a module is imported: it opens its backend at the first call."""
    lock, on_loop = MemoryLock("l"), AsyncMemoryLock("l")
    held = lock.held()(lambda: 5)

    async def answer() -> int:
        return 5

    held_async = on_loop.held()(answer)
    assert (lock._own, on_loop._own) == (None, None)
    assert held() == 5
    lock.close()

    async def main() -> None:
        assert await held_async() == 5
        await on_loop.aclose()

    asyncio.run(main())


def test_a_static_method_below_the_decorator() -> None:
    """What is decorated is the function: a generator holds the lock while it is iterated, a coroutine is refused."""
    with MemoryBackend() as backend:
        lock = backend.lock("l")

        class Shop:
            @lock.held()
            @staticmethod
            def taken() -> Iterator[bool]:
                yield lock.locked()

        assert list(Shop.taken()) == [True]
        with pytest.raises(ailf.InvalidArgumentError, match="async"):
            lock.held()(staticmethod(numbers_async))
