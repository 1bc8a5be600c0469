"""The contract on ailf's own backends. AILF_TEST_EAGER=memory makes tasks on memory eager, from Python 3.12 on."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from zlib import crc32

import pytest

from contract_tests import fixtures
from contract_tests.conftest import *  # noqa: F403 - the contract's fixtures
from tests.contract.harnesses import MemoryHarness, RedisHarness
from tests.support import binaries
from tests.support.effort import THOROUGH

if eager := os.environ.get("AILF_TEST_EAGER"):
    harness = {"memory": MemoryHarness, "redis": RedisHarness}[eager]
    harness.task_factory = staticmethod(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - Python 3.11 has none


BY_TURNS = frozenset(f"test_{each}.py" for each in ("cluster", "fake", "faults", "partitions_memory", "user_client"))
"""Files whose tests run in one flavour each."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what a backend can't run, and what is tested elsewhere.

    Both flavours run the same core, driver and scripts, so the version of a server, or what stands between the core and
    its memory, doesn't change one of them alone. On the newest server all tests run on threads. On asyncio each runs on
    one of the older servers, and `make test-newer` runs it on the newest. With faults, in partitions, on a cluster, a
    fake server and a user's client each test runs in one flavour. `make test-all` and a selection of servers run all.
    """
    fixtures.pytest_collection_modifyitems(config, items)
    versions = list(binaries.found())
    if not (THOROUGH or binaries.selection() or len(versions) == 1):
        fixtures.deselect(config, items, [each for each in items if _is_left_out(each, versions)])


def _is_left_out(item: pytest.Item, versions: Sequence[str]) -> bool:
    params: Mapping[str, object] = getattr(getattr(item, "callspec", None), "params", {})
    if not isinstance(item, pytest.Function) or "world" not in params:
        return False
    turn = crc32(item.function.__name__.encode())
    server, flavour = params.get("server"), params["world"]
    has_both = not hasattr(item.function, "flavours")
    if item.path.name in BY_TURNS:
        return has_both and flavour != fixtures.FLAVOURS[turn % 2]
    if item.path.name != "test_redis.py":
        return False
    *older, newest = versions
    if server == newest:
        return has_both and flavour != "blocking"
    return server != older[turn % len(older)] or (has_both and flavour != "asyncio")
