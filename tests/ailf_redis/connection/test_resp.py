"""Requests are packed as bytes: every argument is text first, and an argument without a text is never sent."""

from collections.abc import Callable, Coroutine
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from ailf.runtime import run
from ailf_redis.connection.aio import AsyncioExecutor
from ailf_redis.connection.blocking import BlockingExecutor
from ailf_redis.connection.resp import packed
from ailf_redis.settings import Settings


class Signalled(Exception):  # noqa: N818 - it stands for KeyboardInterrupt, at which pytest itself would end
    """The exception that a signal handler raises."""


class Interrupted(int):
    """A number whose conversion to text is interrupted by a signal."""

    def __repr__(self) -> str:
        raise Signalled

    __str__ = __repr__


def test_ctrl_c_while_a_number_is_packed() -> None:
    """B8: hiredis never gets a number, because it would crash the process if a signal handler raises."""
    assert packed([("A", 1, 0.5, True, b"b", bytearray(b"c"))]) == (
        b"*6\r\n$1\r\nA\r\n$1\r\n1\r\n$3\r\n0.5\r\n$4\r\nTrue\r\n$1\r\nb\r\n$1\r\nc\r\n"
    )
    executors: list[Any] = [BlockingExecutor(Settings()), AsyncioExecutor(Settings())]
    executors[1]._connection = SimpleNamespace(is_ready=lambda: True, request=None)
    calls: list[Callable[[], Any]] = [
        lambda: packed([("A", Interrupted())]),
        lambda: packed([("A",), ("A", Interrupted())]),
        *(partial(_call, executor, "A", Interrupted()) for executor in executors),
    ]
    for call in calls:
        with pytest.raises(Signalled):
            call()


def _call(executor: Any, *command: Any) -> Any:
    """Return the result of a call, on threads run to its end."""
    result = executor.call(*command)
    return run(result) if isinstance(result, Coroutine) else result


@pytest.mark.parametrize("command", [("A", None), ("A", object())])
def test_what_is_no_argument(command: tuple[object, ...]) -> None:
    """An argument without a text is an error, and is never sent."""
    with pytest.raises(TypeError):
        packed([command])
