"""A member of a group that the core doesn't look after: nobody renews its leases, nobody gives signs of life for it.

That is what a process that died is to the others, and what one that lives elsewhere is.
"""

from collections.abc import Sequence
from typing import Any

from ailf.driver import Action, Claim, Draft, Fetched, Outcome, Settlement
from ailf.runtime import ThreadRuntime, run
from ailf.values import Added
from contract_tests.helpers.threads import in_thread

__all__ = ["UnmanagedConsumer"]


class UnmanagedConsumer:
    """Speaks to the driver itself, bound to threads, over connections of its own.

    Attributes:
        name: Its name as a consumer.
        lease: Seconds that it leases a message for.
        alive: Seconds that a sign of life of it counts.
        max_deliveries: The group's.
    """

    def __init__(
        self,
        backend: Any,
        stream: str,
        group: str,
        name: str,
        *,
        lease: float = 1000.0,
        alive: float = 1000.0,
        max_deliveries: int = 5,
    ) -> None:
        self._twin = backend.engine.driver.with_runtime(ThreadRuntime())
        self._driver = self._twin.stream()
        self._where = stream, group
        self.name = name
        self.lease = lease
        self.alive = alive
        self.max_deliveries = max_deliveries

    async def fetch(self, count: int = 1) -> list[Any]:
        """Lease up to so many messages, and return their ids and attempts."""
        return [(claim.record.id, claim.attempt) for claim in (await self.claim(count)).claims]

    async def claim(self, count: int = 1) -> Fetched:
        """Lease up to so many messages."""
        found: Fetched = await in_thread(self.claim_here, count)
        return found

    def claim_here(self, count: int = 1) -> Fetched:
        """Lease up to so many messages, in this thread."""
        options = {"lease": self.lease, "alive": self.alive, "max_deliveries": self.max_deliveries}
        found: Fetched = self._here("fetch", self.name, count=count, **options)
        return found

    async def settle(self, claims: Sequence[Claim], action: Action, delay: float = 0.0) -> list[Outcome]:
        """Settle what it leased."""
        asked = [Settlement(claim.receipt, action, delay) for claim in claims]
        outcomes: list[Outcome] = await in_thread(self._here, "settle", asked, max_deliveries=self.max_deliveries)
        return outcomes

    async def add_once(self, body: bytes, dedup_id: str, token: str, **options: Any) -> Added:
        """Add a message once; the same token is the same call, sent again."""
        call: dict[str, Any] = {"dedup_id": dedup_id, "token": token, "window": 1000.0, "retention": None}
        stream, draft = self._where[0], Draft(body, **options)
        added: Added = await in_thread(lambda: run(self._driver.add_once(stream, draft, **call)))
        return added

    async def length(self) -> int:
        """Return how many entries the stream has."""
        length: int = await in_thread(lambda: run(self._driver.length(self._where[0])))
        return length

    async def heartbeat(self) -> None:
        """Give a sign of life."""
        await in_thread(self._here, "heartbeat", [self.name], alive=self.alive)

    def _here(self, method: str, *args: Any, **options: Any) -> Any:
        return run(getattr(self._driver, method)(*self._where, *args, **options))

    async def aclose(self) -> None:
        """Give back its connections; the group isn't told."""
        await in_thread(lambda: run(self._twin.close()))
