"""``ailf backends``: the installed backends."""

from collections.abc import Iterator
from typing import Final

from ailf.cli.command import Cli, command, group
from ailf.cli.exits import DONE, FAILED
from ailf.registry import Installed, installed

__all__ = ["APP"]

APP: Final = group("", "")


@command(APP, "backends")
def backends(cli: Cli) -> int:
    """List the installed backends by URL scheme; exit with 1 if one of them can't be used."""
    rows = installed()
    cli.show(rows, *_lines(rows))
    return FAILED if any(row.problem for row in rows) else DONE


def _lines(rows: list[Installed]) -> Iterator[str]:
    for row in rows:
        yield f"{row.scheme + '://':<20} {row.package:<20} {row.target}"
        if row.problem:
            yield f"{'':<20} can't be used: {row.problem}"
