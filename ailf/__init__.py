"""Messaging and coordination for agents: interfaces that don't depend on a broker, and how to open a backend."""

from ailf.backend import AsyncBackend, Backend, connect, connect_async
from ailf.consumer import AsyncConsumer, Consumer
from ailf.delivery import AsyncDelivery, Delivery
from ailf.errors import (
    AilfError,
    BackendError,
    BackendFullError,
    BackendReadOnlyError,
    BackendTimeoutError,
    ClosedError,
    ConnectionLostError,
    DecodeError,
    EncodeError,
    InvalidArgumentError,
    LeaseLostError,
    OutcomeUnknownError,
    PermissionDeniedError,
    Reject,
    SettledError,
    UnsupportedError,
)
from ailf.group import AsyncGroup, Group
from ailf.hookspecs import hookimpl
from ailf.pubsub import AsyncPubSub, PubSub
from ailf.stream import AsyncStream, Stream
from ailf.subscription import AsyncSubscription, Subscription
from ailf.values import EARLIEST, LATEST, Backoff, DeadLetter, Entry, Gap, GroupReset, Message, Overflow

__all__ = [
    "EARLIEST",
    "LATEST",
    "AilfError",
    "AsyncBackend",
    "AsyncConsumer",
    "AsyncDelivery",
    "AsyncGroup",
    "AsyncPubSub",
    "AsyncStream",
    "AsyncSubscription",
    "Backend",
    "BackendError",
    "BackendFullError",
    "BackendReadOnlyError",
    "BackendTimeoutError",
    "Backoff",
    "ClosedError",
    "ConnectionLostError",
    "Consumer",
    "DeadLetter",
    "DecodeError",
    "Delivery",
    "EncodeError",
    "Entry",
    "Gap",
    "Group",
    "GroupReset",
    "InvalidArgumentError",
    "LeaseLostError",
    "Message",
    "OutcomeUnknownError",
    "Overflow",
    "PermissionDeniedError",
    "PubSub",
    "Reject",
    "SettledError",
    "Stream",
    "Subscription",
    "UnsupportedError",
    "connect",
    "connect_async",
    "hookimpl",
]
