"""Tables, at any width."""

from io import StringIO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from rich.text import Text

from ailf.cli.doctor import findings_table
from ailf.cli.streams import groups_table, streams_table
from ailf.cli.tables import fields, table
from ailf.driver import Finding, Level
from ailf.values import GroupInfo, StreamInfo


def shown(renderable: RenderableType, width: int) -> list[str]:
    """Return the lines of what is shown at a width."""
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(renderable)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_table_has_aligned_columns() -> None:
    """Text begins at the left, numbers end at the right, and nothing is None."""
    rows = [("a", 1, None), ("longer", 1234567, True)]
    assert shown(table(("NAME", ">COUNT", "MORE"), rows), 80) == [
        "NAME        COUNT  MORE",
        "a               1  -",
        "longer  1,234,567  yes",
    ]


def test_a_table_that_is_too_wide_is_a_list() -> None:
    """Where numbers would have to be cut, each row becomes a list."""
    assert shown(table(("NAME", ">COUNT", ""), [("a", 1, "x"), ("b", 2, "y")]), 11) == [
        "NAME   a",
        "COUNT  1",
        "",
        "NAME   b",
        "COUNT  2",
    ]


def test_long_text_goes_on_in_the_next_line() -> None:
    """A column of text is narrowed first, and nothing of it is lost."""
    lines = shown(table(("NAME", ">N"), [("x" * 50, 7)]), 40)
    assert lines[1].endswith("  7")
    assert "".join(lines).count("x") == 50


def test_nothing_is_shown_of_no_rows_but_the_header() -> None:
    """A table without rows has its header."""
    assert shown(table(("NAME", ">N"), [], "title"), 40) == ["title", "NAME  N"]


@settings(deadline=None)
@example("[/]", 80)
@given(st.text(st.characters()), st.integers(30, 200))
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    """Whatever a name has, lines fit, and no character is one that a terminal interprets."""
    info = GroupInfo(lag=10**9, pending=10**6, oldest=1.0)
    for renderable in (
        streams_table([StreamInfo(name, length=10**9, added=1.0)]),
        groups_table({name: info}),
        findings_table([Finding(name, Level.WARN, name, name)][:1]) if len(name) < 10 else fields([("x", name)]),
    ):
        for line in shown(renderable, width):
            assert line.isprintable()
            assert Console(width=width).measure(Text(line)).maximum <= width


@pytest.mark.parametrize("markup", ["[red]x[/red]", "[link=http://x]y[/link]", ":smile:", "[/]"])
def test_markup_is_text(markup: str) -> None:
    """Markup and emoji codes are shown as they are written."""
    assert markup in "".join(shown(table((markup, ">N"), [(markup, 1)]), 100))
    assert markup in "".join(shown(fields([(markup, markup)]), 100))
