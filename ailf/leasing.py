"""What a group asks of the driver: lease, settle, extend; with the options that say how it treats its messages."""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import attrs

from ailf.checks import check_count, check_name, check_seconds
from ailf.codecs import Payloads
from ailf.driver import Fetched, Receipt, Settlement, StreamDriver
from ailf.engine import Engine
from ailf.errors import OutcomeUnknownError
from ailf.values import EARLIEST, Backoff, DeadLetter, GroupReset

__all__ = ["GroupFlow", "GroupOptions", "Stoppable"]

log = logging.getLogger("ailf.stream")


class Stoppable(Protocol):
    """A worker of the group."""

    def stop(self) -> None:
        """Drain and end, from any thread."""


def _seconds(instance: Any, attribute: "attrs.Attribute[float]", value: float) -> None:  # noqa: ARG001 - attrs' form
    check_seconds(attribute.name, value, least=0.001)


def _count(instance: Any, attribute: "attrs.Attribute[int]", value: int) -> None:  # noqa: ARG001 - attrs' form
    check_count(attribute.name, value)


@attrs.frozen
class GroupOptions:
    """How a group treats its messages; see `Stream.group`."""

    start: str = EARLIEST
    lease: float = attrs.field(default=30.0, validator=_seconds)
    max_deliveries: int = attrs.field(default=5, validator=_count)
    backoff: Backoff = attrs.field(factory=Backoff)
    max_processing: float = attrs.field(default=86_400.0, validator=_seconds)
    on_event: Callable[[GroupReset], Any] | None = None


class GroupFlow:
    """The one text of both flavours."""

    def __init__(
        self, engine: Engine, driver: StreamDriver, payloads: Payloads, stream: str, name: str, options: GroupOptions
    ) -> None:
        self.engine = engine
        self.driver = driver
        self.payloads = payloads
        self.stream = stream
        self.name = check_name("group", name)
        self.options = options
        self.workers: set[Stoppable] = set()

    def stop(self) -> None:
        """End every `process` under way gently."""
        for worker in tuple(self.workers):
            worker.stop()

    def __str__(self) -> str:
        return f"group {self.name!r} of stream {self.stream!r}"

    async def open(self) -> bool:
        """Make the group; return False where it exists."""
        start = self.options.start
        return await self.engine.call(f"open {self}", self.driver.open_group, self.stream, self.name, start, again=True)

    async def fetch(self, consumer: str, count: int) -> Fetched:
        """Fetch; a repeat is harmless: what a lost answer had claimed comes back when its lease ends."""
        return await self.engine.call(
            f"fetch from {self}", self.driver.fetch, self.stream, self.name, consumer, again=True,
            count=count, lease=self.options.lease, max_deliveries=self.options.max_deliveries,
        )  # fmt: skip

    async def settle(self, *settlements: Settlement) -> bool:
        """Settle; return whether every lease still held.

        After a lost answer the request is repeated once: a lease that still holds settles it for certain. One that
        doesn't may have been settled by the first request or have ended, which nobody can tell any more.
        """
        what = f"{settlements[0].action.value} {len(settlements)} message(s) of {self}"
        arguments = (self.stream, self.name, settlements)
        most = self.options.max_deliveries
        try:
            return all(await self.engine.call(what, self.driver.settle, *arguments, again=False, max_deliveries=most))
        except OutcomeUnknownError as unknown:
            if all(await self.engine.call(what, self.driver.settle, *arguments, again=True, max_deliveries=most)):
                return True
            raise unknown from unknown.__cause__

    async def extend(self, receipt: Receipt, lease: float) -> bool:
        """Let a lease end so many seconds from now; return whether it still held."""
        what = f"extend a lease of {self}"
        kept = await self.engine.call(
            what, self.driver.extend, self.stream, self.name, [receipt], again=True, lease=lease
        )
        return kept[0]

    async def tell(self, event: GroupReset) -> None:
        """Tell the user's hook."""
        if self.options.on_event is None:
            return
        try:
            await self.engine.runtime.call(self.options.on_event, event)
        except Exception:
            log.exception("%s: the hook for events failed", self)

    async def dead_letters(self, after: str, limit: int) -> list[DeadLetter]:
        """Return a page of dead letters."""
        what = f"list the dead letters of {self}"
        return await self.engine.call(
            what, self.driver.dead_letters, self.stream, self.name, after, check_count("limit", limit), again=True
        )
