"""Every error that ailf raises, in one tree.

    AilfError
    ├── InvalidArgumentError (also ValueError)   the call was wrong; nothing was sent
    ├── EncodeError          (also ValueError)   a payload has no JSON form; nothing was sent
    ├── DecodeError          (also ValueError)   a received body is not what the object expects
    ├── UnsupportedError                         this backend declares no such capability
    ├── ClosedError                              the object, or its backend, is closed
    ├── LeaseLostError                           a delivery is no longer ours; nothing was changed
    ├── SettledError                             a delivery was settled already, in another way
    ├── NotFoundError                            what is to be changed doesn't exist; nothing was changed
    ├── LockTimeoutError     (also TimeoutError) somebody else kept the lock for too long
    ├── RateLimitedError                         a limit doesn't allow it, or not in time
    ├── NoResponderError                         nobody listens on the channel of a request
    ├── RequestFailedError                       the handler of a request raised
    ├── RequestTimeoutError  (also TimeoutError) no reply came in time
    ├── Reject                                   raised by a handler: no retry, to the dead letters
    ├── Retry                                    raised by a handler: deliver it again, after its own delay
    └── BackendError                             the backend could not do it
        ├── ConnectionLostError
        ├── BackendTimeoutError
        ├── OutcomeUnknownError                  it may or may not have been done; not repeated
        ├── ProtocolError                        the answer can't be understood
        ├── PermissionDeniedError
        ├── BackendFullError
        │   └── StreamFullError                  too many unsettled messages; nothing was added
        └── BackendReadOnlyError

A driver maps its own errors once, at its edge, with the original as ``__cause__``. A message names the
object, what was asked and what to do; payloads and credentials never enter one.
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
    "DecodeError",
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
    """The root of everything ailf raises."""


class InvalidArgumentError(AilfError, ValueError):
    """An argument can't be used; nothing was sent."""


class EncodeError(AilfError, ValueError):
    """A payload has no form that the codec can write; nothing was sent."""


class DecodeError(AilfError, ValueError):
    """A received body is not what the object expects. Its text names ids and lengths, never content."""


class UnsupportedError(AilfError):
    """The backend doesn't declare the capability that was asked for."""


class ClosedError(AilfError):
    """The object, or the backend it belongs to, is closed."""


class LeaseLostError(AilfError):
    """The lease ended (it expired, or somebody else has it); nothing was changed."""


class SettledError(AilfError):
    """The delivery was settled already, in another way."""


class NotFoundError(AilfError):
    """What was to be changed, such as a consumer group, doesn't exist; nothing was changed."""


class LockTimeoutError(AilfError, TimeoutError):
    """The lock was not to be had in time."""


class RateLimitedError(AilfError):
    """A limit doesn't allow the call, or not in time; nothing was charged.

    Attributes:
        retry_after: Seconds after which it may pass; None if it never can.
        bound: The name of the limit that it has to wait for; "" for the only one, or for those in line before it.
    """

    def __init__(self, message: str, *, retry_after: float | None, bound: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.bound = bound


class NoResponderError(AilfError):
    """Nobody listens on the channel that was asked on."""


class RequestFailedError(AilfError):
    """Who was asked could not answer: its handler raised, or it could not read the request."""


class RequestTimeoutError(AilfError, TimeoutError):
    """No reply came in time. The request may have been heard."""


class Reject(AilfError):  # noqa: N818 - what a handler says, not what went wrong: ``raise Reject("no such customer")``
    """Raised by a handler: don't retry this message, put it among the dead letters with this reason."""


class Retry(AilfError):  # noqa: N818 - as `Reject`: ``raise Retry("the model is overloaded", delay=20)``
    """Raised by a handler: deliver this message again, with a delay of its own.

    Arguments:
        why: What the log and, after the last delivery, the dead letter say.
        delay: Seconds until then; the group's backoff if None.
    """

    def __init__(self, why: str = "the handler asked for a retry", *, delay: float | None = None) -> None:
        given: object = delay
        number = isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= MAX_SECONDS
        if given is not None and not number:
            raise InvalidArgumentError(
                f"a retry's delay must be a number of seconds from 0 to {MAX_SECONDS:,.0f} (100 years)"
            )
        super().__init__(why)
        self.delay = delay


class BackendError(AilfError):
    """The backend could not do what was asked.

    Attributes:
        maybe_applied: True when the request was sent and no answer came, so that it may have been carried out.
    """

    def __init__(self, message: str, *, maybe_applied: bool = False) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied


class ConnectionLostError(BackendError):
    """There is no connection: it couldn't be made, or it broke; or the server is not ready yet."""


class BackendTimeoutError(BackendError):
    """The backend didn't answer within the deadline."""


class OutcomeUnknownError(BackendError):
    """The request was sent and no answer came. It isn't repeated, because it could then happen twice."""


class ProtocolError(BackendError):
    """The backend's answer can't be understood, or is larger than any answer to the request can be.

    The request may have been carried out. It isn't repeated: another kind of server, or a faulty one, answers so again.
    """


class PermissionDeniedError(BackendError):
    """The backend refuses the credentials, or what they may do."""


class BackendFullError(BackendError):
    """The backend has no room."""


class StreamFullError(BackendFullError):
    """The stream has as many entries as its retention allows, and too many are unsettled. Nothing was added."""


class BackendReadOnlyError(BackendError):
    """The backend can't write now (a replica, or one whose disk fails)."""
