"""What an opened backend has below its interfaces: calls and retries, subscriptions, replies, renewals, wait queues."""

from ailf.engine.engine import AWAY, Closable, Engine

__all__ = ["AWAY", "Closable", "Engine"]
