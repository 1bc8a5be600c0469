"""Scripts: each header names the keys, arguments, reply, writes and bound, and the code agrees with it."""

import re
from pathlib import Path

import pytest

from ailf.driver import LimiterKey
from ailf_redis import keys, scripts
from ailf_redis.keys import Keys

LUA = Path(keys.__file__).parent / "lua"
TEXTS = {str(path.relative_to(LUA).with_suffix("")): path.read_text() for path in sorted(LUA.rglob("*.lua"))}


def header(name: str) -> str:
    """Return the comment at the top of a script."""
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
    """Each script that loops gives a bound; no loop waits for a condition that stored data may never meet."""
    code = re.sub(r"--.*", "", TEXTS[name])
    assert bool(re.search(r"\b(for|while|repeat)\b", code)) == ("-- bound " in header(name))
    assert not re.search(r"\bwhile (true|1|not)\b", code)


@pytest.mark.parametrize("script", [each for each in vars(scripts).values() if isinstance(each, scripts.Script)])
def test_scripts_name_their_keys(script: scripts.Script) -> None:
    """The headers of a script and of its shared parts name every key that it uses, and no other."""
    parts = [name for name, text in TEXTS.items() if text.rstrip() in script.text]
    assert script.name in parts
    named = set().union(*map(named_keys, parts))
    unpacked = re.search(r"^local (.+) = unpack\(KEYS\)", script.text, re.MULTILINE)
    used = {int(number) for number in re.findall(r"KEYS\[(\d)\]", re.sub(r"--.*", "", script.text))}
    if "shared/lock" in parts:  # it indexes its keys by the number of the lock
        used |= set(range(1, len(Keys("").lock("l")) + 1))
    if "shared/limit" in parts:  # it indexes its keys by the branch
        used |= set(range(1, len(Keys("").limiter(LimiterKey("l", "k"), ())) + 1))
    assert named == used | set(range(1, len(unpacked[1].split(",")) + 1 if unpacked else 0))
    assert any("-- writes " in header(part) for part in parts) or script.name == "stream/info"


def test_group_keys_are_in_the_scripts_order() -> None:
    """The keys of a group are passed in the order in which the scripts unpack them."""
    unpacked = re.search(r"^local (.+) = unpack\(KEYS\)", TEXTS["shared/group"], re.MULTILINE)
    assert unpacked
    assert unpacked[1].split(", ") == list(keys.GroupKeys._fields)


@pytest.mark.parametrize("script", [each for each in vars(scripts).values() if isinstance(each, scripts.Script)])
def test_scripts_read_the_time_once(script: scripts.Script) -> None:
    """TIME moves inside a script, so each reads it at most once."""
    assert script.text.count("'TIME'") <= 1
