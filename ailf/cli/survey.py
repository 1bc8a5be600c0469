"""The states of many streams and groups. Questions that don't depend on each other go in pages, a round trip for each.

`StreamDriver.together` sends a page at once. A stream counts in its page as often as it has partitions, each of which
is asked by itself.
"""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import attrs
from msgspec.structs import replace

from ailf.backend import Backend
from ailf.cli.targets import partitioned
from ailf.driver import StreamDriver, StreamRequest
from ailf.driver.listing import MOST_LISTED
from ailf.runtime import run
from ailf.stream.group_flow import TAKEOVER, consumer_info
from ailf.stream.partitions import every, pages
from ailf.values import ConsumerInfo, GroupInfo, StreamInfo

__all__ = ["GroupState", "StreamState", "Survey", "left_out", "openable"]

K = TypeVar("K", str, tuple[str, str])
T = TypeVar("T")

Question: TypeAlias = Callable[[StreamDriver, K], Coroutine[Any, Any, T]]
"""A question about a stream, or about a group, which is named by its stream and its name."""

MOST_NAMED: Final = 3

AT_ONCE: Final = 100
"""The most questions of one page."""


@attrs.frozen
class GroupState:
    """A group.

    Attributes:
        name: The group's name.
        info: Its state.
        consumers: Its consumers; none where they were not asked for.
    """

    name: str
    info: GroupInfo
    consumers: Sequence[ConsumerInfo] = ()


@attrs.frozen
class StreamState:
    """A stream with its groups.

    Attributes:
        info: The stream's state.
        groups: Its groups, sorted by name.
    """

    info: StreamInfo
    groups: Sequence[GroupState] = ()

    @property
    def name(self) -> str:
        """The stream's name."""
        return self.info.name


class Survey:
    """Asks for the states of streams; it remembers their numbers of partitions.

    Arguments:
        backend: The backend, which has `Capability.LISTING`.
    """

    def __init__(self, backend: Backend) -> None:
        self._engine = backend.engine
        self._driver = backend.engine.driver.stream()
        self._numbers: dict[str, int] = {}

    def streams(self, names: Sequence[str]) -> Iterator[StreamInfo]:
        """Yield the states of streams, page by page, in this order."""
        infos = self._ask("inspect streams", names, lambda driver, name: driver.stream_info(name))
        for name, info in infos:
            yield replace(info, partitions=self._numbers[name])

    def groups(self, streams: Iterable[StreamInfo]) -> dict[tuple[str, str], GroupInfo]:
        """Return the states of all groups of these streams, by the names of stream and group.

        They are in the order of the streams, and those of a stream in that of their names.
        """
        names = [each.name for each in streams if each.groups]
        listed = self._ask("list groups", names, lambda driver, name: driver.list_groups(name, "", MOST_LISTED))
        return self.group_infos((name, group) for name, groups in listed for group in openable(groups)[0])

    def states(self, names: Sequence[str]) -> list[StreamState]:
        """Return the states of streams, of their groups, and of the consumers of these, in the order of the names."""
        infos = list(self.streams(names))
        groups = self.groups(infos)
        asked = self._ask(
            "list the consumers of groups",
            list(groups),
            lambda driver, pair: driver.list_consumers(*pair, "", MOST_LISTED),
        )
        by_stream: dict[str, list[GroupState]] = {name: [] for name in names}
        for (stream, group), consumers in asked:
            found = tuple(consumer_info(each, TAKEOVER) for each in consumers)
            by_stream[stream].append(GroupState(group, groups[stream, group], found))
        return [StreamState(info, by_stream[info.name]) for info in infos]

    def group_infos(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], GroupInfo]:
        """Return the states of groups, by the names of stream and group, in this order."""
        return dict(self._ask("inspect groups", list(pairs), lambda driver, pair: driver.info(*pair)))

    def _ask(self, what: str, keys: Sequence[K], question: Question[K, T]) -> Iterator[tuple[K, T]]:
        """Yield each stream, or pair of stream and group, with the answer to a question about it, page by page.

        Raises:
            AilfError: The first error of a page.
        """
        self._look_up({_stream_of(each): None for each in keys})
        for page in self._pages(keys):
            answers = self._answers(what, [self._request(each, question) for each in page])
            yield from zip(page, answers, strict=True)

    def _look_up(self, names: Iterable[str]) -> None:
        """Ask for the numbers of partitions that aren't known yet."""
        for page in pages([each for each in names if each not in self._numbers], AT_ONCE):
            stored = self._answers("find the partitions of streams", [_declared(each) for each in page])
            self._numbers |= {name: number or 1 for name, number in zip(page, stored, strict=True)}

    def _answers(self, what: str, requests: Sequence[StreamRequest[T]]) -> list[T]:
        return run(self._engine.call(what, self._together, requests, again=True))

    async def _together(self, requests: Sequence[StreamRequest[T]]) -> list[T]:
        return every(await self._driver.together(requests))

    def _request(self, key: K, question: Question[K, T]) -> StreamRequest[T]:
        """Return a request for a stream, or for each of its partitions."""
        name = _stream_of(key)
        number = self._numbers[name]
        return lambda driver: question(partitioned(self._engine, driver, name, number), key)

    def _pages(self, keys: Sequence[K]) -> Iterator[list[K]]:
        """Yield pages; one has a single stream with more partitions than fit."""
        page: list[K] = []
        size = 0
        for each in keys:
            number = self._numbers[_stream_of(each)]
            if page and size + number > AT_ONCE:
                yield page
                page, size = [], 0
            page.append(each)
            size += number
        if page:
            yield page


def openable(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the names of streams, or groups, that can be opened, and the others, each once and sorted.

    Another program's name need not be UTF-8. It is listed with lone surrogates, and nothing can be opened by it.
    """
    good: list[str] = []
    bad: list[str] = []
    for each in sorted(set(names)):
        (bad if any("\ud800" <= char <= "\udfff" for char in each) else good).append(each)
    return good, bad


def left_out(what: str, names: Sequence[str]) -> str:
    """Return that streams or groups, as ``what`` says, are left out because of their names."""
    shown = ", ".join(map(repr, names[:MOST_NAMED]))
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return f"left out because the name isn't UTF-8, so that ailf can't open the {what}: {shown}{more}"


def _stream_of(key: str | tuple[str, str]) -> str:
    """Return the stream that a question is about."""
    return key if isinstance(key, str) else key[0]


def _declared(name: str) -> StreamRequest[int | None]:
    """Return a request for the stored number of partitions of a stream."""
    return lambda driver: driver.declare(name, None)
