"""`PartitionedGroupFlow`: a group of a partitioned stream."""

import functools
from collections.abc import Sequence

from ailf.driver import Outcome, Settlement
from ailf.errors import OutcomeUnknownError
from ailf.runtime.base import Flow
from ailf.stream.group_flow import GroupFlow
from ailf.stream.partitions import Partitions

__all__ = ["PartitionedGroupFlow"]


class PartitionedGroupFlow(GroupFlow):
    """A `GroupFlow` that settles the deliveries of each partition by themselves: an outcome depends on no other."""

    partitions: Partitions

    def failure(self) -> Exception | None:
        """Return the error of partitions whose server doesn't reply."""
        return self.partitions.groups[self.name].failure()

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
        interrupted = OutcomeUnknownError("settling was interrupted, and may have been carried out", maybe_applied=True)
        outcomes: list[Outcome | Exception] = [interrupted] * len(settlements)

        async def settle(indices: Sequence[int]) -> None:
            results: Sequence[Outcome | Exception]
            try:
                results = await super(PartitionedGroupFlow, self).settle_many([settlements[at] for at in indices])
            except Exception as error:  # noqa: BLE001 - it is that of these deliveries alone
                results = [error] * len(indices)
            for at, result in zip(indices, results, strict=True):
                outcomes[at] = result

        await self._together([functools.partial(settle, [at for at, _ in share]) for share in shares.values()])
        failure = outcomes[0]
        if isinstance(failure, Exception) and all(isinstance(each, Exception) for each in outcomes):
            raise failure
        return outcomes

    async def _together(self, flows: Sequence[Flow]) -> None:
        """Run flows: on asyncio all at once, as each waits for a request; on threads one after another."""
        runtime = self.engine.runtime
        if runtime.uses_caller or self.engine.in_loop:
            for flow in flows:
                await flow()
            return
        first, *others = flows
        tasks = [runtime.spawn(each, name=f"ailf-settle-{self.stream}") for each in others]
        await first()
        for task in tasks:
            await task.join()
