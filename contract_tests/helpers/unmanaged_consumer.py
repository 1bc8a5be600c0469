"""A consumer that the core doesn't manage: its leases are not renewed, and it sends heartbeats only when told to.

To the other consumers of the group it is like one in a process that died, or in another process.
"""

from collections.abc import Sequence
from typing import Any

from ailf.driver import Action, Claim, Draft, Fetched, Outcome, Settlement
from ailf.runtime import ThreadRuntime, run
from ailf.values import Added
from contract_tests.helpers.threads import in_thread

__all__ = ["UnmanagedConsumer"]


class UnmanagedConsumer:
    """A consumer that calls the stream driver directly, on the thread runtime and over its own connections.

    Attributes:
        name: Its name as a consumer.
        lease: Seconds of its leases.
        alive: Seconds for which a heartbeat counts.
        max_deliveries: The `max_deliveries` of its group.
        key_concurrency: The `key_concurrency` of its group.
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
        key_concurrency: int = 1,
    ) -> None:
        self._twin = backend.engine.driver.with_runtime(ThreadRuntime())
        self._driver = self._twin.stream()
        self._group = stream, group
        self.name = name
        self.lease = lease
        self.alive = alive
        self.max_deliveries = max_deliveries
        self.key_concurrency = key_concurrency

    async def fetch(self, count: int = 1) -> list[Any]:
        """Lease up to `count` messages, and return their ids and attempts."""
        return [(claim.record.id, claim.attempt) for claim in (await self.claim(count)).claims]

    async def claim(self, count: int = 1) -> Fetched:
        """Lease up to `count` messages."""
        fetched: Fetched = await in_thread(self.claim_here, count)
        return fetched

    def claim_here(self, count: int = 1) -> Fetched:
        """Lease up to `count` messages, in the caller's thread."""
        options = {"lease": self.lease, "alive": self.alive, "max_deliveries": self.max_deliveries}
        fetched: Fetched = self._call("fetch", self.name, count=count, key_concurrency=self.key_concurrency, **options)
        return fetched

    async def settle(self, claims: Sequence[Claim], action: Action, delay: float = 0.0) -> list[Outcome]:
        """Settle messages that it leased."""
        settlements = [Settlement(claim.receipt, action, delay) for claim in claims]
        outcomes: list[Outcome] = await in_thread(self._call, "settle", settlements, max_deliveries=self.max_deliveries)
        return outcomes

    async def settle_in_turn(self, claim: Claim, actions: Sequence[Action]) -> list[Outcome]:
        """Settle a message in several ways, in one request."""
        settlements = [Settlement(claim.receipt, action) for action in actions]
        outcomes: list[Outcome] = await in_thread(self._call, "settle", settlements, max_deliveries=self.max_deliveries)
        return outcomes

    async def add_once(self, body: bytes, dedup_id: str, token: str, **options: Any) -> Added:
        """Add a message once; a call with the token of an earlier call is that call, sent again."""
        call: dict[str, Any] = {"dedup_id": dedup_id, "token": token, "window": 1000.0, "retention": None}
        stream, draft = self._group[0], Draft(body, **options)
        added: Added = await in_thread(lambda: run(self._driver.add_once(stream, draft, **call)))
        return added

    async def length(self) -> int:
        """Return how many entries the stream has."""
        length: int = await in_thread(lambda: run(self._driver.length(self._group[0])))
        return length

    async def heartbeat(self) -> None:
        """Send a heartbeat."""
        await in_thread(self._call, "heartbeat", [self.name], alive=self.alive)

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        return run(getattr(self._driver, method)(*self._group, *args, **options))

    async def aclose(self) -> None:
        """Close its connections without leaving the group."""
        await in_thread(lambda: run(self._twin.close()))
