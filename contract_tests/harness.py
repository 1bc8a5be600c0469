"""The harness: how the suite opens a backend. For most a URL is enough; the others derive a class from `Harness`."""

import asyncio
import time
import uuid
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

import ailf
from ailf.driver import Capability
from ailf.registry import plugin_for
from ailf.urls import split_url

__all__ = ["Harness", "UrlHarness"]


class Harness:
    """Opens backends on one empty namespace, which one test has for itself. Derive from it for your backend.

    The suite makes one for each test, without arguments. You must write `other_namespace`, and `connect` or
    `connect_async` or both (see ``flavours``). Each *optional* part lets more tests run; tests that can't run are
    counted and listed with the reason after the collection.

    Attributes:
        capabilities: The capabilities that the backend declares; tests of all others are left out.
        flavours: "blocking", "asyncio", or both.
        lease: Seconds of a lease in tests: short where time really passes, any length where `advance` moves a clock.
        patience: Seconds that a test waits for something that must happen.
        arrival_grace: Seconds within which a published message certainly arrives; 0 where it arrives at once.
        url: Optional: a URL that another process can open; with `Capability.PROCESSES` it sees the same state.
        task_factory: The task factory of the tests' event loops, such as `asyncio.eager_task_factory`, or None.
        unreachable_url: Optional: a URL with the credentials ``user:secret``, on which no server listens.
    """

    capabilities: frozenset[Capability] = frozenset(Capability)
    flavours: Collection[str] = ("blocking", "asyncio")
    lease: float = 0.4
    patience: float = 5.0
    arrival_grace: float = 0.05
    url: str | None = None
    unreachable_url: str | None = None
    task_factory: Any = None

    @property
    def both_flavours(self) -> Collection[str] | None:
        """The flavours, for tests that need both; None where there is one."""
        return self.flavours if len(self.flavours) > 1 else None

    def connect(self) -> ailf.Backend:
        """Open a blocking backend on this namespace."""
        raise NotImplementedError

    def connect_async(self) -> ailf.AsyncBackend:
        """Return an asyncio backend on this namespace; the suite awaits it."""
        raise NotImplementedError

    def other_namespace(self) -> "Harness":
        """Return a harness on another namespace of the same backend."""
        raise NotImplementedError

    async def advance(self, seconds: float) -> None:
        """Advance the backend's *now* by this many seconds: wait, or move its clock."""
        await asyncio.sleep(seconds)

    def now(self) -> float:
        """Return the backend's *now* in seconds since 1970; override it where that isn't this machine's clock."""
        return time.time()

    async def step_back(self, seconds: float) -> None:
        """Optional: set the backend's *now* back by this many seconds."""
        raise NotImplementedError

    async def interrupt_subscriptions(self) -> None:
        """Optional: break the connections of all subscriptions; messages published before this returns may be lost."""
        raise NotImplementedError

    async def add_foreign(self, stream: str) -> None:
        """Optional: add an entry as another program would, with the field ``job`` and the value ``sweep``."""
        raise NotImplementedError

    async def add_broken(self, stream: str) -> None:
        """Optional: add an entry as another program would, with bytes that are not text."""
        raise NotImplementedError

    async def publish_broken(self, channel: str) -> None:
        """Optional: publish bytes that are not text, on a channel named `channel` with such bytes appended."""
        raise NotImplementedError

    def freezable(self, timeout: float) -> "AbstractContextManager[Harness]":
        """Optional: enter a harness with `freeze`, whose backends' requests time out after `timeout` seconds."""
        raise NotImplementedError

    def freeze(self, *, frozen: bool) -> None:
        """Let the backend of a `freezable` harness stop replying, or reply again; connecting *may* work meanwhile."""
        raise NotImplementedError

    def lacks(self, need: Capability | str) -> str:
        """Return why a test with this need can't run here, or ""; a text names an optional part of this class."""
        if isinstance(need, Capability):
            return "" if need in self.capabilities else f"the backend does not declare Capability.{need.name}"
        own, default = getattr(type(self), need), getattr(Harness, need)
        missing = getattr(self, need) is None or (callable(default) and own is default)
        return f"{type(self).__name__} has no {need}" if missing else ""


class UrlHarness(Harness):
    """Opens a backend by its URL, on a new namespace, which the URL option ``namespace`` names.

    Arguments:
        base: The URL. If it names a namespace, the names of the new ones begin with it.
    """

    def __init__(self, base: str) -> None:
        self._base = base
        self._url = _with_namespace(base, uuid.uuid4().hex[:12])
        unopened = self._unopened()
        self.url = self._url
        self.flavours = tuple(unopened)
        self.capabilities = next(iter(unopened.values())).capabilities
        self.unreachable_url = _unreachable(base)

    def _unopened(self) -> dict[str, Any]:
        """Return a backend of each flavour that exists, not opened: no driver connects before the first call."""
        backends = {}
        for flavour, hook in (("blocking", "ailf_connect"), ("asyncio", "ailf_connect_async")):
            try:
                backends[flavour] = plugin_for(self._url, hook, flavour)(url=self._url)
            except ailf.UnsupportedError:
                if flavour == "asyncio" and not backends:
                    raise
        return backends

    def connect(self) -> ailf.Backend:
        """Open a blocking backend on this namespace."""
        return ailf.connect(self._url)

    def connect_async(self) -> ailf.AsyncBackend:
        """Return an asyncio backend on this namespace; the suite awaits it."""
        return ailf.connect_async(self._url)

    def other_namespace(self) -> Harness:
        """Return a harness on another namespace of the same backend."""
        return type(self)(self._base)


def _with_namespace(base: str, suffix: str) -> str:
    """Return a URL with a new namespace, which begins with that of the URL if it has one."""
    address, _, query = base.partition("?")
    options = [each for each in query.split("&") if each]
    own = next((each for each in options if each.startswith("namespace=")), "namespace=contract")
    others = [each for each in options if not each.startswith("namespace=")]
    return f"{address}?{'&'.join([*others, f'{own}-{suffix}'])}"


def _unreachable(url: str) -> str | None:
    """Return the URL with a port on which no server listens, or None where it names no host and port."""
    try:
        parts = split_url(url)
    except ailf.InvalidArgumentError:  # a URL that only the backend can read
        return None
    if not parts.host or parts.port is None:
        return None
    return f"{parts.scheme}://user:secret@127.0.0.1:1{parts.path}"
