"""Every error that ailf raises, in one tree.

    AilfError
    ├── InvalidArgumentError (also ValueError)   the call was wrong; nothing was sent
    ├── EncodeError          (also ValueError)   a payload is of another type, or has no JSON form; nothing was sent
    ├── DecodeError          (also ValueError)   a received body is not what the object expects
    ├── UnsupportedError                         the backend doesn't have the capability
    ├── ClosedError                              the object, or its backend, is closed
    ├── LeaseLostError                           a lease has ended; nothing was changed
    ├── SettledError                             a delivery was settled already, in another way
    ├── NotFoundError                            the group doesn't exist; nothing was changed
    ├── EmptyError                               no message came in time, or the consumer was stopped
    ├── DeadlockError        (also RuntimeError) the caller would wait for a lock that it holds itself
    ├── LockTimeoutError     (also TimeoutError) the lock was not granted in time
    ├── RateLimitedError                         a limit doesn't allow the call, or not in time
    ├── NoResponderError                         the channel of a request has no responder
    ├── RequestFailedError                       the responder failed
    ├── RequestTimeoutError  (also TimeoutError) no reply came in time
    ├── Reject                                   raised by a handler: make the message a dead letter
    ├── Retry                                    raised by a handler: deliver the message again
    └── BackendError                             the backend could not carry out a request
        ├── ConnectionLostError                  there is no connection
        ├── BackendTimeoutError                  the backend didn't answer in time
        ├── OutcomeUnknownError                  the request may have been carried out; not repeated
        ├── ProtocolError                        the backend's reply can't be understood
        ├── PermissionDeniedError                the credentials don't allow it
        ├── BackendFullError                     the backend is out of memory
        │   └── StreamFullError                  too many unsettled messages; nothing was added
        └── BackendReadOnlyError                 the backend can't write now

A driver maps the errors of its client library once, at its edge, with the original as ``__cause__``. A message names
the object, what was asked, what happened and what to do. Payloads and credentials never enter a message.
"""

from typing import Final

__all__ = [
    "AilfError",
    "BackendError",
    "BackendFullError",
    "BackendReadOnlyError",
    "BackendTimeoutError",
    "ClosedError",
    "ConnectionLostError",
    "DeadlockError",
    "DecodeError",
    "EmptyError",
    "EncodeError",
    "InvalidArgumentError",
    "LeaseLostError",
    "LockTimeoutError",
    "NoResponderError",
    "NotFoundError",
    "OutcomeUnknownError",
    "PermissionDeniedError",
    "ProtocolError",
    "RateLimitedError",
    "Reject",
    "RequestFailedError",
    "RequestTimeoutError",
    "Retry",
    "SettledError",
    "StreamFullError",
    "UnsupportedError",
]


MAX_SECONDS: Final = 3_155_760_000.0
"""The longest duration that an argument may have: 100 years, in seconds. Every backend can add it to its clock."""


class AilfError(Exception):
    """The base of all errors that ailf raises.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend, backend.stream("tasks").group("workers").consumer() as consumer:
    ...     try:
    ...         consumer.take(timeout=0).ack()
    ...     except ailf.EmptyError:
    ...         print("nothing to do")
    ...     except ailf.AilfError as error:
    ...         print("something else:", error)
    nothing to do
    """


class InvalidArgumentError(AilfError, ValueError):
    """An argument can't be used; nothing was sent."""


class EncodeError(AilfError, ValueError):
    """A payload is not of the object's ``type``, or the codec can't write it; nothing was sent."""


class DecodeError(AilfError, ValueError):
    """A received body is not what the object's ``type`` expects.

    The message names the field and the expected type. It shows ids and lengths, never content.
    """


class UnsupportedError(AilfError):
    """The backend doesn't have the capability, isn't installed, is too old, or is for asyncio where trio runs."""


class ClosedError(AilfError):
    """The object, or the backend it belongs to, is closed."""


class LeaseLostError(AilfError):
    """The lease of a message, a lock or a permit has ended: it expired or was revoked. Nothing was changed."""


class SettledError(AilfError):
    """The delivery was settled before, in another way."""


class NotFoundError(AilfError):
    """The object to change, such as a consumer group, doesn't exist; nothing was changed."""


class EmptyError(AilfError):
    """`take` has no message: none came within ``timeout`` seconds, or the consumer was stopped."""


class LockTimeoutError(AilfError, TimeoutError):
    """The lock was not granted within ``timeout`` seconds."""


class DeadlockError(AilfError, RuntimeError):
    """The calling thread or task holds the lock itself, so it would wait for ever; nothing was changed."""


class RateLimitedError(AilfError):
    """A limit doesn't allow the call, or not in time; nothing was charged.

    Attributes:
        retry_after: Seconds after which the call may pass; None if it never can.
        bound: The name of the limit that the call has to wait for; "" for an unnamed limit, or if the call waits for
            its turn in the wait queue.
    """

    def __init__(self, message: str, *, retry_after: float | None, bound: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.bound = bound


class NoResponderError(AilfError):
    """The channel of the request has no listener."""


class RequestFailedError(AilfError):
    """The responder failed: its handler raised, or it could not decode the request."""


class RequestTimeoutError(AilfError, TimeoutError):
    """No reply came in time. A responder may have received the request."""


class Reject(AilfError):  # noqa: N818 - an instruction, not a failure: ``raise Reject("no such customer")``
    """Raised by a handler: don't retry this message; make it a dead letter with this text as its error.

    >>> import ailf
    >>> def handle(delivery: ailf.Delivery) -> None:
    ...     raise ailf.Reject("no such customer")
    >>> with ailf.connect("memory://") as backend:
    ...     entry_id, group = backend.stream("orders").add({"customer": 7}), backend.stream("orders").group("workers")
    ...     group.process(handle, until_idle=True)
    ...     print([letter.error for letter in group.dead_letters.list()])
    ['no such customer']
    """


class Retry(AilfError):  # noqa: N818 - as `Reject`: ``raise Retry("the model is overloaded", delay=20)``
    """Raised by a handler: deliver this message again, with a delay of its own.

    >>> import ailf
    >>> def handle(delivery: ailf.Delivery) -> None:
    ...     if delivery.attempt == 1:
    ...         raise ailf.Retry("the model is overloaded", delay=0.01)
    ...     print("attempt", delivery.attempt)
    ...     group.stop()
    >>> with ailf.connect("memory://") as backend:
    ...     entry_id, group = backend.stream("prompts").add("hello"), backend.stream("prompts").group("workers")
    ...     group.process(handle)
    attempt 2

    Arguments:
        why: The text for the log and, after the last delivery, for the dead letter.
        delay: Seconds until the next delivery; None for the group's backoff.

    Raises:
        InvalidArgumentError: ``delay`` isn't a number of seconds from 0 to 100 years.
    """

    def __init__(self, why: str = "the handler asked for a retry", *, delay: float | None = None) -> None:
        given: object = delay
        number = isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= MAX_SECONDS
        if given is not None and not number:
            raise InvalidArgumentError(
                f"the delay of a Retry must be a number of seconds from 0 to {MAX_SECONDS:,.0f} (100 years)"
            )
        super().__init__(why)
        self.delay = delay


class BackendError(AilfError):
    """The backend could not carry out a request.

    Attributes:
        maybe_applied: True if the request was sent and no reply came, so that it may have been carried out.
    """

    def __init__(self, message: str, *, maybe_applied: bool = False) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied


class ConnectionLostError(BackendError):
    """There is no connection: it couldn't be opened, or it broke; or the server is not ready yet."""


class BackendTimeoutError(BackendError):
    """The backend didn't answer within the deadline of the request."""


class OutcomeUnknownError(BackendError):
    """The request was sent and no reply came. It isn't repeated, because it could then be carried out twice."""


class ProtocolError(BackendError):
    """The backend's reply can't be understood, or is larger than any reply to the request can be.

    The request may have been carried out. It isn't repeated: a server of another kind, or a faulty one, would send the
    same reply again.
    """


class PermissionDeniedError(BackendError):
    """The backend refuses the credentials, or the credentials don't allow the request."""


class BackendFullError(BackendError):
    """The backend is out of memory."""


class StreamFullError(BackendFullError):
    """The stream has as many unsettled messages as its retention allows. Nothing was added."""


class BackendReadOnlyError(BackendError):
    """The backend can't write now: it is a replica, or its disk fails."""
