"""Workers that are killed lose nothing: the others finish what they had in hand."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import ailf
from tests.servers import Server

PROGRAM = Path(__file__).with_name("worker_program.py")
TASKS = 1000


@pytest.fixture
def workers(server: Server, namespace: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Three worker processes, ended with the test."""
    url = f"{server.url}?namespace={namespace}"
    with ExitStack() as stack:
        started = []
        for number in range(3):
            process = subprocess.Popen([sys.executable, str(PROGRAM), url, f"worker-{number}"])
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
            started.append(process)
        yield started


def test_kill_of_a_worker_loses_nothing(server: Server, namespace: str, workers: list[subprocess.Popen[bytes]]) -> None:
    """S2, S5: of 1000 tasks none is lost when a worker with messages in hand is killed, and few are done twice."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend:
        tasks, done = backend.stream("tasks"), backend.stream("done")
        tasks.add_many(range(TASKS))
        wait_for(lambda: "worker-0" in {entry.data[2] for entry in done.read(limit=TASKS)}, 20)
        workers[0].kill()
        wait_for(lambda: len({entry.data[0] for entry in done.read(limit=2 * TASKS)}) == TASKS, 20)

        reports = [entry.data for entry in done.read(limit=2 * TASKS)]
        again = [report for report in reports if report[1] > 1]
        assert {report[0] for report in reports} == set(range(TASKS))
        assert len(again) <= 20, "only what the killed worker had in hand may come again"
        assert all(report[1] == 2 and report[2] != "worker-0" for report in again)
        assert len(reports) <= TASKS + 1, "at most the one task that was finished and not yet acknowledged"


def test_sigterm_drains(server: Server, namespace: str, workers: list[subprocess.Popen[bytes]]) -> None:
    """S14: a worker that gets SIGTERM ends well, and what it had not begun is done by others at once, as new."""
    with ailf.connect(f"{server.url}?namespace={namespace}") as backend:
        tasks, done = backend.stream("tasks"), backend.stream("done")
        tasks.add_many(range(600))
        wait_for(lambda: "worker-0" in {entry.data[2] for entry in done.read(limit=700)}, 20)
        workers[0].terminate()
        assert workers[0].wait(10) == 0
        wait_for(lambda: len(done.read(limit=700)) >= 600, 20)
        reports = [entry.data for entry in done.read(limit=700)]
        assert sorted(report[0] for report in reports) == list(range(600)), "each exactly once"
        assert {report[1] for report in reports} == {1}


def wait_for(condition: object, timeout: float) -> None:
    """Wait until the condition holds; fail after so many seconds."""
    assert callable(condition)
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, f"not within {timeout:g} s"
        time.sleep(0.02)
