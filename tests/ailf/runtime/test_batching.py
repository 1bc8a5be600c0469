"""What tasks ask for in one turn of the loop is one request, and nobody waits for ever because of somebody else."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from ailf.errors import OutcomeUnknownError
from ailf.runtime import AsyncioRuntime, run
from ailf.runtime.batching import Batcher, batcher

Scenario = Callable[["Asked", Batcher[int, int]], Coroutine[Any, Any, None]]


class Asked:
    """Doubles numbers, and notes down which were asked for together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    async def double(self, numbers: Sequence[int]) -> Sequence[int | Exception]:
        """Double them; 13 is refused."""
        self.batches.append(list(numbers))
        await asyncio.sleep(0)
        return [ValueError("unlucky") if each == 13 else 2 * each for each in numbers]


def play(scenario: Scenario, *, most: int = 3) -> None:
    """Run a scenario on asyncio, with a deadline."""

    async def main() -> None:
        asked = Asked()
        batching: Batcher[int, int] = batcher(asked.double, most, in_turns=True, check_loop=lambda: None)
        async with asyncio.timeout(5):
            await scenario(asked, batching)

    asyncio.run(main())


def each_of(batching: Batcher[int, int], *numbers: int) -> "list[asyncio.Future[int]]":
    """Ask for each in a task of its own."""
    return [asyncio.ensure_future(batching.do(number)) for number in numbers]


def test_what_is_asked_in_one_turn_is_one_request_or_a_few() -> None:
    """All get their results, in as many requests as are needed; an error is one's own."""

    async def scenario(asked: Asked, batching: Batcher[int, int]) -> None:
        results = await asyncio.gather(*each_of(batching, 1, 2, 13, 4), return_exceptions=True)
        assert [*results[:2], results[3]] == [2, 4, 8]
        assert isinstance(results[2], ValueError)
        assert asked.batches == [[1, 2, 13], [4]]

    play(scenario)


def test_what_is_asked_for_nobody_is_not_asked() -> None:
    """Whose caller is cancelled before it goes out is left out of a request: nothing is granted to nobody (L10)."""

    async def scenario(asked: Asked, batching: Batcher[int, int]) -> None:
        calls = each_of(batching, *range(9))
        await asyncio.sleep(0)
        for call in calls[4:]:
            call.cancel()
        assert await asyncio.gather(*calls[:4]) == [0, 2, 4, 6]
        await asyncio.sleep(0.01)
        assert [number for batch in asked.batches for number in batch] == [0, 1, 2, 3]

    play(scenario)


def test_a_batch_that_is_cancelled_before_it_begins_is_begun_anew() -> None:
    """Whoever cancels all tasks, as a loop that ends does, leaves nobody waiting for ever."""

    async def scenario(asked: Asked, batching: Batcher[int, int]) -> None:
        call = batching.do(1)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert len(others) == 1
        for task in others:
            task.cancel()
        assert await call == 2
        assert await batching.do(2) == 4
        assert asked.batches == [[1], [2]]

    play(scenario)


def test_what_a_loop_has_left_is_not_asked_in_the_next() -> None:
    """A loop that is gone takes with it what waited in it, and nobody of the next one waits for that."""
    asked = Asked()
    batching: Batcher[int, int] = batcher(asked.double, 3, in_turns=True, check_loop=lambda: None)
    left = []

    def ask_and_leave() -> None:
        left.append(batching.do(1))
        loop.stop()

    async def later() -> None:
        async with asyncio.timeout(5):
            assert await batching.do(2) == 4

    loop = asyncio.new_event_loop()
    loop.call_soon(ask_and_leave)
    loop.run_forever()
    asyncio.run(later())
    assert asked.batches == [[2]]
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


def test_a_request_that_is_cancelled_leaves_nobody_waiting() -> None:
    """Those that asked are not cancelled: they learn that nobody knows what became of it."""

    async def scenario(asked: Asked, batching: Batcher[int, int]) -> None:
        calls = each_of(batching, 1, 2)
        while not asked.batches:  # noqa: ASYNC110 - a list tells nobody
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task(), *calls}:
            task.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in results] == [OutcomeUnknownError] * 2
        assert await batching.do(3) == 6

    play(scenario)


def test_an_interruption_is_not_a_result() -> None:
    """Ctrl-C in the middle of a request reaches the thread that makes it, and nobody else."""

    async def interrupted(_: Sequence[int]) -> Sequence[int | Exception]:
        raise KeyboardInterrupt

    async def then(_: int | BaseException) -> None:
        told.append(_)

    told: list[object] = []
    batching: Batcher[int, int] = batcher(interrupted, 3, in_turns=False, check_loop=lambda: None)
    for asking in (batching.do(1), batching.post(1, then)):
        with pytest.raises(KeyboardInterrupt):
            run(asking)  # type: ignore[arg-type]
    assert told == []


def test_tasks_of_the_librarys_own_pass_by_the_loops_task_factory() -> None:
    """A factory that begins tasks at once, as asyncio's eager one, changes neither batches nor order."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        runtime = AsyncioRuntime()
        asked = Asked()
        batching: Batcher[int, int] = batcher(asked.double, 3, in_turns=True, check_loop=lambda: None)
        done: list[str] = []

        async def flow() -> None:
            done.append("begun")

        def refuse(*_: object, **__: object) -> Any:
            raise AssertionError("a task was made by the loop's factory")

        loop.set_task_factory(refuse)
        answers = [batching.do(number) for number in (1, 2, 4)]
        assert [await each for each in answers] == [2, 4, 8]
        assert asked.batches == [[1, 2, 4]]
        task = runtime.spawn(flow, name="spawned")
        assert done == []
        assert await task.join(5)
        await runtime.single_flight().run(flow)
        assert done == ["begun", "begun"]
        loop.set_task_factory(None)

    asyncio.run(main())
