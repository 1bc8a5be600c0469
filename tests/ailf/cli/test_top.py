"""The rates of top, and what it doesn't look at."""

import uuid

import ailf
from ailf.cli.top import Sample, rate, rows
from ailf.values import GroupInfo, StreamInfo
from tests.support.commands import run


def sample(at: float, length: int, *groups: GroupInfo) -> Sample:
    """Return a sample of the stream ``s`` with groups ``g0``, ``g1``, …."""
    named = {("s", f"g{number}"): info for number, info in enumerate(groups)}
    return Sample(at, {"s": StreamInfo("s", length=length, groups=len(groups))}, named)


def test_rates_are_per_second() -> None:
    """A group settles what was added and is no longer outstanding."""
    (row,) = rows(
        sample(10.0, 100, GroupInfo(lag=50, pending=10)), sample(12.0, 140, GroupInfo(lag=20, pending=5, delayed=5))
    )
    assert (row.added, row.settled) == (20.0, 35.0)


def test_what_isnt_known_isnt_shown() -> None:
    """The rates of a new stream, and those of a stream that was trimmed, are unknown."""
    nothing = Sample(0.0, {}, {})
    assert [(row.added, row.settled) for row in rows(nothing, sample(1.0, 5, GroupInfo()))] == [(None, None)]
    assert [row.added for row in rows(sample(0.0, 5), sample(1.0, 3))] == [None]
    (row,) = rows(sample(0.0, 5, GroupInfo(lag=None)), sample(1.0, 6, GroupInfo(lag=None)))
    assert (row.added, row.settled) == (1.0, None)


def test_the_busiest_is_first() -> None:
    """Rows are sorted by their rates, then by name."""
    before = Sample(0.0, {name: StreamInfo(name) for name in "abc"}, {})
    after = Sample(
        1.0, {name: StreamInfo(name, length=length) for name, length in zip("abc", (1, 9, 1), strict=True)}, {}
    )
    assert [row.stream for row in rows(before, after)] == ["b", "a", "c"]


def test_no_time_between_two_samples() -> None:
    """Two samples at the same time divide by no zero."""
    assert rows(sample(1.0, 5), sample(1.0, 5))[0].added == 0.0


def test_rates_as_text() -> None:
    """Small rates have a decimal."""
    assert [rate(each) for each in (None, 0.0, 0.25, 9.9, 12345.6)] == [None, "0", "0.2", "9.9", "12,346"]


def test_a_work_queue_has_rates() -> None:
    """Where the backend counts what was added, the rates are right although settled entries are removed."""

    def queue(at: float, length: int, added: int, lag: int) -> Sample:
        info = StreamInfo("s", length=length, groups=1, entries_added=added)
        return Sample(at, {"s": info}, {("s", "g"): GroupInfo(length=length, lag=lag)})

    (row,) = rows(queue(0.0, 10, 100, 10), queue(1.0, 4, 150, 4))
    assert (row.added, row.settled) == (50.0, 56.0)


def test_more_streams_than_it_looks_at() -> None:
    """If there are more streams than --limit, stderr says so once, and what to do; the number itself is no more."""
    url = f"memory://{uuid.uuid4().hex}"
    with ailf.connect(url) as backend:
        for number in range(3):
            backend.stream(f"s{number}").add(1)
        all_of_them = run("top", "--limit", "3", "--interval", "0.1", url=url)
        assert (all_of_them.err, all_of_them.out.count("\n")) == ("", 4)
        fewer = run("top", "--limit", "2", "--interval", "0.1", "--count", "2", "--json", url=url)
        assert [line.count('"stream"') for line in fewer.out.splitlines()] == [2, 2]
        assert fewer.err == (
            "there are more than 2 streams, and only that many are looked at; give a prefix, or raise --limit\n"
        )
        prefixed = run("top", "s", "--limit", "1", "--interval", "0.1", url=url)
        assert "there are more than 1 stream whose names begin with 's'" in prefixed.err
        assert run("top", "s1", "--limit", "1", "--interval", "0.1", url=url).err == ""
