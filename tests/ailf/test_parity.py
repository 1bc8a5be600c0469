"""The two flavours have the same names, parameters, defaults and words; each exception has its reason here."""

import inspect
import re

import pytest

import ailf
from ailf.bridges import httpx
from ailf.lock import hold as holding
from ailf.ratelimit import ratelimit
from ailf.stream import group

PAIRS = {
    "Backend": (ailf.Backend, ailf.AsyncBackend),
    "Consumer": (ailf.Consumer, ailf.AsyncConsumer),
    "DeadLetters": (group.DeadLetters, group.AsyncDeadLetters),
    "Delivery": (ailf.Delivery, ailf.AsyncDelivery),
    "Group": (ailf.Group, ailf.AsyncGroup),
    "LockContext": (holding.LockContext, holding.AsyncLockContext),
    "Lease": (ailf.Lease, ailf.AsyncLease),
    "Listing": (ailf.Listing, ailf.AsyncListing),
    "Lock": (ailf.Lock, ailf.AsyncLock),
    "Message": (ailf.Message, ailf.AsyncMessage),
    "Permit": (ailf.Permit, ailf.AsyncPermit),
    "PermitContext": (ratelimit.PermitContext, ratelimit.AsyncPermitContext),
    "PubSub": (ailf.PubSub, ailf.AsyncPubSub),
    "QuotaTransport": (httpx.QuotaTransport, httpx.AsyncQuotaTransport),
    "RateLimiter": (ailf.RateLimiter, ailf.AsyncRateLimiter),
    "Stream": (ailf.Stream, ailf.AsyncStream),
    "Subscription": (ailf.Subscription, ailf.AsyncSubscription),
}

TWINS = {
    "close": "aclose",
    "to_async": "to_blocking",
    "async_class": "blocking_class",
    "handle_request": "handle_async_request",
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
    "__iter__": "__aiter__",
    "__next__": "__anext__",
}

# Members of one flavour only.
ALONE = {
    "PubSub.run_in_thread": "on asyncio that is a task: asyncio.create_task(pubsub.run())",
    "AsyncBackend.__await__": "connecting waits, which connect() does itself and connect_async() can't",
}

# Members whose first line differs between the flavours.
OTHER_WORDS = {
    "Backend.close": "threads there, tasks here",
    "Subscription.close": "only the blocking one may be called from any thread",
    "Backend.__enter__": "connect() has checked that it answers; the asyncio one checks on entry",
}


def _members(owner: type) -> dict[str, object]:
    """Return the public members and protocol methods of a class and its bases."""
    members: dict[str, object] = {}
    for home in reversed(owner.__mro__):
        if home.__module__.startswith("ailf"):
            members |= {name: each for name, each in vars(home).items() if _is_public(name)}
    return members


def _is_public(name: str) -> bool:
    protocols = {*TWINS, *TWINS.values(), "__await__", "__init__", "__repr__"}
    return not name.startswith("_") or name in protocols


def _shared() -> list[tuple[str, object, object]]:
    """Return each member with that of the other flavour."""
    return [
        (f"{pair}.{name}", member, _members(twin)[TWINS.get(name, name)])
        for pair, (blocking, twin) in PAIRS.items()
        for name, member in sorted(_members(blocking).items())
        if f"{pair}.{name}" not in ALONE and TWINS.get(name, name) in _members(twin)
    ]


def _parameters(member: object) -> list[tuple[str, object, object]]:
    assert callable(member)
    return [(each.name, each.kind, each.default) for each in inspect.signature(member).parameters.values()]


def _first_line(thing: object) -> str:
    line = (inspect.getdoc(thing) or "").partition("\n")[0]
    return re.sub(r"\bAsync(?=[A-Z])", "", line).replace("``async with``", "``with``")


callables = [(name, one, other) for name, one, other in _shared() if callable(one) and not isinstance(one, type)]
documented = [each for each in _shared() if not each[0].endswith(("__init__", "_class"))]


@pytest.mark.parametrize("pair", PAIRS)
def test_the_flavours_have_the_same_members(pair: str) -> None:
    """Both flavours have the same members, but for the exceptions."""
    blocking, twin = PAIRS[pair]
    there = {TWINS.get(name, name) for name in _members(blocking) if f"{pair}.{name}" not in ALONE}
    here = {name for name in _members(twin) if f"Async{pair}.{name}" not in ALONE}
    assert there == here


@pytest.mark.parametrize(("name", "blocking", "twin"), callables, ids=[each[0] for each in callables])
def test_twins_take_the_same_arguments(name: str, blocking: object, twin: object) -> None:
    """The names, kinds and defaults of parameters are the same in both flavours."""
    assert _parameters(blocking) == _parameters(twin)


@pytest.mark.parametrize(("name", "blocking", "twin"), documented, ids=[each[0] for each in documented])
def test_twins_are_described_in_the_same_words(name: str, blocking: object, twin: object) -> None:
    """The first line of the docstring is the same in both flavours, but for the exceptions."""
    differ = _first_line(blocking) != _first_line(twin)
    assert differ == (name in OTHER_WORDS), f"{_first_line(blocking)!r} / {_first_line(twin)!r}"


@pytest.mark.parametrize("name", [*ALONE, *OTHER_WORDS])
def test_an_exception_is_about_something_that_exists(name: str) -> None:
    """Every exception names an existing member."""
    owner, _, member = name.partition(".")
    assert member in _members(getattr(ailf, owner))
