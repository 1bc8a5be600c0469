"""How the suite opens a backend. For most a URL is enough; a backend with a clock of its own says more here."""

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
    """One place that backends are opened on, empty and of this test alone. Derive from it for your backend.

    The suite makes one for each test, without arguments. You must write `connect`, `connect_async` (one will do, see
    ``flavours``) and `elsewhere`. What is marked *optional* lets more tests run; those that can't are counted and
    named with the reason after the collection.

    Attributes:
        capabilities: What the backend declares; tests of anything else are left out.
        flavours: "blocking", "asyncio", or both.
        lease: Seconds that tests use for a lease: short where time really passes, whatever you like where it is moved.
        patience: Seconds that a test waits for what must come.
        blink: Seconds in which a message that is there certainly comes; where it does at once, 0.
        url: Optional: what a process of its own can open; with `Capability.PROCESSES` it sees the same things.
        task_factory: The task factory of the loops that tests run on, as `asyncio.eager_task_factory`; None: the usual.
        unreachable_url: Optional: a URL, with the credentials ``user:secret``, where nobody answers.
    """

    capabilities: frozenset[Capability] = frozenset(Capability)
    flavours: Collection[str] = ("blocking", "asyncio")
    lease: float = 0.4
    patience: float = 5.0
    blink: float = 0.05
    url: str | None = None
    unreachable_url: str | None = None
    task_factory: Any = None

    def connect(self) -> ailf.Backend:
        """Open a blocking backend on this place."""
        raise NotImplementedError

    def connect_async(self) -> ailf.AsyncBackend:
        """Return an asyncio backend on this place, to be awaited."""
        raise NotImplementedError

    def elsewhere(self) -> "Harness":
        """Return a harness on another namespace of the same backend."""
        raise NotImplementedError

    async def advance(self, seconds: float) -> None:
        """Let the backend's *now* advance: wait, or move its clock."""
        await asyncio.sleep(seconds)

    def now(self) -> float:
        """Return the backend's *now* in seconds since 1970; override it where that is not this machine's clock."""
        return time.time()

    async def step_back(self, seconds: float) -> None:
        """Optional: set the backend's *now* back."""
        raise NotImplementedError

    async def interrupt_subscriptions(self) -> None:
        """Optional: break the connections of all subscriptions; messages sent before this returns may be lost."""
        raise NotImplementedError

    async def add_foreign(self, stream: str) -> None:
        """Optional: add an entry as another program would, with a field ``job`` of the text ``sweep``."""
        raise NotImplementedError

    async def add_broken(self, stream: str) -> None:
        """Optional: add an entry of another program that no program can read as text."""
        raise NotImplementedError

    async def publish_broken(self, channel: str) -> None:
        """Optional: publish what is no text, on a channel whose name is this one with bytes behind it that are none."""
        raise NotImplementedError

    def hasty(self, timeout: float) -> "AbstractContextManager[Harness]":
        """Optional: enter a harness whose backends' requests have that many seconds, and which has `freeze`."""
        raise NotImplementedError

    def freeze(self, *, frozen: bool) -> None:
        """Let the backend be silent, or answer again: of a `hasty` harness. Connecting *may* work meanwhile."""
        raise NotImplementedError

    def lacks(self, need: Capability | str) -> str:
        """Return why a test that needs this can't run here, or ""; it may name an optional part of this class."""
        if isinstance(need, Capability):
            return "" if need in self.capabilities else f"the backend does not declare Capability.{need.name}"
        mine, default = getattr(type(self), need), getattr(Harness, need)
        missing = getattr(self, need) is None or (callable(default) and mine is default)
        return f"{type(self).__name__} has no {need}" if missing else ""


class UrlHarness(Harness):
    """A backend by URL, on a namespace of its own, as ``?namespace=…`` gives one."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._url = f"{base}{'&' if '?' in base else '?'}namespace=contract-{uuid.uuid4().hex[:12]}"
        unopened = self._unopened()
        self.url = self._url
        self.flavours = tuple(unopened)
        self.capabilities = next(iter(unopened.values())).capabilities
        self.unreachable_url = _unreachable(base)

    def _unopened(self) -> dict[str, Any]:
        """Return a backend of each flavour that there is, as made and not opened: no driver connects before a call."""
        found = {}
        for flavour, hook in (("blocking", "ailf_connect"), ("asyncio", "ailf_connect_async")):
            try:
                found[flavour] = plugin_for(self._url, hook, flavour)(url=self._url)
            except ailf.UnsupportedError:
                if flavour == "asyncio" and not found:
                    raise
        return found

    def connect(self) -> ailf.Backend:
        """Open a blocking backend on this place."""
        return ailf.connect(self._url)

    def connect_async(self) -> ailf.AsyncBackend:
        """Return an asyncio backend on this place, to be awaited."""
        return ailf.connect_async(self._url)

    def elsewhere(self) -> Harness:
        """Return a harness on another namespace of the same backend."""
        return type(self)(self._base)


def _unreachable(url: str) -> str | None:
    """Return the URL with a port that nobody listens on, where it names a host and a port."""
    try:
        parts = split_url(url)
    except ailf.InvalidArgumentError:  # a form of its own
        return None
    if not parts.host or parts.port is None:
        return None
    return f"{parts.scheme}://user:secret@127.0.0.1:1{parts.path}"
