"""The effort of the tests: the same few minutes for every change; with AILF_CAMPAIGN=1 far longer, at random."""

import os
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from hypothesis import settings

__all__ = ["CAMPAIGN", "NEWEST", "SLOW", "THOROUGH", "TRIES", "Tell", "examples", "some_of"]

CAMPAIGN = os.environ.get("AILF_CAMPAIGN") == "1"

THOROUGH = CAMPAIGN or os.environ.get("AILF_TEST_ALL") == "1"
"""Whether all runs: both flavours of the contract on each server, and of each planted bug; and what is `NEWEST`."""

NEWEST = pytest.mark.newest_server
"""Marks tests that take long, and that an older server hardly changes: an ordinary run has them on the newest one."""

SLOW = pytest.mark.timeout(7200 if CAMPAIGN else 300)
"""Marks tests that are slow on a busy machine."""


def some_of(chosen: int, values: list[Any]) -> list[Any]:
    """Return the first values of a slow test's parameter; all of them if `THOROUGH`."""
    return values if THOROUGH else values[:chosen]


Tell: TypeAlias = Callable[[str], None]
"""The type of the fixture `tell`, which prints a line of figures at the end of the run."""

TRIES = 3
"""How often a planted bug is tried: a busy machine may hide a bug that shows only in a race."""


def examples(number: int, **options: Any) -> settings:
    """Return hypothesis settings: `number` examples; in a campaign forty times as many."""
    return settings(max_examples=number * (40 if CAMPAIGN else 1), **options)
