"""Both runtimes behave the same: events from any thread, single flights, flows that run concurrently."""

import asyncio
import functools
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest

from ailf.errors import InvalidArgumentError
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime, run

Scenario = Callable[[Runtime], Coroutine[Any, Any, None]]


def on_threads(scenario: Scenario) -> None:
    """Run a scenario on the thread runtime."""
    run(scenario(ThreadRuntime()))


def on_asyncio(scenario: Scenario) -> None:
    """Run a scenario on the asyncio runtime."""
    asyncio.run(scenario(AsyncioRuntime()))


both = pytest.mark.parametrize("play", [on_threads, on_asyncio])
Play = Callable[[Scenario], None]


# --- run ---------------------------------------------------------------------------------------------------------


def test_run_returns_the_result_of_a_flow() -> None:
    """A flow that never suspends runs to its end in one step."""

    async def flow() -> int:
        return 7

    assert run(flow()) == 7


def test_run_lets_errors_through() -> None:
    """An exception of a flow reaches the caller unchanged."""

    async def flow() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(flow())


def test_run_refuses_a_flow_that_suspends() -> None:
    """A driver of the wrong flavour is an error, and its flow is closed with its clean-up done."""
    cleaned = []

    async def flow() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            cleaned.append(True)

    with pytest.raises(RuntimeError, match="not bound to the thread runtime"):
        run(flow())
    assert cleaned == [True]


# --- events ------------------------------------------------------------------------------------------------------


@both
def test_an_event_is_set_from_another_thread(play: Play) -> None:
    """A waiter wakes up when any thread sets the event, long before its timeout."""

    async def scenario(runtime: Runtime) -> None:
        event = runtime.event()
        setter = threading.Timer(0.05, event.set)
        setter.start()
        began = runtime.now()
        assert await event.wait(5)
        assert runtime.now() - began < 2
        assert event.is_set()
        setter.join()

    play(scenario)


@both
def test_an_event_that_is_not_set_times_out(play: Play) -> None:
    """A wait ends after `timeout` seconds and returns False; a cleared event is no longer set."""

    async def scenario(runtime: Runtime) -> None:
        event = runtime.event()
        event.set()
        assert await event.wait(0)
        event.clear()
        assert not await event.wait(0.01)
        assert not event.is_set()

    play(scenario)


def test_an_event_wakes_waiters_of_two_loops() -> None:
    """Waiters wake up through their own event loops, whichever thread sets the event."""
    event = AsyncioRuntime().event()
    woken: list[bool] = []
    loops = [threading.Thread(target=lambda: woken.append(asyncio.run(_wait(event.wait(5))))) for _ in range(2)]
    for each in loops:
        each.start()
    time.sleep(0.05)
    event.set()
    for each in loops:
        each.join()
    assert woken == [True, True]


async def _wait(waiting: Awaitable[bool]) -> bool:
    return await waiting


def test_no_wakeup_is_lost_between_threads() -> None:
    """A wait notices an event that is set just as the wait begins."""

    async def scenario() -> None:
        for _ in range(200):
            event = AsyncioRuntime().event()
            thread = threading.Thread(target=event.set)
            thread.start()
            assert await event.wait(5)
            thread.join()

    asyncio.run(scenario())


# --- single flights ----------------------------------------------------------------------------------------------


def test_threads_share_a_flight() -> None:
    """A caller that comes while a thread's run is under way waits for it instead of starting another."""
    runtime = ThreadRuntime()
    flight, started, finish, runs = runtime.single_flight(), threading.Event(), threading.Event(), []

    async def flow() -> None:
        runs.append(True)
        started.set()
        finish.wait(5)

    threads = [threading.Thread(target=lambda: run(flight.run(flow))) for _ in range(3)]
    threads[0].start()
    assert started.wait(5)
    for each in threads[1:]:
        each.start()
    assert not run(flight.wait_idle(0.02))
    began = runtime.now()
    run(flight.run(flow, 0.02))
    assert runtime.now() - began < 2
    finish.set()
    for each in threads:
        each.join(5)
    assert runs == [True]
    assert run(flight.wait_idle(1))


def test_tasks_share_a_flight_and_a_cancelled_one_leaves_it_running() -> None:
    """A run outlives the caller that started it, and the other callers get its effect."""

    async def scenario() -> None:
        flight, finish, runs = AsyncioRuntime().single_flight(), asyncio.Event(), []

        async def flow() -> None:
            await finish.wait()
            runs.append(True)

        first, second = (asyncio.create_task(flight.run(flow)) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        await flight.run(flow, 0.01)
        assert not await flight.wait_idle(0.01)
        finish.set()
        await second
        with pytest.raises(asyncio.CancelledError):
            await first
        assert runs == [True]
        assert await flight.wait_idle(1)

    asyncio.run(scenario())


def test_a_flight_that_is_cancelled_before_it_begins_is_over() -> None:
    """Its callers get the cancellation, the next caller starts a new run, and none waits for ever."""
    runs = []

    async def flow() -> None:
        runs.append(1)

    async def scenario() -> None:
        flight = AsyncioRuntime().single_flight()
        before = asyncio.all_tasks()
        joining = asyncio.ensure_future(flight.run(flow))
        await asyncio.sleep(0)  # it has started the run, whose task has taken no step
        (running,) = asyncio.all_tasks() - before - {joining}
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
        assert await flight.wait_idle(5)
        assert not runs
        await flight.run(flow)
        assert runs

    async def main() -> None:
        async with asyncio.timeout(5):
            await scenario()

    asyncio.run(main())


def test_a_flight_of_a_loop_that_has_ended_is_over() -> None:
    """A run of the ended loop never finishes, and later callers don't wait for it."""
    flight = AsyncioRuntime().single_flight()
    runs = []

    async def never() -> None:
        await asyncio.Event().wait()

    async def flow() -> None:
        runs.append(1)

    async def main() -> None:
        async with asyncio.timeout(5):
            await flight.run(flow)

    loop = asyncio.new_event_loop()
    left_behind = {loop.create_task(flight.run(never))}
    loop.run_until_complete(asyncio.sleep(0.01))
    left_behind |= asyncio.all_tasks(loop)
    asyncio.run(main())
    assert runs
    for task in left_behind:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left_behind, return_exceptions=True))
    loop.close()


@both
def test_the_error_of_a_flight_reaches_its_caller_and_the_next_flight_starts_anew(play: Play) -> None:
    """A failed run has ended."""

    async def scenario(runtime: Runtime) -> None:
        flight, runs = runtime.single_flight(), []

        async def fail() -> None:
            raise KeyError("x")

        async def flow() -> None:
            runs.append(True)

        with pytest.raises(KeyError):
            await flight.run(fail)
        await flight.run(flow, 1)
        assert runs == [True]

    play(scenario)


# --- tasks -------------------------------------------------------------------------------------------------------


@both
def test_a_spawned_flow_runs_concurrently_and_is_joined(play: Play) -> None:
    """A flow runs while its starter waits for something else; `join` has a timeout and returns whether it ended."""

    async def scenario(runtime: Runtime) -> None:
        begun, finish = runtime.event(), runtime.event()

        async def flow() -> None:
            begun.set()
            await finish.wait(5)

        task = runtime.spawn(flow, name="beside")
        assert await begun.wait(5)
        assert not await task.join(0.01)
        finish.set()
        assert await task.join(5)

    play(scenario)


@both
def test_what_a_spawned_flow_raises_is_logged(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """An error that no caller awaits is logged."""

    async def scenario(runtime: Runtime) -> None:
        async def fail() -> None:
            raise KeyError("lost")

        assert await runtime.spawn(fail, name="beside").join(5)

    with caplog.at_level(logging.ERROR, "ailf"):
        play(scenario)
    (record,) = caplog.records
    assert record.getMessage() == "beside failed"


def test_a_task_is_cancelled_at_its_next_await() -> None:
    """On asyncio a flow can be cancelled and cleans up."""

    async def scenario() -> None:
        cleaned = []

        async def flow() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                cleaned.append(True)

        task = AsyncioRuntime().spawn(flow, name="sleeper")
        await asyncio.sleep(0)
        task.cancel()
        assert await task.join(5)
        assert cleaned == [True]

    asyncio.run(scenario())


def test_a_thread_cannot_be_cancelled_and_ends_by_itself() -> None:
    """On threads cancelling changes nothing."""
    runtime = ThreadRuntime()
    finish = runtime.event()

    async def flow() -> None:
        await finish.wait(5)

    task = runtime.spawn(flow, name="stubborn")
    task.cancel()
    assert not run(task.join(0.01))
    finish.set()
    assert run(task.join(5))


@both
def test_a_flow_may_join_itself(play: Play) -> None:
    """A flow that closes its own backend doesn't wait for itself."""

    async def scenario(runtime: Runtime) -> None:
        tasks: list[Any] = []
        ready, joined = runtime.event(), []

        async def flow() -> None:
            await ready.wait(5)
            joined.append(await tasks[0].join(5))

        tasks.append(runtime.spawn(flow, name="itself"))
        ready.set()
        assert await tasks[0].join(5)
        assert joined == [False]

    play(scenario)


# --- user code ---------------------------------------------------------------------------------------------------


async def _coroutine_function(value: int) -> int:
    return value


@both
def test_a_plain_function_is_called(play: Play) -> None:
    """Both flavours accept plain functions and return the exceptions that they raise."""

    async def scenario(runtime: Runtime) -> None:
        runtime.check_callable("the handler", abs)
        assert await runtime.call_user_code(abs, -3) == (3, None)
        _, error = await runtime.call_user_code(abs, "x")
        assert isinstance(error, TypeError)
        with pytest.raises(InvalidArgumentError, match="the handler must be callable, not int"):
            runtime.check_callable("the handler", 3)

    play(scenario)


def test_asyncio_awaits_a_coroutine_function() -> None:
    """The asyncio flavour accepts coroutine functions, too."""
    assert asyncio.run(AsyncioRuntime().call_user_code(_coroutine_function, 3)) == (3, None)


def test_threads_refuse_a_coroutine_function() -> None:
    """The blocking flavour refuses the function when it is registered, and a coroutine that a plain one returns."""
    runtime = ThreadRuntime()
    with pytest.raises(InvalidArgumentError, match=r"use the Async… class"):
        runtime.check_callable("the handler", _coroutine_function)
    _, error = run(runtime.call_user_code(lambda: _coroutine_function(1)))
    assert isinstance(error, InvalidArgumentError)
    assert "for a coroutine function use the Async… class" in str(error)


def _generator_function(*_: object) -> Iterator[int]:
    yield 1


async def _async_generator_function(*_: object) -> AsyncIterator[int]:
    yield 1


class _Yields:
    def __call__(self) -> Iterator[int]:
        yield 1


YIELDING: list[Callable[..., Any]] = [
    _generator_function,
    _async_generator_function,
    functools.partial(_generator_function, 1),
    _Yields(),
]


@both
def test_a_function_that_yields_is_refused(play: Play) -> None:
    """Calling one runs none of its code: it is refused when it is registered, or its generator is an error."""

    async def scenario(runtime: Runtime) -> None:
        for function in YIELDING:
            with pytest.raises(InvalidArgumentError, match="yields, so calling it runs none of its code"):
                runtime.check_callable("the handler", function)
        lazy: list[Callable[[], Any]] = [
            _generator_function,
            _async_generator_function,
            lambda: map(abs, [1]),
            lambda: filter(None, [1]),
        ]
        for make in lazy:
            _, error = await runtime.call_user_code(lambda made=make: made())
            assert isinstance(error, InvalidArgumentError)
            assert "which has not run" in str(error)

    play(scenario)


@both
@pytest.mark.parametrize("raised", [asyncio.CancelledError, GeneratorExit, SystemExit, KeyboardInterrupt])
def test_whatever_a_function_raises_is_returned(play: Play, raised: type[BaseException]) -> None:
    """No exception of user code propagates from `call_user_code`."""

    async def scenario(runtime: Runtime) -> None:
        def function() -> None:
            raise raised

        _, error = await runtime.call_user_code(function)
        assert type(error) is raised

    play(scenario)


def test_what_a_coroutine_function_returns_is_awaited_too() -> None:
    """A task that the function returns is awaited before the call ends."""

    async def starts_a_task() -> "asyncio.Task[int]":
        return asyncio.create_task(_coroutine_function(3))

    assert asyncio.run(AsyncioRuntime().call_user_code(starts_a_task)) == (3, None)


def test_a_cancellation_in_a_group_is_one() -> None:
    """Task groups of other libraries raise an exception group that holds the cancellation."""

    async def grouped() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            raise BaseExceptionGroup("group", [error]) from None

    async def scenario() -> None:
        calling = asyncio.create_task(AsyncioRuntime().call_user_code(grouped))
        await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

    asyncio.run(scenario())


def test_a_cancellation_of_the_functions_own_differs_from_one_of_its_task() -> None:
    """A function that awaits a cancelled task has failed; a cancellation of its own task propagates."""

    async def awaits_a_cancelled_task() -> None:
        inner = asyncio.create_task(asyncio.sleep(60))
        inner.cancel()
        await inner

    async def scenario() -> None:
        runtime = AsyncioRuntime()
        _, error = await runtime.call_user_code(awaits_a_cancelled_task)
        assert isinstance(error, asyncio.CancelledError)
        calling = asyncio.create_task(runtime.call_user_code(asyncio.sleep, 60))
        await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

    asyncio.run(scenario())
