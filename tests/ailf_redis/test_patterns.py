"""Patterns match as they do on the servers, byte by byte."""

import platform
import random

from ailf.patterns import matches
from tests.support.servers import Server

ALPHABET = [*"abz-^]é\xff", "\u0080", "\U0001f98a"]
ELEMENTS = [*ALPHABET, "*", "**", "?", "[", "[^", "[a-", "[ab]", "[^a]", "[b-a]", "[à-é]", "[^\u0080-ÿ]", "\\", "\\*",
            "[\\]]", "[é-\U0001f98a]", "[\\é-z]"]  # fmt: skip
MIXED = ["[a-é]", "[^a-é]", "[é-z]", "[a-\U0001f98a]"]
"""Ranges from ASCII to beyond it. Redis differs on a machine with unsigned characters, such as Linux on ARM."""


def test_patterns_mean_what_the_server_says(server: Server, namespace: str) -> None:
    """P7: each pattern matches the names that the server finds for it."""
    chance = random.Random(7)
    elements = ELEMENTS + (MIXED if platform.machine() in ("x86_64", "AMD64") else [])
    names = {"".join(chance.choices([*ALPHABET, "*", "[", "?", "\\"], k=chance.randint(1, 4))) for _ in range(300)}
    patterns = {"".join(chance.choices(elements, k=chance.randint(1, 4))) for _ in range(600)}
    with server.client() as admin:
        admin.mset({namespace + name: 1 for name in names})
        pipeline = admin.pipeline(transaction=False)
        for pattern in patterns:
            pipeline.keys(namespace + pattern)
        replies = pipeline.execute()
        admin.delete(*(namespace + name for name in names))
    for pattern, keys in zip(patterns, replies, strict=True):
        theirs = {key.decode().removeprefix(namespace) for key in keys}
        assert theirs == {name for name in names if matches(pattern, name)}, pattern
