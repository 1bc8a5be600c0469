"""What decides and never waits: settings, keys, replies, and the headers of the scripts."""

import re
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailf.errors import InvalidArgumentError
from ailf.runtime import run
from ailf_redis import keys as spelled
from ailf_redis import replies, scripts
from ailf_redis.connection.aio import AsyncioExecutor
from ailf_redis.connection.blocking import BlockingExecutor
from ailf_redis.connection.resp import packed
from ailf_redis.errors import MISREAD
from ailf_redis.keys import Keys
from ailf_redis.replies import as_record, entry_fields
from ailf_redis.settings import Settings

LUA = Path(spelled.__file__).parent / "lua"
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.text("{}%:a", min_size=1)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://", "redis://localhost:6379/0"),
        ("redis://u:p%40ss@h:1/2", "redis://h:1/2"),
        ("rediss://h", "rediss://h:6379/0"),
        ("redis://[::1]:7/3", "redis://[::1]:7/3"),
        ("unix:///tmp/r.sock?db=4", "unix:///tmp/r.sock"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    """A URL is read whole, and shown without credentials."""
    assert Settings.from_url(url).url == shown


def test_credentials_are_unquoted_and_hidden() -> None:
    """Credentials are percent-decoded once, and are in no repr."""
    settings = Settings.from_url("redis://us%2Fer:p%2525@h")
    assert (settings.username, settings.password) == ("us/er", "p%25")
    assert "p%25" not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        "http://h", "redis://h:notaport", "redis://h/notanumber", "redis://h?timeout=soon", "redis://h?ssl_cert_reqs=none",
        "redis://h?unknown=1", "redis://h?keepalive=maybe", "redis://:secret@h?nope=1",
    ],
)  # fmt: skip
def test_bad_urls(url: str) -> None:
    """What isn't understood is refused, never ignored, and the message hides credentials."""
    with pytest.raises(InvalidArgumentError) as caught:
        Settings.from_url(url)
    assert "secret" not in str(caught.value)


@given(st.lists(st.tuples(NAMES, NAMES), min_size=2, max_size=2, unique=True), NAMES)
def test_no_two_groups_share_a_key(pairs: list[tuple[str, str]], namespace: str) -> None:
    """B5: all keys of two groups differ, whatever characters their names have, and share a slot per stream."""
    for names in (Keys(namespace), Keys("")):
        first, second = (names.group(stream, group) for stream, group in pairs)
        helpers = [set(each[1:]) for each in (first, second)]
        assert len(helpers[0]) == len(first) - 1
        assert not helpers[0] & helpers[1]
    first, second = (Keys(namespace).group(stream, group) for stream, group in pairs)
    assert hash_tag(first.due) == hash_tag(first.stream) == hash_tag(first.bell)
    assert (hash_tag(first.stream) == hash_tag(second.stream)) == (pairs[0][0] == pairs[1][0])


@given(NAMES, NAMES)
def test_namespaces_never_meet(one: str, other: str) -> None:
    """B6: the keys and channels of two namespaces differ."""
    if one != other:
        assert Keys(one).stream("s") != Keys(other).stream("s")
        assert Keys(one).channel("c") != Keys(other).channel("c")


@pytest.mark.parametrize("name", ["tasks", "a{b}c", "x}", "{}"])
def test_plain_names(name: str) -> None:
    """With the namespace "" a stream's key and a channel are the plain name."""
    assert Keys("").stream(name) == Keys("").channel(name) == name


def hash_tag(key: str) -> str:
    """Return what a cluster hashes of a key, as its specification says."""
    found = re.search(r"\{([^}]*)\}", key, re.DOTALL)
    return found[1] if found and found[1] else key


@given(st.binary(), st.dictionaries(NAMES, NAMES))
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
    """Whatever reading an entry raises, there is a record that names the problem; what is no entry is an error."""

    def fails(_: bytes) -> dict[str, str]:
        raise RecursionError

    monkeypatch.setattr(replies, "_headers", SimpleNamespace(decode=fails))
    bad, good = [b"ailf.body", b"1", b"ailf.headers", b"{}"], [b"ailf.body", b"2"]
    entries = [[b"1-1", bad], [b"1-2", good]]
    again = [[b"1-3", bad, 1, 2], [b"~1-4", [b"ailf.origin", b"1-0", *bad], 1, 2], [b"1-5", good, 1, 2]]
    fetched = replies.as_fetched("c", [again, entries, 7, [], 0, b"", b"", -1])
    records = [(each.record.id, each.record.body, bool(each.record.problem)) for each in fetched.claims]
    assert records == [
        ("1-3", b"", True),
        ("1-0", b"", True),
        ("1-5", b"2", False),
        ("1-1", b"", True),
        ("1-2", b"2", False),
    ]
    assert [each.receipt.id for each in fetched.claims] == ["1-3", "~1-4", "1-5", "1-1", "1-2"]
    assert [bool(each.problem) for each in replies.as_records(entries)] == [True, False]
    assert [each.body for each in replies.as_dead_letters(entries)] == [b"", b"2"]
    for nonsense in ([7, good], [b"1-1", [b"ailf.body"]], [b"1-1", [1, 2]], [b"1-1"], [b"1-1", None]):
        for read in (replies.as_records, replies.as_dead_letters):
            with pytest.raises(MISREAD):
                read([nonsense])
        with pytest.raises(MISREAD):
            replies.as_fetched("c", [[], [nonsense], 7, [], 0, b"", b"", -1])


@given(st.lists(st.integers(1, 20)), st.integers(1, 30))
def test_pieces(sizes: list[int], most: int) -> None:
    """A page is read in as many pieces as it needs, in order; none is larger than it may be, unless it is one entry."""
    entries = [(str(at), size) for at, size in enumerate(sizes)]
    cut = replies.pieces(entries, most)
    assert [each for piece in cut for each in piece] == entries
    totals = [sum(size for _, size in piece) for piece in cut]
    assert all(total <= most or len(piece) == 1 for total, piece in zip(totals, cut, strict=True))
    assert all(total + piece[0][1] > most for total, piece in zip(totals, cut[1:], strict=False))


TEXTS = {str(path.relative_to(LUA).with_suffix("")): path.read_text() for path in sorted(LUA.rglob("*.lua"))}


def header(name: str) -> str:
    """Return what a script says of itself."""
    return TEXTS[name].partition("\n\n")[0]


def named_keys(name: str) -> set[int]:
    """Return the numbers of the keys that a header names."""
    return {int(number) for number in re.findall(r"KEYS\[(\d)\] +\w", header(name))}


@pytest.mark.parametrize("name", TEXTS)
def test_script_headers(name: str) -> None:
    """Each script's header says what it takes, returns and writes."""
    assert all(line.startswith("--") for line in header(name).splitlines())
    assert "-- returns " in header(name)
    if "ARGV" in re.sub(r"--.*", "", TEXTS[name]):
        assert "-- ARGV" in header(name)


@pytest.mark.parametrize("name", TEXTS)
def test_script_loops_are_bounded(name: str) -> None:
    """Each script that loops says how often at most; none loops until something that data may keep from coming."""
    code = re.sub(r"--.*", "", TEXTS[name])
    assert bool(re.search(r"\b(for|while|repeat)\b", code)) == ("-- bound " in header(name))
    assert not re.search(r"\bwhile (true|1|not)\b", code)


@pytest.mark.parametrize("script", [each for each in vars(scripts).values() if isinstance(each, scripts.Script)])
def test_scripts_name_their_keys(script: scripts.Script) -> None:
    """The headers of a script and of what stands before it name every key that it uses, and no other."""
    parts = [name for name, text in TEXTS.items() if text.rstrip() in script.text]
    assert script.name in parts
    named = set().union(*map(named_keys, parts))
    unpacked = re.search(r"^local (.+) = unpack\(KEYS\)", script.text, re.MULTILINE)
    used = {int(number) for number in re.findall(r"KEYS\[(\d)\]", re.sub(r"--.*", "", script.text))}
    if "shared/lock" in parts:  # which takes its keys by name of lock
        used |= set(range(1, len(Keys("").lock("l")) + 1))
    assert named == used | set(range(1, len(unpacked[1].split(",")) + 1 if unpacked else 0))
    assert any("-- writes " in header(part) for part in parts) or script.name == "stream/info"


def test_group_keys_are_in_the_scripts_order() -> None:
    """The keys of a group are handed over in the order in which the scripts unpack them."""
    unpacked = re.search(r"^local (.+) = unpack\(KEYS\)", TEXTS["shared/group"], re.MULTILINE)
    assert unpacked
    assert unpacked[1].split(", ") == list(spelled.GroupKeys._fields)


@pytest.mark.parametrize("script", [each for each in vars(scripts).values() if isinstance(each, scripts.Script)])
def test_scripts_read_the_time_once(script: scripts.Script) -> None:
    """TIME moves inside a script, so each reads it at most once."""
    assert script.text.count("'TIME'") <= 1


class Signalled(Exception):  # noqa: N818 - it stands for KeyboardInterrupt, at which pytest itself would end
    """What a signal handler raises."""


class Interrupted(int):
    """A number that a signal interrupts while it is made text."""

    def __repr__(self) -> str:
        raise Signalled

    __str__ = __repr__


def test_ctrl_c_while_a_number_is_packed() -> None:
    """B8: hiredis never sees a number, because it would crash the process where a signal handler raises."""
    assert packed([("A", 1, 0.5, True, b"b", bytearray(b"c"))]) == (
        b"*6\r\n$1\r\nA\r\n$1\r\n1\r\n$3\r\n0.5\r\n$4\r\nTrue\r\n$1\r\nb\r\n$1\r\nc\r\n"
    )
    executors: list[Any] = [BlockingExecutor(Settings()), AsyncioExecutor(Settings())]
    executors[1]._connection = SimpleNamespace(is_ready=lambda: True, request=None)
    calls: list[Callable[[], Any]] = [
        lambda: packed([("A", Interrupted())]),
        lambda: packed([("A",), ("A", Interrupted())]),
        *(partial(_called, each, "A", Interrupted()) for each in executors),
    ]
    for call in calls:
        with pytest.raises(Signalled):
            call()


def _called(executor: Any, *command: Any) -> Any:
    """Return what a call gives, on threads its result."""
    result = executor.call(*command)
    return run(result) if isinstance(result, Coroutine) else result


@pytest.mark.parametrize("command", [("A", None), ("A", object())])
def test_what_is_no_argument(command: tuple[object, ...]) -> None:
    """What has no text is an error, and never sent."""
    with pytest.raises(TypeError):
        packed([command])
