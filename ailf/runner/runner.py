"""The runner's process: it starts the workers, waits for signals and for what they tell, and does what is decided.

`ailf.runner.supervisor` decides. This only waits, in one loop in the main thread; the HTTP server has threads of its
own, which read `_status` and collect metrics. Workers are started with `subprocess`, in sessions of their own: Ctrl-C
in a terminal reaches the runner alone, which tells each worker once.
"""

import contextlib
import functools
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from ailf.errors import InvalidArgumentError
from ailf.logs import Log
from ailf.runner.channel import Channel
from ailf.runner.files import changed, snapshot
from ailf.runner.metrics import merge
from ailf.runner.options import RunnerOptions
from ailf.runner.server import Page, PageServer
from ailf.runner.show_log import shown_log
from ailf.runner.supervisor import FAILED, Action, Do, Phase, Supervisor
from ailf.urls import VARIABLE

__all__ = ["run"]

log = Log("ailf.runner")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

POLL = 0.5
"""Seconds between two looks at the files."""

COLLECT = 2.0
"""Seconds that workers have to send their metrics."""

LONGEST_WAIT = 60.0
"""The most seconds that the loop sleeps."""


def run(options: RunnerOptions) -> int:
    """Run an app in worker processes until SIGTERM or Ctrl-C; return the exit status.

    Call it in the main thread. SIGTERM and Ctrl-C drain all workers; a second Ctrl-C kills them. SIGHUP starts new
    workers and, when they are ready, drains those before.

    Arguments:
        options: What to run, and how.

    Returns:
        0 after a stop in which every worker ended by itself; 1 if one was killed, if no worker could start, or if a
        port is taken.

    Raises:
        InvalidArgumentError: It was called outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise InvalidArgumentError("the runner works in the main thread only, where Python handles signals")
    with contextlib.ExitStack() as stack:
        stack.enter_context(shown_log(options.log_level))
        runner = _Runner(options)
        stack.callback(runner.close)
        try:
            runner.serve()
        except OSError as error:
            log.failure(
                logging.ERROR, None, "health and metrics can't be served at %s: %s", options.host, error, error=None
            )
            return FAILED
        return runner.run()


@attrs.define(eq=False)
class _Process:
    """A worker process.

    Attributes:
        process: The process.
        channel: The connection to it.
        slot: Its slot.
        why: Why it could not start, as it has told; "".
    """

    process: "subprocess.Popen[bytes]"
    channel: Channel
    slot: int
    why: str = ""


class _Collection:
    """A collection of metrics: what each worker has sent."""

    def __init__(self, expected: set[int]) -> None:
        self.texts: dict[int, str] = {}
        self._expected = expected
        self._lock = threading.Lock()
        self.complete = threading.Event()
        if not expected:
            self.complete.set()

    def add(self, number: int, text: str | None) -> None:
        """Record what a worker has sent; None: it has failed or ended."""
        with self._lock:
            if text is not None and number in self._expected:
                self.texts[number] = text
            self._expected.discard(number)
            if not self._expected:
                self.complete.set()


class _Runner:
    def __init__(self, options: RunnerOptions) -> None:
        self._options = options
        self._supervisor = Supervisor(
            options.workers, grace=options.grace, wait=options.wait, keeps_failed=options.reload
        )
        self._environment = None if options.url is None else {**os.environ, VARIABLE: options.url}  # not in arguments
        self._processes: dict[int, _Process] = {}
        self._selector = selectors.DefaultSelector()
        self._servers: list[PageServer] = []
        self._collections: dict[int, _Collection] = {}
        self._collected = 0
        self._lock = threading.Lock()  # of collections and processes, which request threads read
        self._interrupted = False
        self._files: Mapping[Path, object] = {}
        self._polled = 0.0
        self._not_ready = "no worker has started"
        self._report: dict[str, Any] = {"workers": {}}

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Start the workers, and do what is due until a stop has ended."""
        supervisor, now = self._supervisor, time.monotonic
        if self._options.reload:
            self._files = snapshot(Path.cwd())
            self._polled = now()
        with self._woken_by_signals() as woken:
            self._selector.register(woken, selectors.EVENT_READ, functools.partial(self._take_signals, woken))
            self._perform(supervisor.start(now()))
            while not supervisor.finished:
                self._update_status()
                for key, _ in self._selector.select(self._pause()):
                    key.data()
                self._reap()
                self._poll_files()
                self._perform(supervisor.tick(now()))
        log.info(None, "the runner ends with status %d", supervisor.status)
        return supervisor.status

    def _pause(self) -> float:
        until = self._supervisor.next_time
        if self._options.reload:
            until = min(until, self._polled + POLL)
        return max(0.0, min(until - time.monotonic(), LONGEST_WAIT))

    @contextlib.contextmanager
    def _woken_by_signals(self) -> Iterator[socket.socket]:
        """Let signals write their numbers into a socket, and restore what handled them before."""
        reading, writing = socket.socketpair()
        reading.settimeout(0)
        writing.settimeout(0)
        previous = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        previous_fd = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(previous_fd)
            for number, handler in previous.items():
                signal.signal(number, handler)
            reading.close()
            writing.close()

    def _take_signals(self, woken: socket.socket) -> None:
        now = time.monotonic()
        for number in dict.fromkeys(woken.recv(4096)):
            if number == signal.SIGHUP:
                self._reload("SIGHUP")
            elif number == signal.SIGINT and self._interrupted:
                log.warning(None, "a second Ctrl-C: the workers are killed")
                self._perform(self._supervisor.kill())
            elif number in {signal.SIGTERM, signal.SIGINT}:
                self._interrupted = self._interrupted or number == signal.SIGINT
                if not self._supervisor.stopping:
                    log.info(None, "%s: workers have %g s to end", signal.Signals(number).name, self._options.grace)
                    self._perform(self._supervisor.stop(now))

    def _reload(self, why: str) -> None:
        log.info(None, "%s: new workers start, and then the present ones end", why)
        self._perform(self._supervisor.reload(time.monotonic()))

    def _poll_files(self) -> None:
        now = time.monotonic()
        if not self._options.reload or now < self._polled + POLL:
            return
        files = snapshot(Path.cwd())
        self._polled = time.monotonic()
        if paths := changed(self._files, files):
            self._files = files
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            self._reload(f"{paths[0].relative_to(Path.cwd())}{more} changed")

    # --- workers -------------------------------------------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if action.do is Do.START:
                self._start(action.worker)
            elif action.do is Do.TERMINATE:
                self._signal(action.worker, signal.SIGTERM)
            elif action.do is Do.KILL:
                self._signal(action.worker, signal.SIGKILL)
            else:
                (log.warning if action.do is Do.WARN else log.error)(None, "%s", action.text)

    def _start(self, number: int) -> None:
        options, slot = self._options, self._supervisor.workers[number].slot
        orders = {
            "target": options.target, "wait": options.wait, "grace": options.grace,
            "metrics": options.metrics_port is not None, "log_level": options.log_level,
            "url_given": options.url is not None,
        }  # fmt: skip
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        command = [sys.executable, "-m", "ailf.runner.worker", str(theirs.fileno()), json.dumps(orders)]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own module
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=self._environment,
            )
        except OSError as error:  # no processes or no memory are left: as a worker that died at once
            ours.close()
            self._perform(self._supervisor.exited(number, f"could not be started ({error})", time.monotonic()))
            return
        finally:
            theirs.close()
        started = _Process(process, Channel(ours), slot)
        with self._lock:
            self._processes[number] = started
        self._selector.register(started.channel, selectors.EVENT_READ, functools.partial(self._receive, number))
        log.debug(None, "worker %d starts as process %d", slot + 1, process.pid)

    def _signal(self, number: int, sent: signal.Signals) -> None:
        if process := self._processes.get(number):
            process.process.send_signal(sent)

    def _receive(self, number: int) -> None:
        worker = self._processes[number]
        messages = worker.channel.receive()
        if messages is None:  # it ends, or has ended
            self._selector.unregister(worker.channel)
            return
        for message in messages:
            self._take(number, worker, message)

    def _take(self, number: int, worker: _Process, message: Mapping[str, Any]) -> None:
        """Take note of a message of a worker."""
        kind = message["kind"]
        if kind == "ready":
            log.info(None, "worker %d (process %d) is ready", worker.slot + 1, worker.process.pid)
            self._perform(self._supervisor.ready(number, time.monotonic()))
        elif kind == "backend":
            self._supervisor.backend(number, up=message["up"])
        elif kind == "failed":
            worker.why = message["why"]
        elif kind == "metrics" and (collection := self._collections.get(message["request"])):
            collection.add(number, message.get("text"))

    def _reap(self) -> None:
        """Take note of the workers that have ended."""
        for number in [number for number, each in self._processes.items() if each.process.poll() is not None]:
            worker = self._processes[number]
            while last_words := list(worker.channel.receive() or ()):
                for message in last_words:
                    self._take(number, worker, message)
            with contextlib.suppress(KeyError):
                self._selector.unregister(worker.channel)
            with self._lock:
                del self._processes[number]
                collections = list(self._collections.values())
            worker.channel.close()
            for collection in collections:
                collection.add(number, None)
            how, phase = _how(worker.process.returncode), self._supervisor.workers[number].phase
            if phase is Phase.STARTING:
                how = f"could not start: {worker.why}" if worker.why else f"{how} before it was ready"
            if phase is Phase.STOPPING:
                log.info(None, "worker %d (process %d) %s", worker.slot + 1, worker.process.pid, how)
            self._perform(self._supervisor.exited(number, how, time.monotonic()))

    # --- health and metrics --------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Begin to serve health and metrics.

        Raises:
            OSError: A port is taken, or the address isn't of this machine.
        """
        pages: dict[int, dict[str, Callable[[], Page]]] = {}
        options = self._options
        if options.health_port is not None:
            pages.setdefault(options.health_port, {}).update({"/health": self._health, "/ready": self._ready})
        if options.metrics_port is not None:
            pages.setdefault(options.metrics_port, {}).update({"/metrics": self._metrics})
        for port, served in pages.items():
            server = PageServer(options.host, port, served)
            self._servers.append(server)
            server.start()
            log.info(None, "http://%s:%d serves %s", options.host, server.port, ", ".join(served))

    def _update_status(self) -> None:
        """Publish the state for the threads of the HTTP server, as new objects."""
        supervisor = self._supervisor
        self._not_ready = supervisor.not_ready
        phases = [each.phase.value for each in supervisor.workers.values()]
        self._report = {"workers": {name: phases.count(name) for name in sorted(set(phases))}}

    def _health(self) -> Page:
        return Page.of(200, status="alive", **self._report)

    def _ready(self) -> Page:
        why = self._not_ready
        return Page.of(503, status="not ready", why=why, **self._report) if why else Page.of(200, status="ready")

    def _metrics(self) -> Page:
        """Collect the metrics of all workers that answer in time."""
        with self._lock:
            self._collected += 1
            request = self._collected
            asked = dict(self._processes)
            collection = self._collections[request] = _Collection(set(asked))
        try:
            for number, each in asked.items():
                if not each.channel.send("metrics", request=request):
                    collection.add(number, None)
            collection.complete.wait(COLLECT)
        finally:
            with self._lock:
                del self._collections[request]
        texts = {str(asked[number].slot + 1): text for number, text in sorted(collection.texts.items())}
        return Page.text(_own_metrics(self._report["workers"], self._supervisor.restarts) + merge(texts))

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Kill what still runs, and end serving."""
        for each in self._processes.values():
            each.process.kill()
            each.process.wait()
            each.channel.close()
        for server in self._servers:
            server.close()
        self._selector.close()


def _how(status: int) -> str:
    """Return how a process has ended, by its exit status."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _own_metrics(phases: Mapping[str, int], restarts: int) -> str:
    """Return the metrics of the runner itself."""
    lines = [
        "# HELP ailf_runner_workers Worker processes by phase.",
        "# TYPE ailf_runner_workers gauge",
        *(f'ailf_runner_workers{{phase="{name}"}} {phases.get(name, 0)}' for name in ("starting", "ready", "stopping")),
        "# HELP ailf_runner_restarts_total Workers started in the place of a failed one.",
        "# TYPE ailf_runner_restarts_total counter",
        f"ailf_runner_restarts_total {restarts}",
    ]
    return "".join(f"{line}\n" for line in lines)
