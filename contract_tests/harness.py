"""How the suite opens a backend. For most a URL is enough; a backend with a clock of its own says more here."""

import asyncio
import uuid

import ailf
from ailf.driver import Capability

__all__ = ["Harness", "UrlHarness"]


class Harness:
    """One place that backends can be opened on, empty and of this test alone. Derive from it for your backend.

    Attributes:
        lease: Seconds that the tests use for a lease: short where time passes, anything where it is moved.
        url: What another process can open to see the same things, or None.
    """

    lease: float = 0.4
    url: str | None = None

    def connect(self) -> ailf.Backend:
        """Open a blocking backend on this place."""
        raise NotImplementedError

    def connect_async(self) -> ailf.AsyncBackend:
        """Open an asyncio backend on this place."""
        raise NotImplementedError

    def elsewhere(self) -> "Harness":
        """Return a harness on another namespace of the same backend."""
        raise NotImplementedError

    async def advance(self, seconds: float) -> None:
        """Let the backend's *now* advance: wait, or move its clock."""
        await asyncio.sleep(seconds)


class UrlHarness(Harness):
    """A backend by URL, on a namespace of its own, as ``?namespace=…`` gives one."""

    def __init__(self, base: str) -> None:
        self._base = base
        self.url = f"{base}{'&' if '?' in base else '?'}namespace=contract-{uuid.uuid4().hex[:12]}"

    def connect(self) -> ailf.Backend:
        """Open a blocking backend on this place."""
        return ailf.connect(self._where)

    def connect_async(self) -> ailf.AsyncBackend:
        """Open an asyncio backend on this place."""
        return ailf.connect_async(self._where)

    @property
    def _where(self) -> str:
        assert self.url is not None
        return self.url

    def elsewhere(self) -> Harness:
        """Return a harness on another namespace of the same backend."""
        return UrlHarness(self._base)

    @property
    def shared(self) -> bool:
        """Whether another process sees the same things."""
        with self.connect() as backend:
            return Capability.PROCESSES in backend.capabilities
