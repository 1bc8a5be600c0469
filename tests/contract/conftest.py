"""The contract on ailf's own backends. AILF_TEST_EAGER=memory makes tasks on memory eager, from Python 3.12 on."""

import asyncio
import os
from typing import Any

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
    """Deselect what a backend can't run and, where there are several servers, the tests of one flavour on each.

    Both flavours run the same driver and scripts, so a server's version doesn't change one of them alone: they take
    turns. `make test-all` runs both on every server, and so does a selection of servers, as in `make test-newer`.
    """
    fixtures.pytest_collection_modifyitems(config, items)
    versions = list(binaries.found())
    if THOROUGH or binaries.selection() or len(versions) == 1:
        return
    flavour = {version: fixtures.FLAVOURS[number % 2] for number, version in enumerate(versions)}
    fixtures.deselect(config, items, [each for each in items if _is_of_other_flavour(each, flavour)])


def _is_of_other_flavour(item: pytest.Item, flavour: dict[str, str]) -> bool:
    """Tell whether a test, which has both flavours, runs on a server in the flavour that is left out there."""
    if not isinstance(item, pytest.Function) or item.path.name != "test_redis.py" or not hasattr(item, "callspec"):
        return False
    params: dict[str, Any] = item.callspec.params
    wanted = flavour.get(params.get("server", ""))
    return wanted is not None and not hasattr(item.function, "flavours") and params.get("world") != wanted
