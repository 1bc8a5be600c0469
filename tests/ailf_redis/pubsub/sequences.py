"""Numbered messages: a sender, receivers, and a check that every missing number lies in a reported gap or drop."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

import redis

import ailf

__all__ = ["AsyncReceiver", "Receiver", "Sender", "faults"]

CHANNEL = "numbers"


def faults(items: Sequence[int | str], dropped: int = 0) -> list[str]:
    """Return the faults of a sequence of numbers and gaps ("gap: …"): doubled, out of order, missing unreported.

    Arguments:
        items: The items of a subscriber, in order.
        dropped: How many messages its buffer dropped, by its own count.
    """
    reports, missing = [], 0
    last: int | None = None
    gap = False
    for item in items:
        if isinstance(item, str):
            gap = True
            continue
        if last is not None and item <= last:
            reports.append(f"{item} after {last}: {'doubled' if item == last else 'out of order'}")
        elif last is not None and item > last + 1 and not gap:
            missing += item - last - 1
        last, gap = item, False
    if missing > dropped:
        reports.append(f"{missing} missing without a gap, {dropped} reported as dropped")
    return reports


class Sender:
    """Publishes 0, 1, 2, … on a connection of its own, as another program would, and reconnects if that breaks."""

    def __init__(self, port: int, channel: str = f"ailf:channel:{CHANNEL}", pause: float = 0.001) -> None:
        self.sent = 0
        self._port = port
        self._channel = channel
        self._pause = pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._over.set()
        self._thread.join(10)

    def more(self, count: int = 20) -> None:
        """Return when `count` more were sent."""
        enough, until = self.sent + count, time.monotonic() + 20
        while self.sent < enough:
            assert time.monotonic() < until, f"only {self.sent} of {enough} were sent"
            time.sleep(0.005)

    def _run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(redis.RedisError, OSError), redis.Redis(port=self._port, socket_timeout=1) as raw:
                while not self._over.is_set():
                    # One that fails is not sent again: it may have arrived.
                    number, self.sent = self.sent, self.sent + 1
                    raw.publish(self._channel, number)
                    time.sleep(self._pause)
            time.sleep(0.02)


class Receiver:
    """Collects the items of a blocking subscription, in a thread."""

    def __init__(self, url: str, **options: Any) -> None:
        self.items: list[int | str] = []
        self.dropped = 0
        self.slow = 0.0
        self._url = url
        self._options = options
        self._ready = threading.Event()
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, daemon=True)

    def __enter__(self) -> Self:
        """Subscribe."""
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._over.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def wait_for(self, gaps: int, timeout: float = 15.0) -> None:
        """Return when `gaps` gaps have come since the beginning, and a number after them."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            items = list(self.items)
            if items and isinstance(items[-1], int) and sum(isinstance(item, str) for item in items) >= gaps:
                return
            time.sleep(0.02)
        raise AssertionError(f"no gap {gaps} and number after it within {timeout:g} s; the last: {self.items[-3:]}")

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 - for the test to raise
            self._failure = error

    def _run(self) -> None:
        with ailf.connect(self._url) as backend, backend.pubsub().listen(CHANNEL, **self._options) as subscription:
            self._ready.set()
            while not self._over.is_set():
                self._take(subscription.get(0.1))
            self.dropped = subscription.dropped

    def _take(self, item: Any) -> None:
        if isinstance(item, ailf.Gap):
            self.items.append(f"gap: {item.reason}")
        elif item is not None and isinstance(item.data, int):
            self.items.append(item.data)
        if self.slow:
            time.sleep(self.slow)


class AsyncReceiver(Receiver):
    """Collects the items of an asyncio subscription, on a loop in a thread."""

    def _run(self) -> None:
        asyncio.run(self._run_async())

    async def _run_async(self) -> None:
        async with (
            ailf.connect_async(self._url) as backend,
            backend.pubsub().listen(CHANNEL, **self._options) as subscription,
        ):
            self._ready.set()
            while not self._over.is_set():
                self._take(await subscription.get(0.1))
            self.dropped = subscription.dropped
