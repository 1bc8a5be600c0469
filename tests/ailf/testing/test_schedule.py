"""A schedule finds a race that plain asyncio on memory never shows, and repeats it by its seed."""

import asyncio
import os
import subprocess
import sys
import time
from textwrap import dedent
from typing import Any

import pytest

import ailf
from ailf.testing import explore_schedules, run_schedule
from ailf_memory import AsyncMemoryBackend

WORKERS = 2


async def naive_counter(backend: ailf.AsyncBackend) -> list[int]:
    """Let a crew count tasks by reading the last number and adding the next one."""
    numbers, tasks = backend.stream("numbers"), backend.stream("tasks")
    await numbers.add(0)
    await tasks.add_many(range(3))

    async def count(_: Any) -> None:
        last = (await numbers.read())[-1].data
        await numbers.add(last + 1)

    async with asyncio.TaskGroup() as crew:
        for _ in range(WORKERS):
            crew.create_task(tasks.group("g").process(count, until_idle=True, signals=False))
    return [each.data for each in await numbers.read()]


async def checked(backend: ailf.AsyncBackend) -> None:
    """Fail if the crew has counted wrong."""
    found = await naive_counter(backend)
    assert found == [0, 1, 2, 3]


async def locked(backend: ailf.AsyncBackend) -> None:
    """The same crew with a lock around the two steps."""
    numbers, tasks = backend.stream("numbers"), backend.stream("tasks")
    await numbers.add(0)
    await tasks.add_many(range(3))

    async def count(_: Any) -> None:
        async with backend.lock("numbers"):
            last = (await numbers.read())[-1].data
            await numbers.add(last + 1)

    async with asyncio.TaskGroup() as crew:
        for _ in range(WORKERS):
            crew.create_task(tasks.group("g").process(count, until_idle=True, signals=False))
    assert [each.data for each in await numbers.read()] == [0, 1, 2, 3]


def test_plain_asyncio_on_memory_hides_the_race() -> None:
    """The planted race never shows without a schedule, because a step of the memory backend doesn't wait."""

    async def main() -> list[int]:
        async with AsyncMemoryBackend() as backend:
            return await naive_counter(backend)

    assert [asyncio.run(main()) for _ in range(5)] == [[0, 1, 2, 3]] * 5


def test_a_schedule_finds_the_race_and_its_seed_repeats_it() -> None:
    """The error names the seed; with it the run fails in the same way each time."""
    with pytest.raises(AssertionError) as found:
        explore_schedules(checked, seeds=50)
    (note,) = found.value.__notes__
    seed = int(note.split("AILF_SEED=")[1].split()[0])
    counted = run_schedule(naive_counter, seed=seed)
    assert counted != [0, 1, 2, 3]
    for _ in range(5):
        assert run_schedule(naive_counter, seed=seed) == counted


def test_seeds_differ() -> None:
    """Different seeds give different orders, right ones and wrong ones."""
    results = {tuple(run_schedule(naive_counter, seed=seed)) for seed in range(40)}
    assert (0, 1, 2, 3) in results
    assert len(results) >= 2


def test_the_mended_crew_passes() -> None:
    """With a lock no schedule finds a race; the lock's waits and wake-ups work under every one of them."""
    explore_schedules(locked, seeds=50)


def test_the_seed_of_the_environment_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`AILF_SEED` runs one seed."""
    runs = []

    async def main(backend: ailf.AsyncBackend) -> None:
        runs.append(backend)

    monkeypatch.setenv("AILF_SEED", "17")
    explore_schedules(main)
    assert len(runs) == 1
    monkeypatch.setenv("AILF_SEED", "many")
    with pytest.raises(ailf.InvalidArgumentError, match="AILF_SEED"):
        explore_schedules(main)


def test_the_seed_repeats_in_another_process() -> None:
    """The order doesn't depend on addresses or on the hashes of texts, which differ in each process."""
    program = dedent("""
        import sys
        sys.path[:0] = [".", "tests/ailf/testing"]
        from test_schedule import naive_counter
        from ailf.testing import run_schedule
        print([run_schedule(naive_counter, seed=seed) for seed in range(15)])
    """)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1


def test_time_is_virtual() -> None:
    """Delays, backoffs and timeouts pass at once, and leases outlive them."""

    async def main(backend: ailf.AsyncBackend) -> list[int]:
        stream = backend.stream("s")
        await stream.add(1, delay=600)
        group = stream.group("g", backoff=ailf.Backoff(initial=60, maximum=60, jitter=0))
        attempts = []

        async def handle(delivery: Any) -> bool:
            attempts.append(delivery.attempt)
            await asyncio.sleep(100)
            if delivery.attempt == 2:
                group.stop()
                return True
            return False

        await group.process(handle, signals=False)
        return attempts

    begin = time.monotonic()
    assert run_schedule(main, seed=1) == [1, 2]
    assert time.monotonic() < begin + 10


def test_a_crew_that_never_ends_is_ended() -> None:
    """A crew that waits for ever ends after `timeout` seconds of virtual time."""

    async def main(backend: ailf.AsyncBackend) -> None:
        async with backend.stream("s").group("g").consumer() as consumer:
            await consumer.get()

    begin = time.monotonic()
    with pytest.raises(TimeoutError) as late:
        run_schedule(main, seed=3, timeout=30)
    assert "seed=3" in late.value.__notes__[0]
    assert time.monotonic() < begin + 10


def test_pubsub_under_schedules() -> None:
    """Subscriptions, requests and replies work under every schedule."""

    async def main(backend: ailf.AsyncBackend) -> None:
        pubsub = backend.pubsub()
        async with pubsub.listen("c") as subscription:
            await pubsub.publish_many([("c", number) for number in range(3)])
            got = [await subscription.get(timeout=5) for _ in range(3)]
        assert [each.data for each in got if isinstance(each, ailf.Message | ailf.AsyncMessage)] == [0, 1, 2]

    explore_schedules(main, seeds=20)
