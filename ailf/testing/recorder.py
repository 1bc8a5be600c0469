"""A recorder: an instrument that keeps what a backend sent, received and settled, for a test to look at."""

import threading
from typing import Any, TypeVar

from ailf.checks import check_count
from ailf.errors import InvalidArgumentError
from ailf.instruments import (
    ConnectionLost,
    ConnectionRestored,
    Event,
    Instrument,
    LeaseExpired,
    MessageDied,
    MessageReceived,
    MessagesDropped,
    MessageSent,
    MessageSettled,
    MessagesMissed,
    Waited,
)

__all__ = ["Recorder"]

E = TypeVar("E", bound=Event)


class Recorder(Instrument):
    """Records the events of the backends that it is given to, and returns the payloads of their messages.

    >>> import ailf
    >>> from ailf.testing import Recorder
    >>> recorder = Recorder()
    >>> with ailf.connect("memory://", instruments=[recorder]) as backend:
    ...     tasks = backend.stream("tasks")
    ...     first = tasks.add({"page": 1})
    ...     tasks.group("workers").process(lambda delivery: None, until_idle=True)
    >>> recorder.added("tasks"), recorder.consumed("tasks")
    ([{'page': 1}], [{'page': 1}])

    It sees what these backends do, not what other processes do. Payloads that were sent are the sender's own objects.

    Arguments:
        limit: The most events that it keeps. When there are more, its methods raise, rather than forget any.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = check_count("limit", limit)
        self._events: list[Event] = []
        self._lost = 0
        self._guard = threading.Lock()

    # --- what was recorded ---------------------------------------------------------------------------------------

    @property
    def events(self) -> list[Event]:
        """All events, in order (`ailf.instruments`).

        Raises:
            InvalidArgumentError: There were more than ``limit``.
        """
        with self._guard:
            if self._lost:
                raise InvalidArgumentError(
                    f"the recorder was full with {self._limit} events and has left out {self._lost}; give it a higher "
                    "limit, or call clear"
                )
            return list(self._events)

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one class, such as `ailf.instruments.LeaseExpired`."""
        return [each for each in self.events if isinstance(each, kind)]

    def published(self, channel: str | None = None) -> list[Any]:
        """Return the payloads that were published on a channel, requests included; None for all channels."""
        return self._sent("channel", channel)

    def added(self, stream: str | None = None) -> list[Any]:
        """Return the payloads that were added to a stream, without those that ``add_once`` found; None for all."""
        return self._sent("stream", stream)

    def received(self, channel: str | None = None) -> list[Any]:
        """Return the payloads that came to subscriptions, on a channel; None for all channels."""
        return [
            each.payload
            for each in self.of(MessageReceived)
            if each.source.kind == "channel" and channel in (None, each.source.name)
        ]

    def delivered(self, stream: str | None = None, group: str | None = None) -> list[Any]:
        """Return the payloads that were leased to consumers, once for each attempt; None for all."""
        return [
            each.payload
            for each in self.of(MessageReceived)
            if each.source.kind == "stream" and stream in (None, each.source.name) and group in (None, each.group)
        ]

    def consumed(self, stream: str | None = None, group: str | None = None) -> list[Any]:
        """Return the payloads that were acked; None for those of all streams, or all groups."""
        return [
            each.payload
            for each in self.of(MessageSettled)
            if each.outcome == "ack" and stream in (None, each.source.name) and group in (None, each.group)
        ]

    def dead(self, stream: str | None = None, group: str | None = None) -> list[Any]:
        """Return the payloads that became dead letters; None for one that these backends neither added nor received.

        The letters themselves, with reasons, are in ``group.dead_letters.list()``.
        """
        payloads: dict[tuple[str, str], Any] = {}
        found = []
        for each in self.events:
            if isinstance(each, MessageSent):
                payloads |= zip(((each.destination.name, entry) for entry in each.ids), each.payloads, strict=False)
            elif isinstance(each, MessageReceived | MessageSettled):
                payloads[each.source.name, each.id] = each.payload
            elif isinstance(each, MessageDied) and stream in (None, each.source.name) and group in (None, each.group):
                found.append(payloads.get((each.source.name, each.id)))
        return found

    def clear(self) -> None:
        """Forget all events."""
        with self._guard:
            self._events.clear()
            self._lost = 0

    def _sent(self, kind: str, name: str | None) -> list[Any]:
        return [
            payload
            for each in self.of(MessageSent)
            if each.destination.kind == kind and each.error is None and (each.ids or kind == "channel")
            for own, payload in zip(each.names, each.payloads, strict=True)
            if name in (None, own)
        ]

    # --- hooks ---------------------------------------------------------------------------------------------------

    def _record(self, event: Event) -> None:
        with self._guard:
            if len(self._events) < self._limit:
                self._events.append(event)
            else:
                self._lost += 1

    def message_sent(self, event: MessageSent) -> None:
        """Record it."""
        self._record(event)

    def message_received(self, event: MessageReceived) -> None:
        """Record it."""
        self._record(event)

    def message_settled(self, event: MessageSettled) -> None:
        """Record it."""
        self._record(event)

    def message_died(self, event: MessageDied) -> None:
        """Record it."""
        self._record(event)

    def waited(self, event: Waited) -> None:
        """Record it."""
        self._record(event)

    def lease_expired(self, event: LeaseExpired) -> None:
        """Record it."""
        self._record(event)

    def messages_missed(self, event: MessagesMissed) -> None:
        """Record it."""
        self._record(event)

    def messages_dropped(self, event: MessagesDropped) -> None:
        """Record it."""
        self._record(event)

    def connection_lost(self, event: ConnectionLost) -> None:
        """Record it."""
        self._record(event)

    def connection_restored(self, event: ConnectionRestored) -> None:
        """Record it."""
        self._record(event)
