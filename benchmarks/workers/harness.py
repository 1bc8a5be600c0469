"""The harness of the work queues in this folder: it adds messages, and a worker process reports by UDP.

    python benchmarks/workers/with_ailf.py URL add COUNT ONES

adds COUNT messages, starts the same file once more as the worker, and prints as JSON how many messages were added per
second, and handled per second from the first to the last. Then, with the worker idle, it measures the microseconds from
the call that adds one message to the call of its handler: the median of ONES messages.

    python benchmarks/workers/with_ailf.py URL idle CONSUMERS PROCESSES ONES SILENCE

starts CONSUMERS consumers that take one message at a time, in PROCESSES processes. It prints as JSON how many requests
they make per second in SILENCE seconds without a message; then, for ONES messages one at a time in as many seconds, how
many requests each takes beyond those, the microseconds that they take the server, and the microseconds until its
handler is called.

This module needs only the standard library and redis-py, so it runs in the environment of any peer.
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
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final
from urllib.parse import urlsplit

import redis

URL = sys.argv[1]

BODY = bytes(range(35, 127)).decode() + "12345678"
"""100 bytes."""

AT_ONCE = 100
"""The handlers that an asyncio worker runs at once, and the messages that are fetched and added at once."""

DEADLINE = 60.0
"""Seconds that the harness waits for each report of the worker."""

PATIENCE = 5.0
"""Seconds after which no more single messages are added."""

STARTING = 4.0
"""Seconds in which the consumers of a process start, one after another, so that they don't poll at the same time."""

PAUSE = 0.005
"""Seconds between two single messages."""

WARM = 150
"""Messages that idle consumers handle first: one or more for each consumer, where they take turns."""


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

    async def consume(self, consumer: str) -> None:
        """Call `handled` with one message at a time, as the consumer of this name, until the process is killed."""
        raise NotImplementedError


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


async def _consume(queue: Queue, consumers: int) -> None:
    """Start consumers, and report when all have started."""
    async with asyncio.TaskGroup() as group:
        for number in range(consumers):
            group.create_task(queue.consume(f"{os.getpid()}-{number}"))
            await asyncio.sleep(STARTING / consumers)
        _report(consumers)


def _report(number: int) -> None:
    _reports.sendto(str(number).encode(), ("127.0.0.1", int(os.environ["BENCH_PORT"])))


# --- the measuring process ---------------------------------------------------------------------------------------


def main(queue: Queue) -> None:
    """Run the worker, or measure, as the command line says."""
    role, numbers = sys.argv[2], [int(each) for each in sys.argv[3:]]
    if role == "work":
        queue.work()
    elif role == "consume":
        asyncio.run(_consume(queue, *numbers))
    else:
        measure = _measure if role == "add" else _measure_idle
        print(json.dumps(asyncio.run(measure(queue, *numbers))))


async def _measure(queue: Queue, count: int, ones: int) -> dict[str, float]:
    await queue.open()
    began = time.perf_counter()
    for _ in range(count // AT_ONCE):
        await queue.add([BODY] * AT_ONCE)
    added = count / (time.perf_counter() - began)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reports:
        reports.bind(("127.0.0.1", 0))
        with _worker(reports, "work", count=count) as worker:
            first = await _next(reports, worker)
            last = await _next(reports, worker)
            handled_rate = (count - 1) / (last - first) * 1e9
            await asyncio.sleep(0.2)  # the worker settles the last messages, and becomes idle
            delays = await _one_at_a_time(queue, reports, worker, ones, PAUSE)
    return {"add/s": added, "handled/s": handled_rate, "one, µs": statistics.median(delays) / 1000}


async def _measure_idle(queue: Queue, consumers: int, processes: int, ones: int, silence: int) -> dict[str, float]:
    await queue.open()
    requests = Requests()
    with contextlib.ExitStack() as stack:
        reports = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        reports.bind(("127.0.0.1", 0))
        share = str(consumers // processes)
        workers = [stack.enter_context(_worker(reports, "consume", share)) for _ in range(processes)]
        for worker in workers:
            await _next(reports, worker)
        await _one_at_a_time(queue, reports, workers[0], WARM, PAUSE)
        await requests.begin()
        await asyncio.sleep(silence)
        idle = await requests.end()
        await requests.begin()
        delays = await _one_at_a_time(queue, reports, workers[0], ones, silence / ones)
        busy = await requests.end()
    return {
        "requests": (busy.count - idle.per_second * busy.seconds) / len(delays),
        "server, µs": (busy.time_us - idle.time_us / idle.seconds * busy.seconds) / len(delays),
        "idle, requests/s": idle.per_second,
        "one, µs": statistics.median(delays) / 1000,
    }


async def _one_at_a_time(
    queue: Queue, reports: socket.socket, worker: "Worker", ones: int, pause: float
) -> Sequence[int]:
    """Add a message every ``pause`` seconds, or later; return the nanoseconds until the handler of each was called."""
    until = time.monotonic() + max(PATIENCE, 2 * ones * pause)
    delays: list[int] = []
    while len(delays) < ones and time.monotonic() < until:
        began = time.monotonic()
        await queue.add([f"@{time.monotonic_ns()}"])
        delays.append(await _next(reports, worker))
        await asyncio.sleep(max(PAUSE, began + pause - time.monotonic()))
    return delays


class Made:
    """The requests that were made.

    Attributes:
        count: How many.
        time_us: Microseconds that they took the server.
        seconds: The seconds in which they were made.
        per_second: How many were made in a second.
    """

    def __init__(self, count: int, time_us: float, seconds: float) -> None:
        self.count, self.time_us, self.seconds = count, time_us, seconds
        self.per_second = count / seconds


class Requests:
    """Counts the requests of all clients of a server, and their time.

    INFO commandstats counts the commands that scripts call as well, and counts their time twice: with the script, too.
    MONITOR tells them apart. It shows all but EXEC, and makes the server's work for a command within a script about a
    microsecond longer.
    """

    OWN: Final = ("config", "info", "monitor", "client", "hello")
    """What the connections of this class call, and what every library calls when it connects."""

    def __init__(self) -> None:
        self._admin: Any = redis.Redis.from_url(URL)
        self._monitor: asyncio.Task[None] | None = None
        self._shown: Counter[tuple[str, bool]] = Counter()
        self._began = 0.0

    async def begin(self) -> None:
        """Begin to count."""
        self._shown.clear()
        if not self._monitor:
            where = urlsplit(URL)
            reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=2**24)
            writer.write(b"MONITOR\r\n")
            await reader.readline()
            self._monitor = asyncio.create_task(self._read(reader, writer))
        self._admin.config_resetstat()
        self._began = time.perf_counter()

    async def end(self) -> Made:
        """Return the requests since `begin`."""
        seconds = time.perf_counter() - self._began
        stats: Counter[str] = Counter()
        for name, each in self._admin.info("commandstats").items():
            stats[name.removeprefix("cmdstat_").partition("|")[0]] += each["usec"]
            if name == "cmdstat_exec":
                self._shown["exec", False] = each["calls"]
        await asyncio.sleep(0.1)  # the rest of what MONITOR shows arrives
        requests = {name: count for (name, scripted), count in self._shown.items() if not scripted}
        count = sum(requests.values())
        time_us = sum(stats[each] * count / (count + self._shown[each, True]) for each, count in requests.items())
        return Made(count, time_us - stats["exec"], seconds)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Count what MONITOR shows: ``+TIME [DATABASE ADDRESS] "NAME" …``, or "lua" for the address."""
        with contextlib.closing(writer):
            while line := await reader.readline():
                address, name = line.split(b" ", 4)[2:4]
                called = name.strip().strip(b'"').decode().lower()
                if called not in self.OWN:
                    self._shown[called, address == b"lua]"] += 1


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
def _worker(reports: socket.socket, *arguments: str, count: int = 0) -> Iterator[Worker]:
    port = reports.getsockname()[1]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, sys.argv[0], URL, *arguments],
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
