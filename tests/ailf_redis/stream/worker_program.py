"""A worker process that records its events: python worker_program.py ORDERS (JSON).

It appends one line per event to its own file, for `tests.ailf_redis.stream.histories`: each fetch and each settlement
as the driver sees it, and the begin and end of each call of its handler. Only whole lines are written.
"""

import asyncio
import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import attrs

import ailf
from ailf.engine.renewal import Renewer
from ailf.engine.renewed_lease import RenewedLease
from ailf.stream.delivery import DeliveryState
from ailf.stream.lease import DeliveryLease

STALL = 0.05
"""Seconds that this process may stand still before that is recorded."""


@attrs.frozen(kw_only=True)
class Orders:
    """The options of a worker.

    Attributes:
        url: Where the stream "tasks" is.
        name: Its name.
        path: The file of its history; its log stands beside it.
        lease: The group's option.
        takeover: The group's option.
        max_deliveries: The group's option.
        concurrency: How many handlers run at once.
        prefetch: The most messages that one fetch takes.
        seed: Of its random numbers.
        odds: The acts of a handler other than returning, with their probabilities.
        pace: The most seconds that a handler takes, unless it is slow.
        slow: The most seconds that a slow handler takes.
    """

    url: str
    name: str
    path: str
    lease: float = 2.0
    takeover: float = 1.0
    max_deliveries: int = 1000
    concurrency: int = 20
    prefetch: int = 100
    seed: int = 0
    odds: dict[str, float] = attrs.field(factory=dict)
    pace: float = 0.004
    slow: float = 2.5


class EventLog:
    """A file of lines. A written line stays, even if the process is killed."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, kind: str, **event: Any) -> None:
        """Write one event, with the time."""
        line = json.dumps({"kind": kind, "at": time.monotonic(), **event}, separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")


class RecordingDriver:
    """The driver of a group that also records each fetch and settlement."""

    def __init__(self, driver: Any, events: EventLog) -> None:
        self._driver = driver
        self._events = events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    async def fetch(self, *args: Any, **options: Any) -> Any:
        """Fetch, and record the claims."""
        since = time.monotonic()
        fetched = await self._driver.fetch(*args, **options)
        claims = [(each.record.id, each.receipt.grant, each.attempt) for each in fetched.claims]
        if claims or fetched.dead:
            self._events.write("fetched", since=since, claims=claims, dead=list(fetched.dead))
        return fetched

    async def settle(self, stream: str, group: str, settlements: Sequence[Any], **options: Any) -> Any:
        """Settle, and record the request and the outcomes."""
        what = [(each.receipt.id, each.receipt.grant, each.action.value) for each in settlements]
        self._events.write("settle", what=what)
        outcomes = await self._driver.settle(stream, group, settlements, **options)
        results = [(entry, grant, outcome.name) for (entry, grant, _), outcome in zip(what, outcomes, strict=True)]
        self._events.write("settled", what=results)
        return outcomes

    async def leave(self, *args: Any) -> None:
        """Leave, and record that."""
        self._events.write("leave")
        await self._driver.leave(*args)


def watch_losses(events: EventLog) -> None:
    """Record each lost lease, whichever code finds it lost: that may be before any handler has the message.

    The renewal thread finds by its own clock that a lease has ended, also while all handlers are busy and no caller
    takes the message out of the buffer.
    """
    ended = Renewer._lose

    def found(renewer: Renewer, lease: RenewedLease, why: str) -> None:
        if isinstance(lease, DeliveryLease) and lease.lost:  # by its own clock, not because the backend says so
            events.write("missed", id=lease.receipt.id, grant=lease.receipt.grant)
        ended(renewer, lease, why)

    Renewer._lose = found  # type: ignore[method-assign]  # as below
    lose = DeliveryState.lose

    async def recorded(state: DeliveryState) -> None:
        events.write("missed", id=state.claim.receipt.id, grant=state.claim.receipt.grant)
        await lose(state)

    DeliveryState.lose = recorded  # type: ignore[method-assign]  # no public object knows a message without a handler


class LossWatch:
    """Checks now and then whether a delivery is lost.

    Attributes:
        kept: When it was last seen not to be lost.
    """

    STEP = 0.02

    def __init__(self, delivery: ailf.AsyncDelivery[Any]) -> None:
        self.kept: float | None = None
        self._delivery = delivery
        self.check()

    def check(self) -> None:
        """Check, and note the time."""
        now = time.monotonic()
        if not self._delivery.lost:
            self.kept = now

    async def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`, and check meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, self.STEP))
            self.check()


class Handler:
    """Handles each message with an act chosen at random."""

    def __init__(self, orders: Orders, events: EventLog) -> None:
        self._orders = orders
        self._events = events

    async def __call__(self, delivery: ailf.AsyncDelivery[Any]) -> None:
        """Handle one message."""
        watch = LossWatch(delivery)
        this = {"id": delivery.id, "grant": delivery._state.claim.receipt.grant}
        chance = random.Random(f"{self._orders.seed} {delivery.id} {this['grant']}")
        self._events.write("begin", **this, kept=watch.kept)
        result = "nothing"
        try:
            result = await self._handle(delivery, watch, chance)
        finally:
            self._events.write("end", **this, result=result, lost=delivery.lost, kept=watch.kept)

    async def _handle(self, delivery: ailf.AsyncDelivery[Any], watch: LossWatch, chance: random.Random) -> str:
        act = self._pick(chance)
        if act == "block":
            time.sleep(chance.uniform(0.5, 1) * self._orders.slow)  # noqa: ASYNC251 - a careless handler does so
        else:
            await watch.sleep(chance.uniform(0, self._orders.slow if act == "slow" else self._orders.pace))
        watch.check()
        if act == "raise":
            raise RuntimeError("a handler's error")
        if act == "retry":
            raise ailf.Retry("later", delay=chance.uniform(0, 0.1))
        if act == "reject":
            raise ailf.Reject("never")
        try:
            if act == "nack":
                await delivery.nack(chance.uniform(0, 0.1))
            elif act == "release":
                await delivery.release()
            elif chance.random() < 0.5:
                await delivery.ack()
        except ailf.LeaseLostError:
            return "lost"
        return "settled" if delivery.settled else "nothing"

    def _pick(self, chance: random.Random) -> str:
        names = list(self._orders.odds)
        odds = list(self._orders.odds.values())
        return chance.choices(["return", *names], [1 - sum(odds), *odds])[0]


def watch_stalls(events: EventLog) -> None:
    """Record each time that this process stood still: stopped, or left without a processor."""
    step = 0.01
    while True:
        before = time.monotonic()
        time.sleep(step)
        if time.monotonic() - before > step + STALL:
            events.write("stalled", since=before)


async def main(orders: Orders) -> None:
    """Work until a signal stops the worker."""
    events = EventLog(orders.path)
    threading.Thread(target=watch_stalls, args=(events,), daemon=True).start()
    watch_losses(events)
    async with ailf.connect_async(orders.url) as backend:
        group = backend.stream("tasks").group(
            "workers",
            lease=orders.lease,
            takeover=orders.takeover,
            max_deliveries=orders.max_deliveries,
            backoff=ailf.Backoff(initial=0.02, maximum=0.2),
        )
        group._flow.driver = RecordingDriver(group._flow.driver, events)  # type: ignore[assignment]  # it has the same methods
        await group.process(
            Handler(orders, events),
            concurrency=orders.concurrency,
            prefetch=orders.prefetch,
            consumer=orders.name,
            signals=True,
        )


if __name__ == "__main__":
    orders = Orders(**json.loads(sys.argv[1]))
    logging.basicConfig(filename=f"{orders.path}.log", level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    asyncio.run(main(orders))
