"""The command ``ailf``."""

import argparse
import sys
from collections.abc import Sequence

from ailf.registry import installed

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="ailf", description="Messaging and coordination for agents.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    backends = commands.add_parser("backends", help="list the installed backends by URL scheme")
    backends.set_defaults(command=_backends)
    parsed = parser.parse_args(arguments)
    status: int = parsed.command()
    return status


def _backends() -> int:
    rows = installed()
    for row in rows:
        sys.stdout.write(f"{row.scheme + '://':<12} {row.package:<20} {row.target}\n")
        if row.problem:
            sys.stdout.write(f"{'':<12} can't be used: {row.problem}\n")
    return 1 if any(row.problem for row in rows) else 0
