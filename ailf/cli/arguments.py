"""The arguments and options that several commands have, and how their texts are read. Pure but for reading stdin."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, BinaryIO, Final

import msgspec
import typer

from ailf.cli.exits import FAILED, USAGE, CommandError
from ailf.cli.text import size
from ailf.values import EARLIEST, LATEST, Position

__all__ = [
    "UNCHANGED",
    "FullOption",
    "GroupArgument",
    "HeaderOption",
    "KeyOption",
    "LimitOption",
    "PrefixArgument",
    "RawOption",
    "RootOption",
    "StreamArgument",
    "YesOption",
    "bodies",
    "headers_of",
    "position",
]

StreamArgument = Annotated[str, typer.Argument(metavar="STREAM", help="The stream's name.")]
GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="The group's name.")]
PrefixArgument = Annotated[str, typer.Argument(metavar="[PREFIX]", help="Only names that begin with it.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
FullOption = Annotated[bool, typer.Option("--full", help="Show payloads in full, not only their beginning.")]
RawOption = Annotated[bool, typer.Option("--raw", help="Send texts as bytes, unchanged, instead of JSON.")]
HeaderOption = Annotated[list[str] | None, typer.Option("--header", "-H", metavar="NAME=VALUE", help="A header.")]
LimitOption = Annotated[
    list[str],
    typer.Option("--limit", "-l", metavar="[NAME=]LIMIT", help="A limit of the limiter, such as requests=60/minute."),
]

RootOption = Annotated[str | None, typer.Option("--root", metavar="ROOT", help="The root of a budget tree.")]
KeyOption = Annotated[
    list[str] | None,
    typer.Option("--key", "-k", metavar="LIMIT=KEY", help="In a budget tree the key of a limit, such as team=search."),
]


def headers_of(options: list[str] | None) -> dict[str, str]:
    """Return the headers of ``--header NAME=VALUE`` options."""
    pairs = [each.partition("=") for each in options or ()]
    if bad := [name for name, equals, _ in pairs if not (name and equals)]:
        raise CommandError(f"--header takes NAME=VALUE, not {bad[0]!r}", USAGE)
    return {name: value for name, _, value in pairs}


def position(text: str) -> Position:
    """Return the position that a text means: ``earliest``, ``latest``, a time in ISO format, or an entry's id."""
    if text in {EARLIEST, LATEST}:
        return text
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    if "T" not in text and ":" not in text and text.count("-") < 2:  # noqa: PLR2004 - 20261130 may be an id
        return text
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def bodies(texts: list[str] | None, largest: int, *, raw: bool) -> Iterator[bytes]:
    """Yield the bodies to send: of the arguments, or of each line of stdin if there are none.

    Arguments:
        texts: The arguments.
        largest: The largest body in bytes.
        raw: Whether the texts are sent unchanged; else they must be JSON.

    Raises:
        CommandError: One of them isn't JSON, or is too large.
    """
    if texts:
        for number, text in enumerate(texts, 1):
            yield _body(text.encode("utf-8", "surrogateescape"), f"argument {number}", largest, raw=raw)
        return
    if sys.stdin is None:
        raise CommandError("there is nothing to send: stdin is closed; give the messages as arguments", USAGE)
    for number, line in enumerate(_lines(sys.stdin.buffer, largest), 1):
        body = line.rstrip(b"\r\n")
        if body.strip():
            yield _body(body, f"line {number}", largest, raw=raw)


def _lines(stream: BinaryIO, largest: int) -> Iterator[bytes]:
    """Yield lines; of one that is too large only the beginning, which is too large too."""
    while line := stream.readline(largest + 3):
        yield line


def _body(body: bytes, where: str, largest: int, *, raw: bool) -> bytes:
    if len(body) > largest:
        raise CommandError(f"{where} is larger than the backend's max_payload, {size(largest)}; it was not sent", USAGE)
    if raw:
        return body
    try:
        msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError(f"{where} isn't JSON ({error}); to send text unchanged, add --raw", USAGE) from error
    return body.strip()


class _Unchanged:
    """A codec whose payloads are their bodies, as bytes, of ailf's own and of foreign entries."""

    def encode(self, data: Any) -> bytes:
        """Return the body unchanged."""
        if not isinstance(data, bytes):
            raise CommandError("a body must be bytes", FAILED)
        return data

    def decode(self, body: bytes, *, foreign: bool) -> bytes:  # noqa: ARG002 - as `Codec`
        """Return the body unchanged."""
        return body


UNCHANGED: Final[Any] = _Unchanged()
"""The ``type`` of streams and channels whose payloads are their bodies."""
