"""Asking over pub/sub: one inbox per backend, in which every request finds its own replies by an id.

The headers below travel in the envelope of a message and are not shown to users. Whoever speaks the envelope can
answer: publish to the channel in `REPLY_TO`, with the id in `REQUEST`.
"""

import secrets
from collections import deque
from collections.abc import Mapping
from typing import Final

from ailf.codecs import open_envelope
from ailf.driver import Filter, Frame
from ailf.errors import DecodeError, InvalidArgumentError
from ailf.hub import Hub, Inbox
from ailf.runtime import Event, Runtime
from ailf.values import Gap, Overflow

__all__ = ["FAILED", "MARKS", "REPLY_TO", "REQUEST", "Desk", "Ticket", "check_free"]

REPLY_TO: Final = "ailf-reply-to"
"""The channel that waits for the reply."""

REQUEST: Final = "ailf-request"
"""The request's id."""

FAILED: Final = "ailf-failed"
"""In a reply: what went wrong, instead of an answer."""

MARKS: Final = frozenset({REPLY_TO, REQUEST, FAILED})


def check_free(headers: Mapping[str, str] | None) -> None:
    """Refuse headers of a user's that have a meaning here."""
    taken = MARKS & set(headers or ())
    if taken:
        raise InvalidArgumentError(f"the header {min(taken)} is how requests and replies travel; choose another name")


class Ticket:
    """One request that waits.

    Attributes:
        id: What its replies carry.
        interrupted: Why replies may have been missed, or "".
    """

    def __init__(self, ready: Event) -> None:
        self.id = secrets.token_hex(8)
        self.interrupted = ""
        self._ready = ready
        self._frames: deque[Frame] = deque()
        self._error: Exception | None = None

    def put(self, frame: Frame) -> None:
        """Take a reply."""
        self._frames.append(frame)
        self._ready.set()

    def fail(self, error: Exception) -> None:
        """No reply will come any more."""
        self._error = error
        self._ready.set()

    async def next(self, timeout: float) -> Frame | None:
        """Return the next reply; None after so many seconds."""
        while not self._frames:
            if self._error is not None:
                raise self._error
            self._ready.clear()
            if self._frames or self._error is not None:  # put between the look and the clear
                continue
            if timeout <= 0 or not await self._ready.wait(timeout):
                return None
        return self._frames.popleft()


class _Replies(Inbox):
    """An inbox that nobody reads: each reply goes to its ticket at once, and one that nobody waits for is dropped."""

    def __init__(self, ready: Event) -> None:
        super().__init__(ready, size=1, overflow=Overflow.DROP_OLDEST)
        self.tickets: dict[str, Ticket] = {}

    def put(self, item: Frame | Gap) -> None:
        if isinstance(item, Gap):
            for waiting in tuple(self.tickets.values()):
                waiting.interrupted = item.reason
            return
        try:
            _, headers = open_envelope(item.body)
        except DecodeError:  # nothing of ours, and nobody can tell whom it is for
            return
        ticket = self.tickets.get(headers.get(REQUEST, ""))
        if ticket is not None:
            ticket.put(item)

    def end(self, error: Exception | None = None) -> None:
        super().end(error)
        for ticket in tuple(self.tickets.values()):
            ticket.fail(error or InvalidArgumentError("the inbox of replies was given up"))


class Desk:
    """All requests of one backend that wait for replies.

    Attributes:
        channel: Where the replies come to.
    """

    def __init__(self, hub: Hub, runtime: Runtime) -> None:
        self.channel = f"ailf.inbox.{secrets.token_hex(8)}"
        self._hub = hub
        self._runtime = runtime
        self._opening = runtime.flight()
        self._replies = _Replies(runtime.event())
        self._opened = False

    @property
    def _ready(self) -> bool:
        return self._opened and not self._replies.ended

    async def open(self) -> None:
        """Return when the inbox is subscribed and confirmed, so that no reply can be missed."""
        while not self._ready:
            await self._opening.join(self._open)

    async def _open(self) -> None:
        if self._ready:
            return
        self._opened, self._replies = False, _Replies(self._runtime.event())
        await self._hub.attach(self._replies, [Filter(self.channel)])
        self._opened = True

    def expect(self) -> Ticket:
        """Return the ticket of a new request."""
        ticket = Ticket(self._runtime.event())
        self._replies.tickets[ticket.id] = ticket
        return ticket

    def forget(self, ticket: Ticket) -> None:
        """Drop what still comes for it."""
        self._replies.tickets.pop(ticket.id, None)
