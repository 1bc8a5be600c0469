"""Every key and channel name, and nowhere else.

With a namespace, a stream's key is ``{namespace:stream:name}`` and its helpers stand behind it, ``…:due:group``. What
is in braces is the hash tag, so all keys of one stream are on one node of a cluster; names are escaped, so no text of
a user's can leave it. With the namespace "" the stream's key and a channel are the plain name, for sharing with other
programs, and the helpers are ``{tag}:ailf:due:name:group``, where the tag is what a cluster hashes of the plain name.
"""

from functools import lru_cache
from typing import Final, NamedTuple

from ailf.driver import LimiterKey

__all__ = ["GroupKeys", "Keys"]


CACHED: Final = 4096
"""How many names are remembered with what they are called in Redis."""


class GroupKeys(NamedTuple):
    """What one group of a stream is kept in, as ``lua/shared/group.lua`` takes it.

    Attributes:
        stream: The stream itself, with the group's pending entries.
        due: When each pending entry may be delivered again.
        notes: What is known of pending entries besides: deliveries forgiven, the last error.
        dead: The dead letters.
        bell: Rung when something comes back to the group.
        again: Dead letters that were put back.
        alive: The consumers, and until when each counts as alive.
        queue: The unsettled entries with an ordering key, in their order.
    """

    stream: str
    due: str
    notes: str
    dead: str
    bell: str
    again: str
    alive: str
    queue: str


class Keys:
    """The names of one namespace.

    Arguments:
        namespace: Its name; "" for plain names.
        cluster: Whether they are in a cluster.
    """

    def __init__(self, namespace: str, *, cluster: bool = False) -> None:
        self._mark = "{" if cluster else ""
        self._namespace = _escape(namespace, "%{}:")
        self._channel = f"{self._namespace}:channel:" if namespace else ""

    def stream(self, name: str) -> str:
        """Return the key of a stream."""
        return _stream_key(self._namespace, name)

    def group(self, stream: str, group: str) -> GroupKeys:
        """Return the keys of a group."""
        return _group_keys(self._namespace, stream, group)

    def meta(self, stream: str) -> str:
        """Return the key of what is known of a stream besides."""
        return _helper(self._namespace, stream, "meta")

    def once(self, stream: str, dedup_id: str) -> str:
        """Return the key of a dedup id."""
        return _helper(self._namespace, stream, "once", dedup_id)

    def helper_prefixes(self, stream: str) -> list[str]:
        """Return what the helper keys of all groups of a stream begin with."""
        return [_helper(self._namespace, stream, kind, "") for kind in HELPERS]

    def gone_prefixes(self, stream: str) -> list[str]:
        """Return what the keys begin with that ``lua/shared/entry_removed.lua`` needs of all groups of a stream."""
        return [_helper(self._namespace, stream, kind, "") for kind in ("due", "bell", "notes", "queue")]

    def lock(self, name: str) -> tuple[str, ...]:
        """Return the keys of a lock, as ``lua/shared/lock.lua`` takes them."""
        return _lock_keys(self._namespace, name)

    def limiter(self, limiter_key: LimiterKey, slots: tuple[str, ...]) -> tuple[str, ...]:
        """Return the keys of what a rate limiter charges, as ``lua/shared/limit.lua`` takes them.

        Arguments:
            limiter_key: Whose they are.
            slots: The names of its limits of concurrency.
        """
        return _limiter_keys(self._namespace, limiter_key, slots)

    def channel(self, name: str) -> str:
        """Return the channel of a name."""
        return self._channel + name

    def waiter_channel(self, name: str) -> str:
        """Return the channel where a waiter is woken, as ``lua/shared/wait_queue.lua`` takes it.

        No other channel begins with a brace.
        """
        return self._mark + self.channel(name)

    def pattern(self, pattern: str) -> str:
        """Return the pattern that matches the channels of the names that the pattern matches."""
        return "".join("\\" + char if char in "*?[]^-\\" else char for char in self._channel) + pattern

    def name(self, channel: str) -> str:
        """Return the name of a channel."""
        return channel.removeprefix(self._channel)


HELPERS = ("due", "notes", "dead", "bell", "again", "alive", "queue")


@lru_cache(maxsize=CACHED)
def _escape(text: str, unsafe: str = "%{}") -> str:
    return "".join(f"%{ord(char):02x}" if char in unsafe else char for char in text)


@lru_cache(maxsize=CACHED)
def _stream_key(namespace: str, name: str) -> str:
    return f"{{{namespace}:stream:{_escape(name)}}}" if namespace else name


@lru_cache(maxsize=CACHED)
def _group_keys(namespace: str, stream: str, group: str) -> GroupKeys:
    return GroupKeys(_stream_key(namespace, stream), *(_helper(namespace, stream, kind, group) for kind in HELPERS))


def _helper(namespace: str, stream: str, kind: str, *name: str) -> str:
    if namespace:
        return ":".join((_stream_key(namespace, stream), kind, *name))
    return ":".join((f"{{{_hash_tag(stream)}}}:ailf", kind, _escape(stream, "%{}:"), *name))


@lru_cache(maxsize=CACHED)
def _lock_keys(namespace: str, name: str) -> tuple[str, ...]:
    key = (
        f"{{{namespace}:lock:{_escape(name)}}}"
        if namespace
        else f"{{{_hash_tag(name)}}}:ailf:lock:{_escape(name, '%{}:')}"
    )
    return key, *(f"{key}:{kind}" for kind in ("fences", "fence", "queue", "waiters"))


@lru_cache(maxsize=CACHED)
def _limiter_keys(namespace: str, limiter_key: LimiterKey, slots: tuple[str, ...]) -> tuple[str, ...]:
    kind = "final" if limiter_key.no_refunds else "limit"
    whose = f"{_escape(limiter_key.limiter, '%{}:')}:{_escape(limiter_key.key, '%{}:')}"
    key = f"{{{namespace}:{kind}:{whose}}}" if namespace else f"{{{whose}}}:ailf:{kind}"
    return key, f"{key}:queue", f"{key}:waiters", *(f"{key}:slots:{_escape(name)}" for name in slots)


def _hash_tag(key: str) -> str:
    """Return what a cluster hashes of a key, where that can stand in braces; else a tag of its own."""
    _, brace, rest = key.partition("{")
    tag, end, _ = rest.partition("}")
    if brace and end and tag:
        return tag
    return key if "}" not in key else _escape(key)
