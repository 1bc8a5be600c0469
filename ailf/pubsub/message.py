"""The messages of a channel: `Message` and `AsyncMessage`, values that can also send a reply to a request."""

from collections.abc import Mapping
from typing import Any, Generic, Protocol

import msgspec

from ailf.errors import InvalidArgumentError
from ailf.payload_types import T_co
from ailf.runtime import run

__all__ = ["Answer", "AsyncMessage", "Message"]


class Answer(Protocol):
    """Sends the reply to a request, or the news that it failed."""

    async def __call__(self, data: Any, headers: Mapping[str, str] | None, failed: str = "") -> None:
        """Send `data` and `headers`, or, if it is not empty, the text `failed` instead of them."""


class Message(msgspec.Struct, Generic[T_co], frozen=True, eq=False):
    """One message of a channel. Two messages are equal if channel, data and headers are equal.

    Attributes:
        channel: The channel on which it was published.
        data: The payload, decoded.
        headers: The publisher's headers.
        answer: The function that `reply` sends the reply to a request with; None for a message that isn't a request.
        backend: The URL of the backend that it came from, without credentials; "" for one that a program has made.

    Example:
        >>> from ailf import Message
        >>> Message("news", {"title": "hello"}, {"lang": "en"}).data["title"]
        'hello'
    """

    channel: str
    data: T_co
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    answer: Answer | None = None
    backend: str = ""

    def reply(self, data: Any, *, headers: Mapping[str, str] | None = None) -> None:
        """Send a reply to this request. A requester that has stopped waiting ignores it.

        Raises:
            InvalidArgumentError: The message was published, not requested.
            EncodeError: The payload can't be written as JSON.
            BackendError: The backend couldn't do it.
        """
        run(self._reply(data, headers))

    async def _reply(self, data: Any, headers: Mapping[str, str] | None) -> None:
        if self.answer is None:
            raise InvalidArgumentError(
                f"can't reply to a message of channel {self.channel!r}: it was published, not requested"
            )
        await self.answer(data, headers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return (self.channel, self.data, self.headers) == (other.channel, other.data, other.headers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(channel={self.channel!r}, data={self.data!r}, headers={self.headers!r})"

    __hash__ = None  # type: ignore[assignment]  # a payload may be anything


class AsyncMessage(Message[T_co], frozen=True, eq=False):
    """One message of a channel, for asyncio. Two messages are equal if channel, data and headers are equal.

    Attributes:
        channel: The channel on which it was published.
        data: The payload, decoded.
        headers: The publisher's headers.
        answer: The function that `reply` sends the reply to a request with; None for a message that isn't a request.
        backend: The URL of the backend that it came from, without credentials; "" for one that a program has made.

    Example:
        >>> from ailf import AsyncMessage
        >>> AsyncMessage("news", {"title": "hello"}, {"lang": "en"}).data["title"]
        'hello'
    """

    async def reply(  # type: ignore[override]  # it is awaited, as everything of this flavour
        self, data: Any, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a reply to this request. A requester that has stopped waiting ignores it.

        Raises:
            InvalidArgumentError: The message was published, not requested.
            EncodeError: The payload can't be written as JSON.
            BackendError: The backend couldn't do it.
        """
        await self._reply(data, headers)
