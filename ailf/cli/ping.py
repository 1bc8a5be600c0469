"""``ailf ping``: whether the backend answers, and how fast."""

import time
from typing import Annotated, Final

import typer

from ailf.cli.command import Cli, command, group
from ailf.cli.text import duration

__all__ = ["APP"]

APP: Final = group("", "")


@command(APP, "ping")
def ping(
    cli: Cli, *, count: Annotated[int, typer.Option("--count", "-n", min=1, max=1_000_000, help="How often.")] = 1
) -> None:
    """Check that the backend answers; show how long each answer takes."""
    with cli.open() as backend:
        for _ in range(count):
            begin = time.perf_counter()
            backend.ping()
            seconds = time.perf_counter() - begin
            cli.show({"url": backend.url, "seconds": seconds}, f"{backend.url} answered in {duration(seconds)}")
