"""The contract of streams over streams with partitions, for a module that runs it.

All messages of a test go to one partition, so that the order of a whole stream holds: the wrapper has to do all else
that an ordinary stream does. What partitions are for is in `contract_tests.stream.test_partitions`.
"""

import functools
from typing import Any

import pytest

from ailf.runtime import ThreadRuntime
from ailf.stream.partitions import Partitions
from contract_tests.helpers.unmanaged_consumer import UnmanagedConsumer
from contract_tests.stream.test_batches import *  # noqa: F403
from contract_tests.stream.test_current import *  # noqa: F403
from contract_tests.stream.test_dead_letters import *  # noqa: F403
from contract_tests.stream.test_delivery import *  # noqa: F403
from contract_tests.stream.test_events import *  # noqa: F403
from contract_tests.stream.test_info import *  # noqa: F403
from contract_tests.stream.test_inspect import *  # noqa: F403
from contract_tests.stream.test_ordering import *  # noqa: F403
from contract_tests.stream.test_origins import *  # noqa: F403
from contract_tests.stream.test_positions import *  # noqa: F403
from contract_tests.stream.test_retention import *  # noqa: F403
from contract_tests.stream.test_scheduling import *  # noqa: F403
from contract_tests.stream.test_stream import *  # noqa: F403
from contract_tests.stream.test_takeover import *  # noqa: F403
from contract_tests.stream.test_until_idle import *  # noqa: F403
from contract_tests.stream.test_waiting import *  # noqa: F403
from contract_tests.stream.test_worker import *  # noqa: F403
from tests.support.one_partition import NUMBER, ONE, OnePartitionDriver

# A change of the whole group wakes a fetch for each partition.
del test_a_resume_wakes_one, test_a_message_that_comes_back_wakes_one  # noqa: F821 - imported above
# Their other processes use an ordinary stream.
del test_a_dead_process, test_signals  # noqa: F821 - imported above


class PartitionedHarness:
    """A mixin for harnesses: every stream of their backends has partitions."""

    def connect(self) -> Any:
        """Open a blocking backend."""
        return with_partitions(super().connect())  # type: ignore[misc]  # a harness's

    def connect_async(self) -> Any:
        """Open an asyncio backend."""
        return with_partitions(super().connect_async())  # type: ignore[misc]  # as above

    async def add_broken(self, stream: str) -> None:
        """Add an entry to the partition."""
        await super().add_broken(f"{stream}/{ONE}")  # type: ignore[misc]  # as above


def with_partitions(backend: Any) -> Any:
    """Let each stream of a backend have partitions."""
    backend.stream = functools.partial(backend.stream, partitions=NUMBER)
    return backend


@pytest.fixture(autouse=True)
def one_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all messages go to one partition, and unmanaged consumers be those of a partitioned stream."""
    monkeypatch.setattr(Partitions, "of_key", lambda _self, _key: ONE)
    make = UnmanagedConsumer.__init__

    def init(self: Any, backend: Any, stream: str, *args: Any, **options: Any) -> None:
        make(self, backend, stream, *args, **options)
        self._driver = OnePartitionDriver(self._driver, stream, ThreadRuntime())

    monkeypatch.setattr(UnmanagedConsumer, "__init__", init)
