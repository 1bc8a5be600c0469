"""The contract on ailf's own backends. With AILF_TEST_EAGER=1 tasks are eager, from Python 3.12 on."""

import asyncio
import os

from contract_tests.conftest import *  # noqa: F403 - the contract's fixtures
from contract_tests.harness import Harness

if os.environ.get("AILF_TEST_EAGER"):
    Harness.task_factory = staticmethod(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - Python 3.11 has none
