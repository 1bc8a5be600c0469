"""Calls in one iteration of the event loop share a request, and no caller waits for ever because of another."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from ailf.errors import OutcomeUnknownError
from ailf.runtime import AsyncioRuntime, run
from ailf.runtime.batching import Batcher, batcher

Scenario = Callable[["Recorder", Batcher[int, int]], Coroutine[Any, Any, None]]


class Recorder:
    """Doubles numbers, and records which came in one request."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    async def double(self, numbers: Sequence[int]) -> Sequence[int | Exception]:
        """Double them; 13 is refused."""
        self.batches.append(list(numbers))
        await asyncio.sleep(0)
        return [ValueError("unlucky") if each == 13 else 2 * each for each in numbers]


def play(scenario: Scenario, *, max_batch: int = 3) -> None:
    """Run a scenario on asyncio, with a deadline."""

    async def main() -> None:
        recorder = Recorder()
        batching: Batcher[int, int] = batcher(recorder.double, max_batch, batched=True, check_loop=lambda: None)
        async with asyncio.timeout(5):
            await scenario(recorder, batching)

    asyncio.run(main())


def each_of(batching: Batcher[int, int], *numbers: int) -> "list[asyncio.Future[int]]":
    """Double each in a task of its own."""
    return [asyncio.ensure_future(batching.do(number)) for number in numbers]


def test_calls_of_one_iteration_share_requests() -> None:
    """Every call gets its result, in as few requests as `max_batch` allows; an error reaches its own call only."""

    async def scenario(recorder: Recorder, batching: Batcher[int, int]) -> None:
        results = await asyncio.gather(*each_of(batching, 0, 1, 2, 13, 4), return_exceptions=True)
        assert [*results[:3], results[4]] == [0, 2, 4, 8]
        assert isinstance(results[3], ValueError)
        assert recorder.batches == [[0], [1, 2, 13], [4]]

    play(scenario)


def test_a_call_that_is_alone_takes_no_turn() -> None:
    """Without other calls a request begins at once, again and again; its error reaches its caller."""

    async def scenario(recorder: Recorder, batching: Batcher[int, int]) -> None:
        for number in (1, 2):
            call = batching.do(number)
            assert call.__await__().send(None) is None  # it waits in `Recorder.double`
            assert recorder.batches[-1] == [number]
            call.close()  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="unlucky"):
            await batching.do(13)
        dropped = batching.do(4)
        assert await batching.do(5) == 10
        dropped.close()  # type: ignore[attr-defined]
        del dropped
        await asyncio.sleep(0)
        (alone,) = each_of(batching, 6)
        assert asyncio.all_tasks() == {asyncio.current_task(), alone}  # no task of a batch
        assert await alone == 12
        assert recorder.batches[3:] == [[5], [6]]

    play(scenario)


def test_cancelled_calls_are_not_sent() -> None:
    """L10: a call that is cancelled before its request is sent is left out of it, so no grant lacks a holder."""

    async def scenario(recorder: Recorder, batching: Batcher[int, int]) -> None:
        calls = each_of(batching, *range(9))
        await asyncio.sleep(0)
        for call in calls[4:]:
            call.cancel()
        assert await asyncio.gather(*calls[:4]) == [0, 2, 4, 6]
        await asyncio.sleep(0.01)
        assert [number for batch in recorder.batches for number in batch] == [0, 1, 2, 3]

    play(scenario)


def test_results_of_cancelled_calls_are_handed_over() -> None:
    """R10: the result for a call that is cancelled while its request is under way is not lost: it may be a grant."""

    async def main() -> None:
        under_way, unclaimed = asyncio.Event(), []

        async def work(numbers: Sequence[int]) -> Sequence[int | Exception]:
            under_way.set()
            await asyncio.sleep(0.01)
            return [ValueError("unlucky") if each == 13 else 2 * each for each in numbers]

        async def take(number: int, result: int) -> None:
            unclaimed.append((number, result))

        batching = batcher(work, 3, batched=True, check_loop=lambda: None, unclaimed=take)
        calls = each_of(batching, 1, 2, 13)
        await under_way.wait()
        calls[1].cancel()
        calls[2].cancel()
        assert await calls[0] == 2
        await asyncio.sleep(0)
        assert unclaimed == [(2, 4)]

    asyncio.run(main())


def test_a_batch_that_is_cancelled_before_it_begins_is_begun_anew() -> None:
    """Code that cancels all tasks, as an ending event loop does, leaves no caller waiting for ever."""

    async def scenario(recorder: Recorder, batching: Batcher[int, int]) -> None:
        alone = each_of(batching, 0)
        call = batching.do(1)
        others = asyncio.all_tasks() - {asyncio.current_task(), *alone}
        assert len(others) == 1
        for task in others:
            task.cancel()
        assert await call == 2
        assert await batching.do(2) == 4
        assert recorder.batches == [[0], [1], [2]]

    play(scenario)


def test_calls_of_an_ended_loop_are_not_sent_in_the_next() -> None:
    """Calls that waited in an ended loop are dropped, and calls in the next loop don't wait for them."""
    recorder = Recorder()
    batching: Batcher[int, int] = batcher(recorder.double, 3, batched=True, check_loop=lambda: None)
    left: list[object] = []

    def call_and_stop() -> None:
        left.extend([loop.create_task(batching.do(0)), batching.do(1)])  # type: ignore[arg-type]
        loop.stop()

    async def later() -> None:
        async with asyncio.timeout(5):
            assert await batching.do(2) == 4

    loop = asyncio.new_event_loop()
    loop.call_soon(call_and_stop)
    loop.run_forever()
    asyncio.run(later())
    assert recorder.batches == [[2]]
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


def test_a_cancelled_request_leaves_no_caller_waiting() -> None:
    """Its callers are not cancelled: they learn that the outcome is unknown."""

    async def scenario(recorder: Recorder, batching: Batcher[int, int]) -> None:
        calls = each_of(batching, 0, 1, 2)
        while len(recorder.batches) < 2:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task(), *calls}:
            task.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in results] == [int, OutcomeUnknownError, OutcomeUnknownError]
        assert await batching.do(3) == 6

    play(scenario)


def test_an_interruption_is_not_a_result() -> None:
    """Ctrl-C in the middle of a request reaches the thread that makes it, and no callback."""

    async def interrupted(_: Sequence[int]) -> Sequence[int | Exception]:
        raise KeyboardInterrupt

    async def then(result: int | BaseException) -> None:
        results.append(result)

    results: list[object] = []
    batching: Batcher[int, int] = batcher(interrupted, 3, batched=False, check_loop=lambda: None)
    for call in (batching.do(1), batching.post(1, then)):
        with pytest.raises(KeyboardInterrupt):
            run(call)  # type: ignore[arg-type]
    assert results == []


def test_tasks_of_the_library_bypass_the_loops_task_factory() -> None:
    """A factory that starts tasks eagerly, as asyncio's own eager one, changes neither batches nor order."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        runtime = AsyncioRuntime()
        recorder = Recorder()
        batching: Batcher[int, int] = batcher(recorder.double, 3, batched=True, check_loop=lambda: None)
        begun: list[str] = []

        async def flow() -> None:
            begun.append("begun")

        def refuse(*_: object, **__: object) -> Any:
            raise AssertionError("a task was made by the loop's factory")

        loop.set_task_factory(refuse)
        results = [batching.do(number) for number in (1, 2, 4)]
        assert [await each for each in results] == [2, 4, 8]
        assert recorder.batches == [[1], [2, 4]]
        task = runtime.spawn(flow, name="spawned")
        assert begun == []
        assert await task.join(5)
        await runtime.single_flight().run(flow)
        assert begun == ["begun", "begun"]
        loop.set_task_factory(None)

    asyncio.run(main())
