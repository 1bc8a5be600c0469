"""The core that the interfaces of a backend share: calls, subscriptions, replies, lease renewal, wait queues."""

from ailf.engine.engine import AWAY, Closable, Engine

__all__ = ["AWAY", "Closable", "Engine"]
