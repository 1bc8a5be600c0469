"""`PartitionedDriver`: the partitions of a stream as one stream, over any `StreamDriver`.

What concerns one entry, delivery or dead letter goes to its partition. What concerns the whole stream goes to all
partitions, `AT_ONCE` in one round trip where the driver can do that: each is a request of its own, with a time of its
own, and nothing but a step within one partition is atomic.
"""

import contextlib
import itertools
import secrets
from collections import defaultdict
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from msgspec.structs import replace

from ailf.cache import KeyedCache
from ailf.driver import (
    Claim,
    ConsumerState,
    Draft,
    Fetched,
    Letter,
    Outcome,
    Receipt,
    Record,
    Settlement,
    StreamDriver,
    StreamRequest,
    StreamsWaiter,
    Swept,
    Waiting,
)
from ailf.errors import (
    BackendError,
    BackendTimeoutError,
    InvalidArgumentError,
    StreamFullError,
)
from ailf.runtime import Runtime
from ailf.stream.partitions.group import GroupPartitions
from ailf.stream.partitions.ids import (
    PART,
    join_id,
    partition_names,
    partition_of_key,
    position_behind_all,
    position_in,
    split_id,
    within,
)
from ailf.stream.partitions.merge import MergedRead
from ailf.stream.partitions.pages import every, pages
from ailf.stream.partitions.waiter import PartitionedWaiter, waiter_of
from ailf.values import EARLIEST, LATEST, Added, GroupInfo, MessageInfo, Page, Retention, StreamInfo

__all__ = ["PartitionFullError", "PartitionedDriver", "Partitions"]

T = TypeVar("T")
X = TypeVar("X")

SLOW: Final = 0.5
"""Seconds after which a request that fails keeps messages of other partitions waiting for too long."""
PartitionRequest: TypeAlias = Callable[[StreamDriver, str], Coroutine[Any, Any, T]]
"""A request to one partition, given the driver to use and the partition's name."""

AT_ONCE: Final = 64
"""The most partitions that are asked in one round trip."""

STEP: Final = 1.0
"""Seconds after which a fetch asks no further partition; the next fetch goes on."""


class Partitions:
    """A partitioned stream, and what the objects of one process share about it.

    Attributes:
        stream: The stream's name.
        number: The number of its partitions.
        names: Their names.
        groups: What is known about the partitions of each group.
    """

    def __init__(self, stream: str, number: int, now: Callable[[], float]) -> None:
        self.stream = stream
        self.number = number
        self.names = partition_names(stream, number)
        self.groups: KeyedCache[str, GroupPartitions] = KeyedCache(lambda _: GroupPartitions(number, now))
        self._turn = itertools.count(secrets.randbelow(number))
        self._by_prefix = {str(each): each for each in range(number)}

    def of_key(self, key: str) -> int:
        """Return the partition of an ordering key; for no key ("") the next one in rotation."""
        return partition_of_key(key, self.number) if key else next(self._turn) % self.number

    def of_receipt(self, receipt: Receipt) -> tuple[int, Receipt]:
        """Return the partition of a receipt, and the receipt within that partition."""
        prefix, _, inner = receipt.id.partition(":")  # ours, so this is enough; `split_id` takes four times as long
        return self._by_prefix[prefix], Receipt(inner, receipt.consumer, receipt.grant)

    def shares(self, items: Sequence[X], split: Callable[[X], tuple[int, T]]) -> dict[int, list[tuple[int, T]]]:
        """Return the items of each partition, as they are within it, each with its index in ``items``."""
        shares: dict[int, list[tuple[int, T]]] = defaultdict(list)
        for at, each in enumerate(items):
            partition, inner = split(each)
            shares[partition].append((at, inner))
        return shares

    def split_settlement(self, settlement: Settlement) -> tuple[int, Settlement]:
        """Return the partition of a settlement, and the settlement within that partition."""
        partition, receipt = self.of_receipt(settlement.receipt)
        return partition, Settlement(receipt, settlement.action, settlement.delay, settlement.reason, settlement.error)


class PartitionFullError(StreamFullError):
    """A partition is full.

    Attributes:
        partition: Its name.
    """

    def __init__(self, partition: str) -> None:
        super().__init__(f"the partition {partition!r} is full")
        self.partition = partition


class PartitionedDriver(StreamDriver):
    """The driver of one partitioned stream: it does what `StreamDriver` says, for each partition by itself.

    Arguments:
        inner: The driver of the partitions.
        partitions: The partitioned stream, which the ``stream`` of every call names.
        runtime: The runtime of ``inner``.
        timeout: Seconds after which a request to all partitions asks no further ones (B10).
    """

    def __init__(self, inner: StreamDriver, partitions: Partitions, runtime: Runtime, timeout: float = 5.0) -> None:
        self.inner = inner
        self.partitions = partitions
        self._names = partitions.names
        self._runtime = runtime
        self._timeout = timeout

    async def _try_all(self, request: PartitionRequest[T], names: Sequence[str] = ()) -> list[T | Exception]:
        """Make a request to every partition, or to those of these names; return for each the result, or its error.

        Raises:
            BackendTimeoutError: The first of them have taken the time of the whole request.
        """
        names = names or self._names
        until = self._runtime.now() + self._timeout
        results: list[T | Exception] = []
        for page in pages(names, AT_ONCE):
            if results and self._runtime.now() > until:
                raise BackendTimeoutError(
                    f"only {len(results)} of {len(names)} partitions of stream {self.partitions.stream!r} answered in "
                    f"{self._timeout:g} s",
                    maybe_applied=True,
                )
            results += await self.inner.together([_of(request, each) for each in page])
        return results

    async def _all(self, request: PartitionRequest[T], names: Sequence[str] = ()) -> list[T]:
        """Make a request to every partition, or to those of these names; return the results.

        Raises:
            Exception: The first error of a partition; other ones may have succeeded.
        """
        return every(await self._try_all(request, names))

    def _split(self, entry_id: str) -> tuple[int, str]:
        """Return the partition of an entry's id, and the id in there; both are checked."""
        return self._split_checked(entry_id, "an entry", self.inner.time_of)

    def _split_checked(self, text: str, what: str, check: Callable[[str], object]) -> tuple[int, str]:
        """Return the partition of an id, and the id in there, which `check` refuses if it is none of `what`."""
        partition, inner = split_id(text, self.partitions.number, what)
        try:
            check(inner)
        except InvalidArgumentError as error:
            raise within(text, partition, error) from error
        return partition, inner

    # --- the stream ----------------------------------------------------------------------------------------------

    async def declare(self, stream: str, partitions: int | None, *, void: bool = False) -> int | None:
        return await self.inner.declare(stream, partitions, void=void)

    async def add(self, stream: str, drafts: Sequence[Draft], *, retention: Retention | None) -> list[str]:
        partition = self.partitions.of_key(drafts[0].key if drafts else "")
        with self._naming_full(partition):
            ids = await self.inner.add(self._names[partition], drafts, retention=retention)
        return [join_id(partition, each) for each in ids]

    async def add_once(
        self, stream: str, draft: Draft, *, dedup_id: str, token: str, window: float, retention: Retention | None
    ) -> Added:
        partition = self.partitions.of_key(draft.key or dedup_id)
        with self._naming_full(partition):
            added = await self.inner.add_once(
                self._names[partition], draft, dedup_id=dedup_id, token=token, window=window, retention=retention
            )
        return Added(join_id(partition, added.id), added.duplicate)

    @contextlib.contextmanager
    def _naming_full(self, partition: int) -> Iterator[None]:
        """Let a `StreamFullError` name the partition that is full."""
        try:
            yield
        except StreamFullError as error:
            raise PartitionFullError(self._names[partition]) from error

    async def cancel(self, stream: str, entry_id: str) -> bool:
        partition, inner = self._split(entry_id)
        return await self.inner.cancel(self._names[partition], inner)

    async def trim(self, stream: str, retention: Retention, *, after: str = "") -> Swept:
        partition, _, inner = after.partition(":")
        number = int(partition or 0)
        swept = await self.inner.trim(self._names[number], retention, after=inner)
        if swept.after:
            return replace(swept, after=join_id(number, swept.after))
        return replace(swept, after=f"{number + 1}:" if number + 1 < self.partitions.number else "")

    async def length(self, stream: str) -> int:
        return sum(await self._all(lambda driver, name: driver.length(name)))

    async def read(self, stream: str, start: str, end: str, limit: int, *, after: bool = False) -> list[Record]:
        first = await self.last_id(stream) if start == LATEST else start
        ends, starts = [*self._positions(end).values()], [*self._positions(first).values()]
        return await MergedRead(self.inner, self._names, starts, ends, after=after).take(limit)

    def _position_in(self, partition: int, position: str) -> str:
        return position_in(self.inner, partition, position, self.partitions.number)

    def _positions(self, position: str) -> dict[str, str]:
        """Return a position of the whole stream for each partition, by its name."""
        return {name: self._position_in(partition, position) for partition, name in enumerate(self._names)}

    async def follow(self, position: str) -> MergedRead:
        """Return a read from a position on, without an end."""
        number = self.partitions.number
        if position == LATEST:
            starts = await self._all(lambda driver, name: driver.last_id(name))
        else:
            starts = [self._position_in(each, position) for each in range(number)]
        return MergedRead(self.inner, self._names, starts, after=position == LATEST)

    async def last_id(self, stream: str) -> str:
        ids = enumerate(await self._all(lambda driver, name: driver.last_id(name)))
        return join_id(*max(ids, key=lambda each: (self.inner.time_of(each[1]), each[0])))

    def id_before(self, timestamp: float) -> str:
        # An id of the last partition: of the others, all that is before it in time is before it in order.
        return join_id(self.partitions.number - 1, self.inner.id_before(timestamp))

    def time_of(self, entry_id: str) -> float:
        return self.inner.time_of(self._split(entry_id)[1])

    async def delete(self, stream: str) -> None:
        """Delete the partitions and the number; where none is stored, only the marked partitions."""
        names: Sequence[str] = self._names
        if await self.inner.declare(stream, None) is None:
            numbers = await self._all(lambda driver, name: driver.declare(name, None))
            names = [name for name, number in zip(names, numbers, strict=True) if number == PART]
        if names:
            await self._all(lambda driver, name: driver.delete(name), names)
        await self.inner.delete(stream)  # the number of partitions: last, or others could use the names before

    # --- its groups ----------------------------------------------------------------------------------------------

    async def open_group(self, stream: str, group: str, start: str) -> bool:
        starts = self._positions(start)
        made = await self._all(lambda driver, name: driver.open_group(name, group, starts[name]))
        return made[0]

    async def delete_group(self, stream: str, group: str) -> None:
        await self._all(lambda driver, name: driver.delete_group(name, group))

    async def seek(self, stream: str, group: str, position: str) -> bool:
        to = self._positions(position)
        moved = await self._try_all(lambda driver, name: driver.seek(name, group, to[name]))
        if any(not isinstance(each, Exception) for each in moved):
            for each in moved:
                if isinstance(each, BackendError):
                    each.maybe_applied = True  # in other partitions
        return any(every(moved))

    async def pause(self, stream: str, group: str, *, paused: bool) -> bool:
        return any(await self._all(lambda driver, name: driver.pause(name, group, paused=paused)))

    async def info(self, stream: str, group: str) -> GroupInfo:
        infos = await self._all(lambda driver, name: driver.info(name, group))
        lags = [each.lag for each in infos]
        consumers: dict[str, int] = {}
        for info in infos:
            for name, held in info.consumers.items():
                consumers[name] = consumers.get(name, 0) + held
        return GroupInfo(
            length=sum(each.length for each in infos),
            lag=None if None in lags else sum(filter(None, lags)),
            pending=sum(each.pending for each in infos),
            delayed=sum(each.delayed for each in infos),
            dead=sum(each.dead for each in infos),
            consumers=consumers,
            oldest=max((each.oldest for each in infos if each.oldest is not None), default=None),
            evicted=sum(each.evicted for each in infos),
            paused=any(each.paused for each in infos),
            exists=any(each.exists for each in infos),
        )

    async def inspect(self, stream: str, group: str, entry_id: str) -> MessageInfo | None:
        partition, inner = self._split(entry_id)
        return await self.inner.inspect(self._names[partition], group, inner)

    async def fetch(
        self, stream: str, group: str, consumer: str, *, waiting: Waiting | None = None, **options: Any
    ) -> Fetched:
        """Fetch from one partition after another, until one gives messages; see `GroupPartitions`.

        What has leased messages is the last step: an error of another one could not lose them. A fetch that waits
        afterwards asks where something may be, any other one asks everywhere.

        Raises:
            BackendError: The first error of a partition, if no other one gave messages.
        """
        failure: BackendError | None = None
        state = self.partitions.groups[group]
        lease, alive = options["lease"], options["alive"]
        begin = self._runtime.now()
        for partition in state.all() if waiting is None else state.to_fetch(lease, alive):
            since = self._runtime.lease_now()
            try:
                fetched = await self.inner.fetch(self._names[partition], group, consumer, **options)
            except BackendError as error:
                self.fail(group, partition, error, self._runtime.lease_now() - since)
                failure = failure or error
            else:
                state.record(partition, fetched, since, lease, alive)
                if fetched.reset:
                    await self._open_vanished(group)
                if fetched.claims:
                    return state.result([_claim(partition, each) for each in fetched.claims])
            if self._runtime.now() - begin > STEP:
                break
        if failure is not None:
            raise failure
        return state.result([])

    def fail(self, group: str, partition: int, error: BackendError, took: float) -> bool:
        """Note that a request for a partition has failed after `took` seconds; return whether it is set aside.

        If it took long its server doesn't reply, and with it all partitions of the server are set aside.
        """
        state = self.partitions.groups[group]
        server = self.inner.server_of(self._names[partition])
        if took < SLOW or server is None:
            state.fail(partition)
            return False
        others = [each for each, name in enumerate(self._names) if self.inner.server_of(name) == server]
        state.set_aside(others, position_behind_all(self.inner), error, took)
        return True

    async def _open_vanished(self, group: str) -> None:
        """Make the group in all partitions, at EARLIEST, as it has vanished from one: all resets are one event."""
        with contextlib.suppress(BackendError):  # what was leased must not be lost; fetches make the others too
            await self._all(lambda driver, name: driver.open_group(name, group, EARLIEST))

    async def settle(
        self, stream: str, group: str, settlements: Sequence[Settlement], *, max_deliveries: int
    ) -> list[Outcome]:
        shares = self.partitions.shares(settlements, self.partitions.split_settlement)
        return await self._each(
            shares, lambda name, share: self.inner.settle(name, group, share, max_deliveries=max_deliveries)
        )

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        shares = self.partitions.shares(receipts, self.partitions.of_receipt)
        return await self._each(shares, lambda name, share: self.inner.extend(name, group, share, lease=lease))

    async def _each(self, shares: dict[int, list[tuple[int, X]]], request: Callable[[str, list[X]], Any]) -> list[T]:
        """Make a request for each share, also after one has failed; return the results in the order of the items.

        Raises:
            BackendError: The first error; the other requests were made nevertheless.
        """
        results: dict[int, T] = {}
        failure: BackendError | None = None
        for partition, share in shares.items():
            try:
                replies = await request(self._names[partition], [inner for _, inner in share])
            except BackendError as error:
                failure = failure or error
            else:
                results.update((at, reply) for (at, _), reply in zip(share, replies, strict=True))
        if failure is not None:
            raise failure
        return [results[at] for at in sorted(results)]

    async def heartbeat(self, stream: str, group: str, consumers: Sequence[str], *, alive: float) -> None:
        """Count consumers that hold no messages as alive: in one partition that replies, which is enough to be known.

        One that holds messages gives its heartbeats in the partitions of these messages; see `ConsumerFlow`.
        """
        partition = self.partitions.groups[group].reachable_first()[0]
        begin = self._runtime.lease_now()
        try:
            await self.inner.heartbeat(self._names[partition], group, consumers, alive=alive)
        except BackendError as error:
            self.fail(group, partition, error, self._runtime.lease_now() - begin)
            raise

    async def leave(self, stream: str, group: str, consumer: str) -> None:
        """Release the leases in all partitions, one server after another; after an error go on with the next server.

        Raises:
            BackendError: The first error.
        """

        def give_back(driver: StreamDriver, name: str) -> Coroutine[Any, Any, None]:
            return driver.leave(name, group, consumer)

        by_server: dict[Hashable, list[str]] = defaultdict(list)
        for each in self.partitions.groups[group].reachable_first():
            by_server[self.inner.server_of(self._names[each])].append(self._names[each])
        failure: Exception | None = None
        for names in by_server.values():
            for page in pages(names, AT_ONCE):
                results = await self.inner.together([_of(give_back, each) for each in page])
                errors = [each for each in results if isinstance(each, Exception)]
                if errors:
                    failure = failure or errors[0]
                    break
        if failure is not None:
            raise failure

    # --- dead letters --------------------------------------------------------------------------------------------

    async def dead_letters(self, stream: str, group: str, after: str, limit: int) -> list[Letter]:
        """Return dead letters: partition by partition, and within one oldest first."""
        found: list[Letter] = []
        for partition, inner in self._behind(after):
            letters = await self.inner.dead_letters(self._names[partition], group, inner, limit - len(found))
            found += [
                replace(
                    each,
                    id=join_id(partition, each.id),
                    record=replace(each.record, id=join_id(partition, each.record.id)),
                )
                for each in letters
            ]
            if len(found) >= limit:
                break
        return found

    async def letter_ids(self, stream: str, group: str, after: str, limit: int) -> list[str]:
        """Return the ids of dead letters of one partition: the first one behind ``after`` that has any."""
        for partition, inner in self._behind(after):
            ids = await self.inner.letter_ids(self._names[partition], group, inner, limit)
            if ids:
                return [join_id(partition, each) for each in ids]
        return []

    def _behind(self, after: str) -> list[tuple[int, str]]:
        """Return the partitions that may have dead letters after an id, and for each the id within it, or ""."""
        first, inner = self._split_letter(after) if after else (0, "")
        return [(first, inner), *((each, "") for each in range(first + 1, self.partitions.number))]

    def check_letter(self, letter: str) -> None:
        self._split_letter(letter)

    def _split_letter(self, letter: str) -> tuple[int, str]:
        """Return the partition of a dead letter's id, and the id in there; both are checked."""
        return self._split_checked(letter, "a dead letter", self.inner.check_letter)

    async def take_dead_letters(self, stream: str, group: str, letters: Sequence[str], *, redrive: bool) -> list[bool]:
        shares = self.partitions.shares(letters, self._split_letter)
        return await self._each(
            shares, lambda name, share: self.inner.take_dead_letters(name, group, share, redrive=redrive)
        )

    # --- what exists ---------------------------------------------------------------------------------------------

    async def list_streams(self, prefix: str, cursor: str, limit: int) -> Page[str]:
        return await self.inner.list_streams(prefix, cursor, limit)

    async def list_groups(self, stream: str, after: str, limit: int) -> list[str]:
        """Return the first names of those that any partition has: each is among the first ones of its partition."""
        names: set[str] = set()
        for each in await self._all(lambda driver, name: driver.list_groups(name, after, limit)):
            names.update(each)
        return sorted(names)[:limit]

    async def list_consumers(self, stream: str, group: str, after: str, limit: int) -> list[ConsumerState]:
        """Return the first consumers of all partitions: what each holds there, and its last heartbeat in any."""
        merged: dict[str, ConsumerState] = {}
        for each in await self._all(lambda driver, name: driver.list_consumers(name, group, after, limit)):
            for state in each:
                merged[state.name] = _merged(merged.get(state.name), state)
        return [merged[name] for name in sorted(merged)[:limit]]

    async def stream_info(self, stream: str) -> StreamInfo:
        infos = await self._all(lambda driver, name: driver.stream_info(name))
        firsts = [(at, each.first_id) for at, each in enumerate(infos) if each.first_id is not None]
        lasts = [(at, each.last_id) for at, each in enumerate(infos) if each.last_id is not None]

        def place(item: tuple[int, str]) -> tuple[float, int]:
            return self.inner.time_of(item[1]), item[0]

        return StreamInfo(
            name=stream,
            length=sum(each.length for each in infos),
            partitions=self.partitions.number,
            first_id=join_id(*min(firsts, key=place)) if firsts else None,
            last_id=join_id(*max(lasts, key=place)) if lasts else None,
            added=max((each.added for each in infos if each.added is not None), default=None),
            groups=max(each.groups for each in infos),
            entries_added=_added(infos),
        )

    # --- waiting -------------------------------------------------------------------------------------------------

    def waiter(self, stream: str, group: str | None) -> PartitionedWaiter:
        assert group is not None, "a tail waits with `waiter_of_all`"  # noqa: S101 - for mypy
        return PartitionedWaiter(
            self.waiter_of_all(group),
            lambda: self.partitions.groups[group],
            lambda *failure: self.fail(group, *failure),
        )

    def waiter_of_all(self, group: str | None) -> StreamsWaiter:
        """Return a waiter for all partitions."""
        return waiter_of(self.inner, self._runtime, self._names, group)


def _of(request: PartitionRequest[T], name: str) -> StreamRequest[T]:
    """Return a request to the partition of this name."""
    return lambda driver: request(driver, name)


def _added(infos: Sequence[StreamInfo]) -> int | None:
    """Return how many entries were added to all partitions; None where that is unknown of one that has entries."""
    known = [each.entries_added for each in infos if each.entries_added is not None]
    return sum(known) if known and not any(each.length and each.entries_added is None for each in infos) else None


def _merged(one: ConsumerState | None, other: ConsumerState) -> ConsumerState:
    """Return a consumer's state in two partitions as one."""
    if one is None:
        return other
    alive = max((each.alive for each in (one, other) if each.alive is not None), default=None)
    return ConsumerState(one.name, alive, one.in_hand + other.in_hand)


def _claim(partition: int, claim: Claim) -> Claim:
    """Return a claim of a partition with ids that tell the partition."""
    record, receipt = claim.record, claim.receipt
    return Claim(
        Record(join_id(partition, record.id), record.body, record.headers, record.foreign, record.problem, record.key),
        Receipt(join_id(partition, receipt.id), receipt.consumer, receipt.grant),
        claim.attempt,
    )
