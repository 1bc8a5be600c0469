"""Patterns match the same channels as a slow and obvious matcher."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ailf.patterns import matcher, matches

ALPHABET = "ab-^]é"
CHANNELS = st.text(ALPHABET + "*?[\\", max_size=6)
PATTERNS = st.lists(
    st.sampled_from([*ALPHABET, "*", "**", "?", "[", "[^", "[a-", "[ab]", "[^a]", "[b-a]", "\\", "\\*", "[\\]]"]),
    max_size=5,
).map("".join)


def slowly(pattern: bytes, channel: bytes) -> bool:
    """Return what `matches` must return, by brute force."""
    if not pattern:
        return not channel
    head, rest = pattern[:1], pattern[1:]
    if head == b"*":
        return slowly(rest, channel) or (bool(channel) and slowly(pattern, channel[1:]))
    if not channel:
        return False
    if head == b"?":
        return slowly(rest, channel[1:])
    if head == b"[":
        fits, rest = class_fits(rest, channel[0])
        return fits and slowly(rest, channel[1:])
    if head == b"\\" and rest:
        head, rest = rest[:1], rest[1:]
    return head == channel[:1] and slowly(rest, channel[1:])


def signed(byte: int) -> int:
    """Return a byte as a signed `char` of C."""
    return byte - 256 * (byte >= 128)


def class_fits(pattern: bytes, byte: int) -> tuple[bool, bytes]:
    """Return whether the byte is in the class that begins here, and the pattern after the class."""
    negated = pattern.startswith(b"^")
    pattern = pattern[negated:]
    inside = False
    while pattern and pattern[:1] != b"]":
        if pattern[:1] == b"\\" and len(pattern) > 1:
            inside |= pattern[1] == byte
            pattern = pattern[2:]
        elif pattern[1:2] == b"-" and len(pattern) > 2:
            low, high = sorted((signed(pattern[0]), signed(pattern[2])))
            inside |= low <= signed(byte) <= high
            pattern = pattern[3:]
        else:
            inside |= pattern[0] == byte
            pattern = pattern[1:]
    return inside != negated, pattern[1:]


@given(PATTERNS, CHANNELS)
@example("[a", "a")
@example("[^", "a")
@example("[]", "]")
@example("[a-]", "-")
@example("\\", "\\")
@example("?", "é")
def test_a_pattern_matches_what_the_slow_matcher_says(pattern: str, channel: str) -> None:
    """The regular expression and the definition agree."""
    assert matches(pattern, channel) == slowly(pattern.encode(), channel.encode())


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_escaped_name_matches_itself_alone(name: str) -> None:
    """A backslash before every special character makes a name a pattern for only this name."""
    literal = "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in name)
    assert matches(literal, name)
    assert not matches(literal, f"{name}x")


@pytest.mark.parametrize(
    ("pattern", "channel", "fits"),
    [
        ("news.*", "news.art", True),
        ("news.*", "news.", True),
        ("news.*", "news", False),
        ("n?ws", "news", True),
        ("n[ae]ws", "news", True),
        ("n[^ae]ws", "news", False),
        ("n[a-f]ws", "news", True),
        (r"news\*", "news*", True),
        (r"news\*", "news!", False),
        ("*", "two\nlines", True),
        ("a.c", "abc", False),
    ],
)
def test_the_grammar(pattern: str, channel: str, *, fits: bool) -> None:
    """Each element of the grammar matches as documented."""
    assert matches(pattern, channel) is fits


@pytest.mark.parametrize("pattern", ["*" * 500 + "x", "*a" * 200 + "x", "*?" * 100 + "x"])
def test_many_stars_cost_no_time(pattern: str) -> None:
    """A pattern with many stars is matched without exponential backtracking."""
    matcher.cache_clear()
    began = time.monotonic()
    assert not matches(pattern, "a" * 500)
    assert time.monotonic() - began < 1
