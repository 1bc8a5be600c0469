"""The compatibility layer for programs for earlier AILF: the same names and signatures, on top of `ailf_redis`.

Keys and channels are the plain names, handlers get the plain payload, and entries are dicts. Two things differ on
purpose: errors are raised instead of logged and swallowed, and a new group starts at the beginning of the stream. New
code uses `ailf.connect`.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

import msgspec

try:
    from ailf_redis import RedisBackend
    from ailf_redis import RedisLock as _Lock
    from ailf_redis import RedisPubSub as _PubSub
    from ailf_redis import RedisRateLimiter as _RateLimiter
    from ailf_redis import RedisStream as _Stream
    from ailf_redis.client import AsyncRedisClient, RedisClient, RedisConfig
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("redis", "hiredis"):
        raise
    raise ModuleNotFoundError(
        "ailf.messaging.redis needs redis-py, which is not installed; run: pip install 'ailf[redis]'", name=error.name
    ) from error

from ailf.checks import check_count
from ailf.codecs import codec_for
from ailf.errors import BackendError, InvalidArgumentError, LeaseLostError, LockTimeoutError
from ailf.limits import SlidingWindow
from ailf.lock import Lease
from ailf.pubsub import Message
from ailf.runtime import run
from ailf.stream import Delivery
from ailf.values import EARLIEST, LATEST, Backoff

__all__ = [
    "AsyncRedisClient",
    "RedisClient",
    "RedisConfig",
    "RedisLock",
    "RedisPubSub",
    "RedisRateLimiter",
    "RedisStream",
]


_json = codec_for(Any)


class _JsonOrText:
    """JSON, or text if a body isn't JSON: the format of earlier AILF."""

    def encode(self, data: Any) -> bytes:
        return data if isinstance(data, bytes) else _json.encode(data)

    def decode(self, body: bytes, *, foreign: bool) -> Any:  # noqa: ARG002 - both are decoded alike
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError:
            return body.decode()


def _open(standalone: Any) -> RedisBackend:
    """Open the backend of a standalone object."""
    return RedisBackend((standalone._redis_client or RedisClient()).settings)  # noqa: SLF001 - one of the classes below


class RedisPubSub(_PubSub[Any], opens=_open):
    """Pub/sub on channels with their plain names.

    ::

        pubsub = RedisPubSub()
        pubsub.subscribe("news", print)
        pubsub.run_in_thread()

    Arguments:
        redis_client: The client, whose server is used; None for ``localhost:6379``.
    """

    def __init__(self, redis_client: RedisClient | None = None) -> None:
        super().__init__(type=_JsonOrText())
        self._redis_client = redis_client

    def publish(  # type: ignore[override]  # the result of earlier code
        self, channel: str, data: Any, *, headers: Mapping[str, str] | None = None
    ) -> int | None:
        """Publish; return the number of clients that received it, or None where the server can't count them."""
        counts = cast("Sequence[int] | None", run(self._flow.publish(channel, data, headers)))
        return None if counts is None else counts[0]

    def subscribe(self, channel: str, handler: Callable[[Any], Any], *, pattern: bool = False) -> None:
        """Let `run` call the handler with each payload of the channel; the subscription is confirmed on return."""
        self._flow.engine.runtime.check_callable(f"the handler for {channel!r}", handler)

        @functools.wraps(handler)  # a failure is logged under the handler's own name
        def plain(message: Message[Any]) -> Any:
            return handler(message.data)

        super().subscribe(channel, plain, pattern=pattern)

    def run_in_thread(  # type: ignore[override]  # the signature of earlier code
        self,
        daemon: bool = True,  # noqa: FBT001, FBT002
    ) -> threading.Thread:
        """Start `run` in a new thread and return the thread; `stop` or `close` ends it."""
        return super().run_in_thread(daemon=daemon)


class RedisStream(_Stream[Any], opens=_open):
    """A stream under its plain name.

    ::

        stream = RedisStream("tasks")
        stream.create_consumer_group("workers", "worker-1")
        for message in stream.read_group():
            stream.acknowledge(message["id"])

    Arguments:
        stream_name: The stream's key.
        redis_client: The client, whose server is used; None for ``localhost:6379``.
    """

    def __init__(self, stream_name: str, redis_client: RedisClient | None = None) -> None:
        super().__init__(stream_name)
        self._redis_client = redis_client
        self._unacknowledged: dict[str, Delivery[Any]] = {}
        self._reader: Any = None
        self._group: Any = None
        self._consumer_name: str | None = None

    def read(  # type: ignore[override]  # the signature of earlier code
        self, count: int = 10, block: int | None = None, last_id: str = "$"
    ) -> list[dict[str, Any]]:
        """Return entries after an id as ``{"id": …, "data": …}``.

        Arguments:
            count: The largest number of entries.
            block: Milliseconds to wait for the first entry; None for no wait.
            last_id: An id; "0" for the beginning; "$" for entries that are added from now on.

        Raises:
            BackendError: The server couldn't do it.
        """
        check_count("count", count)
        after = self._request(self._flow.driver.last_id, self.name) if last_id in ("$", LATEST) else last_id
        entries = self._after(after, count)
        if not entries and block is not None:
            return self._wait(after, count, block / 1000)
        return entries

    def _request(self, request: Callable[..., Any], *args: Any) -> Any:
        return run(self._flow.engine.call(f"read stream {self.name!r}", request, *args, again=True))

    def _after(self, after: str, count: int) -> list[dict[str, Any]]:
        records = run(self._flow.page(after, LATEST, count, after=True))
        return [{"id": entry.id, "data": entry.data} for entry in map(self._flow.entry, records)]

    def _wait(self, after: str, count: int, seconds: float) -> list[dict[str, Any]]:
        """Return the first entries that come after an id; none if none comes in time."""
        entries: list[dict[str, Any]] = []
        waiter = self._flow.driver.waiter(self.name, None)
        until = self._flow.engine.runtime.now() + seconds
        try:
            while not entries and (left := until - self._flow.engine.runtime.now()) > 0:
                self._request(waiter.wait, after, min(left, 1.0))
                entries = self._after(after, count)
        finally:
            run(waiter.close())
        return entries

    def create_consumer_group(  # type: ignore[override]  # the signature of earlier code
        self, group_name: str, consumer_name: str | None = None, start_id: str = "0"
    ) -> bool:
        """Create the group if it doesn't exist, and join it; return True.

        Arguments:
            group_name: The group's name.
            consumer_name: The name of this consumer, for operators.
            start_id: The position of a new group: "0" for the beginning, "$" for the end, or an id.
        """
        start = {"0": EARLIEST, "$": LATEST}.get(start_id, start_id)
        if (self._group and self._group.name, self._consumer_name) != (group_name, consumer_name):
            self._give_back()
        super().create_consumer_group(group_name, consumer_name, start=start)
        self._group = self.group(group_name, start=start, backoff=Backoff())
        self._consumer_name = consumer_name
        return True

    def read_group(self, count: int = 10, block: int | None = None, last_id: str = ">") -> list[dict[str, Any]]:
        """Take messages for this consumer as ``{"id": …, "data": …}``; `acknowledge` each when it is done.

        Arguments:
            count: The largest number of messages.
            block: Milliseconds to wait for the first message; None for no wait.
            last_id: ">" for new messages; anything else for those that were taken and not acknowledged.

        Raises:
            InvalidArgumentError: `create_consumer_group` was not called before.
            BackendError: The server couldn't do it.
        """
        if last_id != ">":
            return [{"id": each.id, "data": each.data} for each in self._unacknowledged.values()][:count]
        if self._group is None:
            raise InvalidArgumentError(
                f"can't read stream {self.name!r} without a group; call create_consumer_group(group, consumer) first"
            )
        if self._reader is None:
            self._reader = self._group.consumer(self._consumer_name, prefetch=count)
        taken: list[Delivery[Any]] = []
        try:
            while len(taken) < count and (delivery := self._reader.get(0 if taken or block is None else block / 1000)):
                taken.append(delivery)
                self._unacknowledged[delivery.id] = delivery
        except BackendError:
            if not taken:  # otherwise return the messages taken; the next call raises the error if it persists
                raise
        return [{"id": delivery.id, "data": delivery.data} for delivery in taken]

    def acknowledge(self, message_id: str) -> bool:
        """Settle a message as done; return False for an id that `read_group` didn't return.

        Raises:
            LeaseLostError: The lease of the message has ended; another consumer may have it.
            BackendError: The server couldn't do it. Call again: the message is still leased.
        """
        delivery = self._unacknowledged.get(message_id)
        if delivery is None:
            return False
        try:
            delivery.ack()
        except LeaseLostError:
            self._unacknowledged.pop(message_id, None)
            raise
        self._unacknowledged.pop(message_id, None)
        return True

    def process_messages(  # type: ignore[override]  # the signature of earlier code
        self,
        processor: Callable[[Any], Any],
        count: int = 10,
        block: int = 1000,  # noqa: ARG002 - a worker chooses the length of its waits
    ) -> None:
        """Call the processor with each payload until `stop`; if it returns False or raises, the message is retried."""
        super().process_messages(processor, prefetch=count)

    def process_in_thread(
        self, processor: Callable[[Any], Any], count: int = 10, block: int = 1000, *, daemon: bool = True
    ) -> threading.Thread:
        """Start `process_messages` in a new thread and return the thread; `stop` ends it."""
        thread = threading.Thread(
            target=self.process_messages, args=(processor, count, block), name="ailf-stream-process", daemon=daemon
        )
        thread.start()
        return thread

    def close(self) -> None:
        """End `process_messages`, release the messages that `read_group` took, and close the connection."""
        self._give_back()
        super().close()

    def _give_back(self) -> None:
        reader, self._reader = self._reader, None
        self._unacknowledged.clear()
        if reader is not None:
            reader.close()


class RedisLock(_Lock, opens=_open):
    """A lock with one holder per object, as in earlier AILF; `with` closes it.

    ::

        with RedisLock("report").acquire_context() as acquired:
            if acquired: ...

    Arguments:
        lock_name: The lock's name.
        expire: Seconds after which the lock is free again unless it was released; it is not renewed.
        redis_client: The client, whose server is used; None for ``localhost:6379``.
    """

    def __init__(self, lock_name: str, expire: float = 10, redis_client: RedisClient | None = None) -> None:
        super().__init__(lock_name, ttl=expire, renew=False)
        self._redis_client = redis_client
        self._lease: Lease | None = None

    def __enter__(self) -> Self:  # type: ignore[override]  # as in earlier code, which acquires by `acquire`
        """Return the object itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the object."""
        self.close()

    def acquire(  # type: ignore[override]  # the signature of earlier code
        self, retry: int = 3, retry_delay: float = 0.2
    ) -> bool:
        """Acquire the lock; return False if that fails within ``(retry - 1) * retry_delay`` seconds."""
        try:
            self._lease = super().acquire(max(0, retry - 1) * retry_delay).hand_over()  # it is the object's
        except LockTimeoutError:
            return False
        return True

    def release(self) -> bool:
        """Release the lock; return False if this object didn't hold it any more."""
        lease, self._lease = self._lease, None
        if lease is None:
            return False
        try:
            lease.release()
        except LeaseLostError:
            return False
        return True

    @contextlib.contextmanager
    def acquire_context(self, retry: int = 3, retry_delay: float = 0.2) -> Iterator[bool]:
        """Acquire the lock for a ``with`` block; the value of the block is whether that succeeded."""
        acquired = self.acquire(retry, retry_delay)
        try:
            yield acquired
        finally:
            if acquired:
                self.release()


class RedisRateLimiter(_RateLimiter, opens=_open):
    """A rate limiter that allows ``rate`` calls per key in any ``period`` seconds, as in earlier AILF.

    ::

        if RedisRateLimiter("api", rate=10, period=1).is_allowed("alice"): ...

    Arguments:
        key_prefix: The limiter's name.
        rate: The number of calls.
        period: The length of the sliding window in seconds.
        redis_client: The client, whose server is used; None for ``localhost:6379``.
    """

    def __init__(
        self, key_prefix: str, rate: int = 10, period: float = 1, redis_client: RedisClient | None = None
    ) -> None:
        super().__init__(key_prefix, SlidingWindow(rate, per=float(period)))
        self._redis_client = redis_client

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the object."""
        self.close()

    def is_allowed(self, key: str) -> bool:
        """Return whether a call of this key is allowed now; an allowed call counts."""
        return self.try_acquire(key).allowed
