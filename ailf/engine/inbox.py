"""What comes to one process over pub/sub: one inbox per backend, in which everybody who waits finds his own by an id.

Requests wait for replies there, and locks for their turn: whoever frees one publishes the waiter's id, bare.

The headers below travel in the envelope of a message and are not shown to users. Whoever speaks the envelope can
answer: publish to the channel in `REPLY_TO`, with the id in `REQUEST`.
"""

import functools
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from ailf.codecs import open_envelope
from ailf.driver import Filter, Frame
from ailf.engine.subscriptions import MessageBuffer, SubscriptionManager
from ailf.errors import BackendTimeoutError, DecodeError, InvalidArgumentError
from ailf.runtime import Event, Runtime
from ailf.values import Gap, Overflow

__all__ = ["FAILED", "MARKS", "REPLY_TO", "REQUEST", "PendingReply", "ReplyInbox", "check_free"]

REPLY_TO: Final = "ailf-reply-to"
"""The channel that waits for the reply."""

REQUEST: Final = "ailf-request"
"""The request's id."""

FAILED: Final = "ailf-failed"
"""In a reply: what went wrong, instead of an answer."""

MARKS: Final = frozenset({REPLY_TO, REQUEST, FAILED})


def check_free(headers: Mapping[str, str] | None) -> None:
    """Refuse headers of a user's that have a meaning here."""
    if isinstance(headers, Mapping) and (taken := MARKS & set(headers)):
        raise InvalidArgumentError(f"the header {min(taken)} is how requests and replies travel; choose another name")


class PendingReply:
    """Somebody who waits.

    Attributes:
        id: What comes for it carries.
        interrupted: Why something may have been missed, or "".
    """

    def __init__(self, ready: Event, now: Callable[[], float]) -> None:
        self._now = now
        self.id = secrets.token_hex(16)
        self.interrupted = ""
        self._ready = ready
        self._frames: deque[Frame] = deque()
        self._error: Exception | None = None

    def put(self, frame: Frame) -> None:
        """Take what comes for it."""
        self._frames.append(frame)
        self._ready.set()

    def interrupt(self, reason: str) -> None:
        """Something may have been missed: end a `wake` under way."""
        self.interrupted = reason
        self._ready.set()

    def fail(self, error: Exception) -> None:
        """No reply will come any more."""
        self._error = error
        self._ready.set()

    async def wake(self, timeout: float) -> None:
        """Return when something comes, or may have been missed, or after so many seconds."""
        await self._ready.wait(timeout)
        self._ready.clear()
        self._frames.clear()
        if self._error is not None:
            raise self._error

    async def next(self, timeout: float) -> Frame | None:
        """Return what comes next; None after `timeout` seconds."""
        until = self._now() + timeout
        while not self._frames:
            if self._error is not None:
                raise self._error
            self._ready.clear()
            if self._frames or self._error is not None:  # put between the look and the clear
                continue
            if (left := until - self._now()) <= 0 or not await self._ready.wait(left):
                return None
        return self._frames.popleft()


class _Mail(MessageBuffer):
    """An inbox that nobody reads: each frame goes to its ticket at once, and one that nobody waits for is dropped."""

    def __init__(self, ready: Event) -> None:
        super().__init__(ready, size=1, overflow=Overflow.DROP_OLDEST)
        self.tickets: dict[str, PendingReply] = {}

    def put(self, item: Frame | Gap) -> None:
        if isinstance(item, Gap):
            for waiting in tuple(self.tickets.values()):
                waiting.interrupt(item.reason)
            return
        try:
            body, headers = open_envelope(item.body)
        except DecodeError:  # nothing of ours, and nobody can tell whom it is for
            return
        ticket = self.tickets.get(headers.get(REQUEST) or body.decode("ascii", "replace"))
        if ticket is not None:
            ticket.put(item)

    def end(self, error: Exception | None = None) -> None:
        super().end(error)
        for ticket in tuple(self.tickets.values()):
            ticket.fail(error or InvalidArgumentError("the inbox was given up"))


class ReplyInbox:
    """Everybody of one backend who waits for something over pub/sub.

    Attributes:
        channel: Where it comes to.
    """

    def __init__(self, hub: SubscriptionManager, runtime: Runtime) -> None:
        self.channel = f"ailf.inbox.{secrets.token_hex(8)}"
        self._subscriptions = hub
        self._runtime = runtime
        self._opening = runtime.single_flight()
        self._mail = _Mail(runtime.event())
        self._opened = False

    @property
    def ready(self) -> bool:
        """Whether the inbox is subscribed and confirmed."""
        return self._opened and not self._mail.ended

    async def open(self, until: float | None = None) -> None:
        """Return when it is, so that nothing can be missed.

        Arguments:
            until: When the caller's time is over, on the runtime's clock.

        Raises:
            BackendTimeoutError: It isn't until then.
        """
        # A thread opens it itself, within its own time. A task shares the opening with others, and only leaves it then.
        last = until if self._runtime.uses_caller else None
        while not self.ready:
            left = None if until is None else max(0.0, until - self._runtime.now())
            await self._opening.run(functools.partial(self._open, last), left)
            if left is not None and left <= 0 and not self.ready:
                raise BackendTimeoutError("the inbox for replies was not subscribed in time")

    async def _open(self, until: float | None) -> None:
        if self.ready:
            return
        self._opened, self._mail = False, _Mail(self._runtime.event())
        await self._subscriptions.attach(self._mail, [Filter(self.channel)], until)
        self._opened = True

    def expect(self) -> PendingReply:
        """Return the ticket of somebody new."""
        ticket = PendingReply(self._runtime.event(), self._runtime.now)
        self._mail.tickets[ticket.id] = ticket
        return ticket

    def forget(self, ticket: PendingReply) -> None:
        """Drop what still comes for it."""
        self._mail.tickets.pop(ticket.id, None)
