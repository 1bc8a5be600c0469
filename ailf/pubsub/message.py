"""What arrives on a channel: `Message` and `AsyncMessage`, values that know how to answer who asked."""

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from ailf.errors import InvalidArgumentError
from ailf.runtime import run

__all__ = ["Answer", "AsyncMessage", "Message"]

T_co = TypeVar("T_co", covariant=True)


class Answer(Protocol):
    """Sends a reply, or word that there will be none."""

    async def __call__(self, data: Any, headers: Mapping[str, str] | None, failed: str = "") -> None:
        """Send the payload; or, instead of one, what failed."""


class Message(msgspec.Struct, Generic[T_co], frozen=True, eq=False):
    """One message of a channel. Two are equal when channel, data and headers are.

    Attributes:
        channel: The channel it was published on.
        data: The payload, decoded.
        headers: What the publisher put beside the payload.
        answer: How to reach who waits for a reply (`PubSub.request`); None where nobody does. Use `reply`.
    """

    channel: str
    data: T_co
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    answer: Answer | None = None

    def reply(self, data: Any, *, headers: Mapping[str, str] | None = None) -> None:
        """Answer who asked. Who has given up meanwhile gets nothing.

        Raises:
            InvalidArgumentError: Nobody asked: it was published, not requested.
            EncodeError: The payload has no JSON form.
            BackendError: The backend couldn't do it.
        """
        run(self._answered(data, headers))

    async def _answered(self, data: Any, headers: Mapping[str, str] | None) -> None:
        if self.answer is None:
            raise InvalidArgumentError(f"a message of channel {self.channel!r} was published, not requested: no reply")
        await self.answer(data, headers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return (self.channel, self.data, self.headers) == (other.channel, other.data, other.headers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(channel={self.channel!r}, data={self.data!r}, headers={self.headers!r})"

    __hash__ = None  # type: ignore[assignment]  # a payload may be anything


class AsyncMessage(Message[T_co], frozen=True, eq=False):
    """One message of a channel, for asyncio. Two are equal when channel, data and headers are.

    Attributes:
        channel: The channel it was published on.
        data: The payload, decoded.
        headers: What the publisher put beside the payload.
        answer: How to reach who waits for a reply (`PubSub.request`); None where nobody does. Use `reply`.
    """

    async def reply(  # type: ignore[override]  # it is awaited, as everything of this flavour
        self, data: Any, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer who asked. Who has given up meanwhile gets nothing.

        Raises:
            InvalidArgumentError: Nobody asked: it was published, not requested.
            EncodeError: The payload has no JSON form.
            BackendError: The backend couldn't do it.
        """
        await self._answered(data, headers)
