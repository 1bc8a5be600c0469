"""A worker process: ``python -m ailf.runner.worker FD ORDERS``. It runs an app until SIGTERM, or until the runner dies.

It tells the runner when it is ready, whether the backend answers, why it could not start, and its metrics.
"""

import asyncio
import contextlib
import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import attrs

from ailf.app.running import RunningApp, done
from ailf.errors import AilfError, BackendError, InvalidArgumentError, UnsupportedError
from ailf.logs import Log
from ailf.runner.channel import Channel
from ailf.runner.loading import load_app
from ailf.runner.show_log import show_log
from ailf.runtime import run
from ailf.safe_text import describe

__all__ = ["Orders", "main"]

log = Log("ailf.runner")

PING = 1.0
"""Seconds between two checks of the backend."""

COULD_NOT_START = 3
"""The exit status of a worker that could not start; it has told the runner why."""


@attrs.frozen
class Orders:
    """What the runner wants of a worker; sent as JSON.

    Attributes:
        target: The app.
        wait: Seconds for which it waits for the backend.
        grace: Seconds that it has to end after the runner has died.
        metrics: Whether it is asked for metrics.
        log_level: The level of its log.
        url_given: Whether the user gave a URL, which the app must not name then.
    """

    target: str
    wait: float
    grace: float
    metrics: bool
    log_level: str
    url_given: bool


class Worker:
    """The worker of this process.

    Arguments:
        channel: The connection to the runner.
        orders: What it runs.
    """

    def __init__(self, channel: Channel, orders: Orders) -> None:
        self._channel = channel
        self._orders = orders
        self._running: RunningApp | None = None
        self._render: Callable[[], str | bytes] | None = None
        self._ready = False

    def run(self) -> int:
        """Run the app; return the exit status."""
        signal.signal(signal.SIGHUP, lambda *_: None)  # it is for the runner, also if it is sent to all processes
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        threading.Thread(target=self._listen, name="ailf-runner-channel", daemon=True).start()
        try:
            running = self._load()
            self._render = _renderer(running) if self._orders.metrics else None
            if running.on_asyncio:
                asyncio.run(self._run(running))
            else:
                run(self._run(running))
        except Exception as error:  # noqa: BLE001 - this is the last place that sees it
            return self._failed(error)
        return 0

    def _load(self) -> RunningApp:
        running = load_app(self._orders.target).running(wait=self._orders.wait)
        if self._orders.url_given and running.url is not None:
            raise InvalidArgumentError("--url was given, but the app names a URL itself; leave one of them out")
        return running

    async def _run(self, running: RunningApp) -> None:
        await running.start()
        try:
            self._running = running
            running.spawn("the check of the backend", lambda: self._watch(running))
            self._ready = True
            self._channel.send("ready")
            await running.stopped()
        finally:
            await running.end()

    async def _watch(self, running: RunningApp) -> None:
        """Tell the runner when the backend stops answering, and when it answers again."""
        was_up = True
        while not await running.stopped(PING):
            try:
                await done(running.backend.ping())
                up = True
            except BackendError:
                up = False
            if up is not was_up:
                self._channel.send("backend", up=up)
            was_up = up

    def _failed(self, error: Exception) -> int:
        if self._ready:
            log.failure(logging.ERROR, None, "the app has failed: %s", describe(error), error=error)
            return 1
        if not isinstance(error, AilfError):  # whose text says it all, and which the runner logs
            log.failure(logging.ERROR, None, "the app could not start: %s", describe(error), error=error)
        self._channel.send("failed", why=describe(error))
        return COULD_NOT_START

    def _signalled(self, number: int, _: FrameType | None) -> None:
        """Drain. Further signals change nothing: a service manager may send them to all processes besides."""
        if self._running is not None:
            self._running.from_signal()
        elif not self._ready:
            log.info(None, "%s: nothing has begun, so the worker ends", signal.Signals(number).name)
            raise SystemExit(0)

    def _listen(self) -> None:
        """Answer the runner; drain when it has died, and end within the grace."""
        while (messages := self._channel.receive()) is not None:
            for message in messages:
                if message["kind"] == "metrics":
                    self._channel.send("metrics", request=message["request"], **self._metrics())
        log.warning(None, "the runner has died, so the worker drains")
        os.kill(os.getpid(), signal.SIGTERM)  # it interrupts an import or a wait, too
        time.sleep(self._orders.grace)
        log.error(None, "the worker has not ended within its grace of %g s", self._orders.grace)
        os._exit(1)

    def _metrics(self) -> dict[str, Any]:
        try:
            text = "" if self._render is None else self._render()
        except Exception as error:  # noqa: BLE001 - user code; metrics must not end a worker
            log.failure(logging.ERROR, None, "the metrics could not be rendered", error=error)
            return {"error": describe(error)}
        return {"text": text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)}


def _renderer(running: RunningApp) -> Callable[[], str | bytes]:
    """Return what renders the metrics of this process: the app's function, or those of `ailf.prometheus`.

    Unless the app has an instrument for Prometheus, it gets one.

    Raises:
        UnsupportedError: The app has none, and the extra `prometheus` isn't installed.
    """
    if running.metrics is not None:
        return running.metrics
    try:
        module = importlib.import_module("ailf.prometheus")
    except ImportError as error:
        raise UnsupportedError(
            "--metrics-port needs metrics: install the extra (pip install 'ailf[prometheus]'), or give the app a "
            "function that renders them, App(metrics=…)"
        ) from error
    with contextlib.suppress(InvalidArgumentError):  # the registry has the metrics of the app's own instrument
        running.instruments.append(module.Prometheus())
    render: Callable[[], str | bytes] = module.render
    return render


def main(arguments: list[str]) -> int:
    """Run a worker, as the runner starts it."""
    descriptor, orders = int(arguments[0]), Orders(**json.loads(arguments[1]))
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - it has no keyword
    show_log(orders.log_level)
    return Worker(Channel(socket.socket(fileno=descriptor)), orders).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
