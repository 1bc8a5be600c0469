"""The interface of a backend: a few atomic steps, each one round trip, and nothing else.

A driver never retries, never calls user code, and never waits longer than the ``timeout`` argument of a method (at most
one second) or the deadline of one request. The interfaces that users see are built on drivers, once for all backends.
A driver is bound to a `Runtime` when it is made: its ``async def`` methods suspend only on asyncio. A method that is
declared to return an awaitable may be an ``async def`` too.

Clauses say *must* and *may*. The ids in brackets are those of the contract, which ``contract_tests`` checks.

Errors: a driver *must* map every error of its client library to the tree of `ailf.errors`, with the original as
``__cause__``. A `ConnectionLostError` or `BackendTimeoutError` *must* have ``maybe_applied=True`` if the request was
sent. After `BackendDriver.close` every call *must* raise `ClosedError`.
"""

from ailf.driver.backend import BackendDriver, Capability
from ailf.driver.findings import Finding, Level
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
    ConsumerState,
    Draft,
    Fetched,
    Outcome,
    Receipt,
    Record,
    Settlement,
    StreamDriver,
    StreamsWaiter,
    Swept,
    Waiter,
    Waiting,
)

__all__ = [
    "Action",
    "BackendDriver",
    "Capability",
    "Charge",
    "Claim",
    "Confirmed",
    "ConsumerState",
    "Denied",
    "Draft",
    "Fetched",
    "Filter",
    "Finding",
    "Frame",
    "Granted",
    "Level",
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
    "StreamsWaiter",
    "Swept",
    "Waiter",
    "WaiterInfo",
    "Waiting",
]
