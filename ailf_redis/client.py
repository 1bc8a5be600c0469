"""`RedisClient` and `AsyncRedisClient`: a redis-py client with safe settings and a few helpers, for earlier AILF code.

New code uses the backend instead: ``backend.unwrap(redis.Redis)`` returns the raw client.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import msgspec
import redis
import redis.asyncio
from redis.exceptions import DataError, RedisError

from ailf.codecs import codec_for
from ailf.errors import DecodeError, EncodeError, InvalidArgumentError
from ailf_redis.errors import mapped
from ailf_redis.raw_client import RawClient
from ailf_redis.settings import Settings

__all__ = ["AsyncRedisClient", "RedisClient", "RedisConfig"]

_NEVER_SENT = (ConnectionRefusedError, socket.gaierror)
"""Errors that only connecting raises: nothing was sent. redis-py wraps them like the errors of a broken connection."""


@attrs.frozen
class RedisConfig:
    """The options of earlier AILF code; `Settings` has more.

    Example::

        client = RedisClient(RedisConfig(host="redis.example.com", db=1))

    Attributes:
        host: Name or address.
        port: TCP port.
        db: Database number.
        password: The default user's password.
        ssl: Whether to use TLS; the certificate chain and the host name are verified.
        socket_timeout: Seconds for one reply.
        socket_connect_timeout: Seconds for making a connection.
        socket_keepalive: Whether TCP keepalive is on.
        max_connections: The most connections in use at once.
        decode_responses: Whether the raw client returns text instead of bytes.
    """

    host: str = "localhost"
    port: int = 6379
    db: int = 0
    password: str | None = attrs.field(default=None, repr=False)
    ssl: bool = False
    socket_timeout: float = 5.0
    socket_connect_timeout: float = 5.0
    socket_keepalive: bool = True
    max_connections: int = 10
    decode_responses: bool = True

    def settings(self) -> Settings:
        """Return these options as `Settings`, with plain key and channel names."""
        return Settings(
            host=self.host,
            port=self.port,
            db=self.db,
            password=self.password,
            tls=self.ssl,
            timeout=self.socket_timeout,
            connect_timeout=self.socket_connect_timeout,
            keepalive=self.socket_keepalive,
            max_connections=self.max_connections,
            namespace="",
        )


class _ClientBase:
    """The shared implementation: options, and redis-py's errors as ailf's."""

    def __init__(self, config: RedisConfig | None = None) -> None:
        self.config = config or RedisConfig()
        self.settings = self.config.settings()

    def _options(self, *, on_asyncio: bool) -> dict[str, Any]:
        return {**self.settings.client_options(on_asyncio=on_asyncio), "decode_responses": self.config.decode_responses}

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise InvalidArgumentError(
                "a value must be text, bytes or a number; use set_json for anything else"
            ) from error
        except UnicodeDecodeError as error:
            raise DecodeError(
                f"a value of {len(error.object)} bytes is not UTF-8; with RedisConfig(decode_responses=False) the "
                "client returns bytes"
            ) from error
        except (RedisError, OSError) as error:
            sent = not isinstance(error.__cause__ or error.__context__ or error, _NEVER_SENT)
            raise mapped(error, self.settings.url, sent=sent) from error

    def _decoded(self, key: str, raw: Any) -> Any:
        if raw is None:
            return None
        try:
            return msgspec.json.decode(raw)
        except msgspec.MsgspecError as error:
            raise DecodeError(f"the value of key {key!r} ({len(raw)} long) is not JSON") from error


class RedisClient(_ClientBase):
    """A blocking client. It connects at the first call.

    Every method raises a subclass of `ailf.BackendError` if the server is unavailable or refuses the command.

    Example::

        client = RedisClient()
        client.set_json("user:1", {"name": "Ann"}, expire=60)
        client.get_json("user:1")  # {"name": "Ann"}
    """

    def __init__(self, config: RedisConfig | None = None) -> None:
        super().__init__(config)
        self._client: redis.Redis | None = None

    @property
    def client(self) -> redis.Redis:
        """The raw redis-py client."""
        if self._client is None:
            self._client = redis.Redis(**self._options(on_asyncio=False))
        return self._client

    def connect(self) -> "RedisClient":
        """Check that the server replies; return this object."""
        with self._mapped():
            self.client.ping()
        return self

    def close(self) -> None:
        """Close the connections; the next call connects again."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def pipeline(self) -> Any:
        """Return redis-py's pipeline."""
        return self.client.pipeline()

    def get(self, key: str) -> Any:
        """Return the value of a key, or None."""
        with self._mapped():
            return self.client.get(key)

    def set(self, key: str, value: Any, expire: int | None = None) -> bool:
        """Set a key; it expires after `expire` seconds, or never if that is None."""
        with self._mapped():
            return bool(self.client.set(key, value, ex=expire))

    def delete(self, key: str) -> bool:
        """Delete a key; return whether it existed."""
        with self._mapped():
            return bool(self.client.delete(key))

    def exists(self, key: str) -> bool:
        """Return whether a key exists."""
        with self._mapped():
            return bool(self.client.exists(key))

    def set_json(self, key: str, value: Any, expire: int | None = None) -> bool:
        """Set a key to a value as JSON."""
        return self.set(key, _encoded(value), expire)

    def get_json(self, key: str) -> Any:
        """Return the value of a key, decoded from JSON, or None."""
        return self._decoded(key, self.get(key))

    def publish(self, channel: str, message: Any) -> int:
        """Publish text or bytes, or anything else as JSON; return how many of this server's clients received it."""
        with self._mapped():
            return int(self.client.publish(channel, _body(message)))

    def health_check(self) -> bool:
        """Return whether the server replies to a PING."""
        try:
            return bool(self.client.ping())
        except (RedisError, OSError):
            return False


class AsyncRedisClient(_ClientBase):
    """An asyncio client. It connects at the first call.

    Every method raises a subclass of `ailf.BackendError` if the server is unavailable or refuses the command.

    Example::

        client = AsyncRedisClient()
        await client.set_json("user:1", {"name": "Ann"}, expire=60)
        await client.get_json("user:1")  # {"name": "Ann"}
    """

    def __init__(self, config: RedisConfig | None = None) -> None:
        super().__init__(config)
        self._raw = RawClient(lambda: redis.asyncio.Redis(**self._options(on_asyncio=True)))

    @property
    def client(self) -> redis.asyncio.Redis:
        """The raw redis-py client; a new one is made for the next event loop when the last one has ended."""
        return self._raw.get()

    async def connect(self) -> "AsyncRedisClient":
        """Check that the server replies; return this object."""
        with self._mapped():
            await self.client.ping()
        return self

    async def close(self) -> None:
        """Close the connections; the next call connects again."""
        await self._raw.aclose()

    def pipeline(self) -> Any:
        """Return redis-py's pipeline."""
        return self.client.pipeline()

    async def get(self, key: str) -> Any:
        """Return the value of a key, or None."""
        with self._mapped():
            return await self.client.get(key)

    async def set(self, key: str, value: Any, expire: int | None = None) -> bool:
        """Set a key; it expires after `expire` seconds, or never if that is None."""
        with self._mapped():
            return bool(await self.client.set(key, value, ex=expire))

    async def delete(self, key: str) -> bool:
        """Delete a key; return whether it existed."""
        with self._mapped():
            return bool(await self.client.delete(key))

    async def exists(self, key: str) -> bool:
        """Return whether a key exists."""
        with self._mapped():
            return bool(await self.client.exists(key))

    async def set_json(self, key: str, value: Any, expire: int | None = None) -> bool:
        """Set a key to a value as JSON."""
        return await self.set(key, _encoded(value), expire)

    async def get_json(self, key: str) -> Any:
        """Return the value of a key, decoded from JSON, or None."""
        return self._decoded(key, await self.get(key))

    async def publish(self, channel: str, message: Any) -> int:
        """Publish text or bytes, or anything else as JSON; return how many of this server's clients received it."""
        with self._mapped():
            return int(await self.client.publish(channel, _body(message)))

    async def health_check(self) -> bool:
        """Return whether the server replies to a PING."""
        try:
            return bool(await self.client.ping())
        except (RedisError, OSError):
            return False


def _body(message: Any) -> bytes | str:
    return message if isinstance(message, bytes | str) else _encoded(message)


def _encoded(value: Any) -> bytes:
    try:
        return codec_for(Any).encode(value)
    except Exception as error:
        raise EncodeError(f"a value of type {type(value).__name__} has no JSON form: {error}") from error
