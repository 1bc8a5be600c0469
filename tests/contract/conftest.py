"""The contract on ailf's own backends. AILF_TEST_EAGER=memory makes tasks on memory eager, from Python 3.12 on."""

import asyncio
import os
from typing import Any
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what a backend can't run and, where the flavours take turns, the tests of one of them.

    Both flavours run the same core, driver and scripts, so the version of a server, or what stands between the core and
    its memory, doesn't change one of them alone. On each server all tests run in one flavour; on a fake server, with
    faults, and in partitions each test runs in one. `make test-all` and a selection of servers run all in both.
    """
    fixtures.pytest_collection_modifyitems(config, items)
    versions = list(binaries.found())
    if THOROUGH or binaries.selection() or len(versions) == 1:
        return
    flavour = {version: fixtures.FLAVOURS[number % 2] for number, version in enumerate(versions)}
    fixtures.deselect(config, items, [each for each in items if _is_of_other_flavour(each, flavour)])


BY_TURNS = frozenset({"test_fake.py", "test_faults.py", "test_partitions_memory.py"})
"""Files whose tests run in one flavour each."""


def _is_of_other_flavour(item: pytest.Item, flavour: dict[str, str]) -> bool:
    """Tell whether a test, which has both flavours, has the one that is left out."""
    params: dict[str, Any] = (
        item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    )
    if "world" not in params or hasattr(item.function, "flavours"):
        return False
    if item.path.name in BY_TURNS:
        return params["world"] != fixtures.FLAVOURS[crc32(item.function.__name__.encode()) % 2]
    return item.path.name == "test_redis.py" and params["world"] != flavour[params["server"]]
