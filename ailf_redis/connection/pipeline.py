"""Pipelining of requests that don't depend on each other: the next commands of all of them are sent in one write.

A request is a coroutine that waits for nothing but its commands. `PipelineExecutor` hands these to `run_pipelined`,
which sends them over another executor. So requests of several commands, or whose script the server lacks, take as many
round trips together as the longest of them alone.
"""

from collections.abc import Coroutine, Generator, Sequence
from typing import Any, NoReturn, TypeVar

from ailf_redis.connection.executor import Executor, Link
from ailf_redis.connection.resp import Command

__all__ = ["PipelineExecutor", "run_pipelined"]

T = TypeVar("T")


class _Commands:
    """The commands for which a request waits, and the most entries of a stream that each reply may hold."""

    __slots__ = ("commands", "entries")

    def __init__(self, commands: Sequence[Command], entries: int) -> None:
        self.commands = commands
        self.entries = entries

    def __await__(self) -> Generator["_Commands", list[Any], list[Any]]:
        return (yield self)


class PipelineExecutor(Executor):
    """The executor of requests that `run_pipelined` makes.

    Arguments:
        executor: Sends the commands.
    """

    def __init__(self, executor: Executor) -> None:
        super().__init__(executor.settings)
        self.where = executor.where
        self.group_by_slot = executor.group_by_slot  # type: ignore[method-assign]  # it is the same

    async def call_many(self, commands: Sequence[Command], entries: int = 0) -> list[Any]:
        return await _Commands(commands, entries)

    async def link(self, near: str | None = None) -> Link:  # noqa: ARG002 - there is none, near no key
        return _refuse()

    async def close(self) -> None:
        _refuse()


def _refuse() -> NoReturn:
    raise NotImplementedError("a pipeline has no connections of its own")


async def run_pipelined(executor: Executor, requests: Sequence[Coroutine[Any, Any, T]]) -> list[T | Exception]:
    """Run requests over a `PipelineExecutor`; return for each its result, or the error that it raised.

    Arguments:
        executor: Sends the commands.
        requests: The requests.
    """
    results: dict[int, Any] = {}
    replies: dict[int, Any] = dict.fromkeys(range(len(requests)))
    try:
        while True:
            steps = {at: _resume(requests, at, reply, results) for at, reply in replies.items()}
            sent = {at: step for at, step in steps.items() if step is not None}
            if not sent:
                return [results[at] for at in range(len(requests))]
            commands = [command for each in sent.values() for command in each.commands]
            try:
                arrived = iter(await executor.call_many(commands, max(each.entries for each in sent.values())))
            except Exception as error:  # noqa: BLE001 - it is that of each of these requests
                replies = dict.fromkeys(sent, error)
            else:
                replies = {at: [next(arrived) for _ in each.commands] for at, each in sent.items()}
    finally:
        for each in requests:
            each.close()


def _resume(
    requests: Sequence[Coroutine[Any, Any, Any]], at: int, reply: Any, results: dict[int, Any]
) -> _Commands | None:
    """Run a request until it sends its next commands, and return these; None if it has ended."""
    try:
        sent = requests[at].throw(reply) if isinstance(reply, Exception) else requests[at].send(reply)
    except StopIteration as ended:
        results[at] = ended.value
        return None
    except Exception as error:  # noqa: BLE001 - it is the result
        results[at] = error
        return None
    assert isinstance(sent, _Commands), "a request waits for its commands only"  # noqa: S101 - for mypy
    return sent
