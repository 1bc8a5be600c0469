"""A partitioned stream all of whose messages go to one partition: it has to act as an ordinary stream does."""

from collections.abc import Sequence

from ailf.driver import StreamDriver
from ailf.runtime import Runtime
from ailf.stream.partitions import PartitionedDriver, Partitions

__all__ = ["NUMBER", "ONE", "OnePartitionDriver"]

NUMBER = 3
ONE = 1


class _OnePartition(Partitions):
    def of_key(self, key: str) -> int:
        return ONE


class OnePartitionDriver(PartitionedDriver):
    """The driver of such a stream, for consumers that the core doesn't manage: heartbeats go where messages are."""

    def __init__(self, inner: StreamDriver, stream: str, runtime: Runtime) -> None:
        super().__init__(inner, _OnePartition(stream, NUMBER, runtime.lease_now), runtime)

    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        """Count consumers as alive."""
        await self.inner.heartbeat(self.partitions.names[ONE], group, consumers, alive=alive)
