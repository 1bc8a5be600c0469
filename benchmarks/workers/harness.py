"""What every work queue of this folder is measured with: it adds, a process of its own works, and reports come by UDP.

    python benchmarks/workers/with_ailf.py URL ADD COUNT ONES

adds COUNT messages, starts the same file once more as the worker, and prints as JSON how many a second were added, and
handled from the first to the last; then, with the worker idle, how many microseconds lie between asking for one message
to be added and its handler's being called, in the median of ONES.

Nothing here needs more than Python itself, so that it runs in the environment of any peer.
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
"""How many handlers an asyncio worker may run at once; as many messages are fetched and added at once."""

DEADLINE = 60.0
"""Seconds for all of one round."""

PATIENCE = 5.0
"""Seconds after which no more single messages are tried."""


class Queue(ABC):
    """A library's way to share work."""

    @abstractmethod
    async def add(self, texts: Sequence[str]) -> None:
        """Add messages, as fast as the library's own interface does."""

    @abstractmethod
    def work(self) -> None:
        """Call `handled` with each message, until the process is killed."""

    async def open(self) -> None:  # noqa: B027 - some need nothing
        """Connect for adding."""


# --- the worker's side -------------------------------------------------------------------------------------------

_reports = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
_numbers = itertools.count(1)


def handled(text: str) -> None:
    """Take a message: what every handler does."""
    now = time.monotonic_ns()
    if text[0] == "@":
        _report(now - int(text[1:]))
        return
    number = next(_numbers)
    if number in (1, int(os.environ["BENCH_COUNT"])):
        _report(now)


def _report(number: int) -> None:
    _reports.sendto(str(number).encode(), ("127.0.0.1", int(os.environ["BENCH_PORT"])))


# --- the measuring side ------------------------------------------------------------------------------------------


def main(queue: Queue) -> None:
    """Be the worker, or measure."""
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
    await asyncio.sleep(0.2)  # the worker settles the last of the many, and comes to rest
    until = time.monotonic() + PATIENCE
    delays: list[int] = []
    while len(delays) < ones and time.monotonic() < until:
        await queue.add([f"@{time.monotonic_ns()}"])
        delays.append(await _next(reports, worker))
        await asyncio.sleep(0.005)
    return statistics.median(delays)


class Worker:
    """The process that works."""

    def __init__(self, process: "subprocess.Popen[bytes]", errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors

    def check(self) -> None:
        """Raise if it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the worker has ended: {self.said()}")

    def said(self) -> str:
        """Return the last thing it said."""
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
    """Return the next report of the worker's."""
    until = time.monotonic() + DEADLINE
    reports.settimeout(0)
    loop = asyncio.get_running_loop()
    while time.monotonic() < until:
        with contextlib.suppress(TimeoutError):
            return int(await asyncio.wait_for(loop.sock_recv(reports, 64), 1.0))
        worker.check()
    raise TimeoutError(f"no message was handled in {DEADLINE:g} s; the worker says: {worker.said()}")
