"""The owner of a lock: the thread or task that acquired it, so that none waits for a lock of its own.

It stays the owner until the lease is released, lost or handed over. A semaphore's permits have no owner.

A context variable holds what its thread or task owns. Whose it is stands beside it, so a task that has inherited a copy
of the context owns nothing of it. And a call in a borrowed thread, as by `asyncio.to_thread`, leaves nothing behind:
the next call in that thread is another owner's.
"""

import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import msgspec

__all__ = ["OwnedGrants", "grants_of", "own"]

OwnedGrants: TypeAlias = dict[str, Callable[[], Any]]
"""Weak references to the grants of one owner, by the tokens of their requests."""


class _Owner(msgspec.Struct, frozen=True, eq=False):
    """A thread or task, and the grants that it owns."""

    refers_to: Callable[[], object]  # weak: a context may outlive its task
    grants: OwnedGrants


_OWNER: ContextVar[_Owner | None] = ContextVar("ailf_owner_of_locks", default=None)


def own(caller: object, token: str, grant: object) -> OwnedGrants:
    """Make the calling thread or task the owner of a grant; return its grants, to remove this one from."""
    owner = _OWNER.get()
    if owner is None or owner.refers_to() is not caller:
        owner = _Owner(weakref.ref(caller), {})
        _OWNER.set(owner)
    grants = owner.grants
    grants[token] = weakref.ref(grant)
    return grants


def grants_of(caller: object) -> list[Any]:
    """Return the grants that the calling thread or task owns."""
    owner = _OWNER.get()
    if owner is None or owner.refers_to() is not caller:
        return []
    return [grant for reference in list(owner.grants.values()) if (grant := reference()) is not None]
