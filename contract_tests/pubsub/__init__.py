"""The contract: PubSub, and requests over it."""
