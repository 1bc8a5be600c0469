r"""The pattern grammar of channels, the same on every backend (P7).

``*`` matches any run of characters, also an empty one; ``?`` one character; ``[abc]`` one of these, with ranges such as
``[a-z]``; ``[^a]`` any character but these; ``\x`` the character x itself. All other characters are literal. It is the
grammar of Redis' PSUBSCRIBE. As there, it applies to UTF-8 bytes, so ``?`` matches one byte of a longer character. The
ends of a range are signed bytes, like ``char`` in C on x86: 0x80 to 0xff come before 0x00.
"""

import functools
import re

__all__ = ["matcher", "matches"]

MOST_SIGNED = 127


def matches(pattern: str, channel: str) -> bool:
    """Tell whether the channel's name matches the pattern."""
    return matcher(pattern).fullmatch(channel.encode("utf-8", "surrogateescape")) is not None


@functools.lru_cache(maxsize=1024)
def matcher(pattern: str) -> re.Pattern[bytes]:
    """Return the regular expression, over UTF-8 bytes, that is equivalent to the pattern."""
    source = pattern.encode()
    between_stars = [b""]
    at = 0
    while at < len(source):
        if source[at : at + 1] == b"*":
            between_stars.append(b"")
            at += 1
        else:
            part, at = _next(source, at)
            between_stars[-1] += part
    return re.compile(_joined(*between_stars), re.DOTALL)


def _joined(first: bytes, *others: bytes) -> bytes:
    """Join the parts between stars, as atomic groups that match at the first position: backtracking is exponential."""
    if not others:
        return first
    atomic = [b"(?>.*?" + each + b")" for each in others[:-1] if each]
    return b"".join((first, *atomic, b".*", others[-1]))


def _next(source: bytes, at: int) -> tuple[bytes, int]:
    """Return the regular expression of the element at ``at``, which isn't a star, and the index after it."""
    char = source[at : at + 1]
    if char == b"?":
        return b".", at + 1
    if char == b"[":
        return _class(source, at + 1)
    if char == b"\\" and at + 1 < len(source):
        return re.escape(source[at + 1 : at + 2]), at + 2
    return re.escape(char), at + 1


def _signed(byte: int) -> int:
    return byte - 256 if byte > MOST_SIGNED else byte


def _class(source: bytes, at: int) -> tuple[bytes, int]:
    """Read a class up to its ``]`` or, as Redis does, to the end of the pattern; return as `_next` does."""
    negated = source[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    while at < len(source) and source[at] != ord("]"):
        if source[at] == ord("\\") and at + 1 < len(source):
            members.add(source[at + 1])
            at += 2
        elif source[at + 1 : at + 2] == b"-" and at + 2 < len(source):
            low, high = sorted((_signed(source[at]), _signed(source[at + 2])))
            members.update(each % 256 for each in range(low, high + 1))
            at += 3
        else:
            members.add(source[at])
            at += 1
    chosen = set(range(256)) - members if negated else members
    if not chosen:
        return rb"(?!)", at + 1
    return b"[" + b"".join(rb"\x%02x" % byte for byte in sorted(chosen)) + b"]", at + 1
