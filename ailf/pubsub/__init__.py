"""Broadcast: `PubSub` and `AsyncPubSub`."""

from ailf.pubsub.flow import ErrorHook
from ailf.pubsub.message import AsyncMessage, Message
from ailf.pubsub.pubsub import AsyncPubSub, PubSub
from ailf.pubsub.subscription import AsyncSubscription, Subscription

__all__ = ["AsyncMessage", "AsyncPubSub", "AsyncSubscription", "ErrorHook", "Message", "PubSub", "Subscription"]
