"""Locks and semaphores held by leases: `Lock` and `AsyncLock`."""

from ailf.lock.lease import AsyncLease, Lease
from ailf.lock.lock import AsyncLock, Lock

__all__ = ["AsyncLease", "AsyncLock", "Lease", "Lock"]
