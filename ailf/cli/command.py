"""Commands: `command` gives a function the options of all commands, and `Cli`, through which it reads and writes."""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from ailf.backend import Backend
from ailf.cli.contexts import Places, url_of
from ailf.cli.exits import USAGE, ClosedPipeError, CommandError
from ailf.cli.text import as_json, visible
from ailf.connect import connect

__all__ = ["Cli", "command", "group"]

T = TypeVar("T")

WIDE = 100_000
"""The width of output that isn't a terminal: a line is never wrapped there."""

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The backend's URL: redis://…, rediss://…, redis+sentinel://…, redis+cluster://…; else $AILF_URL.",
    ),
]
ContextOption = Annotated[
    str | None, typer.Option("--context", metavar="NAME", help="The backend's name in pyproject.toml or config.toml.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON, one document a line.")]


class Cli:
    """What a command reads and writes: its backend, the output, and questions to the user.

    Arguments:
        url: The value of ``--url``.
        context: The value of ``--context``.
        json: Whether JSON is wanted.
    """

    def __init__(self, url: str | None = None, context: str | None = None, *, json: bool = False) -> None:
        self._url = url
        self._context = context
        self.json = json
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    # --- the backend ---------------------------------------------------------------------------------------------

    def url(self, given: str | None = None) -> str:
        """Return the URL to open.

        Arguments:
            given: The URL that a command has as its argument.
        """
        if given is not None and (self._url or self._context):
            raise CommandError("the URL was given twice: as the argument, and by --url or --context", USAGE)
        return url_of(given or self._url, self._context, Places(os.environ, Path.cwd(), Path.home()))

    def open(self) -> Backend:
        """Open the backend, to be used in ``with``."""
        return connect(self.url())

    # --- output --------------------------------------------------------------------------------------------------

    def show(self, value: Any, *renderables: RenderableType) -> None:
        """Write a value as JSON, or else what shows it to a person. A text is written with its escapes."""
        if self.json:
            self._write(as_json(value))
        for each in () if self.json else renderables:
            if isinstance(each, str):
                self._write(visible(each))
            elif self.out.is_terminal:
                self.out.print(each)
            else:
                with self.out.capture() as captured:
                    self.out.print(each)
                self.out.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    def say(self, text: str) -> None:
        """Write a line to stderr."""
        self.err.print(Text(visible(text)), soft_wrap=True)

    def note_none(self, found: Sized, what: str, prefix: str) -> None:
        """Write to stderr that a listing is empty; a prefix may be misspelt.

        Arguments:
            found: The listing.
            what: What is listed, such as ``stream``.
            prefix: The prefix of the names.
        """
        if not found:
            self.say(f"there is no {what}{f' whose name begins with {prefix!r}' if prefix else ''}")

    def _write(self, line: str) -> None:
        self.out.print(Text(line), soft_wrap=True)
        self.out.file.flush()

    # --- questions and progress ----------------------------------------------------------------------------------

    def confirm(self, action: str, *, yes: bool) -> None:
        """Ask before something is changed that can't be taken back.

        Arguments:
            action: What would be done, such as ``purge 3 dead letters``.
            yes: Whether the user has agreed by ``--yes``.

        Raises:
            CommandError: The user said no, or there is no terminal to ask on.
        """
        if yes:
            return
        if sys.stdin is None or not sys.stdin.isatty():
            raise CommandError(f"{action}: this asks first, and there is no terminal to ask on; add --yes", USAGE)
        self.err.print(Text(f"{visible(action[:1].upper() + action[1:])}? [y/N] "), end="", soft_wrap=True)
        self.err.file.flush()
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise CommandError("nothing was changed")

    def working(self, what: str) -> AbstractContextManager[Any]:
        """Show on a terminal that something is under way."""
        return self.err.status(Text(visible(what))) if self.err.is_terminal else nullcontext()

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show on a terminal how far a long work is; yield a function that counts further steps.

        Arguments:
            what: The work.
            total: The number of steps; None if it is unknown.
        """
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        if not self.err.is_terminal:
            yield lambda steps: None  # noqa: ARG005 - nothing is shown
            return
        with Progress(*columns, console=self.err, transient=True) as bar:
            task = bar.add_task(visible(what), total=total)
            yield functools.partial(bar.advance, task)


def group(name: str, text: str) -> typer.Typer:
    """Return an app for commands with a common first word.

    Arguments:
        name: The word; "" for commands without one.
        text: The help.
    """
    return typer.Typer(name=name or None, help=text, rich_markup_mode=None, add_completion=False)


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Make a command of a function whose first argument is a `Cli`; its other arguments are those of the command.

    Arguments:
        app: The app that gets the command.
        name: The command's name.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(function)
        def wrapped(
            *, ailf_url: str | None = None, ailf_context: str | None = None, as_json: bool = False, **arguments: Any
        ) -> T:
            try:
                return function(Cli(ailf_url, ailf_context, json=as_json), **arguments)
            except BrokenPipeError as error:
                raise ClosedPipeError from error

        signature = inspect.signature(function)
        _, *own = signature.parameters.values()
        parameters = [*_keywords(own), *_COMMON]
        wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
        del wrapped.__wrapped__
        app.command(name)(wrapped)
        return function

    return decorate


def _keywords(parameters: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    return [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]


_COMMON = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, default, annotation in (
        ("ailf_url", None, UrlOption),
        ("ailf_context", None, ContextOption),
        ("as_json", False, JsonOption),
    )
]


class _Console(Console):
    """A console that interprets no markup, and leaves a broken pipe to its caller."""

    def __init__(self, *, stderr: bool, width: int | None = None) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, width=width)

    def on_broken_pipe(self) -> None:
        """Raise the `BrokenPipeError` that is being handled."""
        raise  # noqa: PLE0704 - rich calls this where it has caught the error


def _console(*, stderr: bool) -> Console:
    """Return a console; output that isn't a terminal is as wide as its content."""
    console = _Console(stderr=stderr)
    if console.is_terminal or os.environ.get("COLUMNS"):
        return console
    return _Console(stderr=stderr, width=WIDE)
