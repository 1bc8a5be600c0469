"""The core that the interfaces of a backend share: calls, subscriptions, replies, lease renewal, wait queues."""

from ailf.engine.engine import Closable, Engine
from ailf.engine.outages import AWAY

__all__ = ["AWAY", "Closable", "Engine"]
