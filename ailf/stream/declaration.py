"""Whether the objects of a stream agree on its number of partitions, so that none writes where no other reads.

The backend is asked once for each stream: `Engine.declared` remembers the stored numbers. An object that was given
another number than the remembered one asks again, as the stream may have been deleted meanwhile.
"""

from ailf.driver import StreamDriver
from ailf.engine import Engine
from ailf.errors import InvalidArgumentError

__all__ = ["Declaration"]

MOST = 4096
"""The most streams whose numbers are remembered."""

PART = 0
"""What is stored for a stream that is a partition of another one."""


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

    __slots__ = ("_driver", "_engine", "_names", "_partitions", "_stream", "made")

    def __init__(
        self, engine: Engine, driver: StreamDriver, stream: str, partitions: int = 1, names: tuple[str, ...] = ()
    ) -> None:
        self._engine = engine
        self._driver = driver
        self._stream = stream
        self._partitions = partitions
        self._names = names
        self.made = engine.declared.get(stream) == partitions

    async def make(self, until: float | None = None) -> None:
        """Store the number if none is stored: before the first request that adds an entry or makes a group.

        Arguments:
            until: As for `Engine.call`.

        Raises:
            InvalidArgumentError: Another number is stored.
        """
        stored = await self._ask(self._stream, None, until) if self._names else None
        if stored is None:
            await self._reserve(until)
            stored = await self._ask(self._stream, self._partitions, until)
        self._compare(stored)

    async def check(self, until: float | None = None) -> None:
        """Compare the number before a request that makes nothing; nothing is stored.

        A stream without a number doesn't exist, so it is asked again before the next request.

        Raises:
            InvalidArgumentError: Another number is stored.
        """
        stored = await self._ask(self._stream, None, until)
        if stored is not None:
            self._compare(stored)

    async def stored(self) -> int:
        """Return the stored number, whatever number the object was given; for a stream without one, the object's.

        Raises:
            InvalidArgumentError: The stream is a partition of another one.
        """
        if self.made:
            return self._partitions
        stored = await self._ask(self._stream, None, None)
        if stored == PART:
            self._compare(stored)
        return self._partitions if stored is None else stored

    async def make_again(self) -> None:
        """Store the number again: data of the stream have vanished from the backend, perhaps with the number.

        Raises:
            InvalidArgumentError: Another number is stored.
        """
        self.forget()
        self._compare(await self._ask(self._stream, self._partitions, 0.0))

    def forget(self) -> None:
        """Ask again before the next request: the stream is deleted."""
        self.made = False
        self._engine.declared.pop(self._stream, None)

    async def _reserve(self, until: float | None) -> None:
        """Store that the partitions are partitions, unless one of these names is in use as a stream of its own.

        That comes before the number of the whole stream is stored: so the number says that this was done.
        """
        for number in (None, PART):
            for name in self._names:
                if await self._ask(name, number, until) not in {None, PART}:
                    raise InvalidArgumentError(
                        f"stream {self._stream!r} with partitions={self._partitions} needs {name!r} as a partition, "
                        "but that is a stream of its own; choose another name, or delete that stream first"
                    )

    async def _ask(self, stream: str, partitions: int | None, until: float | None) -> int | None:
        return await self._engine.call(
            f"find the partitions of stream {stream!r}",
            self._driver.declare,
            stream,
            partitions,
            again=True,
            until=until,
        )

    def _compare(self, stored: int | None) -> None:
        if stored == self._partitions:
            declared = self._engine.declared
            if len(declared) >= MOST:
                declared.clear()
            declared[self._stream] = stored
            self.made = True
            return
        if stored == PART:
            raise InvalidArgumentError(
                f"{self._stream!r} is a partition of another stream; open that stream, or choose another name"
            )
        has = "no partitions" if stored == 1 else f"{stored} partitions"
        raise InvalidArgumentError(
            f"stream {self._stream!r} has {has}, and this object was made {_with(self._partitions)}; make it "
            f"{_with(stored)}, choose another name, or delete the stream first"
        )


def _with(partitions: int | None) -> str:
    return "without partitions" if partitions == 1 else f"with partitions={partitions}"
