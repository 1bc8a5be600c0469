"""``ailf locks``: list the locks that are held, look at one, and break it."""

from collections.abc import Iterable
from typing import Annotated, Final

import typer
from rich.table import Table

from ailf.cli.arguments import PrefixArgument, YesOption
from ailf.cli.command import Cli, command, group
from ailf.cli.exits import NOT_FOUND, USAGE, CommandError
from ailf.cli.tables import Rows, fields, table
from ailf.cli.text import duration
from ailf.values import HeldLock, LockInfo

__all__ = ["APP"]

APP: Final = group("locks", "List the locks that are held, look at one, and break it.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The lock's name.")]


@command(APP, "ls")
def ls(cli: Cli, prefix: PrefixArgument = "") -> None:
    """List the locks that are held, sorted by name."""
    with cli.open() as backend:
        found = sorted({each.name: each for each in backend.locks(prefix)}.values(), key=lambda each: each.name)
    cli.show(found, locks_table(found))
    cli.note_none(found, "held lock", prefix)


@command(APP, "inspect")
def inspect(cli: Cli, name: NameArgument) -> None:
    """Show the holders of a lock, and how many wait for it."""
    with cli.open() as backend:
        info = backend.lock(name).inspect()
    cli.show({"name": name, "holders": info.holders, "waiting": info.waiting}, lock_fields(name, info))


@command(APP, "break")
def break_(
    cli: Cli,
    name: NameArgument,
    fence: Annotated[int | None, typer.Argument(metavar="[FENCE]", help="The fence of the grant to break.")] = None,
    *,
    everyone: Annotated[bool, typer.Option("--all", help="Break the grants of all its holders.")] = False,
    yes: YesOption = False,
) -> None:
    """Revoke a grant of a lock, so that its holder's lease is lost."""
    if (fence is None) != everyone:
        raise CommandError("say which grant to break: its fence (see `ailf locks inspect`), or --all", USAGE)
    with cli.open() as backend:
        lock = backend.lock(name)
        fences = [fence] if fence is not None else [each.fence for each in lock.inspect().holders]
        if not fences:
            raise CommandError(f"lock {name!r} has no holder", NOT_FOUND)
        listed = ", ".join(map(str, fences))
        cli.confirm(f"break lock {name!r}, fence {listed}; its holder may still be at work", yes=yes)
        broken = [each for each in fences if lock.break_(each)]
    if not broken:
        raise CommandError(f"lock {name!r} has no grant with the fence {listed}", NOT_FOUND)
    cli.show({"name": name, "broken": broken}, f"broke lock {name!r}, fence {', '.join(map(str, broken))}")


def locks_table(locks: Iterable[HeldLock]) -> Rows:
    """Return the table of locks."""
    columns = ("LOCK", ">HOLDERS", ">WAITING", ">FENCE", ">ENDS IN")
    return table(
        columns,
        (
            (
                each.name,
                len(each.holders),
                each.waiting,
                str(each.holders[0].fence) if each.holders else None,
                duration(min((holder.remaining for holder in each.holders), default=None)),
            )
            for each in locks
        ),
    )


def lock_fields(name: str, info: LockInfo) -> Table:
    """Return the state of a lock."""
    holders = (
        (f"fence {holder.fence}", f"ends in {duration(holder.remaining)} unless it is renewed")
        for holder in info.holders
    )
    return fields(
        (
            ("lock", name),
            ("state", "held" if info.holders else "free"),
            *holders,
            ("waiting", info.waiting),
        )
    )
