"""The messages that this process has received and not acked: when they came, and the spans of their attempts."""

import threading
import time
from collections import OrderedDict
from typing import Any, Final

import attrs

from ailf.instruments import Destination
from ailf.otel.api import Context, SpanContext, trace

__all__ = ["Key", "Known", "Messages", "key_of", "key_of_delivery"]

MOST_MESSAGES: Final = 4096
"""The number of unsettled messages whose earlier attempts are known."""

MOST_ATTEMPTS: Final = 8
"""The number of attempts of one message, the last ones, that spans link to."""

Key = tuple[str, str, str, str]
"""The URL of the backend, the stream, the group, and the id of the entry."""


@attrs.frozen
class Known:
    """A message that this process has received, and has not acked.

    Attributes:
        creation: Its creation context.
        received: When it was received, in nanoseconds since 1970; 0 once it has come to its handler.
        attempts: The attempts that ran in this process: each with its number and the context of its span.
    """

    creation: SpanContext | None = None
    received: int = 0
    attempts: tuple[tuple[int, SpanContext], ...] = ()

    def parent(self) -> Context:
        """Return the context of the last attempt."""
        return trace.set_span_in_context(trace.NonRecordingSpan(self.attempts[-1][1]))


NOTHING: Final = Known()


class Messages:
    """The last `MOST_MESSAGES` messages that were received and not acked."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, Known] = OrderedDict()
        self._guard = threading.Lock()

    def receive(self, key: Key, creation: SpanContext | None) -> None:
        """Remember when a message was received."""
        with self._guard:
            self._keep(key, Known(creation, time.time_ns(), self._known.get(key, NOTHING).attempts))

    def forward(self, key: Key) -> Known:
        """Return a message that has come to its handler."""
        with self._guard:
            known = self._known.get(key, NOTHING)
            if known.received:
                self._known[key] = attrs.evolve(known, received=0)
        return known

    def begin(self, key: Key, attempt: int, context: SpanContext) -> None:
        """Remember the span of an attempt."""
        with self._guard:
            known = self._known.get(key, NOTHING)
            attempts = (*known.attempts[1 - MOST_ATTEMPTS :], (attempt, context))
            self._keep(key, attrs.evolve(known, attempts=attempts))

    def settle(self, key: Key, *, forget: bool) -> Known:
        """Return a message that is settled, and forget it if it is done."""
        with self._guard:
            known = self._known.pop(key, NOTHING)
            if not forget and known is not NOTHING:
                self._keep(key, attrs.evolve(known, received=0))
        return known

    def find(self, key: Key) -> Known | None:
        """Return a message, if it is known."""
        return self._known.get(key)

    def _keep(self, key: Key, known: Known) -> None:
        self._known[key] = known
        self._known.move_to_end(key)
        if len(self._known) > MOST_MESSAGES:
            self._known.popitem(last=False)


def key_of(source: Destination, group: str, id_: str) -> Key:
    """Return the key of a message."""
    return source.backend, source.name, group, id_


def key_of_delivery(delivery: Any) -> Key:
    """Return the key of a delivery's message."""
    return key_of(delivery.source, delivery.group, delivery.id)
