r"""P7: one table of patterns for all backends: a pattern, names that it matches, names that it doesn't."""

__all__ = ["CASES"]

CASES: list[tuple[str, list[str], list[str]]] = [
    ("*", ["a", "a.b", "*", "ü"], []),
    ("a*", ["a", "ab", "a*b"], ["b", "ba"]),
    ("*a", ["a", "ba"], ["ab"]),
    ("a**b", ["ab", "axxb"], ["abx"]),
    ("a?c", ["abc", "a?c"], ["ac", "abbc"]),
    ("agent.[abc].x", ["agent.a.x", "agent.c.x"], ["agent.d.x", "agent..x", "agent.ab.x"]),
    ("[a-c]", ["a", "b", "c"], ["d", "-"]),
    ("[^a]", ["b", "^"], ["a"]),
    (r"\*", ["*"], ["a", r"\*"]),
    (r"a\?b", ["a?b"], ["axb"]),
    (r"\[a]", ["[a]"], ["a"]),
    (r"[\]]", ["]"], ["\\"]),
    ("a.b", ["a.b"], ["aXb"]),
    ("(a|b)+$", ["(a|b)+$"], ["a"]),
    ("{x}", ["{x}"], ["x"]),
    ("*🦊*", ["🦊", "a🦊b"], ["a"]),
    ("??", ["ab", "é"], ["a", "🦊"]),
    ("[é][é]", ["é"], ["a", "ü"]),
    ("[à-é][^a]", ["é", "ü"], ["a", "éa"]),
]
