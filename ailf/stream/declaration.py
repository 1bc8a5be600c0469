"""Whether the objects of a stream agree on its number of partitions, so that none writes where no other reads.

The backend is asked once for each stream: `Engine.declared` remembers the stored numbers. An object that was given
another number than the remembered one asks again, as the stream may have been deleted meanwhile.

The names of the partitions are marked, by storing 0 for each, before the number of the whole stream is stored: so the
number says that this was done. A marked name tells its stream: ``tasks/3`` is a partition of ``tasks``. The mark is
void when that stream has a number without this partition: a process began with a larger number and died before the end.
"""

from collections.abc import Sequence

from ailf.driver import StreamDriver, StreamRequest
from ailf.engine import Engine
from ailf.errors import BackendTimeoutError, InvalidArgumentError
from ailf.stream.partitions import AT_ONCE, MOST_PARTITIONS, PART, every, owner_of, pages

__all__ = ["Declaration"]

MOST = 4096
"""The most streams whose numbers are remembered."""

STEP = 1.0
"""Seconds after which a caller that repeats its call gets control back."""


class Declaration:
    """The number of partitions that an object was given, compared once with the stored one.

    An ordinary stream has 1. A stream that was used before without a number counts as an ordinary one.

    Arguments:
        engine: The engine.
        driver: The driver of streams, not of partitioned ones.
        stream: The stream's name.
        partitions: The number that the object was given.
        names: The names of the partitions; none for an ordinary stream.

    Attributes:
        made: Whether the number is stored and the same.
    """

    __slots__ = ("_done", "_driver", "_engine", "_names", "_partitions", "_stream", "made")

    def __init__(
        self, engine: Engine, driver: StreamDriver, stream: str, partitions: int = 1, names: tuple[str, ...] = ()
    ) -> None:
        self._engine = engine
        self._driver = driver
        self._stream = stream
        self._partitions = partitions
        self._names = names
        self._done = 0  # the steps of `_mark` that are done, if the time was over
        self.made = engine.declared.get(stream) == partitions

    async def make(self, until: float | None = None) -> None:
        """Store the number if none is stored: before the first request that adds an entry or makes a group.

        Arguments:
            until: As for `Engine.call`.

        Raises:
            InvalidArgumentError: Another number is stored.
            BackendTimeoutError: The time was over before all names were marked; the next call goes on from there.
        """
        stored = await self._ask(self._stream, None if self._names else self._partitions, until)
        void = stored == PART and await self._is_void(until)
        if stored is None or void:
            await self._mark((None, PART), until)
            stored = await self._ask(self._stream, self._partitions, until, void=void)
        await self._compare(stored, until)

    async def check(self, until: float | None = None) -> None:
        """Compare the number before a request that makes nothing; nothing is stored.

        A stream without a number doesn't exist, so it is asked again before the next request.

        Raises:
            InvalidArgumentError: Another number is stored.
        """
        stored = await self._ask(self._stream, None, until)
        if stored is not None and not (stored == PART and await self._is_void(until)):
            await self._compare(stored, until)

    async def stored(self) -> int:
        """Return the stored number, whatever number the object was given; for a stream without one, the object's.

        Raises:
            InvalidArgumentError: The stream is a partition of another one.
        """
        if self.made:
            return self._partitions
        stored = await self._ask(self._stream, None, None)
        if stored is None or (stored == PART and await self._is_void(None)):
            return self._partitions
        if stored == PART:
            await self._compare(stored, None)
        return stored

    async def make_again(self) -> None:
        """Store the number again, and mark the names: data of the stream have vanished, perhaps with these.

        The partitions may be in use again, by processes that don't know yet that anything has vanished.

        Raises:
            InvalidArgumentError: Another number is stored.
        """
        self.forget()
        await self._compare(await self._ask(self._stream, self._partitions, 0.0), 0.0)
        await self._mark((PART,), 0.0)

    def forget(self) -> None:
        """Ask again before the next request: the stream is deleted."""
        self.made = False
        self._done = 0
        self._engine.declared.pop(self._stream, None)

    async def _mark(self, numbers: Sequence[int | None], until: float | None) -> None:
        """Store that the partitions are partitions, unless one of these names is in use as a stream of its own.

        Arguments:
            numbers: What to store, one after the other, for all names; None to look only.
            until: As for `Engine.call`, and no step but the first begins after it. If it is 0 the caller repeats the
                call, so it gets control back after `STEP` seconds.
        """
        engine = self._engine
        begin = engine.runtime.now()
        repeat_until = begin + engine.retry_for if until is None else until
        last = begin + STEP if until == 0.0 else repeat_until + (engine.driver.timeout if until is None else 0.0)
        steps = [(number, page) for number in numbers for page in pages(self._names, AT_ONCE)]
        done = self._done
        for number, page in steps[done:]:
            if self._done > done and engine.runtime.now() > last:
                raise BackendTimeoutError(
                    f"stream {self._stream!r} with partitions={self._partitions} is used for the first time, and the "
                    f"time of the call ended after {self._done} of {len(steps)} steps that mark the names of its "
                    "partitions; nothing else was done. Call again: the same object goes on from there"
                )
            stored = await engine.call(
                f"find the partitions of stream {self._stream!r}",
                self._ask_all,
                page,
                number,
                again=True,
                until=repeat_until,
            )
            for name, each in zip(page, stored, strict=True):
                if each not in {None, PART}:
                    self._done = 0
                    raise InvalidArgumentError(
                        f"stream {self._stream!r} with partitions={self._partitions} needs {name!r} as a partition, "
                        "but that is a stream of its own; choose another name, or delete that stream first"
                    )
            self._done += 1
        self._done = 0

    async def _ask_all(self, names: Sequence[str], number: int | None) -> list[int | None]:
        """Declare streams in one round trip."""
        return every(await self._driver.together([_declaring(each, number) for each in names]))

    async def _ask(self, stream: str, partitions: int | None, until: float | None, *, void: bool = False) -> int | None:
        return await self._engine.call(
            f"find the partitions of stream {stream!r}",
            self._driver.declare,
            stream,
            partitions,
            again=True,
            until=until,
            **({"void": True} if void else {}),
        )

    async def _is_void(self, until: float | None) -> bool:
        """Return whether this stream counts as a partition of one that has no such partition."""
        if (owner := owner_of(self._stream)) is None:
            return False
        stored = await self._ask(owner[0], None, until)
        return stored is not None and (stored == 1 or stored <= owner[1])

    async def _compare(self, stored: int | None, until: float | None) -> None:
        if stored == self._partitions:
            declared = self._engine.declared
            if len(declared) >= MOST:
                declared.clear()
            declared[self._stream] = stored
            self.made = True
            return
        if stored == PART:
            raise InvalidArgumentError(await self._describe_owner(until))
        has = "no partitions" if stored == 1 else f"{stored} partitions"
        raise InvalidArgumentError(
            f"stream {self._stream!r} has {has}, and this object was made {_with(self._partitions)}; make it "
            f"{_with(stored)}, choose another name, or delete the stream first"
        )

    async def _describe_owner(self, until: float | None) -> str:
        owner, partition = owner_of(self._stream) or ("another one", -1)
        if partition < 0:  # not from us
            return f"{self._stream!r} is stored as a partition of another stream; choose another name"
        text = f"{self._stream!r} is partition {partition} of stream {owner!r}; use that stream, or choose another name"
        if await self._ask(owner, None, until) is None:
            text += (
                f". The number of partitions of {owner!r} isn't stored: a process is about to store it, or has ended "
                f"before it did. In that case deleting stream {owner!r}, made with {MOST_PARTITIONS} partitions, "
                "frees the name"
            )
        return text


def _declaring(name: str, number: int | None) -> StreamRequest[int | None]:
    return lambda driver: driver.declare(name, number)


def _with(partitions: int | None) -> str:
    return "without partitions" if partitions == 1 else f"with partitions={partitions}"
