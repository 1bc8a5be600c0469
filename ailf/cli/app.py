"""The app: all commands, and how a run of the command line ends.

A new group of commands is a module with an `APP`, which `APPS` names. The rule of this file: each run ends with an exit
code and, if it failed, one line on stderr; never with a traceback.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Final

import typer

from ailf.cli import (
    backends,
    bench,
    contract,
    dead,
    doctor,
    groups,
    limits,
    locks,
    ping,
    pubsub,
    run,
    streams,
    top,
    why,
)
from ailf.cli.exits import BROKEN_PIPE, DONE, FAILED, INTERRUPTED, USAGE, ClosedPipeError, code_for, line_for
from ailf.cli.text import visible
from ailf.version import __version__

__all__ = ["run_app"]

APPS: Final = (
    run.APP,
    ping.APP,
    doctor.APP,
    streams.APP,
    groups.APP,
    dead.APP,
    pubsub.APP,
    locks.APP,
    limits.APP,
    top.APP,
    why.APP,
    bench.APP,
    contract.APP,
    backends.APP,
)
"""The apps of all commands. One without a name has commands of one word, and one with a name those of two."""

NAME: Final = "ailf"

app = typer.Typer(
    name=NAME,
    help="Look at streams, locks and rate limits of a backend, and work on them.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 backend unreachable, 4 permission denied, 5 unsupported, "
    "6 not found, 7 outcome unknown, 130 interrupted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - the signature of a callback
    if wanted:
        sys.stdout.write(f"ailf {__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Look at streams, locks and rate limits of a backend, and work on them."""


for _each in APPS:
    app.add_typer(_each)


def run_app(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    if sys.stdout is None:
        _complain("can't write the output: stdout is closed")
        return FAILED
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with _logs_in_one_line():
        try:
            code = _invoke(arguments)
            sys.stdout.flush()
        except (ClosedPipeError, BrokenPipeError):
            _discard_output()
            return BROKEN_PIPE
        except OSError as error:  # the disk is full, or stdout was closed
            _discard_output()
            _complain(f"can't write the output: {error.strerror or error}")
            return FAILED
    return code


def _invoke(arguments: Sequence[str]) -> int:
    """Run the command, and turn each error into a line and an exit code."""
    try:
        result = app(list(arguments) or ["--help"], prog_name=NAME, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except ClosedPipeError:
        raise
    except typer.Exit as end:
        return end.exit_code
    except OSError as error:
        if not isinstance(error, TimeoutError):  # some of ailf's errors are TimeoutErrors, which are OSErrors
            raise
        return _failed(error)
    except Exception as error:  # noqa: BLE001 - a command line shows no tracebacks
        return _failed(error)
    if not arguments:
        return USAGE
    return result if isinstance(result, int) else DONE


def _failed(error: Exception) -> int:
    if hasattr(error, "format_message"):  # a usage error of typer, whose class has moved between its versions
        _complain(f"{visible(error.format_message()).rstrip('.')}. Try: {_help_command(error)}")
        return USAGE
    _complain(line_for(error))
    return code_for(error)


def _help_command(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context is not None else NAME} --help"


def _complain(line: str) -> None:
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(f"ailf: {line}\n")
            sys.stderr.flush()


def _discard_output() -> None:
    """Let the interpreter's last flush go nowhere: it would raise the same error again."""
    with suppress(OSError, ValueError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class _OneLine(logging.Handler):
    """Writes the log of ailf to stderr, a line for each record, without tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        _complain(visible(" ".join(record.getMessage().split())))


@contextmanager
def _logs_in_one_line() -> Iterator[None]:
    """Within the block, show warnings of ailf on stderr."""
    log = logging.getLogger("ailf")
    handler = _OneLine(logging.WARNING)
    before, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before
