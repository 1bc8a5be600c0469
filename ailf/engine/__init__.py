"""What the interfaces of one backend share: calls and retries, subscriptions, replies, lease renewal, wait queues."""

from ailf.engine.engine import AWAY, Closable, Engine

__all__ = ["AWAY", "Closable", "Engine"]
