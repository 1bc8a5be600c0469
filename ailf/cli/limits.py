"""``ailf limits``: list the keys of rate limiters, look at one, and reset it."""

from collections.abc import Collection
from typing import Annotated, Any, Final

import typer

from ailf.backend import Backend
from ailf.cli.arguments import KeyOption, LimitOption, PrefixArgument, RootOption, YesOption
from ailf.cli.command import Cli, command, group
from ailf.cli.exits import NOT_FOUND, USAGE, CommandError
from ailf.cli.tables import Rows, table
from ailf.cli.text import duration
from ailf.ratelimit import RateLimiter
from ailf.ratelimit.options import OPTIONS
from ailf.values import Decision, LimiterName

__all__ = ["APP", "keys_of", "limiter_of"]

APP: Final = group("limits", "List the keys of rate limiters, look at one, and reset it.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The limiter's name.")]
KeyArgument = Annotated[str, typer.Argument(metavar="[KEY]", help="The key, such as a user.")]


@command(APP, "ls")
def ls(cli: Cli, prefix: PrefixArgument = "") -> None:
    """List the keys of rate limiters that have a state."""
    with cli.open() as backend:
        found = sorted(
            set(backend.limiters(prefix)), key=lambda each: (each.name, each.root or "", each.limit or "", each.key)
        )
    cli.show(found, limiters_table(found))
    cli.note_none(found, "limiter with a charge", prefix)


@command(APP, "peek")
def peek(
    cli: Cli,
    name: NameArgument,
    key: KeyArgument = "",
    *,
    limit: LimitOption,
    root: RootOption = None,
    keys: KeyOption = None,
) -> None:
    """Show what a limiter would allow now. The limits must be those of the program."""
    given = keys_of(keys)
    with cli.open() as backend:
        decision = limiter_of(backend, name, limit, root).peek(key, keys=given)
    cli.show({"name": name, "key": key, "root": root, "keys": given, "limits": decision.limits}, limits_table(decision))


@command(APP, "reset")
def reset(
    cli: Cli,
    name: NameArgument,
    key: KeyArgument = "",
    *,
    limit: LimitOption,
    root: RootOption = None,
    keys: KeyOption = None,
    yes: YesOption = False,
) -> None:
    """Forget all charges of a limiter's key. The limits must be those of the program."""
    given = keys_of(keys)
    what = f"the key {key!r}" if given is None else f"the keys {', '.join(keys or ())}"
    with cli.open() as backend:
        limiter = limiter_of(backend, name, limit, root)
        states = limiter.peek(key, keys=given).limits
        if all(state.remaining == limiter.limits[each].capacity for each, state in states.items()):
            raise CommandError(
                f"limiter {name!r} has no charge for {what}; `ailf limits ls` lists the keys that have one", NOT_FOUND
            )
        cli.confirm(f"reset {what} of limiter {name!r}", yes=yes)
        limiter.reset(key, keys=given)
    shown = {"name": name, "key": key, "root": root, "keys": given, "reset": True}
    cli.show(shown, f"reset {what} of limiter {name!r}")


def limiter_of(backend: Backend, name: str, options: list[str], root: str | None = None) -> RateLimiter:
    """Return the limiter of a name with the limits of ``--limit`` options."""
    unnamed = [each for each in options if "=" not in each]
    named = dict(each.split("=", 1) for each in options if "=" in each)
    if len(unnamed) + len(named) != len(options) or len(unnamed) > 1 or (unnamed and named):
        raise CommandError("--limit is given once without a name, or once for each name: requests=60/minute", USAGE)
    if bad := [each for each in named if not each.isidentifier() or each in OPTIONS]:
        raise CommandError(f"--limit takes NAME=LIMIT, and {bad[0]!r} is no name of a limit", USAGE)
    limits: dict[str, Any] = named
    return backend.rate_limiter(name, *unnamed, root=root, **limits)


def keys_of(options: list[str] | None) -> dict[str, str] | None:
    """Return the keys of ``--key`` options by the names of the limits; None without one."""
    pairs = [each.partition("=") for each in options or ()]
    keys = {name: key for name, _, key in pairs}
    if len(keys) < len(pairs) or not all(equals for _, equals, _ in pairs):
        raise CommandError("--key takes LIMIT=KEY, once for each limit: team=search", USAGE)
    return keys or None


def limiters_table(names: Collection[LimiterName]) -> Rows:
    """Return the table of limiter keys; roots and limits have columns where there are any."""
    if all(each.root is None for each in names):
        return table(("LIMITER", "KEY"), ((each.name, each.key or None) for each in names))
    rows = ((each.name, each.root, each.limit, each.key or None) for each in names)
    return table(("LIMITER", "ROOT", "LIMIT", "KEY"), rows)


def limits_table(decision: Decision[Any]) -> Rows:
    """Return the state of each limit."""
    rows = ((name or None, state.remaining, duration(state.reset_after)) for name, state in decision.limits.items())
    return table(("LIMIT", ">REMAINING", ">FULL IN"), rows)
