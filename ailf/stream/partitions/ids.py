"""Which partition a message goes to, the names of partitions, and ids that tell their partition. All of it is pure.

A stream ``tasks`` with 16 partitions consists of the streams ``tasks/0`` to ``tasks/15``. The id of an entry is the
number of its partition, a colon, and the entry's id in there: ``3:1700000000000-0``.
"""

import re
import zlib
from typing import Final

from ailf.driver import StreamDriver
from ailf.errors import InvalidArgumentError
from ailf.values import EARLIEST, LATEST

__all__ = [
    "MOST_PARTITIONS",
    "PART",
    "join_id",
    "owner_of",
    "partition_names",
    "partition_of_key",
    "position_after_time",
    "position_behind_all",
    "position_in",
    "split_id",
    "within",
]

MOST_PARTITIONS: Final = 256
"""The most partitions of a stream: `Group.info`, and opening or closing a consumer, ask each of them."""

PART: Final = 0
"""The number that is stored for a stream that is a partition of another one."""

LAST_TIME: Final = 1.8e16
"""Seconds since 1970: a later time, which only another program's id tells, has no id in other partitions."""

_NAME: Final = re.compile(r"(.+)/(0|[1-9][0-9]{0,2})", re.DOTALL | re.ASCII)
_ID: Final = re.compile(r"(0|[1-9][0-9]{0,2}):(.+)", re.DOTALL)


def partition_of_key(key: str, partitions: int) -> int:
    """Return the partition of an ordering key: the CRC-32 of its UTF-8 bytes, modulo the number of partitions.

    It is the CRC-32 of zlib, gzip and PNG (ISO 3309). Every version and every process puts a key in the same partition.

    >>> from ailf.stream.partitions.ids import partition_of_key
    >>> [partition_of_key(key, 16) for key in ("customer-7", "customer-8", "order-1")]
    [8, 9, 15]
    """
    return zlib.crc32(key.encode()) % partitions


def partition_names(stream: str, partitions: int) -> tuple[str, ...]:
    """Return the names of the streams that are the partitions."""
    return tuple(f"{stream}/{each}" for each in range(partitions))


def owner_of(name: str) -> tuple[str, int] | None:
    """Return the stream of which a stream of this name may be a partition, and the number of that partition.

    >>> from ailf.stream.partitions.ids import owner_of
    >>> owner_of("tasks/3"), owner_of("tasks")
    (('tasks', 3), None)
    """
    match = _NAME.fullmatch(name)
    return None if match is None else (match[1], int(match[2]))


def join_id(partition: int, inner: str) -> str:
    """Return the id of an entry or a dead letter, given its id within its partition."""
    return f"{partition}:{inner}"


def split_id(text: str, partitions: int, what: str = "an entry") -> tuple[int, str]:
    """Return the partition of an id, and the id within that partition.

    Raises:
        InvalidArgumentError: This is not the id of an entry of a stream with that number of partitions.
    """
    match = _ID.fullmatch(text)
    if match is None or int(match[1]) >= partitions:
        raise InvalidArgumentError(
            f"{text!r} is not the id of {what} of a stream with {partitions} partitions: it begins with a partition's "
            f"number and a colon, as in '{partitions - 1}:1700000000000-0'; use one that this stream returned"
        )
    return int(match[1]), match[2]


def within(text: str, partition: int, error: InvalidArgumentError) -> InvalidArgumentError:
    """Return the error for an id whose part within its partition is wrong, given the error for that part."""
    return InvalidArgumentError(f"{text!r}: in partition {partition} {error}")


def position_in(driver: StreamDriver, partition: int, position: str, partitions: int) -> str:
    """Return in one partition what a position of the whole stream is: entries are in order of time, partition and id.

    Arguments:
        driver: The driver of the partitions.
        partition: The partition.
        position: An id, EARLIEST or LATEST.
        partitions: The number of partitions.

    Raises:
        InvalidArgumentError: ``position`` is not a position.
    """
    if position in {EARLIEST, LATEST}:
        return position
    own, inner = split_id(position, partitions)
    try:
        time = min(driver.time_of(inner), LAST_TIME)
    except InvalidArgumentError as error:
        raise within(position, own, error) from error
    if partition == own:
        return inner
    return position_after_time(driver, time) if partition < own else driver.id_before(time)


def position_behind_all(driver: StreamDriver) -> str:
    """Return an id behind all entries: a wait there ends when its time is over, and tells that the server replies."""
    return driver.id_before(LAST_TIME)


def position_after_time(driver: StreamDriver, time: float) -> str:
    """Return an id after all entries that were added in the millisecond of a time, and before all later ones."""
    return driver.id_before((round(time * 1000) + 1) / 1000)
