"""Names that a backend must keep apart."""

from ailf.checks import MAX_NAME

__all__ = ["NAMES"]

NAMES = [
    "plain", "two words", "a{b}c", "{}", "}", "{", "star*", "[x]?", "back\\slash", "new\nline", "tab\t", "🦊", "ü",
    "u\u0308", "%7b", "a:b", "a:", ":b", "a", "A", "\x00", "\x7f", " ", "..", "a/b", "'\"", "$", "-1", "0-0",
    "é" * (MAX_NAME // 2),
]  # fmt: skip
