"""Keys: no two names, groups or namespaces share one, and all keys of a stream have one hash tag."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailf_redis.keys import Keys

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.text("{}%:a", min_size=1)


@given(st.lists(st.tuples(NAMES, NAMES), min_size=2, max_size=2, unique=True), NAMES)
def test_no_two_groups_share_a_key(pairs: list[tuple[str, str]], namespace: str) -> None:
    """B5: all keys of two groups differ, whatever characters their names have, and share a slot per stream."""
    for names in (Keys(namespace), Keys("")):
        first, second = (names.group(stream, group) for stream, group in pairs)
        helpers = [set(keys[1:]) for keys in (first, second)]
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
    """Return the part of a key that a cluster hashes, as its specification says."""
    match = re.search(r"\{([^}]*)\}", key, re.DOTALL)
    return match[1] if match and match[1] else key
