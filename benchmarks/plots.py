"""Draw the tables of ``docs/benchmarks.md`` as pictures in ``docs/images/benchmarks``: ``make bench-plots``.

The recorded tables are the source: record new numbers there, then draw. This writes SVG itself, without a library for
plots, because the pictures have to follow the reader's light or dark mode, and to be equal for equal numbers, so that a
test can compare them.

A plot has a panel for each column. *Dots* stand on a logarithmic scale, on which equal distances are equal ratios;
where a number is 0 or less, the scale is linear. *Lines* begin at 0 and show how a number changes with a size.
"""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

import attrs

DOCS: Final = Path(__file__).parents[1] / "docs"
PAGE: Final = DOCS / "benchmarks.md"
IMAGES: Final = DOCS / "images" / "benchmarks"

BLOCK: Final = re.compile(r"^```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RATIO: Final = re.compile(r"\([\d.]+x\)")
GAP: Final = re.compile(r" {2,}")


# --- tables ------------------------------------------------------------------------------------------------------


@attrs.frozen
class Row:
    """A row of a table.

    Attributes:
        name: Its first cell.
        cells: Its other cells, as they are written.
    """

    name: str
    cells: tuple[str, ...]


@attrs.frozen
class Table:
    """A table of the page.

    Attributes:
        title: The text above it.
        columns: The heading of each column.
        rows: The rows, each with a cell for each column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def tables(page: str) -> list[Table]:
    """Return the tables of the page in order."""
    return [table for block in BLOCK.findall(page) for part in block.split("\n\n") if (table := _table(part))]


def _table(text: str) -> Table | None:
    """Read a table: a title, a line of headings that begins with spaces, and the rows. Other text is none."""
    lines = text.strip("\n").splitlines()
    heads = next((number for number, line in enumerate(lines) if line.startswith("  ")), None)
    if heads is None:
        return None
    columns = tuple(GAP.split(lines[heads].strip()))
    rows = []
    for line in lines[heads + 1 :]:
        name, *cells = GAP.split(RATIO.sub("", line).strip())
        assert len(cells) == len(columns), f"{line!r} has {len(cells)} cells for {columns}"
        rows.append(Row(name, tuple(each.strip() for each in cells)))
    return Table(" ".join(lines[:heads]), columns, tuple(rows))


def number(cell: str) -> float | None:
    """Return the number of a cell, or None for ``-``."""
    return None if cell == "-" else float(cell.replace(",", ""))


# --- plots -------------------------------------------------------------------------------------------------------


@attrs.frozen
class Plot:
    """The picture of one table.

    Attributes:
        file: The name of its file in ``docs/images/benchmarks``.
        title: How the title of the table begins.
        heading: The heading of the picture.
        unit: The unit of all columns, or "" if their headings name it.
        more: The columns of which more is better; of the others less is.
        lines: Whether it has lines and not dots; the first column is then the horizontal axis.
    """

    file: str
    title: str
    heading: str
    unit: str = ""
    more: frozenset[str] = frozenset()
    lines: bool = False


CALLS: Final = frozenset({"publish", "add", "lock", "limit"})
PLOTS: Final = (
    Plot("calls-blocking", "blocking, µs a call", "Blocking, one call", "µs"),
    Plot("calls-asyncio-1", "asyncio, 1 caller", "asyncio, 1 caller", "calls/s", CALLS),
    Plot("calls-asyncio-100", "asyncio, 100 callers", "asyncio, 100 callers", "calls/s", CALLS),
    Plot("calls-memory", "memory, µs", "In memory, one call", "µs"),
    Plot("calls-core", "the core above", "The core above the memory driver", "µs"),
    Plot("queues", "queues", "Queues, one worker process", more=frozenset({"add/s", "handled/s"})),
    Plot("idle", "100 idle consumers", "100 idle consumers, one message"),
    Plot("pubsub", "deliveries", "Deliveries of pub/sub, asyncio", more=frozenset({"one/s", "ten/s"})),
    Plot("limiters", "decisions on Redis", "Decisions on Redis", more=frozenset({"100 callers, /s"})),
    Plot("locks", "20 waiters", "20 waiters for one lock; waits in ms", more=frozenset({"grants/s", "handovers/s"})),
    Plot("growth-server", "bytes beside", "A growing stream: bytes for a message, µs of the server", lines=True),
    Plot("growth-longest", "the longest request", "A growing stream: the longest request, ms", lines=True),
    Plot("growth-other", "another client", "A growing stream: another client's calls, ms", lines=True),
    Plot("instruments", "instruments", "Instruments, blocking, one call", "ns"),
    Plot("instruments-core", "the core without", "The core above the memory driver, by CPU time", "µs"),
)


def pictures(page: str) -> Iterator[tuple[str, str]]:
    """Yield the file name and the text of each picture."""
    for table in tables(page):
        plot = next((each for each in PLOTS if table.title.startswith(each.title)), None)
        assert plot, f"PLOTS has no entry for the table {table.title!r}"
        yield f"{plot.file}.svg", (lines if plot.lines else dots)(plot, table)


# --- drawing -----------------------------------------------------------------------------------------------------

WIDTH: Final = 680
MARGIN: Final = 16
TOP: Final = 48
LETTER: Final = 7.2
"""The width of a letter, generously."""

STYLE: Final = """\
    svg { --paper: #ffffff; --ink: #1f2328; --muted: #59636e; --grid: #d8dee4; --other: #6e7781; --ours: #0757ba;
          --c0: #0757ba; --c1: #b35900; --c2: #1a7f37; --c3: #8250df; --c4: #bf3989; }
    @media (prefers-color-scheme: dark) {
      svg { --paper: #131416; --ink: #e6e8eb; --muted: #a3adb8; --grid: #33383f; --other: #9aa4ae; --ours: #79b8ff;
            --c0: #79b8ff; --c1: #f0a050; --c2: #4ac26b; --c3: #c297ff; --c4: #ff8fc8; }
    }
    text { font-family: -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; font-size: 13px;
           fill: var(--ink); }
    .heading { font-size: 16px; font-weight: 600; }
    .column { font-weight: 600; }
    .muted { fill: var(--muted); }
    .tick { fill: var(--muted); font-size: 11.5px; }
    .end { text-anchor: end; }
    .middle { text-anchor: middle; }
    .grid { stroke: var(--grid); }
    .row { stroke: var(--grid); stroke-dasharray: 1 4; }
    .other { fill: var(--other); }
    .ours { fill: var(--ours); }
    text.ours { font-weight: 600; }
    .line { fill: none; stroke-width: 2; }
"""


def picture(heading: str, height: float, body: Sequence[str]) -> str:
    """Return a whole SVG."""
    size = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"  <title>{escape(heading)}</title>",
            f"  <style>\n{STYLE}  </style>",
            f'  <rect width="{WIDTH}" height="{height:g}" rx="8" fill="var(--paper)"/>',
            text(MARGIN, 28, heading, "heading"),
            *body,
            "</svg>\n",
        )
    )


def text(x: float, y: float, content: str, kind: str) -> str:
    """Return a line of text."""
    return f'  <text class="{kind}" x="{x:g}" y="{y:g}">{escape(content)}</text>'


def vertical(x: float, top: float, bottom: float) -> str:
    """Return a line of the grid."""
    return f'  <path class="grid" d="M{x:g} {top:g}V{bottom:g}"/>'


@attrs.frozen
class Scale:
    """Where numbers stand on an axis.

    Attributes:
        low: The number at `start`.
        high: The number at `end`.
        start: The position of `low`.
        end: The position of `high`.
        logarithmic: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> "Scale":
        """Return a scale for numbers; one that is logarithmic spans a factor of 4 at least."""
        low, high = min(values), max(values)
        if low <= 0:
            return cls(low, high, start, end, logarithmic=False)
        room = max(1.15, math.sqrt(4 * low / high))
        return cls(low / room, high * room, start, end, logarithmic=True)

    def at(self, value: float) -> float:
        """Return the position of a number."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = map(math.log, (low, high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Return round numbers of the axis: up to five steps, or as many of each power of ten as have room."""
        powers = [10.0**power for power in range(-6, 10)]
        if not self.logarithmic:
            most = (self.high - self.low) / 4
            step = next(each * factor for each in powers for factor in (1, 2, 5) if each * factor >= most)
            return [step * count for count in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        for factors in ((1, 2, 5), (1, 3), (1,)):
            found = [each * factor for each in powers for factor in factors if self.low <= each * factor <= self.high]
            room = min((self.at(right) - self.at(left) for left, right in pairwise(found)), default=math.inf)
            if room > len(f"{found[-1]:,g}") * LETTER:
                break
        return found


def dots(plot: Plot, table: Table) -> str:
    """Draw a dot with its number for each cell."""
    line, head, foot, panels = 22, 30, 30, 2
    labels = max(len(row.name) for row in table.rows) * LETTER + MARGIN
    width = (WIDTH - MARGIN - labels) / panels
    height = head + line * len(table.rows) + foot
    body = []
    for index, column in enumerate(table.columns):
        left, top = labels + index % panels * width, TOP + index // panels * height
        bottom = top + height - foot
        values = [value for row in table.rows if (value := number(row.cells[index])) is not None]
        scale = Scale.of(values, left + 8, left + width - 80)
        unit = f", {plot.unit}" if plot.unit else ""
        body.append(text(left, top + 12, column + unit, "column"))
        better = "more is better →" if column in plot.more else "← less is better"
        body.append(text(left + width - 20, top + 12, better, "tick end"))
        for tick in scale.ticks():
            body.append(vertical(scale.at(tick), top + head - 6, bottom))
            body.append(text(scale.at(tick), bottom + 12, f"{tick:,g}", "tick middle"))
        for place, row in enumerate(table.rows):
            y = top + head + line * place + 8
            kind = "ours" if _is_ours(row, table) else "other"
            words = "ours" if kind == "ours" else "muted"
            if index % panels == 0:
                body.append(text(MARGIN, y + 4, row.name, words))
            value = number(row.cells[index])
            if value is not None:
                body.append(f'  <path class="row" d="M{left + 4:g} {y:g}H{left + width - 76:g}"/>')
                body.append(f'  <circle class="{kind}" cx="{scale.at(value):g}" cy="{y:g}" r="5"/>')
            body.append(text(scale.at(value) + 9 if value is not None else left, y + 4, row.cells[index], words))
    return picture(plot.heading, TOP + math.ceil(len(table.columns) / panels) * height, body)


def _is_ours(row: Row, table: Table) -> bool:
    """Tell whether a row is one of ailf, in a table that compares it with others."""
    return row.name.startswith("ailf") or not any(each.name.startswith("ailf") for each in table.rows)


def lines(plot: Plot, table: Table) -> str:
    """Draw a line for all rows of a name, in a panel for each column but the first, which is the horizontal axis."""
    panels, gap, head, high, foot = 3, 26, 28, 90, 36
    width = (WIDTH - MARGIN * 2 - gap * (panels - 1)) / panels
    groups = [(name, list(rows)) for name, rows in groupby(table.rows, lambda row: row.name)]
    counts = [row.cells[0] for row in groups[0][1]]
    body = list(_legend([name for name, _ in groups]))
    for place, column in enumerate(table.columns[1:]):
        left, top = MARGIN + place % panels * (width + gap), TOP + 24 + place // panels * (head + high + foot)
        values = [_number(row.cells[place + 1]) for row in table.rows]
        across = Scale.of([_number(each) for each in counts], left + 30, left + width - 4)
        up = Scale(min(0.0, *values), max(values), top + head + high, top + head, logarithmic=False)
        body.append(text(left, top + 12, column, "column"))
        for tick in up.ticks():
            body.append(f'  <path class="grid" d="M{left + 30:g} {up.at(tick):g}H{left + width:g}"/>')
            body.append(text(left + 26, up.at(tick) + 4, f"{tick:,g}", "tick end"))
        below = top + head + high + 16
        body += [text(across.at(_number(each)), below, _short(each), "tick middle") for each in counts]
        for colour, (name, rows) in enumerate(groups):
            told = [f"{name} {row.cells[0]}: {row.cells[place + 1]}" for row in rows]
            points = [(across.at(_number(row.cells[0])), up.at(_number(row.cells[place + 1]))) for row in rows]
            body += _line(colour, points, told)
    return picture(plot.heading, TOP + 24 + math.ceil(len(table.columns[1:]) / panels) * (head + high + foot), body)


def _number(cell: str) -> float:
    """Return the number of a cell that has one."""
    value = number(cell)
    assert value is not None
    return value


def _legend(names: Sequence[str]) -> Iterator[str]:
    x = float(MARGIN)
    for colour, name in enumerate(names):
        yield f'  <path class="line" style="stroke: var(--c{colour})" d="M{x:g} {TOP + 4}h18"/>'
        yield text(x + 24, TOP + 8, name, "muted")
        x += 44 + len(name) * LETTER


def _line(colour: int, points: Sequence[tuple[float, float]], told: Sequence[str]) -> Iterator[str]:
    """Yield a line and its points, each with the number that it tells."""
    path = "L".join(f"{x:g} {y:g}" for x, y in points)
    yield f'  <path class="line" style="stroke: var(--c{colour})" d="M{path}"/>'
    for (x, y), each in zip(points, told, strict=True):
        title = f"<title>{escape(each)}</title>"
        yield f'  <circle style="fill: var(--c{colour})" cx="{x:g}" cy="{y:g}" r="3">{title}</circle>'


def _short(count: str) -> str:
    """Return a number of messages in few letters: ``10k``, ``1M``."""
    return count.replace(",000,000", "M").replace(",000", "k")


def main() -> None:
    """Draw all plots."""
    for file, svg in pictures(PAGE.read_text()):
        (IMAGES / file).write_text(svg)
        print(f"docs/images/benchmarks/{file}")


if __name__ == "__main__":
    main()
