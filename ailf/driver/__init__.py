"""What a backend implements: a few atomic transitions, each one round trip, and nothing else.

A driver never retries, never calls user code, and never waits longer than the ``timeout`` it is given (at most one
second) or than the deadline of one request. Everything a user sees is written once, above it. It is bound to a
`Runtime` when it is made: its ``async def`` methods suspend only on asyncio. What is declared to return an awaitable
may be an ``async def`` too.

Clauses say *must* and *may*; the ids in brackets are those of the contract, which ``contract_tests`` checks.

Errors: whatever a client library raises *must* be mapped to the tree of `ailf.errors`, with the original as
``__cause__``. A `ConnectionLostError` or `BackendTimeoutError` *must* have ``maybe_applied=True`` when the request was
sent; after `BackendDriver.close` every call *must* raise `ClosedError`.
"""

from ailf.driver.backend import BackendDriver, Capability
from ailf.driver.lock import Denied, Granted, LockDriver, LockRequest, WaiterInfo
from ailf.driver.pubsub import Confirmed, Filter, Frame, Listener, PubSubDriver, Refused
from ailf.driver.ratelimit import (
    Charge,
    LimiterKey,
    LimitRequest,
    LimitResult,
    Limits,
    Observation,
    RateLimiterDriver,
    SlotLease,
)
from ailf.driver.stream import (
    Action,
    Claim,
    Draft,
    Fetched,
    Outcome,
    Receipt,
    Record,
    Settlement,
    StreamDriver,
    Swept,
    Waiter,
)

__all__ = [
    "Action",
    "BackendDriver",
    "Capability",
    "Charge",
    "Claim",
    "Confirmed",
    "Denied",
    "Draft",
    "Fetched",
    "Filter",
    "Frame",
    "Granted",
    "LimitRequest",
    "LimitResult",
    "LimiterKey",
    "Limits",
    "Listener",
    "LockDriver",
    "LockRequest",
    "Observation",
    "Outcome",
    "PubSubDriver",
    "RateLimiterDriver",
    "Receipt",
    "Record",
    "Refused",
    "Settlement",
    "SlotLease",
    "StreamDriver",
    "Swept",
    "Waiter",
    "WaiterInfo",
]
