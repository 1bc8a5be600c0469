"""The states of many streams and groups, which are asked in pages."""

from collections.abc import Iterator

import pytest

import ailf
from ailf.cli.survey import AT_ONCE, GroupState, StreamState, Survey
from tests.support.servers import Server

PARTITIONS = {"wide": 2 * AT_ONCE, "half": AT_ONCE // 2, "two": 2}


@pytest.fixture(params=["memory", "redis"])
def backend(request: pytest.FixtureRequest, namespace: str) -> Iterator[ailf.Backend]:
    """A backend with more streams than fit in a page, some of which have partitions, groups and consumers."""
    server: Server | None = None if request.param == "memory" else request.getfixturevalue("any_server")
    url = f"memory://{namespace}" if server is None else f"{server.url}?namespace={namespace}"
    with ailf.connect(url) as backend:
        for number in range(AT_ONCE + 1):
            backend.stream(f"s{number:03}").add(number)
        for name, partitions in PARTITIONS.items():
            backend.stream(name, partitions=partitions).add_many(range(5))
        for name in ("s000", "s100", "two", "wide"):
            stream = backend.stream(name, partitions=PARTITIONS.get(name))
            stream.group("b").open()
            with stream.group("a").consumer("c") as consumer:
                assert consumer.get(timeout=5) is not None
        yield backend


def test_it_finds_what_the_api_finds(backend: ailf.Backend) -> None:
    """Each state is the one that the stream, the group or the consumer itself tells."""
    names = sorted(backend.streams())
    assert len(names) == AT_ONCE + 4
    found = Survey(backend).states(names)
    assert [each.name for each in found] == names
    expected = [_alone(backend, name) for name in names]
    assert [each.info for each in found] == [each.info for each in expected]
    for ours, alone in zip(found, expected, strict=True):
        assert [(each.name, each.info.lag, each.info.pending) for each in ours.groups] == [
            (each.name, each.info.lag, each.info.pending) for each in alone.groups
        ]
        assert [[each.name for each in group.consumers] for group in ours.groups] == [
            [each.name for each in group.consumers] for group in alone.groups
        ]


def _alone(backend: ailf.Backend, name: str) -> StreamState:
    """Return the state of a stream by the public API."""
    stream = backend.stream(name, partitions=PARTITIONS.get(name))
    groups = [stream.group(each) for each in stream.groups()]
    return StreamState(stream.info(), [GroupState(each.name, each.info(), tuple(each.consumers())) for each in groups])


def test_a_stream_that_is_gone(backend: ailf.Backend) -> None:
    """A stream that was deleted after it was listed has no entries and no groups, and disturbs no other one."""
    first, gone = Survey(backend).states(["s000", "gone"])
    assert (first.info.length, len(first.groups)) == (1, 2)
    assert (gone.info, gone.groups) == (ailf.StreamInfo("gone", entries_added=gone.info.entries_added), [])


def test_nothing_is_asked_about_nothing(backend: ailf.Backend) -> None:
    """Without a name there is no answer."""
    assert Survey(backend).states([]) == []
