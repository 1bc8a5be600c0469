"""Streams of durable messages and their consumer groups: `Stream` and `AsyncStream`."""

from ailf.stream.consumer import AsyncConsumer, Consumer
from ailf.stream.delivery import AsyncDelivery, Delivery, current_delivery
from ailf.stream.group import AsyncGroup, Group
from ailf.stream.stream import AsyncStream, Stream

__all__ = [
    "AsyncConsumer",
    "AsyncDelivery",
    "AsyncGroup",
    "AsyncStream",
    "Consumer",
    "Delivery",
    "Group",
    "Stream",
    "current_delivery",
]
