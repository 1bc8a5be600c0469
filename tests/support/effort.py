"""How hard the tests try: for every change the same few minutes, with AILF_CAMPAIGN=1 far longer and at random."""

import os
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from hypothesis import settings

__all__ = ["CAMPAIGN", "SLOW", "TRIES", "Tell", "examples"]

CAMPAIGN = os.environ.get("AILF_CAMPAIGN") == "1"

SLOW = pytest.mark.timeout(7200 if CAMPAIGN else 300)
"""Marks what a busy machine plays slowly."""


Tell: TypeAlias = Callable[[str], None]
"""What the fixture `tell` is: prints a line of figures at the end of the run."""

TRIES = 3
"""How often what is broken on purpose may slip through: what shows in a race only, a busy machine may hide for once."""


def examples(number: int, **options: Any) -> settings:
    """Return how hypothesis tries: so many examples, always the same ones; in a campaign twenty times as many others.

    So it is a change that turns an ordinary run red, and a campaign that finds what nobody has thought of.
    """
    return settings(max_examples=number * (20 if CAMPAIGN else 1), derandomize=not CAMPAIGN, deadline=None, **options)
