"""The queues that fall into the traps, one each: what most would write first, and libraries have shipped."""

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
    """Takes over what was idle for the lease, and trusts that handlers are faster."""

    class Member(PlainMember):
        def renewed(self) -> Iterable[PlainMessage]:
            return ()


class RenewsInHandOnly(Plain):
    """Renews what its handlers work on, and not what waits for them in its buffer."""

    class Member(PlainMember):
        def renewed(self) -> Iterable[PlainMessage]:
            return self.held - set(self.buffer)


# --- 2: renewing -------------------------------------------------------------------------------------------------


class RenewsAnybodys(Plain):
    """Renews by claiming, whoever has it."""

    class Member(PlainMember):
        async def renew(self, message: PlainMessage) -> bool:
            claimed = await self.redis.xclaim(self.stream, self.group, self.name, 0, [message.id], justid=True)
            return bool(claimed)


class RenewsWithBodies(Plain):
    """Renews its own by claiming them, without JUSTID."""

    class Member(PlainMember):
        async def renew(self, message: PlainMessage) -> bool:
            (row,) = await self.redis.xpending_range(self.stream, self.group, message.id, message.id, 1)
            if row["consumer"].decode() != self.name:
                return False
            return bool(await self.redis.xclaim(self.stream, self.group, self.name, 0, [message.id]))


# --- 3: settling -------------------------------------------------------------------------------------------------


class AcksPlainly(Plain):
    """Acks by XACK."""

    class Member(PlainMember):
        async def ack(self, message: PlainMessage) -> bool:
            return bool(await self.redis.xack(self.stream, self.group, message.id))


class ChecksTheOwner(Plain):
    """Acks in a script, where the entry is pending with its name."""

    SCRIPT = """
    local row = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)[1]
    return row and row[2] == ARGV[3] and redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) or 0
    """

    class Member(PlainMember):
        async def ack(self, message: PlainMessage) -> bool:
            told = (self.group, message.id, self.name)
            return bool(await self.redis.eval(ChecksTheOwner.SCRIPT, 1, self.stream, *told))


class ChecksThenAcks(Plain):
    """Looks whether the entry is its own, by owner and count, and then acks it."""

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
    """Takes over with XAUTOCLAIM from 0-0, each time."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            self.cursor = "0-0"
            return await super().sweep()


class SweepsInOneGo(Plain):
    """Takes over all that is there, so that nothing waits."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            reply = await self.redis.xautoclaim(self.stream, self.group, self.name, self.lease_ms, "0-0", count=100_000)
            return [(entry, fields, 2) for entry, fields in reply[1]]


class SweepsUnderMutex(Plain):
    """Lets one member at a time take over, under a lock that the same member deletes."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            mutex = f"{self.stream}:mutex"
            if not await self.redis.setnx(mutex, self.name):
                return []
            try:
                return await super().sweep()
            finally:
                await self.redis.delete(mutex)


# --- 6: what comes back ------------------------------------------------------------------------------------------


class WaitsForNewOnes(Plain):
    """Waits in XREADGROUP for as long as it may, and looks for what came back in between."""

    block = 5.0


class DelaysByTime(Plain):
    """Delays by the time of the last delivery, set so that its lease ends when the delay does."""

    class Member(PlainMember):
        async def nack(self, message: PlainMessage, delay: float) -> bool:
            at = int(time.time() * 1000 + delay * 1000) - self.lease_ms
            await self.redis.xclaim(self.stream, self.group, self.name, 0, [message.id], time=at, justid=True)
            return True


class CountsReleases(Plain):
    """Gives back by IDLE alone, as a nack does."""

    class Member(PlainMember):
        async def release(self, message: PlainMessage) -> bool:
            return await self.settle(message, "nack", self.lease_ms)


# --- 7: retries and beginnings -----------------------------------------------------------------------------------


class RetriesByAdding(Plain):
    """Adds a failed message again, and acks the first."""

    class Member(PlainMember):
        async def nack(self, message: PlainMessage, delay: float) -> bool:
            await self.queue.add(message.data)
            return await self.ack(message)


class StartsAtTheEnd(Plain):
    """Makes its group at $."""

    start = "$"


class ReadsFromItsStart(Plain):
    """Reads from where its group was made, and then what is new: what it has in hand comes first."""

    class Member(PlainMember):
        async def read(self, patience: float) -> list[Any]:
            reply = await self.redis.xreadgroup(self.group, self.name, {self.stream: self.queue.start}, self.prefetch)
            history = [(entry, fields, 1) for _, entries in reply for entry, fields in entries]
            return history or await super().read(patience)


# --- 8: cancelling -----------------------------------------------------------------------------------------------


class WaitsOnTheSocket(Plain):
    """Lets the caller itself wait for the server's answer."""

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
    """Acks, and leaves the rest to somebody else."""


class DeletesOnAck(Plain):
    """Keeps the stream short by deleting what it has acked."""

    class Member(PlainMember):
        async def ack(self, message: PlainMessage) -> bool:
            done = await super().ack(message)
            await self.redis.xdel(self.stream, message.id)
            return done


class DeletesItself(Plain):
    """Leaves nothing behind: deletes its consumer when it closes."""

    class Member(PlainMember):
        async def close(self) -> None:
            await self.rest()
            await self.redis.xgroup_delconsumer(self.stream, self.group, self.name)


class DeletesTheIdle(Plain):
    """Deletes consumers that are idle for long and have nothing pending."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            for each in await self.redis.xinfo_consumers(self.stream, self.group):
                if not each["pending"] and each["idle"] > self.queue.options.takeover * 1000:
                    await self.redis.xgroup_delconsumer(self.stream, self.group, each["name"])
            return await super().sweep()


class DeletesTheDead(Plain):
    """Deletes consumers that are idle for long: their processes are gone."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            for each in await self.redis.xinfo_consumers(self.stream, self.group):
                if each["idle"] > self.queue.options.takeover * 1000:
                    await self.redis.xgroup_delconsumer(self.stream, self.group, each["name"])
            return await super().sweep()


# --- 10: deleted entries -----------------------------------------------------------------------------------------


class ChokesOnNil(Plain):
    """Takes each entry that XAUTOCLAIM returns for an entry."""

    class Member(PlainMember):
        async def sweep(self) -> list[Any]:
            reply = await self.redis.xautoclaim(
                self.stream, self.group, self.name, self.lease_ms, self.cursor, count=self.prefetch
            )
            self.cursor = reply[0]
            return [(entry, fields, await self.times(entry)) for entry, fields in reply[1]]


class SkipsTheNil(Plain):
    """Leaves out what XAUTOCLAIM gives no id for, and waits for somebody to take it off the list."""


class CountsOnTheNil(Plain):
    """Claims what XPENDING lists, and takes the answers to be in the same places; acks where there is nil."""

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
    """Sends nothing on a nack: the message is still pending, so it will come again, some time."""

    class Member(PlainMember):
        async def nack(self, message: PlainMessage, delay: float) -> bool:
            return True


class AcksOnError(Plain):
    """Acks whatever the handler does, so that a bad message blocks nobody."""

    async def handle(self, handler: Handler, message: PlainMessage) -> None:
        try:
            await handler(message.data)
        except Exception:  # noqa: BLE001 - logged, in its own words
            pass
        finally:
            await message.ack()


# --- 12: what is not as it was left ------------------------------------------------------------------------------


class TriesWithoutGroup(Plain):
    """Logs an error of the server's and tries again."""

    class Member(PlainMember):
        async def fetch(self, patience: float) -> None:
            try:
                for each in await self.sweep() or await self.read(patience):
                    await self.unpack(*each)
            except ResponseError:
                await asyncio.sleep(patience)


class ParsesUnguarded(Plain):
    """Parses what it reads in the loop that reads."""

    class Member(PlainMember):
        async def unpack(self, entry: bytes, fields: dict[bytes, bytes], attempt: int) -> None:
            self.parse(fields)
            await super().unpack(entry, fields, attempt)


# --- 13: timeouts ------------------------------------------------------------------------------------------------


class BlocksLonger(Plain):
    """Blocks for longer than its sockets wait."""

    block = 5.0


class WaitsForEver(Plain):
    """Gives its sockets no timeout, so that it may block for as long as it likes."""

    def client(self) -> Any:
        client = super().client()
        client.connection_pool.connection_kwargs["socket_timeout"] = None
        return client


# --- 14, 15: lag and leaving -------------------------------------------------------------------------------------


class TrustsLag(Plain):
    """Tells the lag that the server tells."""

    async def lag(self) -> int | None:
        groups = await self.redis.xinfo_groups(self.options.stream)
        (lag,) = (each.get("lag") for each in groups if each["name"].decode() == self.options.group)
        return None if lag is None else int(lag)


class ForgetsItsBuffer(Plain):
    """Closes its connection: what it had fetched comes back by itself."""

    class Member(PlainMember):
        async def close(self) -> None:
            with contextlib.suppress(Exception):
                await self.rest()


def everyone() -> list[type[Plain]]:
    """Return all of them."""
    return Plain.__subclasses__()
