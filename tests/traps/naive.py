"""Naive queues, each of which falls into one trap: first ideas, and designs that libraries have shipped."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterable
from typing import Any

from redis.exceptions import ResponseError

from tests.traps.plain import Plain, PlainMember, PlainMessage
from tests.traps.queues import Handler

# --- 1: leases ---------------------------------------------------------------------------------------------------


class NeverRenews(Plain):
    """Takes over entries that were idle for the lease, and relies on handlers that are faster."""

    class Member(PlainMember):
        def renewed(self) -> Iterable[PlainMessage]:
            return ()


class RenewsInHandOnly(Plain):
    """Renews the messages that its handlers work on, and not those in its buffer."""

    class Member(PlainMember):
        def renewed(self) -> Iterable[PlainMessage]:
            return self.held - set(self.buffer)


# --- 2: renewing -------------------------------------------------------------------------------------------------


class RenewsWithoutCheck(Plain):
    """Renews an entry by claiming it, whichever consumer holds it."""

    class Member(PlainMember):
        async def renew(self, message: PlainMessage) -> bool:
            claimed = await self.redis.xclaim(self.stream, self.group, self.name, 0, [message.id], justid=True)
            return bool(claimed)


class RenewsWithBodies(Plain):
    """Renews its own entries by claiming them without JUSTID."""

    class Member(PlainMember):
        async def renew(self, message: PlainMessage) -> bool:
            (row,) = await self.redis.xpending_range(self.stream, self.group, message.id, message.id, 1)
            if row["consumer"].decode() != self.name:
                return False
            return bool(await self.redis.xclaim(self.stream, self.group, self.name, 0, [message.id]))


# --- 3: settling -------------------------------------------------------------------------------------------------


class AcksPlainly(Plain):
    """Acks with XACK alone."""

    class Member(PlainMember):
        async def ack(self, message: PlainMessage) -> bool:
            return bool(await self.redis.xack(self.stream, self.group, message.id))


class ChecksTheHolder(Plain):
    """Acks in a script, if the entry is pending under its name."""

    SCRIPT = """
    local row = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)[1]
    return row and row[2] == ARGV[3] and redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) or 0
    """

    class Member(PlainMember):
        async def ack(self, message: PlainMessage) -> bool:
            arguments = (self.group, message.id, self.name)
            return bool(await self.redis.eval(ChecksTheHolder.SCRIPT, 1, self.stream, *arguments))


class ChecksThenAcks(Plain):
    """Checks in one request that the entry is its own, by holder and count, and acks it in the next."""

    class Member(PlainMember):
        async def ack(self, message: PlainMessage) -> bool:
            rows = await self.redis.xpending_range(self.stream, self.group, message.id, message.id, 1)
            if [(each["consumer"].decode(), each["times_delivered"]) for each in rows] != [
                (self.name, message.attempt)
            ]:
                return False
            return bool(await self.redis.xack(self.stream, self.group, message.id))


# --- 4, 5: taking over -------------------------------------------------------------------------------------------


class SweepsFromTheStart(Plain):
    """Takes over with XAUTOCLAIM, each time from 0-0."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            self.cursor = "0-0"
            return await super().sweep()


class SweepsInOneGo(Plain):
    """Takes over all stale entries in one request."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            reply = await self.redis.xautoclaim(self.stream, self.group, self.name, self.lease_ms, "0-0", count=100_000)
            return [(entry, fields, 2) for entry, fields in reply[1]]


class SweepsUnderMutex(Plain):
    """Lets one member at a time take over, under a lock without a ttl that this member deletes."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            mutex = f"{self.stream}:mutex"
            if not await self.redis.setnx(mutex, self.name):
                return []
            try:
                return await super().sweep()
            finally:
                await self.redis.delete(mutex)


# --- 6: messages that come back ----------------------------------------------------------------------------------


class WaitsForNewOnes(Plain):
    """Waits in XREADGROUP as long as possible, and checks for messages that came back only in between."""

    block = 5.0


class DelaysByTime(Plain):
    """Delays a message by its delivery time, set so that its lease ends with the delay."""

    class Member(PlainMember):
        async def nack(self, message: PlainMessage, delay: float) -> bool:
            at = int(time.time() * 1000 + delay * 1000) - self.lease_ms
            await self.redis.xclaim(self.stream, self.group, self.name, 0, [message.id], time=at, justid=True)
            return True


class CountsReleases(Plain):
    """Releases by IDLE alone, like a nack."""

    class Member(PlainMember):
        async def release(self, message: PlainMessage) -> bool:
            return await self.settle(message, "nack", self.lease_ms)


# --- 7: retries and start positions ------------------------------------------------------------------------------


class RetriesByAdding(Plain):
    """Adds a failed message again, and acks the old entry."""

    class Member(PlainMember):
        async def nack(self, message: PlainMessage, delay: float) -> bool:
            await self.queue.add(message.data)
            return await self.ack(message)


class StartsAtTheEnd(Plain):
    """Creates its group at $."""

    start = "$"


class ReadsFromItsStart(Plain):
    """Reads from the start of its group first, which returns its own pending entries, and then new ones."""

    class Member(PlainMember):
        async def read(self, patience: float) -> list[Any]:
            reply = await self.redis.xreadgroup(self.group, self.name, {self.stream: self.queue.start}, self.prefetch)
            history = [(entry, fields, 1) for _, entries in reply for entry, fields in entries]
            return history or await super().read(patience)


# --- 8: cancelling -----------------------------------------------------------------------------------------------


class WaitsOnTheSocket(Plain):
    """Waits for the server's reply in the caller's own task."""

    class Member(PlainMember):
        async def wait(self, patience: float) -> None:
            await self.fetch(patience)


# --- 9: trimming and deleting ------------------------------------------------------------------------------------


class TrimsByLength(Plain):
    """Keeps the stream short by MAXLEN."""

    async def add(self, *data: Any) -> bool:
        for each in data:
            fields = {self.field: json.dumps(each)}
            await self.redis.xadd(self.options.stream, fields, maxlen=self.options.max_len, approximate=False)
        return True


class NeverTrims(Plain):
    """Acks, and never removes an entry."""


class DeletesOnAck(Plain):
    """Keeps the stream short by deleting the entries that it has acked."""

    class Member(PlainMember):
        async def ack(self, message: PlainMessage) -> bool:
            done = await super().ack(message)
            await self.redis.xdel(self.stream, message.id)
            return done


class DeletesItself(Plain):
    """Deletes its consumer when it closes."""

    class Member(PlainMember):
        async def close(self) -> None:
            await self.end_tasks()
            await self.redis.xgroup_delconsumer(self.stream, self.group, self.name)


class DeletesTheIdle(Plain):
    """Deletes consumers that have been idle for a long time and have no pending entries."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            for each in await self.redis.xinfo_consumers(self.stream, self.group):
                if not each["pending"] and each["idle"] > self.queue.options.takeover * 1000:
                    await self.redis.xgroup_delconsumer(self.stream, self.group, each["name"])
            return await super().sweep()


class DeletesTheDead(Plain):
    """Deletes consumers that have been idle for a long time, as their processes must be dead."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            for each in await self.redis.xinfo_consumers(self.stream, self.group):
                if each["idle"] > self.queue.options.takeover * 1000:
                    await self.redis.xgroup_delconsumer(self.stream, self.group, each["name"])
            return await super().sweep()


# --- 10: deleted entries -----------------------------------------------------------------------------------------


class FailsOnNil(Plain):
    """Reads each item that XAUTOCLAIM returns as an entry."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            reply = await self.redis.xautoclaim(
                self.stream, self.group, self.name, self.lease_ms, self.cursor, count=self.prefetch
            )
            self.cursor = reply[0]
            return [(entry, fields, await self.times(entry)) for entry, fields in reply[1]]


class SkipsTheNil(Plain):
    """Skips the items for which XAUTOCLAIM returns no id, and leaves them pending."""


class ExpectsTheNil(Plain):
    """Claims the entries that XPENDING lists, expects the replies at the same indices, and acks where there is nil."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            rows = await self.redis.xpending_range(self.stream, self.group, "-", "+", self.prefetch, idle=self.lease_ms)
            if not rows:
                return []
            ids = [each["message_id"] for each in rows]
            claimed = await self.redis.xclaim(self.stream, self.group, self.name, self.lease_ms, ids)
            found = []
            for row, (entry, fields) in zip(rows, claimed, strict=False):
                if entry is None:
                    await self.redis.xack(self.stream, self.group, row["message_id"])
                else:
                    found.append((row["message_id"], fields, row["times_delivered"] + 1))
            return found


# --- 11: errors --------------------------------------------------------------------------------------------------


class NacksNothing(Plain):
    """Sends nothing on a nack: the message is still pending, and comes again when its lease ends."""

    class Member(PlainMember):
        async def nack(self, message: PlainMessage, delay: float) -> bool:
            return True


class AcksOnError(Plain):
    """Acks also when the handler raises, so that a bad message blocks no other."""

    async def handle(self, handler: Handler, message: PlainMessage) -> None:
        try:
            await handler(message.data)
        except Exception:  # noqa: BLE001 - such a queue only logs it
            pass
        finally:
            await message.ack()


# --- 12: lost groups and foreign entries -------------------------------------------------------------------------


class TriesWithoutGroup(Plain):
    """Logs an error of the server and tries again."""

    class Member(PlainMember):
        async def fetch(self, patience: float) -> None:
            try:
                for each in await self.sweep() or await self.read(patience):
                    await self.unpack(*each)
            except ResponseError:
                await asyncio.sleep(patience)


class ParsesUnguarded(Plain):
    """Parses entries in the loop that reads, without catching errors."""

    class Member(PlainMember):
        async def unpack(self, entry: bytes, fields: dict[bytes, bytes], attempt: int) -> None:
            self.parse(fields)
            await super().unpack(entry, fields, attempt)


# --- 13: timeouts ------------------------------------------------------------------------------------------------


class BlocksLonger(Plain):
    """Blocks for longer than the timeout of its sockets."""

    block = 5.0


class HasNoTimeout(Plain):
    """Gives its sockets no timeout, so that it can block for any time."""

    def client(self) -> Any:
        client = super().client()
        client.connection_pool.connection_kwargs["socket_timeout"] = None
        return client


# --- 14, 15: lag and leaving -------------------------------------------------------------------------------------


class TrustsLag(Plain):
    """Reports the server's own lag."""

    async def lag(self) -> int | None:
        groups = await self.redis.xinfo_groups(self.options.stream)
        (lag,) = (each.get("lag") for each in groups if each["name"].decode() == self.options.group)
        return None if lag is None else int(lag)


class ForgetsItsBuffer(Plain):
    """Only closes its connection: its fetched messages come back when their leases end."""

    class Member(PlainMember):
        async def close(self) -> None:
            with contextlib.suppress(Exception):
                await self.end_tasks()


def all_naive() -> list[type[Plain]]:
    """Return all naive queues."""
    return Plain.__subclasses__()
