"""Tables for a terminal, made from values. Pure: nothing here asks a backend."""

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from ailf.cli.text import visible

__all__ = ["fields", "table"]


def cell(value: object, style: str = "") -> Text:
    """Return a value for a cell: numbers with thousands separators, None as "-", text with its escapes."""
    if isinstance(value, Text):
        return value
    if isinstance(value, bool):
        return Text("yes" if value else "no", style)
    if isinstance(value, int):
        return Text(f"{value:,}", style)
    return Text("-" if value is None else visible(str(value)), style)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table; a column whose name begins with ">" is aligned to the right."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        made.add_column(Text(column.removeprefix(">")), justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(cell, row))
    return made


def fields(pairs: Iterable[tuple[str, object]]) -> Table:
    """Return a table of two columns without a header: names and values."""
    made = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(Text(name), cell(value))
    return made
