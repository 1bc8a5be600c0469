"""The streams and groups that a command names. One that doesn't exist is an error of exit code `NOT_FOUND`."""

from typing import Any

from ailf.backend import Backend
from ailf.cli.exits import NOT_FOUND, CommandError
from ailf.driver import StreamDriver
from ailf.engine import Engine
from ailf.runtime import run
from ailf.stream import Group, Stream
from ailf.stream.partitions import PartitionedDriver, Partitions

__all__ = ["existing_group", "existing_stream", "partitioned", "partitions_of", "stream_of"]


def stream_of(backend: Backend, name: str, type: Any = Any) -> Stream[Any]:
    """Return a stream, which need not exist, with the number of partitions that the backend has stored for it."""
    return _with_partitions(backend, name, partitions_of(backend, name), type)


def existing_stream(backend: Backend, name: str, type: Any = Any) -> Stream[Any]:
    """Return a stream as `stream_of` does.

    Raises:
        CommandError: It doesn't exist.
    """
    number = partitions_of(backend, name)
    if number is None:
        raise CommandError(f"there is no stream {name!r}; `ailf streams` lists those that exist", NOT_FOUND)
    return _with_partitions(backend, name, number, type)


def existing_group(backend: Backend, stream: str, group: str) -> Group[Any]:
    """Return a group.

    Raises:
        CommandError: It doesn't exist, or its stream doesn't.
    """
    found = existing_stream(backend, stream).group(group)
    if not found.info().exists:
        raise CommandError(
            f"stream {stream!r} has no group {group!r}; `ailf groups STREAM` lists those that exist", NOT_FOUND
        )
    return found


def partitions_of(backend: Backend, name: str) -> int | None:
    """Return the number of partitions of a stream; 1 for an ordinary one, and None for one that doesn't exist."""
    backend.stream(name)  # refuses a bad name, and a backend without streams
    if (known := backend.engine.declared.get(name)) is not None:
        return known
    driver = backend.engine.driver.stream()
    return run(backend.engine.call(f"look up stream {name!r}", driver.declare, name, None, again=True))


def partitioned(engine: Engine, driver: StreamDriver, name: str, number: int) -> StreamDriver:
    """Return the driver of a stream with this number of partitions, over the one that asks each partition."""
    if number <= 1:
        return driver
    partitions = Partitions(name, number, engine.runtime.lease_now)
    return PartitionedDriver(driver, partitions, engine.runtime, engine.driver.timeout)


def _with_partitions(backend: Backend, name: str, number: int | None, type: Any) -> Stream[Any]:
    partitions = None if number is None or number <= 1 else number
    return backend.stream(name, type=type, partitions=partitions)
