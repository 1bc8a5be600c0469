"""Replies: how entries, fetches and dead letters are read, and what happens to one that can't be."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailf_redis import replies
from ailf_redis.errors import MISREAD
from ailf_redis.replies import as_record, entry_fields

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.text("{}%:a", min_size=1)


@given(st.binary(), st.dictionaries(TEXTS, TEXTS))
def test_entries_come_back(body: bytes, headers: dict[str, str]) -> None:
    """An entry of ours is read as it was written."""
    record = as_record(b"1-0", entry_fields(body, headers))
    assert (record.id, record.body, record.headers, record.foreign) == ("1-0", body, headers, False)


def test_foreign_entries_are_their_fields() -> None:
    """An entry without our field is a JSON object of its fields."""
    record = as_record(b"1-0", [b"task_id", b"123", b"type", b"doc"])
    assert record.foreign
    assert record.body == b'{"task_id":"123","type":"doc"}'


def test_an_entry_that_cannot_be_read_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry whose reading raises becomes a record that names the problem; a reply that is no entry is an error."""

    def fails(_: bytes) -> dict[str, str]:
        raise RecursionError

    monkeypatch.setattr(replies, "_headers", SimpleNamespace(decode=fails))
    bad, good = [b"ailf.body", b"1", b"ailf.headers", b"{}"], [b"ailf.body", b"2"]
    entries = [[b"1-1", bad], [b"1-2", good]]
    due_again = [[b"1-3", bad, 1, 2], [b"~1-4", [b"ailf.origin", b"1-0", *bad], 1, 2], [b"1-5", good, 1, 2]]
    fetched = replies.as_fetched("c", [due_again, entries, 7, [], 0, b"", b"", -1, 0])
    records = [(claim.record.id, claim.record.body, bool(claim.record.problem)) for claim in fetched.claims]
    assert records == [
        ("1-3", b"", True),
        ("1-0", b"", True),
        ("1-5", b"2", False),
        ("1-1", b"", True),
        ("1-2", b"2", False),
    ]
    assert [claim.receipt.id for claim in fetched.claims] == ["1-3", "~1-4", "1-5", "1-1", "1-2"]
    assert [bool(record.problem) for record in replies.as_records(entries)] == [True, False]
    assert [letter.record.body for letter in replies.as_dead_letters(entries)] == [b"", b"2"]
    for nonsense in ([7, good], [b"1-1", [b"ailf.body"]], [b"1-1", [1, 2]], [b"1-1"], [b"1-1", None]):
        for read in (replies.as_records, replies.as_dead_letters):
            with pytest.raises(MISREAD):
                read([nonsense])
        with pytest.raises(MISREAD):
            replies.as_fetched("c", [[], [nonsense], 7, [], 0, b"", b"", -1, 0])


@given(st.lists(st.integers(1, 20)), st.integers(1, 30))
def test_pieces(sizes: list[int], most: int) -> None:
    """A page is read in as few pieces as needed, in order; only a piece of a single entry exceeds the size limit."""
    entries = [(str(at), size) for at, size in enumerate(sizes)]
    cut = replies.pieces(entries, most)
    assert [entry for piece in cut for entry in piece] == entries
    totals = [sum(size for _, size in piece) for piece in cut]
    assert all(total <= most or len(piece) == 1 for total, piece in zip(totals, cut, strict=True))
    assert all(total + piece[0][1] > most for total, piece in zip(totals, cut[1:], strict=False))
