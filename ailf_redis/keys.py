"""The names of all keys and channels.

The rule of this file: no other file spells a key or a channel.

With a namespace, a stream's key is ``{namespace:stream:name}``, and its helper keys begin with it: ``…:due:group``. The
part in braces is the hash tag, so all keys of a stream are on one node of a cluster. Names are escaped, so that no name
can leave the braces. With the namespace "", for data shared with other programs, a stream's key and a channel are the
plain name. Helper keys are then ``{tag}:ailf:due:name:group``, where the tag is the part of the name that a cluster
hashes.

Listing goes the other way: from a pattern to keys, and from a key to its name. A key that none of our names has,
because another program made it, has no name here.
"""

import re
from functools import lru_cache
from typing import Final, NamedTuple

from ailf.driver import LimiterKey
from ailf.values import LimiterName

__all__ = ["GroupKeys", "Keys"]


CACHED: Final = 4096
"""The number of names whose keys are cached."""


class GroupKeys(NamedTuple):
    """The keys of one group of a stream, in the order in which ``lua/shared/group.lua`` takes them.

    Attributes:
        stream: The stream itself, with the group's pending entries.
        due: Each pending entry, by the time at which it may be delivered again.
        notes: Details of pending entries, such as deliveries that don't count and the last error; and of the group.
        dead: The dead letters.
        bell: The wake-up stream: it changes when a message comes back to the group.
        again: The redriven dead letters.
        alive: The consumers, by the time until which each counts as alive.
        queue: The unsettled entries with an ordering key, in order.
        parked: The entries that were read and wait for their first delivery, in order.
    """

    stream: str
    due: str
    notes: str
    dead: str
    bell: str
    again: str
    alive: str
    queue: str
    parked: str


class Keys:
    """The names of one namespace.

    Arguments:
        namespace: The namespace; "" for plain names.
        cluster: Whether the server is a cluster.

    Attributes:
        spread: Whether the keys are spread over the nodes of a cluster.
    """

    def __init__(self, namespace: str, *, cluster: bool = False) -> None:
        self.spread = cluster
        self._cluster_brace = "{" if cluster else ""
        self._namespace = _escape(namespace, "%{}:")
        self._channel = f"{self._namespace}:channel:" if namespace else ""

    def stream(self, name: str) -> str:
        """Return the key of a stream."""
        return _stream_key(self._namespace, name)

    def group(self, stream: str, group: str) -> GroupKeys:
        """Return the keys of a group."""
        return _group_keys(self._namespace, stream, group)

    def wake(self, stream: str, group: str) -> str:
        """Return the key of the tokens that wake the waiters of a group which sleep."""
        return _helper(self._namespace, stream, "wake", group)

    def meta(self, stream: str) -> str:
        """Return the key of a stream's metadata."""
        return _helper(self._namespace, stream, "meta")

    def once(self, stream: str, dedup_id: str) -> str:
        """Return the key of a dedup id."""
        return _helper(self._namespace, stream, "once", dedup_id)

    def helper_prefixes(self, stream: str) -> list[str]:
        """Return the prefixes of the helper keys of all groups of a stream."""
        return [_helper(self._namespace, stream, kind, "") for kind in (*HELPERS, "wake")]

    def entry_removed_prefixes(self, stream: str) -> list[str]:
        """Return the prefixes of the groups' helper keys that ``lua/shared/entry_removed.lua`` needs."""
        return [_helper(self._namespace, stream, kind, "") for kind in ("due", "bell", "notes", "queue", "parked")]

    def lock(self, name: str) -> tuple[str, ...]:
        """Return the keys of a lock, as ``lua/shared/lock.lua`` takes them."""
        return _lock_keys(self._namespace, name)

    def limiter(self, limiter_key: LimiterKey, slots: tuple[str, ...]) -> tuple[str, ...]:
        """Return the keys of one branch of a rate limiter, as ``lua/shared/limit.lua`` takes them.

        Arguments:
            limiter_key: The limiter and its key; of a budget tree a branch.
            slots: The names of the concurrency limits that are charged in it.
        """
        return _limiter_keys(self._namespace, limiter_key, slots)

    def limiter_tree(self, limiter_key: LimiterKey, slots: tuple[str, ...]) -> tuple[str, ...]:
        """Return the keys of all branches of a budget tree, one after another, each as `limiter` returns them."""
        return _limiter_tree_keys(self._namespace, limiter_key, slots)

    def namespaces(self, prefix: str) -> str:
        """Return the pattern of all keys of the namespaces whose names begin with a text."""
        return _literal(f"{{{_escape(prefix, '%{}:')}") + "*"

    def channel(self, name: str) -> str:
        """Return the Redis channel of a user's channel."""
        return self._channel + name

    def waiter_channel(self, name: str) -> str:
        """Return the Redis channel on which a waiter is woken, as ``lua/shared/wait_queue.lua`` takes it.

        In a cluster it begins with a brace, as no other channel does.
        """
        return self._cluster_brace + self.channel(name)

    def pattern(self, pattern: str) -> str:
        """Return the Redis pattern of a user's pattern: the prefix of channels, escaped, is put before it."""
        return _literal(self._channel) + pattern

    def name(self, channel: str) -> str:
        """Return the user's channel of a Redis channel."""
        return channel.removeprefix(self._channel)

    # --- from patterns to keys, and from keys to names; bytes that aren't UTF-8 are lone surrogates in both ------

    def channels_pattern(self, prefix: str) -> str:
        """Return the pattern of the channels whose names begin with a prefix."""
        return f"{_literal(self._channel + prefix)}*"

    def streams_pattern(self, prefix: str) -> str:
        """Return a pattern of the keys of the streams whose names begin with a prefix."""
        return f"{_literal(f'{{{self._namespace}:stream:{_escape(prefix)}' if self._namespace else prefix)}*"

    def stream_name(self, key: str) -> str | None:
        """Return the name of the stream with this key; None for any other key, such as a helper key of a stream."""
        if self._namespace:
            return self._name_in_braces("stream", key)
        helper = _PLAIN_HELPER.fullmatch(key)
        if helper and helper[2] in _HELPER_KINDS and _hash_tag(_unescape(helper[3])) == helper[1]:
            return None
        return key or None

    def metas_pattern(self, prefix: str) -> str:
        """Return a pattern of the keys of the metadata of the streams whose names begin with a prefix."""
        if self._namespace:
            return f"{self.streams_pattern(prefix)}:meta"
        return f"{{*}}:ailf:meta:{_literal(_escape(prefix, _PLAIN_UNSAFE))}*"

    def meta_name(self, key: str) -> str | None:
        """Return the name of the stream whose metadata has this key; None for any other key."""
        if self._namespace:
            stream, colon, kind = key.rpartition(":")
            return self._name_in_braces("stream", stream) if colon and kind == "meta" else None
        return _plain_name("meta", key)

    def locks_pattern(self, prefix: str) -> str:
        """Return a pattern of the keys of the locks whose names begin with a prefix."""
        if self._namespace:
            return f"{_literal(f'{{{self._namespace}:lock:{_escape(prefix)}')}*"
        return f"{{*}}:ailf:lock:{_literal(_escape(prefix, _PLAIN_UNSAFE))}*"

    def lock_name(self, key: str) -> str | None:
        """Return the name of the lock with this key of its holders; None for any other key."""
        return self._name_in_braces("lock", key) if self._namespace else _plain_name("lock", key)

    def limiters_pattern(self, prefix: str) -> str:
        """Return a pattern of the keys of the limiters whose names begin with a prefix."""
        begin = _literal(_escape(prefix, _PLAIN_UNSAFE))
        if self._namespace:
            return f"{{{_literal(self._namespace)}:{_LIMITER_KINDS}:{begin}*"
        return f"{{{begin}*}}:ailf:{_LIMITER_KINDS}*"

    def limiter_name(self, key: str) -> LimiterName | None:
        """Return the limiter and its key, given the Redis key of its charges or slots; None for any other key."""
        if self._namespace:
            begin = f"{{{self._namespace}:"
            match = _LIMITER.fullmatch(key, len(begin)) if key.startswith(begin) else None
        else:
            match = _PLAIN_LIMITER.fullmatch(key)
        if match is None:
            return None
        limiter, key_or_root, limit, key_of_limit = (each and _unescape(each) for each in match.groups())
        if limit is None:
            return LimiterName(limiter, key_or_root)
        return LimiterName(limiter, key_of_limit, key_or_root, limit) if key_or_root else None

    def _name_in_braces(self, kind: str, key: str) -> str | None:
        """Return the name in a key that has nothing besides what is in braces."""
        begin = f"{{{self._namespace}:{kind}:"
        if not key.startswith(begin) or not key.endswith("}"):
            return None
        name = key[len(begin) : -1]
        return _unescape(name) if _ESCAPED.fullmatch(name) else None


_PLAIN_UNSAFE: Final = "%{}:"
"""The characters that are escaped in a part of a key that ends with a colon."""

_ESCAPED: Final = re.compile(r"(?:[^%{}]|%25|%7b|%7d)+")
"""What `_escape` returns for a name that is not empty; of each such text it is the result for one name only."""

_PART: Final = r"(?:[^%{}:]|%25|%7b|%7d|%3a)"
"""A character of what `_escape` returns with `_PLAIN_UNSAFE`."""

_PLAIN_HELPER: Final = re.compile(rf"\{{([^}}]*)\}}:ailf:([a-z]+):({_PART}+):(.+)", re.DOTALL)
_PLAIN: Final = re.compile(rf"\{{([^}}]*)\}}:ailf:([a-z]+):({_PART}+)")
_SLOTS: Final = rf"(?::slots:{_ESCAPED.pattern.removesuffix('+')}*)?"
_BRANCH: Final = rf"(?::key:({_PART}*):({_PART}+))?"
_LIMITER: Final = re.compile(rf"(?:limit|final):({_PART}+):({_PART}*)\}}{_BRANCH}{_SLOTS}")
_PLAIN_LIMITER: Final = re.compile(rf"\{{({_PART}+):({_PART}*)\}}:ailf:(?:limit|final){_BRANCH}{_SLOTS}")

_LIMITER_KINDS: Final = "[lf]i[mn][ia][tl]"
"""A pattern of "limit" and "final", the kinds of a limiter's keys."""


def _literal(text: str) -> str:
    """Return the pattern that only this text matches."""
    return "".join("\\" + char if char in "*?[]^-\\" else char for char in text)


def _unescape(text: str) -> str:
    """Undo `_escape`."""
    return re.sub("%(25|7b|7d|3a)", lambda match: chr(int(match[1], 16)), text)


def _plain_name(kind: str, key: str) -> str | None:
    """Return the name in a key of this kind with the namespace ""."""
    match = _PLAIN.fullmatch(key)
    if match is None or match[2] != kind:
        return None
    name = _unescape(match[3])
    return name if _hash_tag(name) == match[1] else None


HELPERS = ("due", "notes", "dead", "bell", "again", "alive", "queue", "parked")
_HELPER_KINDS: Final = frozenset((*HELPERS, "wake", "once"))


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
    root = limiter_key.root
    tag = f"{_escape(limiter_key.limiter, '%{}:')}:{_escape(limiter_key.key if root is None else root, '%{}:')}"
    key = f"{{{namespace}:{kind}:{tag}}}" if namespace else f"{{{tag}}}:ailf:{kind}"
    if root is not None:
        ((limit, key_of_limit),) = limiter_key.keys
        key = f"{key}:key:{_escape(limit, '%{}:')}:{_escape(key_of_limit, '%{}:')}"
    return key, f"{key}:queue", f"{key}:waiters", *(f"{key}:slots:{_escape(limit)}" for limit in slots)


@lru_cache(maxsize=CACHED)
def _limiter_tree_keys(namespace: str, limiter_key: LimiterKey, slots: tuple[str, ...]) -> tuple[str, ...]:
    keys: list[str] = []
    for branch in limiter_key.branches():
        ((limit, _),) = branch.keys
        keys += _limiter_keys(namespace, branch, (limit,) if limit in slots else ())
    return tuple(keys)


def _hash_tag(key: str) -> str:
    """Return the part of a key that a cluster hashes if that can stand in braces; else the escaped key."""
    _, brace, rest = key.partition("{")
    tag, end, _ = rest.partition("}")
    if brace and end and tag:
        return tag
    return key if "}" not in key else _escape(key)
