"""``ailf run`` under load: workers are killed at random while they work, and SIGTERM ends the rest."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import attrs

import ailf
from tests.ailf_redis.runner.processes import running, wait_for

__all__ = ["Load", "Report", "run"]

APP = """
import asyncio, os, random, ailf

app = ailf.App()

@app.handler("tasks", group="workers", type=int, concurrency=8, prefetch=20, takeover=1.0, lease=5.0,
             max_deliveries=1000, retention=ailf.Retention.settled())
async def handle(delivery):
    await asyncio.sleep(random.random() * PACE)
    with open("done", "a") as file:
        file.write(f"{delivery.data}\\n")
"""


@attrs.frozen(kw_only=True)
class Load:
    """A plan.

    Attributes:
        messages: The number of messages.
        workers: The number of workers.
        pause: The most seconds between two kills.
        pace: The most seconds that a handler takes.
        until: The share of the messages after which SIGTERM ends the runner.
        seed: Of the random numbers.
    """

    messages: int
    workers: int = 3
    pause: float = 1.0
    pace: float = 0.1
    until: float = 0.8
    seed: int = 0


@attrs.frozen
class Report:
    """What has happened.

    Attributes:
        lost: The messages that no handler has finished.
        status: The exit status of the runner after SIGTERM.
        killed: The number of workers that were killed.
        at_stop: The number of messages that were done at the SIGTERM.
        unsettled: The number of messages that were left after it.
        again: How often a message was handled once more.
        dead: The number of dead letters.
        seconds: How long the kills and the work took.
    """

    lost: list[int]
    status: int
    killed: int
    at_stop: int
    unsettled: int
    again: int
    dead: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{len(self.lost)} lost, {self.killed} workers killed, SIGTERM after {self.at_stop} with status "
            f"{self.status} and {self.unsettled} left, {self.again} handled again, {self.dead} dead letters, "
            f"{self.seconds:.1f} s"
        )


def run(folder: Path, url: str, load: Load) -> Report:
    """Let workers do all messages while some are killed; stop the runner; let a second one do what is left."""
    dice = random.Random(load.seed)
    app = APP.replace("PACE", str(load.pace))
    began = time.monotonic()
    with ailf.connect(url) as backend:
        tasks = backend.stream("tasks", type=int, retention=ailf.Retention.settled())
        group = tasks.group("workers")
        group.open()
        for start in range(0, load.messages, 500):
            tasks.add_many(range(start, min(start + 500, load.messages)))
        with running(folder, url, "--workers", str(load.workers), app=app) as runner:
            killed = 0
            wait_for(lambda: runner.lines("done"))
            while len(runner.lines("done")) < load.until * load.messages:
                time.sleep(dice.random() * load.pause)
                if len(workers := runner.workers()) > 1:  # one is left, so that the work goes on
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(dice.choice(workers), signal.SIGKILL)
                        killed += 1
                assert time.monotonic() < began + 300, "it takes too long"
            wait_for(runner.workers)
            at_stop = len(set(runner.lines("done")))
            runner.signal(signal.SIGTERM)
            status = runner.ended(60)
        info = group.info()
        unsettled = (info.lag or 0) + info.pending + info.delayed
        with running(folder, url, app=app) as runner:
            wait_for(lambda: not any(((now := group.info()).lag, now.pending, now.delayed)), 120)
            seconds = time.monotonic() - began
            runner.signal(signal.SIGTERM)
            runner.ended(60)
            done = [int(each) for each in runner.lines("done")]
        dead = group.info().dead
    lost = sorted(set(range(load.messages)) - set(done))
    return Report(lost, status, killed, at_stop, unsettled, len(done) - len(set(done)), dead, seconds)
