"""Tables for a terminal, made from values. Pure: nothing here asks a backend."""

from collections.abc import Iterable, Iterator, Sequence

import attrs
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ailf.cli.text import visible

__all__ = ["Rows", "fields", "table"]

GAP = 2
"""The spaces between two columns."""

NARROW = 12
"""The characters to which a column of text may be narrowed; what is longer goes on in the next line."""


@attrs.frozen
class Rows:
    """A table; where it is too wide for the terminal, each row is shown as a list of names and values.

    Attributes:
        columns: The names of the columns; one that begins with ">" is aligned to the right, and never narrowed.
        rows: The cells, row by row.
        title: A line above the table; "" for none.
        note: A line between the title and the table; "" for none.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Text]]
    title: str = ""
    note: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield what rich shows."""
        if self.title:
            yield Text(visible(self.title), "bold")
        if self.note:
            yield Text(visible(self.note), "yellow")
        widths = self._widths()
        if sum(widths) + GAP * (len(widths) - 1) <= options.max_width:
            yield from self._as_lines(console, widths)
        elif self.least_width() <= options.max_width:
            yield self._as_table()
        else:
            yield from self._as_lists()

    def least_width(self) -> int:
        """Return the least width at which no number is narrowed."""
        return sum(map(self._least_width, range(len(self.columns)))) + GAP * (len(self.columns) - 1)

    def _least_width(self, number: int) -> int:
        name = self.columns[number]
        longest = max((row[number].cell_len for row in self.rows), default=0)
        return max(len(name.removeprefix(">")), longest if name.startswith(">") else min(longest, NARROW))

    def _widths(self) -> list[int]:
        """Return the width of each column in which nothing is narrowed."""
        return [
            max(len(name.removeprefix(">")), max((row[number].cell_len for row in self.rows), default=0))
            for number, name in enumerate(self.columns)
        ]

    def _as_lines(self, console: Console, widths: Sequence[int]) -> Iterator[Segment]:
        """Yield a line for each row. It is what rich's own table shows, in a tenth of its time."""
        header = [Text(name.removeprefix(">"), "bold") for name in self.columns]
        last = len(widths) - 1
        for row in (header, *self.rows):
            for number, text in enumerate(row):
                space = " " * (widths[number] - text.cell_len)
                right = self.columns[number].startswith(">")
                style = console.get_style(text.style) if text.style else None
                yield Segment(f"{space}{text.plain}" if right else f"{text.plain}{space}", style)
                if number < last:
                    yield Segment(" " * GAP)
            yield Segment.line()

    def _as_table(self) -> Table:
        made = Table(box=None, padding=(0, GAP, 0, 0), header_style="bold", pad_edge=False)
        for name in self.columns:
            right = name.startswith(">")
            header = Text(name.removeprefix(">"), no_wrap=True)
            made.add_column(header, justify="right" if right else "left", no_wrap=right, overflow="fold")
        for row in self.rows:
            made.add_row(*row)
        return made

    def _as_lists(self) -> Iterator[Table | str]:
        for number, row in enumerate(self.rows):
            if number:
                yield ""
            yield fields((name.removeprefix(">"), value) for name, value in zip(self.columns, row, strict=True) if name)


def cell(value: object, style: str = "") -> Text:
    """Return a value for a cell: numbers with thousands separators, None as "-", text with its escapes."""
    if isinstance(value, Text):
        return value
    if isinstance(value, bool):
        return Text("yes" if value else "no", style)
    if isinstance(value, int):
        return Text(f"{value:,}", style)
    return Text("-" if value is None else visible(str(value)), style)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", note: str = "") -> Rows:
    """Return a table; see `Rows`."""
    return Rows(columns, [[cell(each) for each in row] for row in rows], title, note)


def fields(pairs: Iterable[tuple[str, object]]) -> Table:
    """Return a table of two columns without a header: names and values."""
    made = Table(box=None, padding=(0, GAP, 0, 0), show_header=False, pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(Text(visible(name)), cell(value))
    return made
