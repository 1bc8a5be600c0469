"""Parse the URLs of backends. Pure; no error of this module quotes credentials.

The credentials end at the last ``@``, so a password may contain any character unless the URL becomes ambiguous. An
``@`` that may be part of a path or an option is an error: it must be percent-encoded. This module doesn't use
`urllib.parse.urlsplit`, whose errors quote the host with the credentials before it. It raises no error while another
one is handled, because that one could quote them.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from urllib.parse import quote, unquote

import attrs

from ailf.errors import InvalidArgumentError

__all__ = [
    "EXAMPLE",
    "Host",
    "Url",
    "check_options",
    "environment_url",
    "scheme_of",
    "shown",
    "split_url",
    "with_options",
]

VARIABLE: Final = "AILF_URL"

EXAMPLE: Final = "redis://localhost:6379/0"

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*")
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\]|[^:\[\]]*)(?::(?P<port>[0-9]*))?")
_UNSAFE = re.compile(r"[\x00-\x20\x7f]")


@attrs.frozen
class Host:
    """One of several hosts in a URL.

    Attributes:
        name: The name or address, without the brackets of an IPv6 address.
        port: The port, or None.
    """

    name: str
    port: int | None


@attrs.frozen
class Url:
    """The decoded parts of a URL.

    Attributes:
        scheme: The scheme, in lower case.
        username: The user name, or None.
        password: The password, or None.
        host: The first host, without the brackets of an IPv6 address, or "".
        port: The first port, or None.
        path: The path, with its leading slash, or "".
        options: The values after the ``?``, by name.
        shown: The URL for messages, without credentials and options.
        hosts: All hosts; there are several only if `split_url` was asked for them.
    """

    scheme: str
    username: str | None = attrs.field(repr=False)
    password: str | None = attrs.field(repr=False)
    host: str
    port: int | None
    path: str
    options: Mapping[str, str]
    shown: str
    hosts: Sequence[Host] = ()


def environment_url() -> str | None:
    """Return the value of the environment variable ``AILF_URL``; None if it is not set.

    Raises:
        InvalidArgumentError: It is set to an empty text.
    """
    url = os.environ.get(VARIABLE)
    if url is not None and not url.strip():
        raise InvalidArgumentError(
            f"the environment variable {VARIABLE} is set but empty; set it to a URL like {EXAMPLE}, or unset it"
        )
    return url


def scheme_of(url: object) -> str:
    """Return the scheme of a URL, in lower case.

    Raises:
        InvalidArgumentError: The text isn't a URL; the message shows no part of it.
    """
    if not isinstance(url, str):
        raise InvalidArgumentError(f"the URL of a backend must be text like {EXAMPLE}, not {type(url).__name__}")
    scheme, separator, _ = url.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        subject = "this text" if url.strip() else "an empty text"
        raise InvalidArgumentError(
            f"{subject} is not the URL of a backend, which begins with a scheme and ://; write for example {EXAMPLE}"
        )
    return scheme.lower()


def shown(url: str) -> str:
    """Return a URL for messages, without credentials and options; only the scheme of a URL that can't be parsed."""
    for several in (False, True):
        try:
            return split_url(url, several=several).shown
        except InvalidArgumentError:
            pass
    try:
        return f"{scheme_of(url)}://…"
    except InvalidArgumentError:
        return "…"


def split_url(url: str, *, several: bool = False) -> Url:
    """Parse a URL.

    Arguments:
        url: The URL.
        several: Whether it may name several hosts, separated by commas.

    Raises:
        InvalidArgumentError: The text isn't a URL, or is ambiguous; the message shows no credentials.
    """
    scheme = scheme_of(url)
    _, _, rest = url.partition("://")
    hidden = f"{scheme}://…"
    if _UNSAFE.search(rest):
        raise InvalidArgumentError(f"{hidden}: the URL has a space or a control character; percent-encode it")
    credentials, at, location = rest.rpartition("@")
    if at and _has_other_reading(credentials, several=several):
        raise InvalidArgumentError(
            f"{hidden}: the URL has an @ after a / ? or #, so the end of its password is ambiguous. Percent-encode "
            "the password, and any @ in a path or an option: @ is %40, / is %2F, ? is %3F, # is %23"
        )
    location, fragment, _ = location.partition("#")
    before, _, query = location.partition("?")
    authority, slash, path = before.partition("/")
    addresses = [_HOST.fullmatch(each) for each in (authority.split(",") if several else [authority])]
    if None in addresses:
        form = "HOST:PORT, or several of them with commas between" if several else "HOST or HOST:PORT"
        raise InvalidArgumentError(f"{hidden}: what follows {scheme}:// or the last @ must be {form}")
    hosts = [Host(_decoded(each["host"].strip("[]")) or "", _port(each["port"], hidden)) for each in addresses if each]
    if fragment:
        raise InvalidArgumentError(f"{hidden}: the URL has a fragment (#…), which has no meaning; write # as %23")
    parts = [_decoded(each) for each in (authority, slash + path)]
    username, colon, password = credentials.partition(":")
    secrets = [_decoded(username), _decoded(password)]
    options = [(_decoded(name), _decoded(value)) for name, value in _pairs(query)]
    if None in (*parts, *secrets, *(each for pair in options for each in pair)):
        raise InvalidArgumentError(f"{hidden}: the URL has a percent-encoding (%XX) that is not UTF-8 text")
    names = [str(name) for name, _ in options]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidArgumentError(f"{scheme}://{before}: the option {twice[0]!r} is given more than once")
    return Url(
        scheme=scheme,
        username=secrets[0] or None,
        password=secrets[1] if colon and secrets[1] else None,
        host=hosts[0].name,
        port=hosts[0].port,
        path=str(parts[1]),
        options={str(name): str(value) for name, value in options},
        shown=f"{scheme}://{before}",
        hosts=hosts,
    )


def with_options(url: str, options: Mapping[str, object]) -> str:
    """Return a URL with further options, for a backend that takes none but by its URL.

    Raises:
        InvalidArgumentError: An option is given in the URL already, or its value is no text, number or flag.
    """
    credentials, at, location = url.rpartition("@")
    before, separator, query = location.partition("?")
    before = credentials + at + before
    given = {_decoded(name) for name, _ in _pairs(query)}
    parts = [query] if query else []
    for name, value in options.items():
        if name in given:
            raise InvalidArgumentError(f"{shown(url)}: {name} is given in the URL and as a keyword; give it once")
        if not isinstance(value, str | int | float):
            raise InvalidArgumentError(
                f"{shown(url)}: the backend takes its options from the URL only, and {name} can't be in one: it is "
                f"{type(value).__name__}, not text, a number or a flag"
            )
        text = str(value).lower() if isinstance(value, bool) else str(value)
        parts.append(f"{quote(name, safe='')}={quote(text, safe='')}")
    return f"{before}?{'&'.join(parts)}" if parts else before + separator


def check_options(url: Url, known: Iterable[str]) -> None:
    """Raise `InvalidArgumentError` if the URL has an option that is not among the ``known`` ones."""
    allowed = sorted(known)
    if unknown := sorted(set(url.options) - set(allowed)):
        raise InvalidArgumentError(
            f"{url.shown}: unknown option(s) {', '.join(map(repr, unknown))}; known are {', '.join(allowed)}"
        )


def _has_other_reading(credentials: str, *, several: bool) -> bool:
    """Tell whether the authority may also end before the last ``@``: at the first ``/``, ``?`` or ``#``."""
    authority, *others = re.split("[/?#]", credentials, maxsplit=1)
    address = authority.rpartition("@")[2]
    return bool(others) and all(_HOST.fullmatch(each) for each in (address.split(",") if several else [address]))


def _port(text: str | None, hidden: str) -> int | None:
    if not text:
        return None
    if len(text) > len("65535") or not 0 < int(text) <= 65535:  # noqa: PLR2004 - of TCP
        raise InvalidArgumentError(f"{hidden}: the port must be a number from 1 to 65535")
    return int(text)


def _pairs(query: str) -> list[tuple[str, str]]:
    parts = [each.partition("=") for each in query.split("&") if each]
    return [(name, value.replace("+", " ")) for name, _, value in parts]


def _decoded(text: str) -> str | None:
    """Return a text without its percent-encoding; None if that is not UTF-8, since the error would quote the bytes."""
    try:
        decoded = unquote(text, errors="strict")
        decoded.encode()
    except UnicodeError:
        return None
    return decoded
