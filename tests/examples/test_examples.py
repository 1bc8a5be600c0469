"""The examples run as their documentation says."""

import subprocess
import sys
from pathlib import Path

import pytest

from contract_tests.helpers.processes import running
from tests.support.programs import run_pytest
from tests.support.servers import Server

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments: str) -> str:
    """Run an example, and return its output."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=EXAMPLES, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_crew_on_memory() -> None:
    """The demo finishes every task although a worker dies, on the default backend in memory."""
    story = run("crew.py")
    assert "12 of 12 tasks are finished" in story
    assert "at attempt 2" in story


def test_crew_on_redis(any_server: Server) -> None:
    """The demo does the same on Redis, where the worker is a process that is killed."""
    story = run("crew.py", "--url", any_server.url)
    assert "12 of 12 tasks are finished" in story
    assert "at attempt 2" in story


def test_llm_quota_on_memory() -> None:
    """The agents use the whole quota of a strict provider, and no call is rejected."""
    assert "and 0 rejected" in run("llm_quota.py")


def test_llm_quota_on_redis(any_server: Server) -> None:
    """The quota demo does the same on Redis."""
    assert "and 0 rejected" in run("llm_quota.py", "--url", any_server.url)


def test_pubsub_example(any_server: Server) -> None:
    """The subscriber replies to the publisher."""
    port = str(any_server.port)
    command = ("redis_pubsub_example.py", "--role", "subscriber", "--port", port, "--limit", "1")
    with running(*command, cwd=EXAMPLES, stdout=subprocess.PIPE) as subscriber:
        assert subscriber.stdout is not None
        assert subscriber.stdout.readline() == "subscriber: listening\n"
        story = run("redis_pubsub_example.py", "--role", "publisher", "--port", port)
        assert "the answer is '3 words'" in story
        assert subscriber.wait(10) == 0


def test_stream_example(any_server: Server) -> None:
    """The worker processes the tasks that the dispatcher added."""
    port = str(any_server.port)
    assert "task 4 is entry" in run("redis_stream_example.py", "--role", "dispatcher", "--port", port)
    story = run("redis_stream_example.py", "--role", "worker", "--port", port, "--limit", "5")
    assert story.count("has 10 characters") == 5


def test_injected_agent() -> None:
    """The unit test of the injected agent passes, run as a user would run it."""
    done = run_pytest(
        *("-p", "timeout", "--rootdir", ".", "injection"), cwd=EXAMPLES, PYTHONPATH=str(EXAMPLES / "injection")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def told(url: str) -> str:
    """Run the demo of a quota with 80 calls, and return its output.

    On a machine that is busy with other tests, calls may reach the strict provider later than they were sent, and
    together: then it rejects some that were sent in time. So a run in which it did so is repeated, twice at most.
    """
    command = [sys.executable, "quota_two_processes.py", "--url", url, "--calls", "80"]
    for _ in range(3):
        done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode == 0:
            break
    return done.stdout + done.stderr


@pytest.mark.timeout(330)
def test_quota_of_one_process() -> None:
    """Without a limiter the strict provider rejects calls of the real clients, with one it rejects none."""
    assert "80 calls served, 0 rejected" in told("memory://")


@pytest.mark.timeout(330)
def test_quota_of_two_processes(any_server: Server) -> None:
    """Two processes share the quota on Redis, and no call is rejected."""
    assert "80 calls served, 0 rejected" in told(any_server.url)
