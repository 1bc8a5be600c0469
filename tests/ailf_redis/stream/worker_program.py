"""A worker as a process of its own that writes down what happens to it: python worker_program.py ORDERS (JSON).

It writes to its own file, one line per event and whole lines only, what `tests.redis.histories` reads: each fetch and
each settlement as the driver sees it, and the beginning and end of each call of its handler.
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
from ailf.stream.delivery import DeliveryState

STALL = 0.05
"""Seconds that this process may stand still before it is written down."""


@attrs.frozen(kw_only=True)
class Orders:
    """What a worker is told.

    Attributes:
        url: Where the stream "tasks" is.
        name: Its name.
        path: The file of its history; its log stands beside it.
        lease: The group's.
        takeover: The group's.
        max_deliveries: The group's.
        concurrency: How many handlers run at once.
        prefetch: How many messages a fetch takes at most.
        seed: Of its chances.
        odds: What a handler does instead of returning, with its probability.
        pace: Seconds that a handler takes at most, unless it is a slow one.
        slow: Seconds that a slow one takes at most.
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


class Diary:
    """A file of lines. What is written is there, whatever becomes of the process."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, kind: str, **event: Any) -> None:
        """Write one event, with the time."""
        line = json.dumps({"kind": kind, "at": time.monotonic(), **event}, separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")


class SentinelEndpoint:
    """The group's driver: it does what that does, and writes it down."""

    def __init__(self, driver: Any, diary: Diary) -> None:
        self._driver = driver
        self._diary = diary

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    async def fetch(self, *args: Any, **options: Any) -> Any:
        """Fetch."""
        since = time.monotonic()
        fetched = await self._driver.fetch(*args, **options)
        claims = [(each.record.id, each.receipt.grant, each.attempt) for each in fetched.claims]
        if claims or fetched.dead:
            self._diary.write("fetched", since=since, claims=claims, dead=list(fetched.dead))
        return fetched

    async def settle(self, stream: str, group: str, settlements: Sequence[Any], **options: Any) -> Any:
        """Settle."""
        what = [(each.receipt.id, each.receipt.grant, each.action.value) for each in settlements]
        self._diary.write("settle", what=what)
        outcomes = await self._driver.settle(stream, group, settlements, **options)
        answers = [(entry, grant, each.name) for (entry, grant, _), each in zip(what, outcomes, strict=True)]
        self._diary.write("settled", what=answers)
        return outcomes

    async def leave(self, *args: Any) -> None:
        """Leave."""
        self._diary.write("leave")
        await self._driver.leave(*args)


def watch_losses(diary: Diary) -> None:
    """Write down what is found to be lost, whoever finds it: a message may be lost before any handler has it."""
    lose = DeliveryState.lose

    async def noted(parcel: DeliveryState) -> None:
        diary.write("missed", id=parcel.claim.receipt.id, grant=parcel.claim.receipt.grant)
        await lose(parcel)

    DeliveryState.lose = noted  # type: ignore[method-assign]  # what nobody has yet, nobody can be asked about


class Watch:
    """Looks now and then whether a delivery is lost.

    Attributes:
        kept: When it was last seen not to be.
    """

    STEP = 0.02

    def __init__(self, delivery: ailf.AsyncDelivery[Any]) -> None:
        self.kept: float | None = None
        self._delivery = delivery
        self.look()

    def look(self) -> None:
        """Look."""
        now = time.monotonic()
        if not self._delivery.lost:
            self.kept = now

    async def sleep(self, seconds: float) -> None:
        """Look again and again, for so many seconds."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, self.STEP))
            self.look()


class Handler:
    """Does to each message what chance has for it."""

    def __init__(self, orders: Orders, diary: Diary) -> None:
        self._orders = orders
        self._diary = diary

    async def __call__(self, delivery: ailf.AsyncDelivery[Any]) -> None:
        """Handle one message."""
        watch = Watch(delivery)
        this = {"id": delivery.id, "grant": delivery._state.claim.receipt.grant}
        chance = random.Random(f"{self._orders.seed} {delivery.id} {this['grant']}")
        self._diary.write("begin", **this, kept=watch.kept)
        told = "nothing"
        try:
            told = await self._handle(delivery, watch, chance)
        finally:
            self._diary.write("end", **this, told=told, lost=delivery.lost, kept=watch.kept)

    async def _handle(self, delivery: ailf.AsyncDelivery[Any], watch: Watch, chance: random.Random) -> str:
        act = self._pick(chance)
        if act == "block":
            time.sleep(chance.uniform(0.5, 1) * self._orders.slow)  # noqa: ASYNC251 - what a careless handler does
        else:
            await watch.sleep(chance.uniform(0, self._orders.slow if act == "slow" else self._orders.pace))
        watch.look()
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


def watch_stalls(diary: Diary) -> None:
    """Write down each time that this process stood still: stopped, or left without a processor."""
    step = 0.01
    while True:
        before = time.monotonic()
        time.sleep(step)
        if time.monotonic() - before > step + STALL:
            diary.write("stalled", since=before)


async def main(orders: Orders) -> None:
    """Work until told to stop."""
    diary = Diary(orders.path)
    threading.Thread(target=watch_stalls, args=(diary,), daemon=True).start()
    watch_losses(diary)
    async with ailf.connect_async(orders.url) as backend:
        group = backend.stream("tasks").group(
            "workers",
            lease=orders.lease,
            takeover=orders.takeover,
            max_deliveries=orders.max_deliveries,
            backoff=ailf.Backoff(initial=0.02, maximum=0.2),
        )
        group._flow.driver = SentinelEndpoint(group._flow.driver, diary)  # type: ignore[assignment]  # it looks like one
        await group.process(
            Handler(orders, diary),
            concurrency=orders.concurrency,
            prefetch=orders.prefetch,
            consumer=orders.name,
            signals=True,
        )


if __name__ == "__main__":
    told = Orders(**json.loads(sys.argv[1]))
    logging.basicConfig(filename=f"{told.path}.log", level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    asyncio.run(main(told))
