"""The harness of the work queues in this folder: it adds messages, and a worker process reports by UDP.

    python benchmarks/workers/with_ailf.py URL add COUNT ONES

adds COUNT messages, starts the same file once more as the worker, and prints as JSON how many messages were added per
second, and handled per second from the first to the last. Then, with the worker idle, it measures the microseconds from
the call that adds one message to the call of its handler: the median of ONES messages.

This module needs only the standard library, so it runs in the environment of any peer.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import IO

URL = sys.argv[1]

BODY = bytes(range(35, 127)).decode() + "12345678"
"""100 bytes."""

AT_ONCE = 100
"""The handlers that an asyncio worker runs at once, and the messages that are fetched and added at once."""

DEADLINE = 60.0
"""Seconds that the harness waits for each report of the worker."""

PATIENCE = 5.0
"""Seconds after which no more single messages are added."""


class Queue(ABC):
    """A library's work queue."""

    @abstractmethod
    async def add(self, texts: Sequence[str]) -> None:
        """Add messages in the fastest way that the library offers."""

    @abstractmethod
    def work(self) -> None:
        """Call `handled` with each message, until the process is killed."""

    async def open(self) -> None:  # noqa: B027 - some queues need nothing
        """Connect, to add messages."""


# --- the worker process ------------------------------------------------------------------------------------------

_reports = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
_numbers = itertools.count(1)


def handled(text: str) -> None:
    """Report a message; every handler calls this."""
    now = time.monotonic_ns()
    if text[0] == "@":
        _report(now - int(text[1:]))
        return
    number = next(_numbers)
    if number in (1, int(os.environ["BENCH_COUNT"])):
        _report(now)


def _report(number: int) -> None:
    _reports.sendto(str(number).encode(), ("127.0.0.1", int(os.environ["BENCH_PORT"])))


# --- the measuring process ---------------------------------------------------------------------------------------


def main(queue: Queue) -> None:
    """Run the worker, or measure, as the command line says."""
    if sys.argv[2] == "work":
        queue.work()
    else:
        print(json.dumps(asyncio.run(_measure(queue, int(sys.argv[3]), int(sys.argv[4])))))


async def _measure(queue: Queue, count: int, ones: int) -> dict[str, float]:
    await queue.open()
    began = time.perf_counter()
    for _ in range(count // AT_ONCE):
        await queue.add([BODY] * AT_ONCE)
    added = count / (time.perf_counter() - began)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reports:
        reports.bind(("127.0.0.1", 0))
        with _worker(reports.getsockname()[1], count) as worker:
            first = await _next(reports, worker)
            last = await _next(reports, worker)
            handled_rate = (count - 1) / (last - first) * 1e9
            latency = await _one_at_a_time(queue, reports, worker, ones)
    return {"add/s": added, "handled/s": handled_rate, "one, µs": latency / 1000}


async def _one_at_a_time(queue: Queue, reports: socket.socket, worker: "Worker", ones: int) -> float:
    await asyncio.sleep(0.2)  # the worker settles the last messages, and becomes idle
    until = time.monotonic() + PATIENCE
    delays: list[int] = []
    while len(delays) < ones and time.monotonic() < until:
        await queue.add([f"@{time.monotonic_ns()}"])
        delays.append(await _next(reports, worker))
        await asyncio.sleep(0.005)
    return statistics.median(delays)


class Worker:
    """The worker process."""

    def __init__(self, process: "subprocess.Popen[bytes]", errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors

    def check(self) -> None:
        """Raise RuntimeError if the process has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the worker has ended: {self.last_line()}")

    def last_line(self) -> str:
        """Return the last line that the process has written to stderr."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "nothing")


@contextlib.contextmanager
def _worker(port: int, count: int) -> Iterator[Worker]:
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, sys.argv[0], URL, "work"],
            env={**os.environ, "BENCH_PORT": str(port), "BENCH_COUNT": str(count)},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        try:
            yield Worker(process, errors)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def _next(reports: socket.socket, worker: Worker) -> int:
    """Return the worker's next report."""
    until = time.monotonic() + DEADLINE
    reports.settimeout(0)
    loop = asyncio.get_running_loop()
    while time.monotonic() < until:
        with contextlib.suppress(TimeoutError):
            return int(await asyncio.wait_for(loop.sock_recv(reports, 64), 1.0))
        worker.check()
    raise TimeoutError(f"no message was handled in {DEADLINE:g} s; the worker's last line: {worker.last_line()}")
