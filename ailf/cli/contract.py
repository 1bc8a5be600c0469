"""``ailf contract URL``: run the contract suite on a backend. Each test has a namespace, all of which are removed."""

import importlib.util
import secrets
import subprocess
import sys
from typing import Annotated, Final

import typer

from ailf.cli.command import Cli, command, group
from ailf.cli.exits import DONE, FAILED, USAGE, CommandError
from ailf.cli.namespaces import own_namespace, remove_namespaces
from ailf.connect import connect

__all__ = ["APP"]

APP: Final = group("", "")


@command(APP, "contract")
def contract(
    cli: Cli,
    url: Annotated[str | None, typer.Argument(metavar="[URL]", help="The backend; else as for other commands.")] = None,
    *,
    only: Annotated[
        str, typer.Option("-k", metavar="EXPRESSION", help="Only the tests that match, as for pytest.")
    ] = "",
) -> int:
    """Run the contract suite on a backend, with pytest. Each test has a namespace of its own, which is removed."""
    if importlib.util.find_spec("pytest") is None:
        raise CommandError("the contract suite needs pytest; run: pip install pytest", USAGE)
    own = own_namespace(cli.url(url), f"ailf-contract-{secrets.token_hex(6)}")
    with connect(own.url) as backend:
        try:
            ended = _run(own.url, only, quiet=cli.json)
        finally:
            left = remove_namespaces(backend, own)
    cli.show(
        {"passed": ended == 0, "exit_code": ended}, "the backend keeps the contract" if ended == 0 else "it doesn't"
    )
    if left:
        cli.say(left)
    return DONE if ended == 0 else FAILED


def _run(url: str, only: str, *, quiet: bool) -> int:
    """Run the suite in a process of its own, whose output is ours, or nothing."""
    command = [sys.executable, "-m", "pytest", "--pyargs", "contract_tests", "--backend", url, "-p", "no:cacheprovider"]
    output = subprocess.DEVNULL if quiet else None
    with subprocess.Popen([*command, *(["-k", only] if only else [])], stdout=output) as process:  # noqa: S603 - no shell
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # Ctrl-C reached pytest too, which ends in order
            raise
