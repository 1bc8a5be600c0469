"""The rates of top."""

from ailf.cli.top import Sample, rate, rows
from ailf.values import GroupInfo, StreamInfo


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
