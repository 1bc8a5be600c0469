"""The reply inbox: one channel per backend object, on which replies and wake-ups arrive, each routed by an id.

Requests wait there for replies, and waiters of a wait queue for their wake-up: its body is the waiter's id alone.

The headers below travel in the envelope of a message and are hidden from users. Any program that reads the envelope can
reply: it publishes to the channel in `REPLY_TO`, with the id in `REQUEST`.
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

__all__ = ["FAILED", "INBOX", "REPLY_TO", "REQUEST", "RESERVED_HEADERS", "PendingReply", "ReplyInbox", "check_free"]

INBOX: Final = "ailf.inbox."
"""The beginning of the names of reply inboxes."""

REPLY_TO: Final = "ailf-reply-to"
"""The channel to which the reply is published."""

REQUEST: Final = "ailf-request"
"""The id of the request."""

FAILED: Final = "ailf-failed"
"""In a reply of a responder that failed: the error."""

RESERVED_HEADERS: Final = frozenset({REPLY_TO, REQUEST, FAILED})


def check_free(headers: Mapping[str, str] | None) -> None:
    """Refuse a user's headers that are reserved for requests and replies.

    Raises:
        InvalidArgumentError: At least one of them is reserved.
    """
    if isinstance(headers, Mapping) and (reserved := RESERVED_HEADERS & set(headers)):
        raise InvalidArgumentError(f"the header {min(reserved)} is reserved for requests and replies; rename yours")


class PendingReply:
    """A caller that waits for replies or wake-ups.

    Attributes:
        id: The id that its frames carry.
        interrupted: Why frames may have been missed; "" if none were.
    """

    def __init__(self, ready: Event, now: Callable[[], float]) -> None:
        self._now = now
        self.id = secrets.token_hex(16)
        self.interrupted = ""
        self._ready = ready
        self._frames: deque[Frame] = deque()
        self._error: Exception | None = None

    def put(self, frame: Frame) -> None:
        """Queue a frame for it."""
        self._frames.append(frame)
        self._ready.set()

    def interrupt(self, reason: str) -> None:
        """Note that frames may have been missed, and end a `wait` under way."""
        self.interrupted = reason
        self._ready.set()

    def fail(self, error: Exception) -> None:
        """End every wait with this error."""
        self._error = error
        self._ready.set()

    async def wait(self, timeout: float) -> None:
        """Return when a frame comes or may have been missed, and after `timeout` seconds at the latest."""
        await self._ready.wait(timeout)
        self._ready.clear()
        self._frames.clear()
        if self._error is not None:
            raise self._error

    async def next(self, timeout: float) -> Frame | None:
        """Return the next frame; None after `timeout` seconds."""
        until = self._now() + timeout
        while not self._frames:
            if self._error is not None:
                raise self._error
            self._ready.clear()
            if self._frames or self._error is not None:  # put between the check and the clear
                continue
            if (left := until - self._now()) <= 0 or not await self._ready.wait(left):
                return None
        return self._frames.popleft()


class _RoutingBuffer(MessageBuffer):
    """A buffer that stores nothing: it routes each frame to its `PendingReply`, and drops one that has none."""

    def __init__(self, ready: Event) -> None:
        super().__init__(ready, size=1, overflow=Overflow.DROP_OLDEST)
        self.pending: dict[str, PendingReply] = {}

    def put(self, item: Frame | Gap) -> None:
        if isinstance(item, Gap):
            for pending in tuple(self.pending.values()):
                pending.interrupt(item.reason)
            return
        try:
            body, headers = open_envelope(item.body)
        except DecodeError:  # not one of our messages, so there is no id in it
            return
        recipient = self.pending.get(headers.get(REQUEST) or body.decode("ascii", "replace"))
        if recipient is not None:
            recipient.put(item)

    def end(self, error: Exception | None = None) -> None:
        super().end(error)
        for pending in tuple(self.pending.values()):
            pending.fail(error or InvalidArgumentError("the reply inbox was closed"))


class ReplyInbox:
    """The callers of one backend that wait for replies or wake-ups over pub/sub.

    Attributes:
        channel: The channel to which these are published.
    """

    def __init__(self, subscriptions: SubscriptionManager, runtime: Runtime) -> None:
        self.channel = f"{INBOX}{secrets.token_hex(8)}"
        self._subscriptions = subscriptions
        self._runtime = runtime
        self._opening = runtime.single_flight()
        self._buffer = _RoutingBuffer(runtime.event())
        self._opened = False

    @property
    def ready(self) -> bool:
        """Whether the backend has confirmed the subscription to the channel."""
        return self._opened and not self._buffer.ended

    async def open(self, until: float | None = None) -> None:
        """Subscribe to the channel; return when it is confirmed, so that no frame can be missed.

        Arguments:
            until: The caller's deadline, on the runtime's clock; None: the driver's own.

        Raises:
            BackendTimeoutError: It isn't confirmed by then.
        """
        # A thread subscribes itself, by its own deadline. Tasks share one attempt, which a task leaves at its deadline.
        last = until if self._runtime.uses_caller else None
        while not self.ready:
            left = None if until is None else max(0.0, until - self._runtime.now())
            await self._opening.run(functools.partial(self._open, last), left)
            if left is not None and left <= 0 and not self.ready:
                raise BackendTimeoutError("the subscription to the reply inbox was not confirmed in time")

    async def _open(self, until: float | None) -> None:
        if self.ready:
            return
        self._opened, self._buffer = False, _RoutingBuffer(self._runtime.event())
        await self._subscriptions.attach(self._buffer, [Filter(self.channel)], until)
        self._opened = True

    def expect(self) -> PendingReply:
        """Register a new caller and return it."""
        pending = PendingReply(self._runtime.event(), self._runtime.now)
        self._buffer.pending[pending.id] = pending
        return pending

    def forget(self, pending: PendingReply) -> None:
        """Unregister a caller; frames that still come for it are dropped."""
        self._buffer.pending.pop(pending.id, None)
