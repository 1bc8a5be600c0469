"""`PartitionedGroupFlow`: a group of a partitioned stream."""

from collections.abc import Sequence
from typing import Any

from ailf.codecs import Payloads
from ailf.driver import Outcome, Settlement
from ailf.engine import Engine
from ailf.stream.declaration import Declaration
from ailf.stream.group_flow import GroupFlow, GroupOptions
from ailf.stream.partitions import PartitionedDriver, Partitions
from ailf.values import Retention

__all__ = ["PartitionedGroupFlow"]


class PartitionedGroupFlow(GroupFlow):
    """A `GroupFlow` that settles the deliveries of each partition by themselves: an outcome depends on no other."""

    def __init__(
        self,
        engine: Engine,
        driver: PartitionedDriver,
        payloads: Payloads,
        stream: str,
        name: str,
        options: GroupOptions,
        retention: Retention | None,
        declaration: Declaration,
    ) -> None:
        super().__init__(engine, driver, payloads, stream, name, options, retention, declaration)
        self.partitions: Partitions = driver.partitions

    async def settle_many(self, settlements: Sequence[Settlement]) -> Sequence[Outcome | Exception]:
        """As `GroupFlow.settle_many`, for each partition in a request of its own.

        Raises:
            BackendError: No request could be made.
        """
        if len(settlements) == 1:
            return await super().settle_many(settlements)
        shares = self.partitions.shares(settlements, self.partitions.split_settlement)
        if len(shares) == 1:
            return await super().settle_many(settlements)
        runtime = self.engine.runtime
        results: dict[int, Outcome | Exception] = {}

        async def settle(indices: Sequence[int]) -> None:
            outcomes: Sequence[Outcome | Exception]
            try:
                outcomes = await super(PartitionedGroupFlow, self).settle_many([settlements[at] for at in indices])
            except Exception as error:  # noqa: BLE001 - it is that of these deliveries alone
                outcomes = [error] * len(indices)
            results.update(zip(indices, outcomes, strict=True))

        def flow(indices: Sequence[int]) -> Any:
            return lambda: settle(indices)

        first, *others = [[at for at, _ in share] for share in shares.values()]
        if runtime.uses_caller or self.engine.in_loop:
            for each in (first, *others):
                await settle(each)
        else:  # the requests of all partitions are under way at once
            tasks = [runtime.spawn(flow(each), name=f"ailf-settle-{self.stream}") for each in others]
            await settle(first)
            for task in tasks:
                await task.join()
        outcomes = [results[at] for at in range(len(settlements))]
        failure = outcomes[0]
        if isinstance(failure, Exception) and all(isinstance(each, Exception) for each in outcomes):
            raise failure
        return outcomes
