"""The command ``ailf``. Its modules need the extra ``cli`` (typer and rich); this one needs nothing."""

import sys
from collections.abc import Sequence

__all__ = ["main"]

_NEEDED = frozenset({"typer", "rich"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Arguments:
        arguments: The arguments after the command's name; those of the process if None.
    """
    try:
        from ailf.cli.app import run_app  # noqa: PLC0415 - typer and rich may not be installed
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        if sys.stderr is not None:
            sys.stderr.write("ailf: the command line needs typer and rich; run: pip install 'ailf[cli]'\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return run_app(sys.argv[1:] if arguments is None else list(arguments))
