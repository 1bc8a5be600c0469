"""The Lua scripts: one file per transition, sent by hash, with the text where the server doesn't know it."""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import attrs

from ailf_redis.connection import Executor
from ailf_redis.errors import ScriptMissingError

__all__ = ["DELETE", "EXTEND", "FETCH", "LEAVE", "SETTLE", "Script"]


@attrs.frozen
class Script:
    """One script.

    Attributes:
        name: The file's name.
        text: What the server runs.
        sha: By which the server knows it.
    """

    name: str
    text: str
    sha: str

    async def run(self, executor: Executor, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run it in one round trip; in two where the server has to learn it first.

        A script that is missing did nothing, so sending the text instead is safe for every transition.
        """
        rest = (len(keys), *keys, *arguments)
        try:
            return await executor.call("EVALSHA", self.sha, *rest)
        except ScriptMissingError:
            return await executor.call("EVAL", self.text, *rest)


def _load(name: str) -> Script:
    text = files("ailf_redis").joinpath("lua", f"{name}.lua").read_text("utf-8")
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


FETCH = _load("fetch")
SETTLE = _load("settle")
EXTEND = _load("extend")
LEAVE = _load("leave")
DELETE = _load("delete")
