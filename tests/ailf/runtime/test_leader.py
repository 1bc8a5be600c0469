"""Callers of one consumer: what comes wakes as many as it is for, and no call is lost on the way."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable

import pytest

import ailf
from ailf.runtime import AsyncioRuntime, Event, Runtime, ThreadRuntime, run
from ailf.runtime.leader import LeaderFollowers
from ailf_memory import AsyncMemoryBackend

Fetch = Callable[[], Awaitable[None]]

DEADLINE = 5.0


class Scene:
    """A buffer, those who wait for what comes into it, and a source that the test feeds."""

    def __init__(self, runtime: Runtime) -> None:
        self.there: deque[int] = deque()
        self.ending: Event = runtime.event()
        self.callers = LeaderFollowers(runtime, self.there)
        self.turns = 0
        self.fed = asyncio.Semaphore(0)
        self.failure: Exception | None = None

    async def fetch(self) -> None:
        """Wait for the test to feed something, or to break it."""
        await self.fed.acquire()
        if self.failure is not None:
            raise self.failure

    def feed(self, *numbers: int) -> None:
        """Let something come while the leader is still at it, as a consumer's fetch does."""
        self.there.extend(numbers)
        self.callers.wake()

    async def take(self, timeout: float | None = None) -> int | None:
        """Wait for one, as a consumer does."""
        try:
            while not self.ending.is_set():
                if self.there:
                    return self.there.popleft()
                await self.callers.wait_for_item(self.fetch, timeout)
                self.turns += 1
                if timeout is not None and not self.there:
                    return None
            return None
        finally:
            self.callers.wake()


async def rest() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def play(scenario: Callable[[Scene], Awaitable[None]]) -> None:
    """Run a scenario on asyncio, within the deadline."""

    async def scene() -> None:
        async with asyncio.timeout(DEADLINE):
            await scenario(Scene(AsyncioRuntime()))

    asyncio.run(scene())


async def crowd(scene: Scene, count: int) -> list["asyncio.Task[int | None]"]:
    """Let so many wait; the first one leads."""
    tasks = [asyncio.create_task(scene.take()) for _ in range(count)]
    await rest()
    return tasks


async def end(tasks: list["asyncio.Task[int | None]"]) -> None:
    """End all that still wait."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_what_comes_wakes_as_many_as_it_is_for() -> None:
    """Of a hundred who wait, two messages wake two."""

    async def scenario(scene: Scene) -> None:
        tasks = await crowd(scene, 100)
        scene.feed(1, 2)
        await rest()
        assert sorted(task.result() or 0 for task in tasks if task.done()) == [1, 2]
        assert scene.turns == 2
        await end(tasks)

    play(scenario)


def test_who_is_cancelled_when_called_calls_the_next() -> None:
    """The call that reaches somebody in the moment of his cancellation isn't lost."""

    async def scenario(scene: Scene) -> None:
        tasks = await crowd(scene, 3)
        scene.feed(1)
        tasks[1].cancel()  # he has been called and has not run yet
        await rest()
        assert tasks[1].cancelled()
        assert tasks[2].done()
        assert tasks[2].result() == 1
        await end(tasks)

    play(scenario)


def test_another_leads_where_the_leader_is_cancelled() -> None:
    """Somebody always fetches while anybody waits."""

    async def scenario(scene: Scene) -> None:
        tasks = await crowd(scene, 3)
        tasks[0].cancel()
        await rest()
        scene.there.append(1)
        scene.fed.release()  # for who fetches now
        await rest()
        assert [task.done() for task in tasks] == [True, True, False]
        await end(tasks)

    play(scenario)


def test_who_has_waited_long_enough_leaves_the_line() -> None:
    """A call goes to somebody who is still there."""

    async def scenario(scene: Scene) -> None:
        tasks = await crowd(scene, 1)
        assert await scene.take(0.01) is None
        tasks += await crowd(scene, 1)
        scene.feed(1)
        await rest()
        assert tasks[1].done()
        await end(tasks)

    play(scenario)


def test_an_error_reaches_all_who_waited_for_the_fetch() -> None:
    """Nobody sleeps on while the backend is away, and nobody has to find out by himself."""

    async def scenario(scene: Scene) -> None:
        tasks = await crowd(scene, 3)
        scene.failure = ailf.ClosedError("away")
        scene.fed.release()
        assert await asyncio.gather(*tasks, return_exceptions=True) == [scene.failure] * 3

    play(scenario)


def test_the_end_calls_all() -> None:
    """When the leader comes back and it is over, everybody comes back."""

    async def scenario(scene: Scene) -> None:
        tasks = await crowd(scene, 10)
        scene.ending.set()
        scene.fed.release()
        assert await asyncio.gather(*tasks) == [None] * 10

    play(scenario)


def test_threads_lose_no_call() -> None:
    """Four threads take a thousand messages that come in ones and twos, and none is left lying."""
    scene, source, taken = Scene(ThreadRuntime()), deque(range(1000)), list[int]()

    async def fetch() -> None:
        for _ in range(min(len(source), 1 + len(source) % 2)):
            scene.there.append(source.popleft())
        scene.callers.wake()

    async def take() -> int | None:
        while not scene.ending.is_set():
            with contextlib.suppress(IndexError):  # another was quicker
                return scene.there.popleft()
            await scene.callers.wait_for_item(fetch, None)
        return None

    def work() -> None:
        while not scene.ending.is_set():
            taken.extend(number for number in [run(take())] if number is not None)
            if len(taken) == 1000:
                scene.ending.set()
            scene.callers.wake()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(taken) == list(range(1000))


def test_a_message_goes_to_who_still_waits_when_another_is_cancelled() -> None:
    """The same for a consumer: of two who get, one is cancelled while the message arrives, and the other has it."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend, asyncio.timeout(DEADLINE):
            stream = backend.stream("tasks")
            async with stream.group("g").consumer() as consumer:
                waiting = [asyncio.create_task(consumer.get()) for _ in range(3)]
                await asyncio.sleep(0.05)  # all of them wait
                await stream.add("a task")
                for _ in range(1000):
                    if consumer._flow._callers._woken:  # one was called, who has not run yet
                        break
                    await asyncio.sleep(0)
                waiting[1].cancel()
                done, left = await asyncio.wait(waiting, return_when=asyncio.ALL_COMPLETED, timeout=0.5)
                got = [each.result() for each in done if not each.cancelled()]
                assert [each.data for each in got if each] == ["a task"]
                assert len(left) == 1
                consumer.stop()
                await asyncio.wait(left, timeout=1)

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [1, 50])
def test_idle_hands_stop_at_once(count: int) -> None:
    """`stop` from another thread ends a worker of any number of idle hands (P10, S14)."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend, asyncio.timeout(DEADLINE):
            group = backend.stream("tasks").group("g")
            working = asyncio.create_task(group.process(lambda _: None, concurrency=count))
            await asyncio.sleep(0.05)
            await asyncio.to_thread(group.stop)
            await asyncio.wait_for(working, 1.0)

    asyncio.run(scenario())
