"""The keys of calls: checked, and as text. All of it is pure.

A call has one key for all limits or, in a budget tree, a key for each limit.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ailf.checks import check_name
from ailf.driver import LimiterKey
from ailf.errors import InvalidArgumentError
from ailf.ratelimit.options import LimiterOptions

__all__ = ["Keys", "KeysOf", "describe", "label", "limiter_key", "subset", "tree_key", "values_of"]

Keys: TypeAlias = Mapping[str, str]
"""The keys of a call by the names of the limits."""

KeysOf: TypeAlias = Keys | Callable[..., Keys]
"""Such keys, or a function that returns them."""


def limiter_key(options: LimiterOptions, key: str) -> LimiterKey:
    """Return what a call with one key is charged under; in a budget tree each limit under that key.

    Raises:
        InvalidArgumentError: The key is not text or too long; in a budget tree, it is empty.
    """
    if options.root is None:
        if key != "":
            check_name("rate limiter's key", key)
        return LimiterKey(options.name, key, options.cache_denials)
    if key == "":
        raise InvalidArgumentError(
            f"rate limiter {options.name!r} has a root, so each call needs keys, one for each limit "
            f"({_names(options)}), or one key for all of them"
        )
    check_name("rate limiter's key", key)
    keys = tuple((name, key) for name in options.limits)
    return LimiterKey(options.name, key, options.cache_denials, options.root, keys)


def values_of(options: LimiterOptions, key: str, keys: Keys) -> tuple[str, ...]:
    """Return the keys of a call in the order of the limits; `tree_key` checks each of them.

    Raises:
        InvalidArgumentError: It isn't a mapping of each limit's name to a key, or the limiter has no root.
    """
    _check_keys(options, key, keys)
    if len(keys) < len(options.limits):
        missing = next(name for name in options.limits if name not in keys)
        raise InvalidArgumentError(
            f"rate limiter {options.name!r}: keys lacks a key for limit {missing!r}; a call needs one for each limit: "
            f"{_names(options)}"
        )
    return tuple([keys[name] for name in options.limits])


def tree_key(options: LimiterOptions, values: tuple[str, ...]) -> LimiterKey:
    """Return what a call with these keys, in the order of the limits, is charged under."""
    return _tree_key(options, dict(zip(options.limits, values, strict=True)))


def subset(options: LimiterOptions, key: str, keys: Keys) -> LimiterKey:
    """Return the branches of a budget tree that some keys name, for what concerns only these.

    Raises:
        InvalidArgumentError: It isn't a mapping of some limits' names to keys, or the limiter has no root.
    """
    _check_keys(options, key, keys)
    if not keys:
        raise InvalidArgumentError(f"rate limiter {options.name!r}: keys is empty; name at least one limit's key")
    return _tree_key(options, {name: keys[name] for name in options.limits if name in keys})


def _tree_key(options: LimiterOptions, keys: Keys) -> LimiterKey:
    for name, key in keys.items():
        check_name(f"rate limiter's key for limit {name!r}", key)
    return LimiterKey(options.name, "", options.cache_denials, options.root, tuple(keys.items()))


def _check_keys(options: LimiterOptions, key: str, keys: Any) -> None:
    what = f"rate limiter {options.name!r}"
    if options.root is None:
        raise InvalidArgumentError(
            f"{what} has no root, so a call has one key for all limits. For a key of its own for each limit declare a "
            f"root, under which all of them are kept together: rate_limiter({options.name!r}, root='…', …)"
        )
    if key != "":
        raise InvalidArgumentError(f"{what}: give a call one key, or keys={{…}} with one for each limit, but not both")
    if not isinstance(keys, Mapping):
        raise InvalidArgumentError(
            f"{what}: keys must be a mapping of limits' names to keys, not {type(keys).__name__}"
        )
    if not keys.keys() <= options.limits.keys():
        unknown = min(map(repr, keys.keys() - options.limits.keys()))
        raise InvalidArgumentError(
            f"{what}: keys has a key for {unknown}, and there is no such limit; there are: {_names(options)}"
        )


def _names(options: LimiterOptions) -> str:
    return ", ".join(map(repr, options.limits))


def describe(charged: LimiterKey) -> str:
    """Return the key or keys for errors and logs: ``key 'ann'``, or ``keys run='r1', team='t1'``."""
    if charged.key or charged.root is None:
        return f"key {charged.key!r}"
    return "keys " + ", ".join(f"{name}={key!r}" for name, key in charged.keys)


def label(charged: LimiterKey) -> str:
    """Return the key or keys as a value of a field: ``ann``, or ``run=r1 team=t1``."""
    if charged.key or charged.root is None:
        return charged.key
    return " ".join(f"{name}={key}" for name, key in charged.keys)
