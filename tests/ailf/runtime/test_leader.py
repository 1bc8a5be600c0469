"""Leader/followers: new items wake as few followers as needed, and no wake-up is lost."""

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
    """A buffer, the callers that wait for its items, and a source that the test feeds."""

    def __init__(self, runtime: Runtime) -> None:
        self.items: deque[int] = deque()
        self.ending: Event = runtime.event()
        self.callers = LeaderFollowers(runtime, self.items)
        self.wake_ups = 0
        self.fed = asyncio.Semaphore(0)
        self.failure: Exception | None = None

    async def fetch(self) -> None:
        """Wait until the test ends the fetch; raise the failure that it has set."""
        await self.fed.acquire()
        if self.failure is not None:
            raise self.failure

    def feed(self, *numbers: int) -> None:
        """Add items while the leader still fetches, as a consumer's fetch does."""
        self.items.extend(numbers)
        self.callers.wake()

    async def take(self, timeout: float | None = None) -> int | None:
        """Wait for an item, as a consumer does."""
        try:
            while not self.ending.is_set():
                if self.items:
                    return self.items.popleft()
                await self.callers.wait_for_item(self.fetch, timeout)
                self.wake_ups += 1
                if timeout is not None and not self.items:
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


async def waiting_callers(scene: Scene, count: int) -> list["asyncio.Task[int | None]"]:
    """Start `count` callers and let them wait; the first one leads."""
    tasks = [asyncio.create_task(scene.take()) for _ in range(count)]
    await rest()
    return tasks


async def end(tasks: list["asyncio.Task[int | None]"]) -> None:
    """Cancel all callers that still wait."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_two_items_wake_two_callers() -> None:
    """Of a hundred waiting callers, two items wake two."""

    async def scenario(scene: Scene) -> None:
        tasks = await waiting_callers(scene, 100)
        scene.feed(1, 2)
        await rest()
        assert sorted(task.result() or 0 for task in tasks if task.done()) == [1, 2]
        assert scene.wake_ups == 2
        await end(tasks)

    play(scenario)


def test_a_follower_that_is_cancelled_when_woken_wakes_the_next() -> None:
    """A wake-up that reaches a follower in the moment of its cancellation isn't lost."""

    async def scenario(scene: Scene) -> None:
        tasks = await waiting_callers(scene, 3)
        scene.feed(1)
        tasks[1].cancel()  # it was woken and has not run yet
        await rest()
        assert tasks[1].cancelled()
        assert tasks[2].done()
        assert tasks[2].result() == 1
        await end(tasks)

    play(scenario)


def test_a_follower_leads_when_the_leader_is_cancelled() -> None:
    """As long as callers wait, one of them fetches."""

    async def scenario(scene: Scene) -> None:
        tasks = await waiting_callers(scene, 3)
        tasks[0].cancel()
        await rest()
        scene.items.append(1)
        scene.fed.release()  # ends the fetch of the new leader
        await rest()
        assert [task.done() for task in tasks] == [True, True, False]
        await end(tasks)

    play(scenario)


def test_a_follower_whose_timeout_is_over_is_not_woken() -> None:
    """A wake-up goes to a follower that still waits."""

    async def scenario(scene: Scene) -> None:
        tasks = await waiting_callers(scene, 1)
        assert await scene.take(0.01) is None
        tasks += await waiting_callers(scene, 1)
        scene.feed(1)
        await rest()
        assert tasks[1].done()
        await end(tasks)

    play(scenario)


def test_the_error_of_a_fetch_reaches_all_its_callers() -> None:
    """While the backend is unavailable no follower sleeps on, and none has to try for itself."""

    async def scenario(scene: Scene) -> None:
        tasks = await waiting_callers(scene, 3)
        scene.failure = ailf.ClosedError("away")
        scene.fed.release()
        assert await asyncio.gather(*tasks, return_exceptions=True) == [scene.failure] * 3

    play(scenario)


def test_the_end_wakes_all() -> None:
    """When the leader returns because of the end, every follower returns."""

    async def scenario(scene: Scene) -> None:
        tasks = await waiting_callers(scene, 10)
        scene.ending.set()
        scene.fed.release()
        assert await asyncio.gather(*tasks) == [None] * 10

    play(scenario)


def test_threads_lose_no_wake_up() -> None:
    """Four threads take a thousand items that come in ones and twos, and none is left."""
    scene, source, taken = Scene(ThreadRuntime()), deque(range(1000)), list[int]()

    async def fetch() -> None:
        for _ in range(min(len(source), 1 + len(source) % 2)):
            scene.items.append(source.popleft())
        scene.callers.wake()

    async def take() -> int | None:
        while not scene.ending.is_set():
            with contextlib.suppress(IndexError):  # another was quicker
                return scene.items.popleft()
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


def test_a_message_goes_to_a_caller_that_still_waits_when_another_is_cancelled() -> None:
    """The same for a consumer: one call of `get` is cancelled as the message arrives, and another one returns it."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend, asyncio.timeout(DEADLINE):
            stream = backend.stream("tasks")
            async with stream.group("g").consumer() as consumer:
                waiting = [asyncio.create_task(consumer.get()) for _ in range(3)]
                await asyncio.sleep(0.05)  # all of them wait
                await stream.add("a task")
                for _ in range(1000):
                    if consumer._flow._callers._woken:  # one was woken and has not run yet
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
def test_idle_worker_loops_stop_at_once(count: int) -> None:
    """P10, S14: `stop` from another thread ends a worker with any number of idle worker loops."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend, asyncio.timeout(DEADLINE):
            group = backend.stream("tasks").group("g")
            working = asyncio.create_task(group.process(lambda _: None, concurrency=count))
            await asyncio.sleep(0.05)
            await asyncio.to_thread(group.stop)
            await asyncio.wait_for(working, 1.0)

    asyncio.run(scenario())
