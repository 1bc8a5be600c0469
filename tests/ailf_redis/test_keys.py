"""Keys: no two names, groups or namespaces share one, and all keys of a stream have one hash tag."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailf.driver import LimiterKey
from ailf.patterns import matches
from ailf.values import LimiterName
from ailf_redis.keys import HELPERS, Keys

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


@given(NAMES, NAMES, NAMES, NAMES, st.booleans())
def test_names_of_keys(namespace: str, name: str, other: str, slots: str, no_refunds: bool) -> None:
    """Each key of a name has this name, with any namespace, and a key of one kind has none of another kind."""
    for keys in (Keys(namespace), Keys("")):
        assert keys.stream_name(keys.stream(name)) == name
        assert keys.meta_name(keys.meta(name)) == name
        holders, *others = keys.lock(name)
        assert keys.lock_name(holders) == name
        assert [keys.lock_name(each) for each in others] == [None] * len(others)
        for key in ("", other):
            charges, queue, waiters, slot = keys.limiter(LimiterKey(name, key, no_refunds), (slots,))
            assert keys.limiter_name(charges) == keys.limiter_name(slot) == LimiterName(name, key)
            assert keys.limiter_name(queue) is keys.limiter_name(waiters) is None
        tree = LimiterKey(name, "", no_refunds, other, (("", namespace), (slots, name)))
        charges, queue, waiters, *branch, slot = keys.limiter_tree(tree, (slots,))
        assert keys.limiter_name(charges) == LimiterName(name, namespace, other, "")
        assert keys.limiter_name(branch[0]) == keys.limiter_name(slot) == LimiterName(name, name, other, slots)
        assert {keys.limiter_name(each) for each in (queue, waiters, *branch[1:])} == {None}
        assert len({hash_tag(each) for each in keys.limiter_tree(tree, (slots,))}) == 1
        for helper in (*keys.group(name, other)[1:], keys.wake(name, other), keys.once(name, other)):
            assert keys.stream_name(helper) is None
            assert keys.meta_name(helper) is None


@given(NAMES, NAMES, st.integers(0, 12))
def test_patterns_of_prefixes(namespace: str, name: str, length: int) -> None:
    """The pattern of a prefix matches the keys of the names that begin with it, and the names that are read agree."""
    prefix = name[:length]
    for keys in (Keys(namespace), Keys("")):
        limiter = keys.limiter(LimiterKey(name, "k"), ("slots",))
        for pattern, key in (
            (keys.streams_pattern(prefix), keys.stream(name)),
            (keys.metas_pattern(prefix), keys.meta(name)),
            (keys.locks_pattern(prefix), keys.lock(name)[0]),
            (keys.limiters_pattern(prefix), limiter[0]),
            (keys.limiters_pattern(prefix), limiter[3]),
            (keys.channels_pattern(prefix), keys.channel(name)),
        ):
            assert matches(pattern, key), (pattern, key)
    if not name.startswith("!"):
        assert not matches(Keys(namespace).streams_pattern("!"), Keys(namespace).stream(name))


@given(st.text("{}%:alfistremockun/25b7d", max_size=60), NAMES)
def test_any_text_as_a_key(text: str, namespace: str) -> None:
    """A text that looks like a key has no name, or is the key of the name that it has."""
    for keys in (Keys(namespace), Keys("ailf"), Keys("")):
        for key in (
            text,
            f"{{ailf:stream:{text}}}",
            f"{{{text}}}:ailf:lock:{text}",
            f"{{ailf:limit:{text}}}",
            f"{{{text}}}:ailf:limit",
            f"{{ailf:limit:l:r}}:key:{text}",
        ):
            if (name := keys.stream_name(key)) is not None:
                assert keys.stream(name) == key
            if (name := keys.lock_name(key)) is not None:
                assert keys.lock(name)[0] == key
            if (found := keys.limiter_name(key)) is not None and ":slots:" not in key:
                pairs = () if found.limit is None else ((found.limit, found.key),)
                made = [LimiterKey(found.name, found.key, final, found.root, pairs) for final in (False, True)]
                assert key in {keys.limiter(each, ())[0] for each in made}


def test_helpers_of_streams() -> None:
    """The helper keys of a plain name are hidden; a stream of another program that only looks like one is not."""
    keys = Keys("")
    assert {keys.stream_name(f"{{t}}:ailf:{kind}:t:g") for kind in (*HELPERS, "wake", "once")} == {None}
    for name in (
        "{t}:ailf:dead:other:g",
        "{t}:ailf:dead:t",
        "{t}:ailf:meat:t:g",
        "{t}:other:dead:t:g",
        "t:ailf:dead:t:g",
    ):
        assert keys.stream_name(name) == name


def hash_tag(key: str) -> str:
    """Return the part of a key that a cluster hashes, as its specification says."""
    match = re.search(r"\{([^}]*)\}", key, re.DOTALL)
    return match[1] if match and match[1] else key
