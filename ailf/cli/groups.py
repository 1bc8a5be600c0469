"""Commands on groups: pause, resume and move them."""

from typing import Annotated, Final

import typer

from ailf.cli.arguments import GroupArgument, StreamArgument, YesOption, position
from ailf.cli.command import Cli, command, group
from ailf.cli.targets import existing_group

__all__ = ["APP"]

APP: Final = group("", "")


@command(APP, "pause")
def pause(cli: Cli, stream: StreamArgument, group: GroupArgument, *, yes: YesOption = False) -> None:
    """Let a group deliver nothing to any consumer until `resume`."""
    with cli.open() as backend:
        target = existing_group(backend, stream, group)
        cli.confirm(f"pause group {group!r} of stream {stream!r}", yes=yes)
        target.pause()
    cli.show({"stream": stream, "group": group, "paused": True}, f"paused group {group!r} of stream {stream!r}")


@command(APP, "resume")
def resume(cli: Cli, stream: StreamArgument, group: GroupArgument) -> None:
    """Let a paused group deliver messages again."""
    with cli.open() as backend:
        existing_group(backend, stream, group).resume()
    cli.show({"stream": stream, "group": group, "paused": False}, f"resumed group {group!r} of stream {stream!r}")


@command(APP, "seek")
def seek(
    cli: Cli,
    stream: StreamArgument,
    group: GroupArgument,
    to: Annotated[str, typer.Argument(metavar="POSITION", help="earliest, latest, an entry's id, or a time.")],
    *,
    yes: YesOption = False,
) -> None:
    """Let a group continue after a position. Its leases end, and what follows the position is delivered as new."""
    with cli.open() as backend:
        target = existing_group(backend, stream, group)
        cli.confirm(f"move group {group!r} of stream {stream!r} to {to}, which ends its leases", yes=yes)
        target.seek(position(to))
    cli.show(
        {"stream": stream, "group": group, "position": to}, f"group {group!r} of stream {stream!r} continues after {to}"
    )
