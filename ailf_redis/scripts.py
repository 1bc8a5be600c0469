"""The Lua scripts: one file per transition. A script is sent by its hash, and by its text if the server lacks it.

Functions that several transitions share are files of ``lua/shared``, whose texts are put before the script's.
"""

import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, TypeVar

import attrs

from ailf_redis.connection.executor import Executor
from ailf_redis.errors import MISREAD, ScriptMissingError, mapped, misread
from ailf_redis.replies import as_flags

__all__ = [
    "ACQUIRE",
    "ADD",
    "BREAK",
    "CANCEL",
    "CONSUMERS",
    "DECIDE",
    "DECLARE",
    "DELETE",
    "DELETE_GROUP",
    "EXTEND",
    "EXTEND_LOCK",
    "EXTEND_SLOTS",
    "FETCH",
    "GROUPS",
    "HAND_OVER",
    "HEARTBEAT",
    "INFO",
    "INSPECT",
    "LEAVE",
    "OBSERVE",
    "OPEN_GROUP",
    "PAUSE",
    "RELEASE",
    "RESET",
    "SEEK",
    "SETTLE",
    "SETTLE_CHARGES",
    "SIZES",
    "STREAM_INFO",
    "TAKE_DEAD_LETTERS",
    "TRIM",
    "Script",
]


T = TypeVar("T")


@attrs.frozen
class Script:
    """One script.

    Attributes:
        name: The file's path within the folder ``lua``, without its suffix.
        text: The text that the server runs.
        sha: The SHA-1 hash of the text.
    """

    name: str
    text: str
    sha: str

    async def run(
        self, executor: Executor, keys: Sequence[str], arguments: Sequence[Any], read: Callable[[Any], T], page: int = 0
    ) -> T:
        """Run the script in one round trip, or in two if the server lacks it.

        A missing script did nothing, so sending the text then is safe for every transition.

        Arguments:
            executor: Sends the script.
            keys: The script's keys.
            arguments: The script's arguments.
            read: Converts the reply.
            page: The most entries of a stream that the reply may hold.

        Raises:
            ProtocolError: The reply has a shape that `read` can't convert.
        """
        rest = (str(len(keys)), *keys, *arguments)
        try:
            reply = await executor.call_page(page, "EVALSHA", self.sha, *rest)
        except ScriptMissingError:
            reply = await executor.call_page(page, "EVAL", self.text, *rest)
        try:
            return read(reply)
        except MISREAD as error:
            raise misread(error, executor.where) from error

    async def run_many(
        self, executor: Executor, requests: Sequence[tuple[Sequence[str | bytes], Sequence[Any]]]
    ) -> list[Any]:
        """Run the script once for each request, in one write; an error that one request gets is its result."""
        rests = [(str(len(keys)), *keys, *arguments) for keys, arguments in requests]
        replies = await executor.call_many([("EVALSHA", self.sha, *rest) for rest in rests])
        results = [_as_result(reply, executor) for reply in replies]
        missing = [at for at, result in enumerate(results) if isinstance(result, ScriptMissingError)]
        if missing:
            second = await executor.call_many([("EVAL", self.text, *rests[at]) for at in missing])
            for at, reply in zip(missing, second, strict=True):
                results[at] = _as_result(reply, executor)
        return results

    async def run_together(
        self, executor: Executor, requests: Sequence[tuple[Sequence[str], Sequence[Any]]]
    ) -> list[bool]:
        """Run the script once with the keys and arguments of all requests, one after another; return a flag for each.

        In a cluster it runs once for each slot. The keys of one request must have the same slot.

        Raises:
            BackendError: It could not be run for all requests; it may have run for some.
        """
        shares = executor.group_by_slot([keys[0] for keys, _ in requests])
        joined = [_joined([requests[at] for at in share]) for share in shares]
        if len(joined) == 1:
            replies: list[Any] = [await self.run(executor, *joined[0], read=as_flags)]
        else:
            replies = await self.run_many(executor, joined)
        flags = [False] * len(requests)
        for share, reply in zip(shares, replies, strict=True):
            if isinstance(reply, Exception):
                raise reply
            try:
                for at, each in zip(share, reply, strict=True):
                    flags[at] = int(each) != 0
            except MISREAD as error:
                raise misread(error, executor.where) from error
        return flags


def _joined(requests: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> tuple[list[str], list[Any]]:
    """Return the keys of all requests, and the arguments of all requests, one after another."""
    return [key for keys, _ in requests for key in keys], [each for _, arguments in requests for each in arguments]


def _as_result(reply: Any, executor: Executor) -> Any:
    """Return a reply; an error reply as ailf's error."""
    return mapped(reply, executor.where, sent=True) if isinstance(reply, Exception) else reply


def _load(name: str, *parts: str) -> Script:
    """Load a script from the folder ``lua``, with the shared `parts` before it."""
    paths = [part if "/" in part else f"shared/{part}" for part in (*parts, name)]
    texts = [files("ailf_redis").joinpath("lua", f"{path}.lua").read_text("utf-8") for path in paths]
    text = "\n".join(texts)
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


ADD = _load("stream/add", "clock", "ids", "lane", "bell", "entry_removed", "retention")
TRIM = _load("stream/trim", "clock", "ids", "lane", "bell", "entry_removed", "retention")
CANCEL = _load("stream/cancel", "clock", "ids", "lane", "bell", "entry_removed")
DECLARE = _load("stream/declare")
DELETE = _load("stream/delete")
SIZES = _load("stream/sizes", "ids")
GROUPS = _load("stream/groups")
STREAM_INFO = _load("stream/stream_info")

_GROUP = ("clock", "relief", "ids", "lane", "bell", "group")
FETCH = _load("stream/fetch", *_GROUP, "release", "reset", "watch")
HAND_OVER = _load("stream/hand_over", *_GROUP, "watch")
SETTLE = _load("stream/settle", *_GROUP)
EXTEND = _load("stream/extend", *_GROUP)
HEARTBEAT = _load("stream/heartbeat", *_GROUP)
LEAVE = _load("stream/leave", *_GROUP, "release", "reset")
SEEK = _load("stream/seek", *_GROUP, "reset")
OPEN_GROUP = _load("stream/open_group", *_GROUP, "reset")
PAUSE = _load("stream/pause", *_GROUP)
INFO = _load("stream/info", "clock", "ids", "lane", "bell", "group")
INSPECT_MESSAGE = _load("stream/inspect", "clock", "ids", "lane", "bell", "group")
CONSUMERS = _load("stream/consumers", "clock", "ids", "lane", "bell", "group")
TAKE_DEAD_LETTERS = _load("stream/take_dead_letters", "clock", "ids", "lane", "bell", "group")
DELETE_GROUP = _load("stream/delete_group", *_GROUP, "reset")

ACQUIRE = _load("lock/acquire", "clock", "wait_queue", "lock")
EXTEND_LOCK = _load("lock/extend", "clock", "wait_queue", "lock")
RELEASE = _load("lock/release", "clock", "wait_queue", "lock")
INSPECT = _load("lock/inspect", "clock", "wait_queue", "lock")
BREAK = _load("lock/break", "clock", "wait_queue", "lock")

_LIMITS = (
    "wait_queue",
    "limit",
    "ratelimit/token_bucket",
    "ratelimit/fixed_window",
    "ratelimit/sliding_window",
    "ratelimit/concurrency",
)
DECIDE = _load("ratelimit/decide", "clock", "ratelimit/take", *_LIMITS)
SETTLE_CHARGES = _load("ratelimit/settle", "relief", "clock", *_LIMITS)
OBSERVE = _load("ratelimit/observe", "relief", "clock", *_LIMITS)
RESET = _load("ratelimit/reset", "clock", "wait_queue")
EXTEND_SLOTS = _load("ratelimit/extend", "clock")
