"""The contract on a backend with a fault script that is empty: the kit's driver adds nothing of its own."""

import ailf
from ailf.testing import Faults
from contract_tests.backend.test_backend import *  # noqa: F403 - every test of the suite
from contract_tests.backend.test_cancel import *  # noqa: F403
from contract_tests.backend.test_close import *  # noqa: F403
from contract_tests.backend.test_flavours import *  # noqa: F403
from contract_tests.listing.test_listing import *  # noqa: F403
from contract_tests.lock.test_lock_waiting import *  # noqa: F403
from contract_tests.pubsub.test_request import *  # noqa: F403
from contract_tests.ratelimit.test_ratelimit_waiting import *  # noqa: F403
from contract_tests.stream.test_partitions import *  # noqa: F403
from contract_tests.stream.test_until_idle import *  # noqa: F403
from contract_tests.stream.test_worker import *  # noqa: F403
from tests.contract.harnesses import MemoryHarness


class FaultsHarness(MemoryHarness):
    """The memory backend behind a fault script."""

    def connect(self) -> ailf.Backend:
        """Open a blocking backend."""
        backend = super().connect()
        Faults(backend)
        return backend

    def connect_async(self) -> ailf.AsyncBackend:
        """Open an asyncio backend."""
        backend = super().connect_async()
        Faults(backend)
        return backend


HARNESS = FaultsHarness
