"""Errors of ids: a driver knows the id only, so the flow adds what was asked of which stream or group."""

import contextlib
from collections.abc import Iterator

from ailf.errors import InvalidArgumentError

__all__ = ["naming"]


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Let an `InvalidArgumentError` begin with what was asked, such as "read stream 'tasks'"."""
    try:
        yield
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{what}: {error}") from error
